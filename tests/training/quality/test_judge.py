"""Super-resolvers judged: members of every system, what runs store, what members say of their error, steps."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline.errors import UsageError
from pipeline.models import difffusr
from pipeline.models.bundle import Bundle, save_bundle
from pipeline.models.lite import LATTICE, NORMALISATION, RGB_BANDS, SYSTEM, LiteNetwork
from pipeline.superres.spec import MEMBERS
from pipeline.superres.system import load
from pipeline.superres.weights import choose
from tests.models.small import DIFFFUSR, LITE
from training.data.rasters import Chip
from training.degradation.degrade import Degradation
from training.quality import baselines, judge, opensr, steps
from training.quality.pairs import Pair, held_out_pairs, members, members_mean, noise_of, state_windows
from training.quality.product import Stored
from training.quality.sampler import of_system
from training.quality.spreads import Pools, of_image
from training.quality.tables import methods_of

HOW = Degradation(noise=0.0)


@pytest.fixture(scope="module")
def lite_system(tmp_path_factory):
    """An untrained lite system: bicubic as mean, noise around it."""
    torch.manual_seed(0)
    sampler = {"name": "dpm++2m", "steps": 2}
    bundle = Bundle(SYSTEM, LITE, RGB_BANDS, RGB_BANDS, 4, LATTICE, NORMALISATION, sampler=sampler)
    path = tmp_path_factory.mktemp("lite") / "sr.safetensors"
    save_bundle(path, bundle, LiteNetwork(**LITE).state_dict())
    return load(choose("lite", (str(path),)), "cpu")


@pytest.fixture(scope="module")
def lite(lite_system):
    """Its super-resolver on whole images."""
    return of_system(lite_system)


@pytest.fixture(scope="module")
def released_system(tmp_path_factory):
    """DiffFuSR's networks, scaled down."""
    torch.manual_seed(0)
    bundle = difffusr.difffusr_bundle(DIFFFUSR, sampler={"name": "ddim", "steps": 2, "spacing": "trailing"})
    path = tmp_path_factory.mktemp("difffusr") / "sr.safetensors"
    save_bundle(path, bundle, difffusr.Networks(**bundle.architecture).state_dict())
    return load(choose("difffusr", (str(path),)), "cpu")


@pytest.fixture(scope="module")
def released(released_system):
    """Its super-resolver on whole images."""
    return of_system(released_system)


@pytest.fixture(scope="module")
def plain():
    return load(choose("bicubic"), "cpu")


def chips(count, side=(64, 64), source="town"):
    rng = np.random.default_rng(0)
    blocks = [rng.uniform(0.2, 0.9, (3, -(-side[0] // 8), -(-side[1] // 8))).astype(np.float32) for _ in range(count)]
    pixels = [np.kron(block, np.ones((1, 8, 8), np.float32))[:, : side[0], : side[1]] for block in blocks]
    return [Chip(source, f"{source}/{i}", 2.5, image, encoded=True) for i, image in enumerate(pixels)]


def test_pairs_are_of_large_chips_that_show_something():
    flat = Chip("town", "town/flat", 2.5, np.full((3, 64, 64), 0.5, np.float32), encoded=True)
    small = chips(1, (36, 64))
    pairs = held_out_pairs([flat, *small, *chips(3, (70, 65))], HOW, per_set=2)
    assert [(pair.index, pair.place) for pair in pairs] == [(2, "town/0"), (3, "town/1")]
    assert pairs[0].hr.shape == (1, 3, 68, 64)
    assert pairs[0].lr.shape == (1, 3, 17, 16)
    assert float(pairs[0].hr.max()) < 0.8  # harmonised: brightness has become reflectance


def test_members_are_antithetic_pairs_by_image_and_seed():
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
    torch.testing.assert_close(members(lite, pair, 1)[0], lite.sample(pair.lr, noise_of(pair, 0), None)[0])
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


def test_every_method_gets_every_score(lite_system, plain):
    pairs = held_out_pairs(chips(2), HOW)
    records = judge.judge(judge.Candidate("lite", lite_system), plain, pairs, HOW, {})
    quality = [record for record in records if record.table == "quality"]
    methods = [
        "nearest",
        "bicubic",
        "IBP",
        "IBP, true kernel",
        "stored bicubic: mean, box",
        "stored bicubic: mean, sensor",
        "lite, network alone",
        "stored lite: mean, none",
        "stored lite: mean, box",
        "stored lite: mean, sensor",
        "stored lite: sample, sensor",
    ]
    assert methods_of(quality) == methods
    assert len(quality) == 2 * len(methods)
    for record in quality:
        assert {"PSNR", *judge.PAIR_METRICS, *judge.OF_SCALE, *opensr.NAMES, "block R2"} == set(record.values)
        assert all(value is not None or name in record.why for name, value in record.values.items())
    by_method = {record.method: record.values for record in quality if record.image == 0}
    assert by_method["nearest"]["block R2"] == pytest.approx(1.0)
    assert by_method["stored lite: mean, box"]["block R2"] == pytest.approx(1.0, abs=1e-4)
    assert by_method["stored lite: mean, none"]["PSNR"] == pytest.approx(
        by_method["lite, network alone"]["PSNR"], abs=0.1
    )
    assert by_method["stored lite: sample, sensor"]["gradient"] > by_method["stored lite: mean, sensor"]["gradient"]
    detail = [record for record in records if record.table == judge.DETAIL]
    assert [record.values for record in detail] == [{"generated": 1.0, "partly": 0.0, "none": 0.0}] * 2


def test_members_are_judged_as_they_are_stored(lite_system):
    pairs = held_out_pairs(chips(1), HOW)
    single, pooled = judge.judge_members(judge.Candidate("lite", lite_system), pairs)
    assert single.method == pooled.method == "stored lite: mean of 8, sensor"
    # antithetic noise around a mean that is linear in it: the mean of members is the regression
    assert single.values["PSNR, mean of 8, sensor"] == pytest.approx(single.values["PSNR, mean, sensor"], abs=0.5)
    assert single.values["spread / error"] > 0
    assert set(pooled.values) == {"Spearman"}


def test_without_regression_the_mean_of_draws_is_stored(released_system, plain):
    assert judge.DEFAULT.options(released_system).members == MEMBERS
    candidate = judge.Candidate("difffusr", released_system)
    (pair,) = held_out_pairs(chips(1, (40, 40)), HOW)
    assert "difffusr, network alone" not in judge.others(candidate, plain, pair, HOW)


def test_a_system_without_network_is_no_candidate(plain):
    with pytest.raises(UsageError, match="bicubic has no network"):
        judge.Candidate("bicubic", plain)


def pair_of(index, spread, seed):
    """A pair, and what is stored of it where the error has the standard deviation `spread` (1, 3, 64, 64)."""
    hr = torch.full((1, 3, 64, 64), 0.3)
    error, added = (torch.randn(hr.shape, generator=torch.Generator().manual_seed(seed + i)) for i in (0, 1))
    pair = Pair("town", index, hr, baselines.box(hr))
    quality = np.full((64, 64), 3, np.uint8)
    mean = Stored((hr + spread * error)[0], quality, spread[0])
    return pair, mean, Stored(mean.rho + (spread * added)[0], quality)


def test_spread_is_judged_by_the_error_it_foretells():
    spread = 0.002 + 0.05 * torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    pair, mean, draw = pair_of(0, spread, 2)
    honest = of_image("x", pair, mean, draw)
    assert honest.values["spread / error"] == pytest.approx(1.0, abs=0.05)
    assert honest.values["Spearman"] > 0.35
    assert abs(honest.values["neighbours alike, added"]) < 0.05
    timid = replace(mean, spread=spread[0] / 4)
    assert of_image("x", pair, timid, draw).values["spread / error"] < 0.3
    alone = of_image("x", pair, replace(mean, spread=None), draw)
    assert set(alone.values.values()) == {None}
    assert alone.why["Spearman"] == "fewer than two members"


def test_pooled_spread_tells_hard_places_from_easy_ones():
    """Two images, each of nearly one spread: within an image it ranks little, over both it does."""
    pools, within = Pools(), []
    for seed, deviation in ((1, 0.002), (5, 0.1)):
        spread = deviation * (1 + 0.01 * torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(seed + 2)))
        pair, mean, draw = pair_of(seed, spread, seed)
        pools.add("x", pair, mean)
        pools.add("x", pair, replace(mean, spread=None))
        within.append(of_image("x", pair, mean, draw).values["Spearman"])
    (found,) = pools.records()
    assert max(map(abs, within)) < 0.1
    assert found.values["Spearman"] > 0.5


def test_a_candidate_can_be_sampled_in_other_numbers_of_steps(lite_system, released_system):
    for system in (lite_system, released_system):
        more = judge.Candidate(system.name, system).with_steps(5)
        assert len(more.system.predictor.resolver.levels) == 5
        assert "5 steps" in more.settings
        assert len(system.predictor.resolver.levels) == 2
    with pytest.raises(UsageError, match="--steps"):
        judge.Candidate("lite", lite_system).with_steps(500)


def test_steps_are_compared_on_the_same_noise(lite_system, monkeypatch):
    monkeypatch.setattr(judge, "WINDOW_PX", 64)
    pairs, said = held_out_pairs(chips(2), HOW), []
    found = steps.section(judge.Candidate("lite", lite_system), pairs, (2, 3), HOW, said.append)
    assert [line.split("|")[1].strip() for line in found.text.splitlines()[4:6]] == ["2", "3"]
    assert lite_system.bundles["sr"].digest[:12] in found.settings
    assert {record.method for record in found.records} == {"2 steps", "3 steps"}
    again = steps.measure(judge.Candidate("lite", lite_system), pairs, "2 steps")
    assert [record.values for record in again] == [r.values for r in found.records if r.method == "2 steps"]
    other = steps.measure(replace(judge.Candidate("lite", lite_system), seed=1), pairs, "2 steps")
    assert other[0].values != again[0].values
    assert len(said) == 2
