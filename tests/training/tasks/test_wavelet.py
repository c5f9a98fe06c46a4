"""Training of a x2 level: kinds of batches, references, losses that train what they should, and a short run."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pipeline.errors import UsageError
from pipeline.models.wavelet import consistent, haar, not_below_zero, twice
from training import registry
from training.data.patches import Patch
from training.data.rasters import Chip
from training.degradation.degrade import DegradationRange
from training.loop.batches import FOR_BATCH, FOR_LOSS, Draw
from training.quality.pairs import average, per_set_mean, score
from training.tasks import wavelet
from training.tasks import wavelet_batches as batches

SENSOR = DegradationRange((0.65, 1.45), 0.2, 0.3, (4e-4, 2e-3))
TINY = {
    "csp_width": 8,
    "csp_heads": 2,
    "csp_blocks": 1,
    "detail_width": 8,
    "detail_heads": 2,
    "detail_blocks": 1,
    "score_widths": [4, 8],
    "score_blocks": 1,
    "score_heads": 2,
    "window": 4,
}


def images(count=4, side=64, seed=0):
    return 0.1 + 0.3 * torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("kind", "side"), [(batches.MEASURED, 32), (batches.AVERAGED, 32), (batches.CASCADED, 16)])
def test_inputs_tell_their_kind(kind, side):
    hr = images()
    lr = batches.inputs(hr, kind, SENSOR, torch.Generator().manual_seed(0), (1.0,) * 3)
    assert lr.shape == (4, 3, side, side)
    flags = torch.full((4,), kind == batches.MEASURED)
    assert batches.kind_of(lr, hr, flags) == kind
    if kind == batches.AVERAGED:
        torch.testing.assert_close(2 * lr, haar(hr).A)


def test_kinds_come_in_their_shares():
    rng = np.random.default_rng(0)
    drawn = [batches.draw_kind(rng, {"measured": 0.5, "cascaded": 0.25}) for _ in range(2000)]
    assert drawn.count(batches.MEASURED) / 2000 == pytest.approx(0.5, abs=0.04)
    assert drawn.count(batches.CASCADED) / 2000 == pytest.approx(0.25, abs=0.04)


def test_coarser_truths_keep_a_least_size():
    rng = np.random.default_rng(0)
    assert {batches.coarser(images(side=128), rng, 1.0).shape[-1] for _ in range(3)} == {32}
    assert batches.coarser(images(side=64), rng, 1.0).shape[-1] == 32
    assert batches.coarser(images(side=128), rng, 0.0).shape[-1] == 128


def test_references_are_of_the_same_ground_of_other_ground_or_absent():
    hr = images(count=400, side=16)
    shares = {"referenced": 0.4, "misled": 0.2}
    found = batches.references(hr, torch.Generator().manual_seed(0), shares)
    known = found.isfinite().flatten(1).all(1)
    assert float(known.float().mean()) == pytest.approx(0.6, abs=0.08)
    assert bool(found[~known].isnan().all())

    def agreement(image, other):
        a, b = image.flatten(), other.flatten()
        return float(torch.corrcoef(torch.stack((a, b)))[0, 1])

    same = [agreement(one, truth) for one, truth in zip(found[known], hr[known], strict=True)]
    related = np.array(same) > 0.5
    assert related.mean() == pytest.approx(0.4 / 0.6, abs=0.1)
    torch.testing.assert_close(found[known].mean((-2, -1)), hr[known].mean((-2, -1)), rtol=0, atol=1e-4)


def chip(source, seed):
    blocks = np.random.default_rng(seed).random((3, 16, 16))
    pixels = np.kron(blocks, np.ones((1, 4, 4))).astype(np.float32) * 0.3
    return Chip(source, f"{source}/{seed}", 2.5, pixels, encoded=False)


def task_of(**recipe):
    torch.manual_seed(0)
    data = SimpleNamespace(
        file=SimpleNamespace(path="mine.toml"),
        hr_sampler=lambda split, crop_px, bands, **shares: SimpleNamespace(
            patches=lambda rng, n: [Patch(p, None, 0, False) for p in rng.random((n, 3, 64, 64), np.float32)]
        ),
        describe=lambda use, bands: {},
        of_bands=lambda bands: [],
        held_out_chips=lambda bands: [chip(source, seed) for seed, source in enumerate(("a", "a", "b"))],
    )
    preset = registry.presets()["wavediffur"]
    small = replace(preset, architecture=TINY, batch=3, recipe={**preset.recipe, **recipe})
    task = wavelet.TASK.build(small, data)
    with torch.no_grad():
        for parameter in task.network.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape))
    return task


ONLY = {
    batches.MEASURED: {"measured": 1.0, "cascaded": 0.0},
    batches.AVERAGED: {"measured": 0.0, "cascaded": 0.0},
    batches.CASCADED: {"measured": 0.0, "cascaded": 1.0},
}
MEAN, DETAIL = registry.presets()["wavediffur"].stages


@pytest.mark.parametrize("stage", [MEAN, DETAIL], ids=lambda stage: stage.name)
@pytest.mark.parametrize("kind", ONLY)
def test_each_stage_trains_its_own_tensors(kind, stage):
    task = task_of(**ONLY[kind], unconditional=0.0)
    batch = task.batch(Draw.seeded(0, FOR_BATCH, 0))
    assert batches.kind_of(batch["lr"], batch["hr"], batch["measured"]) == kind
    task.loss(stage, batch, Draw.seeded(0, FOR_LOSS, 0)).total.backward()
    trained = {
        name for name, one in task.network.named_parameters() if one.grad is not None and one.grad.abs().max() > 0
    }
    assert trained
    assert all(name.startswith(stage.trains) for name in trained)
    if stage is MEAN:
        assert {name.split(".")[0] for name in trained} == {"csp", "cshr", "spread"}


def test_batches_and_losses_follow_their_draws_only():
    task = task_of()
    losses = []
    for seed in (0, 0, 1):
        batch = task.batch(Draw.seeded(seed, FOR_BATCH, 0))
        losses.append(task.loss(DETAIL, batch, Draw.seeded(seed, FOR_LOSS, 0)).total.item())
    assert losses[0] == losses[1] != losses[2]


def test_weights_of_the_losses_count():
    batch = task_of().batch(Draw.seeded(0, FOR_BATCH, 0))
    plain = task_of(vhd=0.0, tv=0.0).loss(MEAN, batch, Draw.seeded(0, FOR_LOSS, 0))
    assert set(plain.parts) == {"squared", "spread"}
    for name in ("vhd", "tv", "l1", "ssim"):
        zero = {"vhd": 0.0, "tv": 0.0}
        found = task_of(**{**zero, name: 2.0}).loss(MEAN, batch, Draw.seeded(0, FOR_LOSS, 0))
        torch.testing.assert_close(found.total - plain.total, 2 * found.parts[name])


def test_the_log_says_gains_at_both_scales_and_of_a_draw():
    task = task_of()
    task.network.eval()
    found = task.validate(MEAN).values
    assert {"gain x4", "gain x2", "gain x2 of means", "psnr_ibp x4"} <= set(found)
    assert "gain x4 drawn" in task.validate(DETAIL).values
    assert all(np.isfinite(value) for value in found.values())
    shown = task.samples(MEAN)
    assert list(shown[0]) == ["input", "bicubic", "ours", "truth"]
    assert {tuple(image.shape) for row in shown for image in row.values()} == {(3, 64, 64)}


def test_an_untrained_level_interpolates_and_keeps_means():
    task = task_of()
    task.network = type(task.network)(**TINY, bands=3).eval()
    pairs = task.pairs["x2 of means"]
    scores = [score(not_below_zero(consistent(twice(pair.lr), pair.lr), pair.lr), pair) for pair in pairs]
    expected = average(per_set_mean(pairs, scores)) - task.baseline["x2 of means"]
    assert task.validate(MEAN).values["gain x2 of means"] == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ({"measured": 0.7, "cascaded": 0.5}, "measured=0.7, cascaded=0.5"),
        ({"referenced": -0.1}, "referenced=-0.1"),
        ({"coarser": 1.5}, "coarser=1.5"),
        ({"tv": -1.0}, "tv=-1"),
        ({"blur_from": 9.0}, "blur from"),
    ],
)
def test_senseless_recipes_are_refused(recipe, said):
    with pytest.raises(UsageError, match=said):
        task_of(**recipe)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"process": "ve"}, "process=ve; expected one of vp, ir-sde"),
        ({"csp_heads": 3}, "csp_heads=3; expected a divisor"),
    ],
)
def test_senseless_networks_are_refused(changes, said, monkeypatch):
    monkeypatch.setitem(TINY, *next(iter(changes.items())))
    with pytest.raises(UsageError, match=said):
        task_of()


def test_the_process_of_ir_sde_is_trained_alike(monkeypatch):
    monkeypatch.setitem(TINY, "process", "ir-sde")
    task = task_of()
    batch = task.batch(Draw.seeded(0, FOR_BATCH, 0))
    task.loss(DETAIL, batch, Draw.seeded(0, FOR_LOSS, 0)).total.backward()
    assert len(task.network.score.get_buffer("alpha_bar")) == 100
    assert np.isfinite(task.validate(DETAIL).values["gain x4 drawn"])


@pytest.mark.parametrize(
    ("kind", "taken"), [(batches.MEASURED, True), (batches.AVERAGED, False), (batches.CASCADED, True)]
)
def test_the_sensors_image_of_a_pair_is_no_input_of_means(kind, taken):
    task = task_of(**ONLY[kind], coarser=0.0 if kind == batches.CASCADED else 1.0)
    sharp = np.random.default_rng(0).random((3, 64, 64), np.float32)
    pair = Patch(sharp, None, 0, False, np.full((3, 16, 16), 0.5, np.float32))
    task.sampler = SimpleNamespace(patches=lambda rng, n: [pair] * n)
    batch = task.batch(Draw.seeded(0, FOR_BATCH, 0))
    assert batch["lr"].shape[-1] == 16
    assert bool((batch["lr"] == 0.5).all()) == taken
