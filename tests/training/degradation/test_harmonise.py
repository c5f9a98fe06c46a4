"""Harmonisation by eq. 2.1: known blur, map and noise are found again, whatever has changed on the ground."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline.errors import UsageError
from tests.training.pairs_for_tests import ground
from training.degradation.harmonise import Fitted, Harmoniser

TRUE = Harmoniser(
    "power",
    4,
    (
        Fitted("B04", 2.0, 0.002, 0.8, 0.9),
        Fitted("B03", 2.6, 0.004, 1.3, 1.2),
        Fitted("B08", 1.4, 0.001, 1.0, 1.0),
    ),
)


def pairs(of=TRUE, count=3, side=256, changed=0.0):
    """Sharp images and what `of` makes of them; a share of the coarse pixels is of other ground."""
    found = []
    for seed in range(count):
        sharp = ground(seed, side, 3)
        coarse = of.apply(torch.from_numpy(sharp)[None], torch.Generator().manual_seed(seed))[0].numpy()
        edge = round(side / 4 * changed)
        coarse[:, :edge] = coarse[:, :edge][:, ::-1, ::-1] + 0.1
        found.append((sharp, coarse))
    return found


@pytest.mark.parametrize("changed", [0.0, 0.15])
def test_known_blur_map_and_noise_are_found(changed):
    found = Harmoniser.fit(pairs(changed=changed), TRUE.bands)
    for one, true in zip(found.fitted, TRUE.fitted, strict=True):
        assert one.band == true.band
        assert one.eta_px == pytest.approx(true.eta_px, abs=0.1)
        assert one.gain == pytest.approx(true.gain, rel=0.02)
        assert one.exponent == pytest.approx(true.exponent, abs=0.02)
        assert one.epsilon == pytest.approx(true.epsilon, rel=0.15 if changed == 0 else 0.35)


@pytest.mark.parametrize("kind", ["power", "histogram"])
def test_made_images_have_the_statistics_of_the_coarse_ones(kind):
    found = Harmoniser.fit(pairs(), TRUE.bands, kind)
    sharp, coarse = pairs(count=5)[4]  # not fitted on
    made = found.apply(torch.from_numpy(sharp)[None], torch.Generator().manual_seed(9))[0].numpy()
    for band in range(3):
        assert made[band].mean() == pytest.approx(coarse[band].mean(), rel=0.02)
        assert made[band].std() == pytest.approx(coarse[band].std(), rel=0.04)
        steps = [np.diff(image[band], axis=0).std() for image in (made, coarse)]  # what the blur leaves
        assert steps[0] == pytest.approx(steps[1], rel=0.05)


def test_identity_leaves_the_radiometry():
    true = replace(TRUE, kind="identity", fitted=tuple(replace(one, gain=1.0, exponent=1.0) for one in TRUE.fitted))
    found = Harmoniser.fit(pairs(true), TRUE.bands, "identity")
    assert [(one.gain, one.exponent, one.given) for one in found.fitted] == [(1.0, 1.0, ())] * 3
    assert [one.eta_px for one in found.fitted] == pytest.approx([2.0, 2.6, 1.4], abs=0.1)
    hr = torch.rand(2, 3, 16, 16)
    assert torch.allclose(found.sharp(hr), hr)


def test_histograms_map_any_growing_curve():
    x = torch.linspace(0.05, 0.6, 64 * 64).reshape(1, 1, 64, 64)
    one = Fitted("B04", 1.0, 0.0, given=(0.1, 0.3, 0.5), wanted=(0.2, 0.3, 0.7))
    mapped = Harmoniser("histogram", 4, (one,)).sharp(x).flatten()
    at = lambda value: float(mapped[(x.flatten() - value).abs().argmin()])  # noqa: E731
    assert [at(0.1), at(0.2), at(0.4), at(0.6)] == pytest.approx([0.2, 0.25, 0.5, 0.8], abs=1e-3)
    assert (mapped.diff() > 0).all()


def test_pixels_without_a_value_do_not_count():
    given = pairs()
    for sharp, coarse in given:
        sharp[:, 100:140, 40:90] = np.nan
        coarse[:, 50:, 50:] = np.nan
    found = Harmoniser.fit(given, TRUE.bands)
    assert [one.eta_px for one in found.fitted] == pytest.approx([2.0, 2.6, 1.4], abs=0.12)
    with pytest.raises(UsageError, match="0 valid coarse pixels of B04 in 1 pairs; expected at least 256"):
        Harmoniser.fit([(given[0][0], np.full_like(given[0][1], np.nan))], TRUE.bands)


def test_noise_is_drawn_by_the_generator_alone():
    hr = torch.full((1, 3, 64, 64), 0.25)
    one, same, other = (TRUE.apply(hr, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert (one - TRUE.apply(hr)).std((0, 2, 3)).tolist() == pytest.approx([0.002, 0.004, 0.001], rel=0.15)


def test_files_give_back_what_was_written(tmp_path):
    fitted = Harmoniser.fit(pairs(count=1), TRUE.bands, "histogram")
    path = tmp_path / "harmoniser.json"
    path.write_text(json.dumps(fitted.described()))
    assert Harmoniser.read(path) == fitted
    chosen = fitted.of(("B08", "B04"))
    assert chosen.bands == ("B08", "B04")
    with pytest.raises(UsageError, match="a harmoniser of B04, B03, B08; expected one that has B02"):
        fitted.of(("B02", "B03"))
    path.write_text('{"format_version": 1}')
    with pytest.raises(UsageError, match=r"is no readable harmoniser \(KeyError: 'kind'\)"):
        Harmoniser.read(path)
