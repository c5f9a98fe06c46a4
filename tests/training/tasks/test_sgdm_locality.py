"""Whether a change of the map acts where it is."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline.models.bundle import load_bundle
from tests.training import sgdm_for_tests
from tests.training.sgdm_for_tests import know, presets, write_prior
from training.data.sources import load_training_file
from training.loop.batches import Draw
from training.tasks import sgdm_locality
from training.tasks.sgdm import MapGuidance
from training.tasks.sgdm_locality import ASKED, change, exchanged, spread


def test_maps_are_exchanged_everywhere_or_in_a_rectangle():
    of_map = torch.arange(3.0)[:, None, None, None].expand(3, 2, 16, 24).contiguous()
    before, shares = of_map.clone(), []
    rng = np.random.default_rng(3)
    for _ in range(100):
        found = exchanged(of_map, rng)
        for number in range(3):
            other = found[number] != of_map[number]
            assert (found[number][other] == (number - 1) % 3).all()
            rows, cols = other.any(0).any(1), other.any(0).any(0)
            assert torch.equal(other, (rows[:, None] & cols).expand(2, -1, -1))
            shares.append(float(other.float().mean()))
    assert torch.equal(of_map, before)
    whole = np.array(shares) == 1
    assert 0.4 < whole.mean() < 0.6
    rest = np.array(shares)[~whole]
    assert rest.min() >= 0.05
    assert rest.max() <= 0.6
    assert len(set(rest)) > 10


def test_the_change_is_weighted_by_the_share_of_latent_pixels():
    one, other = torch.zeros(1, 2, 2, 2), torch.tensor([[[3.0, 1.0], [2.0, 0.0]]]).expand(1, 2, 2, 2)
    differs = torch.zeros(1, 8, 8, dtype=torch.bool)
    differs[:, :4, :4] = True  # one latent pixel whole,
    differs[:, :4, 4:6] = True  # one by half
    inside, outside = change(one, other, differs)
    assert inside.tolist() == pytest.approx([(9 + 0.5 * 1) / 1.5])
    assert outside.tolist() == pytest.approx([(0.5 * 1 + 4 + 0) / 2.5])


def test_only_what_spreads_too_far_counts_however_strong_it_is():
    differs = torch.zeros(1, 4, 4, dtype=torch.bool)
    differs[:, :, :2] = True
    one, made = torch.zeros(1, 1, 4, 4), []
    for strength in (0.01, 1.0):
        far = torch.where(differs, strength, 0.5 * strength)[:, None]
        near = torch.where(differs, strength, 0.9 * math.sqrt(ASKED) * strength)[:, None]
        assert float(spread(one, far, differs)) == pytest.approx(math.log(0.25 / ASKED), abs=1e-4)
        assert float(spread(one, near, differs)) == 0
        made += [far, near]
    # every image counts the same; those whose map differs everywhere or nowhere do not count
    batch = torch.cat([*made, far, far])
    which = torch.cat([*[differs] * 4, torch.ones_like(differs), torch.zeros_like(differs)])
    expected = 2 * math.log(0.25 / ASKED) / 4
    assert float(spread(torch.zeros_like(batch), batch, which)) == pytest.approx(expected, abs=1e-4)
    assert float(spread(one, far, torch.ones_like(differs))) == 0


@pytest.mark.slow
def test_training_keeps_the_change_where_the_map_changes(tmp_path, monkeypatch):
    """Of the spread alone: it falls within a few steps, on batches that they have not seen."""
    know(monkeypatch)
    data = load_training_file(sgdm_for_tests.images(tmp_path), output_gsd_m=1.25, scale=8)
    monkeypatch.setattr(sgdm_locality, "ASKED", 1e-6)
    torch.manual_seed(0)
    preset = presets()["sgdm-plus"]
    task = MapGuidance(replace(preset, recipe={**preset.recipe, "local": 1.0, "exchanged": 1.0, "no_map": 0.0}), data)
    task.begin_from(load_bundle(write_prior(tmp_path)))
    task.network.requires_grad_(True).train()
    optimiser = torch.optim.Adam([one for one in task.network.parameters() if one.requires_grad], 3e-3)

    def parts(step):
        ((_, objective),) = task.turns(task.preset.stages[0], task.batch(Draw.seeded(7, step)), Draw.seeded(8, step))
        return objective

    def measured():
        with torch.no_grad():
            return np.mean([float(parts(step).parts["spread"]) for step in (100, 101)])

    before = measured()
    for step in range(10):
        optimiser.zero_grad()
        parts(step).total.backward()
        optimiser.step()
    assert measured() < before - 0.3
