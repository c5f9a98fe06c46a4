"""Tables of a cascade by scale: which images, which rows, and what an untrained network must give."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pipeline.bands import RGB
from pipeline.models.bundle import load_bundle, save_bundle
from pipeline.models.wavediffur import wavediffur_bundle
from pipeline.models.wavelet import consistent, twice
from pipeline.models.wavelet_network import WaveletNetwork
from tests.models.test_wavediffur import TINY
from tests.training.pairs_for_tests import ground
from training.data.rasters import Chip
from training.degradation.degrade import Degradation
from training.quality import baselines, cascade_report, metrics
from training.quality.cascade_scores import (
    BICUBIC,
    CASCADE,
    DRAW,
    IBP,
    IBP_TRUE,
    MEANS,
    ONE_STEP,
    SENSOR,
    TRUTH,
    Naturalness,
    Seen,
    estimates,
    judge,
    seen,
    truths,
)
from training.tasks.wavelet_cascade import CASCADES

CPU = torch.device("cpu")


def chip(source, height, width, seed=0, coarse=None):
    """A chip of discs, cut from a square."""
    pixels = ground(seed, max(height, width))[:, :height, :width]
    return Chip(source, f"{source}/{seed}", 2.5, pixels, encoded=False, coarse=coarse)


CHIPS = [chip("small", 64, 64), chip("small", 70, 64, 1), chip("large", 300, 140, 2), chip("large", 30, 300, 3)]


def weights_of(tmp_path, scramble):
    torch.manual_seed(0)
    network = WaveletNetwork(**TINY, bands=3)
    if scramble:
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.copy_(0.1 * torch.randn(parameter.shape))
    path = tmp_path / "wavediffur.safetensors"
    save_bundle(path, wavediffur_bundle(TINY, RGB, sampler={"steps": 2}), network.state_dict())
    return load_bundle(path), CASCADES.load(load_bundle(path), CPU)


@pytest.fixture
def untrained(tmp_path):
    return weights_of(tmp_path, scramble=False)


@pytest.fixture
def scrambled(tmp_path):
    return weights_of(tmp_path, scramble=True)


def data_of(chips, to_train_on=()):
    file = SimpleNamespace(digest="")
    return SimpleNamespace(
        held_out_chips=lambda bands: chips,
        training_chips=lambda bands, least_px: to_train_on,
        of_bands=lambda bands: [],
        is_shipped=True,
        file=file,
    )


def sections_of(weights, chips=CHIPS, scales=(2, 4, 16), per_set=None, to_train_on=()):
    said = []
    named = cascade_report.Cascaded("mine", *weights)
    return cascade_report.cascade_sections(
        named, data_of(chips, to_train_on), scales, "box", per_set, said.append
    ), said


def rows(text):
    """The cells of the rows of every table in a text."""
    tables = re.split(r"\n\n", text)
    return [
        [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
        for table in tables
        if table.startswith("|")
    ]


def test_images_have_eight_coarse_pixels_and_are_the_same_at_every_scale():
    found = truths(CHIPS, (2, 4, 8, 16, 32))
    assert {scale: len(pairs) for scale, pairs in found.items()} == {2: 3, 4: 3, 8: 3, 16: 1, 32: 0}
    (large,) = found[16]
    assert large.hr.shape == (1, 3, 288, 128)  # multiples of 16
    assert all(any(torch.equal(pair.hr, large.hr) for pair in found[scale]) for scale in (2, 4, 8))
    np.testing.assert_array_equal(large.hr[0], CHIPS[2].pixels[:, 6:294, 6:134])


def test_images_are_as_large_as_the_largest_scale_needs():
    chips = [chip("huge", 1040, 1040)]
    assert truths(chips, (2, 64))[64][0].hr.shape[-2:] == (512, 512)
    assert truths(chips, (2, 128))[128][0].hr.shape[-2:] == (1024, 1024)


def test_the_coarse_image_of_a_real_pair_is_not_used():
    sharp = chip("pair", 64, 64)
    paired = chip("pair", 64, 64, coarse=np.zeros((3, 16, 16), np.float32))
    found = [truths([one], (4,))[4][0] for one in (sharp, paired)]
    torch.testing.assert_close(found[0].hr, found[1].hr)


def test_coarse_images_are_block_means_or_a_sensors_of_the_same_relative_blur():
    (pair,) = truths([chip("one", 128, 128)], (8,))[8]
    torch.testing.assert_close(seen(pair, Seen(MEANS, Degradation()).of_scale(8)).lr, baselines.box(pair.hr, 8))
    sensor = Seen(SENSOR, Degradation()).of_scale(8)
    assert sensor.how.sigma_px == pytest.approx(2 * Degradation().sigma_px)
    noise = seen(pair, sensor).lr - sensor.coarse(pair.hr, pair)
    assert float(noise.std()) == pytest.approx(Degradation().noise, rel=0.2)


def test_an_untrained_cascade_of_means_is_consistent_bicubic(untrained):
    how = Seen(MEANS, Degradation()).of_scale(4)
    pair = seen(truths([chip("one", 64, 64)], (4,))[4][0], how)
    found = estimates(untrained[1], pair, how)
    once = consistent(twice(pair.lr), pair.lr)
    torch.testing.assert_close(found[CASCADE], consistent(twice(once), once))
    torch.testing.assert_close(found[ONE_STEP], baselines.ibp(once, 2))
    torch.testing.assert_close(found[BICUBIC], baselines.bicubic(pair.lr, 4))
    torch.testing.assert_close(found[IBP], baselines.ibp(pair.lr, 4))
    assert not torch.allclose(found[DRAW], found[CASCADE])


def test_a_cascade_that_stops_early_is_finished_by_back_projection(untrained):
    how = Seen(MEANS, Degradation()).of_scale(8)
    pair = seen(truths([chip("one", 64, 64)], (8,))[8][0], how)
    found = estimates(untrained[1], pair, how)
    first = consistent(twice(pair.lr), pair.lr)
    second = consistent(twice(first), first)
    torch.testing.assert_close(found[ONE_STEP], baselines.ibp(first, 4))
    torch.testing.assert_close(found["2 levels"], baselines.ibp(second, 2))
    assert "3 levels" not in found


def test_at_x2_one_step_is_the_cascade(scrambled):
    how = Seen(SENSOR, Degradation()).of_scale(2)
    pair = seen(truths([chip("one", 64, 64)], (2,))[2][0], how)
    found = estimates(scrambled[1], pair, how)
    torch.testing.assert_close(found[ONE_STEP], found[CASCADE])
    assert not torch.allclose(found[IBP], found[IBP_TRUE])


def test_draws_follow_the_seed(scrambled):
    how = Seen(MEANS, Degradation()).of_scale(4)
    pair = seen(truths([chip("one", 64, 64)], (4,))[4][0], how)
    first, again, other = (estimates(scrambled[1], pair, how, seed)[DRAW] for seed in (0, 0, 1))
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert not torch.allclose(first, other)


def test_scores_of_means_are_consistent_for_any_weights(scrambled):
    pairs = truths([chip("one", 64, 64)], (4,))[4]
    records = {r.method: r.values for r in judge(scrambled[1], pairs, _means(4))}
    assert set(records) == {TRUTH, BICUBIC, IBP, ONE_STEP, CASCADE, DRAW}
    for method in (TRUTH, CASCADE, DRAW):
        assert records[method]["consistency"] < 1e-6, method
    assert records[BICUBIC]["consistency"] > 1e-4
    assert records[TRUTH]["AG / truth"] == 1
    assert "PSNR" not in records[TRUTH]
    x, truth = (image[0, :, 8:-8, 8:-8] for image in (baselines.bicubic(baselines.box(pairs[0].hr)), pairs[0].hr))
    assert records[BICUBIC]["spectral RMSE"] == pytest.approx(metrics.spectral_rmse(x, truth))
    assert records[BICUBIC]["AG"] == pytest.approx(255 * metrics.average_gradient(x))


def _means(scale):
    return Seen(MEANS, Degradation()).of_scale(scale)


def test_sections_have_a_row_per_scale_with_its_images(scrambled):
    sections, said = sections_of(scrambled)
    assert [section.title for section in sections] == [
        "mine: cascade on held-out places, sensor",
        "mine: decline with scale on held-out places, sensor",
        "mine: cascade on held-out places, means",
        "mine: decline with scale on held-out places, means",
    ]
    for psnr, decline in (sections[:2], sections[2:]):
        every, common, levels = rows(psnr.text)
        assert [row[:3] for row in every] == [["x2", "3", "2"], ["x4", "3", "2"], ["x16", "1", "1"]]
        assert [row[:3] for row in common] == [["x2", "1", "1"], ["x4", "1", "1"], ["x16", "1", "1"]]
        assert every[2] == common[2]
        assert every[0] != common[0]
        assert [[row[0], sum(cell != "" for cell in row[1:])] for row in levels] == [["x2", 1], ["x4", 2], ["x16", 4]]
        for row, of in zip(levels, every, strict=True):
            assert [cell for cell in row[1:] if cell][-1] == of[-2]
            assert row[1] == of[-3]
        assert all(float(cell) for row in every for cell in row[3:])
        assert "The 1 image of 1 set" in psnr.text
        methods = [TRUTH, BICUBIC, IBP, *([IBP_TRUE] if psnr is sections[0] else []), ONE_STEP, CASCADE, DRAW]
        for table in rows(decline.text):
            assert [row[:2] for row in table] == [[f"x{s}", method] for s in (2, 4, 16) for method in methods]
    assert {record.table for record in sections[0].records} == {"sensor x2", "sensor x4", "sensor x16"}
    assert "mine: x16, means, 1 image" in said


def test_the_gain_is_the_difference_of_the_columns(scrambled):
    (psnr, *_), _ = sections_of(scrambled, scales=(2,))
    row = rows(psnr.text)[0][0]
    values = {r.method: [] for r in psnr.records}
    for record in psnr.records:
        values[record.method].append((record.set, record.values.get("PSNR")))
    means = {
        method: np.mean([np.mean([v for s, v in values[method] if s == name]) for name in ("small", "large")])
        for method in (CASCADE, IBP)
    }
    assert row[-1] == f"{means[CASCADE] - means[IBP]:+.2f}"
    assert row[4] == f"{means[IBP]:.2f}"


def test_niqe_is_fitted_to_the_images_to_train_on(scrambled):
    to_train_on = [chip("sharp", 200, 200, seed) for seed in range(10, 26)]
    sections, _ = sections_of(scrambled, [chip("large", 256, 256)], (2,), to_train_on=to_train_on)
    found = {record.method: record.values["NIQE"] for record in sections[0].records}
    assert found[TRUTH] < found[CASCADE]
    assert "NIQE: distance from the statistics of" in sections[1].text
    assert "in NIQE" not in sections[1].text


def test_niqe_takes_as_many_images_of_every_source():
    many = [chip("many", 96, 96, seed) for seed in range(33)]
    assert Naturalness.fitted(many).model is None
    others = [chip(name, 96, 96, seed) for name in ("b", "c") for seed in range(60, 64)]
    assert Naturalness.fitted([*many, *others]).model.blocks == 32 + 2 * 4


def test_why_niqe_is_missing_is_said(scrambled):
    sections, _ = sections_of(scrambled, [chip("small", 64, 64)], (2,))
    assert "in NIQE: the images to train on give 0 sharp blocks of 96 px; expected more than 36" in sections[1].text
    to_train_on = [chip("sharp", 200, 200, seed) for seed in range(10, 26)]
    sections, _ = sections_of(scrambled, [chip("small", 64, 64)], (2,), to_train_on=to_train_on)
    assert "in NIQE: images of fewer than two blocks of 96 px" in sections[1].text


def test_a_scale_without_images_is_a_row_of_nulls(scrambled):
    (psnr, *_), _ = sections_of(scrambled, [chip("small", 64, 64)], (2, 16))
    every, common, levels = rows(psnr.text)
    assert levels[1] == ["x16", *["null"] * 4]
    assert every[1] == ["x16", "0", "0", *["null"] * 6]
    assert [row[0] for row in common] == ["x2"]


def test_without_images_it_says_so(scrambled):
    sections, _ = sections_of(scrambled, [chip("flat", 30, 30)])
    assert len(sections) == 1
    assert "null: no image of the data is held out at 16 px" in sections[0].text


def test_images_per_set_are_limited(scrambled):
    (psnr, *_), _ = sections_of(scrambled, scales=(2,), per_set=1)
    assert rows(psnr.text)[0][0][:3] == ["x2", "2", "2"]
