"""The task of the lite super-resolver: its validation line, what it shows, and networks that are not on the CPU."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pipeline.errors import UsageError
from pipeline.models.lite import LiteSuperResolver
from training.data.patches import Patch
from training.data.rasters import Chip
from training.loop.batches import Draw
from training.presets import Preset, Stage
from training.quality import baselines
from training.quality.pairs import members, watched_pairs
from training.tasks.super_resolution import SENSOR, SuperResolution, range_of, sampler
from training.tasks.watched_gains import SAMPLES

MEAN, DETAIL = Stage("mean", 0.5, ()), Stage("detail", 0.5, ())
TINY = Preset(
    name="tiny-sr",
    task="lite-sr",
    architecture={"width": 8, "blocks": 1, "denoiser_width": 8, "denoiser_blocks": 1},
    stages=(MEAN, DETAIL),
    sampler={"name": "ddim", "steps": 2},
)


def chip(source, seed):
    blocks = np.random.default_rng(seed).random((3, 12, 12))
    pixels = np.kron(blocks, np.ones((1, 4, 4))).astype(np.float32) * 0.3
    return Chip(source, f"{source}/{seed}", 2.5, pixels, encoded=False)


def task_of(*sources, recipe=SENSOR):
    torch.manual_seed(0)
    data = SimpleNamespace(
        file=SimpleNamespace(path="mine.toml"),
        hr_sampler=lambda split, crop_px, bands: SimpleNamespace(
            patches=lambda rng, n: [Patch(p, None, 0, False) for p in rng.random((n, 3, 48, 48), np.float32)]
        ),
        describe=lambda use, bands: {},
        held_out_chips=lambda bands: [chip(source, seed) for seed, source in enumerate(sources)],
    )
    task = SuperResolution(replace(TINY, recipe=dict(recipe)), data)
    with torch.no_grad():
        for parameter in task.network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    return task


def test_samples_show_input_bicubic_ours_and_truth():
    task = task_of("a")
    pair = task.watched.pairs[0]
    resolver = LiteSuperResolver(task.network, task.bundle())
    ours = {MEAN: resolver.mean(pair.lr).detach(), DETAIL: members(sampler(resolver), pair, 1)}
    for stage, expected in ours.items():
        (row,) = task.samples(stage)
        assert list(row) == ["input", "bicubic", "ours", "truth"]
        assert all(image.shape == (3, 48, 48) for image in row.values())
        assert torch.equal(row["input"], baselines.nearest(pair.lr)[0])
        assert torch.equal(row["bicubic"], baselines.bicubic(pair.lr)[0])
        assert torch.equal(row["ours"], expected[0])
        assert torch.equal(row["truth"], pair.hr[0])
    assert not torch.equal(ours[MEAN], ours[DETAIL])


def test_samples_come_from_as_many_sets_as_there_are():
    task = task_of("a", "a", "a", "b", "a", "b")
    truths = [row["truth"] for row in task.samples(MEAN)]
    assert len(truths) == SAMPLES
    shown = [next(pair for pair in task.watched.pairs if torch.equal(pair.hr[0], truth)) for truth in truths]
    assert [pair.place for pair in shown] == ["a/0", "b/3", "a/1", "b/5"]


def test_a_network_on_another_device_is_validated_and_shown(far):
    task = task_of("a", "b")
    task.network.to(far)
    for stage in (MEAN, DETAIL):
        assert task.validate(stage).text.startswith(f"PSNR over IBP {task.watched.baseline:.2f} dB: mean ")
        for row in task.samples(stage):
            assert all(image.device == torch.device("cpu") for image in row.values())


def test_a_run_without_held_out_images_is_refused_by_name():
    with pytest.raises(UsageError, match=r"mine\.toml: no image is held out to judge by"):
        task_of()


def test_held_out_images_that_show_nothing_are_counted():
    flat = Chip("a", "a/0", 2.5, np.full((3, 48, 48), 0.3, np.float32), encoded=False)
    data = SimpleNamespace(file=SimpleNamespace(path="mine.toml"), held_out_chips=lambda bands: [flat, flat])
    with pytest.raises(UsageError, match=r"mine\.toml: the 2 held-out images are unusable: flat, black, or less than"):
        watched_pairs(data)


def test_a_sensor_recipe_reaches_batches_and_provenance():
    """Wider blur leaves less contrast in the coarse image of the same crops."""
    spread = {}
    for blur in (0.5, 3.5):
        recipe = {**SENSOR, "blur_from": blur, "blur_to": blur, "noise_from": 1e-6, "noise_to": 1e-6}
        task = task_of("a", recipe=recipe)
        spread[blur] = float(task.batch(Draw.seeded(3))["lr"].std())
        assert f"sigma_px=({blur}, {blur})" in task.describe()["degradation"]
    assert spread[3.5] < 0.5 * spread[0.5]


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ({"blur_from": 3.0}, "blur from 0.3 to 4 px"),
        ({"blur_to": 9.0}, "blur from 0.3 to 4 px"),
        ({"blur_to": float("nan")}, "blur from 0.3 to 4 px"),
        ({"noise_from": 0.0}, "noise above 0"),
        ({"bicubic": 1.5}, "shares between 0 and 1"),
    ],
)
def test_a_recipe_that_is_no_degradation_is_refused(setting, expected):
    with pytest.raises(UsageError, match=expected):
        range_of({**SENSOR, **setting})
