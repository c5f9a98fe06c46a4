"""Super-resolvers judged: members of every system, stored products, what members say of their error, steps."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline.errors import UsageError
from pipeline.models import difffusr
from pipeline.models.bundle import Bundle
from pipeline.models.lite import LATTICE, NORMALISATION, RGB_BANDS, SYSTEM, LiteNetwork, LiteSuperResolver
from tests.models.small import DIFFFUSR, LITE
from training.data.rasters import Chip
from training.degradation.degrade import Degradation
from training.quality import baselines, judge, opensr, steps
from training.quality.pairs import Pair, held_out_pairs, members, members_mean, noise_of, state_windows
from training.quality.spreads import Pools, of_image
from training.quality.tables import methods_of

HOW = Degradation(noise=0.0)


@pytest.fixture(scope="module")
def lite():
    """An untrained lite super-resolver: bicubic as mean, noise around it."""
    torch.manual_seed(0)
    sampler = {"name": "dpm++2m", "steps": 2}
    bundle = Bundle(SYSTEM, LITE, RGB_BANDS, RGB_BANDS, 4, LATTICE, NORMALISATION, sampler=sampler, digest="a" * 64)
    return LiteSuperResolver(LiteNetwork(**LITE).requires_grad_(False), bundle)


@pytest.fixture(scope="module")
def released():
    """DiffFuSR's networks, scaled down."""
    torch.manual_seed(0)
    bundle = difffusr.difffusr_bundle(DIFFFUSR, sampler={"name": "ddim", "steps": 2, "spacing": "trailing"})
    return difffusr.DiffFuSR(difffusr.Networks(**bundle.architecture), bundle)


def chips(count, side=(64, 64), source="town"):
    rng = np.random.default_rng(0)
    blocks = [rng.uniform(0.2, 0.9, (3, -(-side[0] // 8), -(-side[1] // 8))).astype(np.float32) for _ in range(count)]
    pixels = [np.kron(block, np.ones((1, 8, 8), np.float32))[:, : side[0], : side[1]] for block in blocks]
    return [Chip(source, f"{source}/{i}", 2.5, image, encoded=True) for i, image in enumerate(pixels)]


def test_pairs_are_of_chips_that_show_something_and_are_large_enough():
    flat = Chip("town", "town/flat", 2.5, np.full((3, 64, 64), 0.5, np.float32), encoded=True)
    small = chips(1, (36, 64))
    pairs = held_out_pairs([flat, *small, *chips(3, (70, 65))], HOW, per_set=2)
    assert [(pair.index, pair.place) for pair in pairs] == [(2, "town/0"), (3, "town/1")]
    assert pairs[0].hr.shape == (1, 3, 68, 64)
    assert pairs[0].lr.shape == (1, 3, 17, 16)
    assert float(pairs[0].hr.max()) < 0.8  # harmonised: brightness has become reflectance


def test_members_come_in_antithetic_pairs_that_differ_by_image_and_seed():
    first, second = held_out_pairs(chips(2), HOW)
    noise = [noise_of(first, member) for member in range(4)]
    assert torch.equal(noise[1], -noise[0])
    assert torch.equal(noise[3], -noise[2])
    others = [noise[2], noise_of(second, 0), noise_of(first, 0, seed=1)]
    assert not any(torch.equal(noise[0], other) for other in others)


def test_members_do_not_depend_on_how_many_are_drawn_at_once(lite, monkeypatch):
    pair = held_out_pairs(chips(1), HOW)[0]
    many = members(lite, pair, 3)
    monkeypatch.setattr("training.quality.pairs.BATCH_PX", 1)
    torch.testing.assert_close(members(lite, pair, 3), many)
    torch.testing.assert_close(members(lite, pair, 1)[0], lite.sample(pair.lr, noise_of(pair, 0))[0])
    torch.testing.assert_close(members_mean(lite, pair, 3)[0], many.mean(0))


def test_difffusr_goes_through_predict_on_images_of_any_size(released):
    pair = held_out_pairs(chips(1, (68, 76)), HOW)[0]  # 17 x 19 LR px: its networks need multiples of 8
    found = members(released, pair, 2)
    assert found.shape == (2, 3, 68, 76)
    assert torch.isfinite(found).all()
    assert not torch.equal(found[0], found[1])


def test_windows_of_state_are_mirrored_where_images_are_small():
    lr = torch.arange(12.0).reshape(1, 1, 3, 4).expand(1, 3, 3, 4)
    window = state_windows(lr)
    assert window.shape == (1, 3, 64, 64)
    assert set(window.unique().tolist()) == set(range(12))
    large = torch.rand(1, 3, 80, 70)
    assert torch.equal(state_windows(large), large[..., 8:72, 3:67])


def test_stored_images_keep_block_means(lite):
    pair = held_out_pairs(chips(1), HOW)[0]
    kept = judge.stored(members(lite, pair, 1), pair.lr)
    torch.testing.assert_close(baselines.box(kept), pair.lr, atol=1e-6, rtol=0)


def test_every_method_gets_every_score(lite):
    pairs = held_out_pairs(chips(2), HOW)
    records = judge.judge(judge.Candidate("lite", lite), pairs, HOW, {})
    quality = [record for record in records if record.table == "quality"]
    assert methods_of(quality) == [
        "nearest",
        "bicubic",
        "IBP",
        "IBP, true kernel",
        "lite, regression",
        "lite, one member",
        "lite, mean of 8",
        "lite, one member, stored",
        "lite, mean of 8, stored",
    ]
    assert len(quality) == 2 * 9
    for record in quality:
        assert {"PSNR", *judge.PAIR_METRICS, *opensr.NAMES, "block R2"} == set(record.values)
        assert all(value is not None or name in record.why for name, value in record.values.items())
    by_method = {record.method: record.values for record in quality if record.image == 0}
    assert by_method["nearest"]["block R2"] == pytest.approx(1.0)
    assert by_method["lite, mean of 8, stored"]["block R2"] == pytest.approx(1.0)
    assert by_method["lite, one member"]["gradient"] > by_method["lite, mean of 8"]["gradient"]
    # antithetic noise around a mean that is linear in it: the mean of members is the regression
    assert by_method["lite, mean of 8"]["PSNR"] == pytest.approx(by_method["lite, regression"]["PSNR"], abs=0.5)


def test_a_system_without_regression_has_no_such_row(released):
    pairs = held_out_pairs(chips(1), HOW)
    records = judge.judge(judge.Candidate("difffusr", released), pairs, HOW, {})
    assert "difffusr, one member" in methods_of(records)
    assert "difffusr, regression" not in methods_of(records)


class Known:
    """A super-resolver whose members are the truth plus noise of a spread that varies from place to place."""

    needs_state, scale = False, 4

    def __init__(self, bundle, centre, spread):
        self.bundle, self.centre, self.spread = bundle, centre, spread

    def predict(self, lr, conditions, valid, noise, state):
        return self.centre + self.spread * noise(step=0, channels=3)


def test_spread_is_judged_by_the_error_it_foretells(lite):
    hr = torch.full((1, 3, 64, 64), 0.3)
    spread = 0.002 + 0.05 * torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    wrong = hr + spread * torch.randn(hr.shape, generator=torch.Generator().manual_seed(2))
    pair = Pair("town", 0, hr, baselines.box(hr))
    honest = of_image("x", pair, members(Known(lite.bundle, wrong, spread), pair, 8))
    assert honest.values["spread / error"] == pytest.approx(1.0, abs=0.15)
    assert honest.values["Spearman"] > 0.35
    assert abs(honest.values["neighbours alike, added"]) < 0.05
    timid = members(Known(lite.bundle, wrong, spread / 4), pair, 8)
    assert of_image("x", pair, timid).values["spread / error"] < 0.3
    alone = of_image("x", pair, timid[:1])
    assert set(alone.values.values()) == {None}
    assert alone.why["Spearman"] == "fewer than two members"


def test_pooled_spread_tells_hard_places_from_easy_ones(lite):
    """Two images, each of one spread throughout: within an image it ranks nothing, over both it does."""
    pools, within = Pools(), []
    for seed, deviation in ((1, 0.002), (2, 0.1)):
        hr = torch.full((1, 3, 64, 64), 0.3)
        wrong = hr + deviation * torch.randn(hr.shape, generator=torch.Generator().manual_seed(seed))
        pair = Pair("town", seed, hr, baselines.box(hr))
        drawn = members(Known(lite.bundle, wrong, torch.full_like(hr, deviation)), pair, 8)
        pools.add("x", pair, drawn)
        pools.add("x", pair, drawn[:1])
        within.append(of_image("x", pair, drawn).values["Spearman"])
    (found,) = pools.records()
    assert max(map(abs, within)) < 0.1
    assert found.values["Spearman"] > 0.5


def test_a_candidate_can_be_sampled_in_other_numbers_of_steps(lite, released):
    for name, resolver in (("lite", lite), ("difffusr", released)):
        more = judge.Candidate(name, resolver).with_steps(5)
        assert len(more.resolver.levels) == 5
        assert "5 steps" in more.settings
        assert len(resolver.levels) == 2
    with pytest.raises(UsageError, match="--steps"):
        judge.Candidate("lite", lite).with_steps(500)


def test_steps_are_compared_on_the_same_noise(lite, monkeypatch):
    monkeypatch.setattr(judge, "WINDOW_PX", 64)
    pairs, said = held_out_pairs(chips(2), HOW), []
    found = steps.section(judge.Candidate("lite", lite), pairs, (2, 3), HOW, said.append)
    assert [line.split("|")[1].strip() for line in found.text.splitlines()[4:6]] == ["2", "3"]
    assert "a" * 12 in found.settings
    assert {record.method for record in found.records} == {"2 steps", "3 steps"}
    again = steps.measure(judge.Candidate("lite", lite), pairs, "2 steps")
    assert [record.values for record in again] == [r.values for r in found.records if r.method == "2 steps"]
    other = steps.measure(replace(judge.Candidate("lite", lite), seed=1), pairs, "2 steps")
    assert other[0].values != again[0].values
    assert len(said) == 2
