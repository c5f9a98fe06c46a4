"""Training and judging of Fusion X2 and X4."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from pipeline.models.bundle import load_bundle, save_bundle
from pipeline.models.span_fusion import ARCHITECTURE, SCALES, X2, X4, SpanFusion, network
from tests.training.tasks.test_fusion import tile
from training import registry
from training.loop.run import Draw
from training.presets import Preset, Stage
from training.quality import picture_fusion, wald
from training.tasks import span_training, span_wald
from training.tasks.fusion_tiles import TileSampler, views
from training.tasks.span_training import NORMALISATION, SpanTask, angle_loss, squared_by_band

STAGE = Stage("wald", 1.0, (), 1e-3)
SMALL = {**ARCHITECTURE, "features": 8, "blocks": 1}


def task(kind, tiles):
    made = SpanTask.__new__(SpanTask)
    torch.manual_seed(0)
    made.preset = Preset(name="tiny", task=kind, architecture=SMALL, stages=(STAGE,), minutes=1, batch=2)
    made.kind, made.scale, made.network = kind, SCALES[kind], network(SMALL, NORMALISATION)
    made.sampler = TileSampler(tiles)
    made.watched = made.judged = {one.place: one.rho for one in tiles}
    made.views = views(tiles)
    return made


@pytest.mark.parametrize("kind", [X2, X4])
def test_presets_train_networks_that_may_be_shipped(kind):
    preset = registry.presets()[kind]
    span = network(preset.architecture, NORMALISATION)
    assert registry.of_kind(kind).name == registry.task_of(preset).name == kind
    assert 4 * sum(parameter.numel() for parameter in span.parameters()) < 2.4e6


@pytest.mark.parametrize("kind", [X2, X4])
def test_batches_are_the_bands_degraded_and_a_guide_on_the_grid_of_the_truth(kind):
    made, draw = task(kind, [tile(present=[band for band in wald.OUT_BANDS if band != "B06"])]), Draw.seeded(0)
    scale = SCALES[kind]
    for _ in range(4):  # with and without a preceding X2
        batch = made.batch(draw)
        assert {name: tuple(x.shape) for name, x in batch.items()} == {
            "six": (2, 6, 48 // scale, 48 // scale),
            "guide": (2, 4, 48, 48),
            "truth": (2, 6, 48, 48),
            "mask": (2, 6, 1, 1),
        }
        assert not batch["mask"][:, 1].any()
        present = batch["mask"].flatten(1).bool()
        means = functional.avg_pool2d(batch["truth"], scale)[present] - batch["six"][present]
        assert means.abs().mean() < 0.03
        assert torch.isfinite(made.loss(STAGE, batch, draw))


def test_x4_learns_from_measured_bands_and_from_those_of_a_preceding_fusion():
    made, draw = task(X4, [tile()]), Draw.seeded(0)
    differ = []
    for _ in range(12):
        batch = made.batch(draw)
        blocks = functional.avg_pool2d(batch["truth"], 4)
        at160 = functional.avg_pool2d(batch["six"], 2) - functional.avg_pool2d(blocks, 2)
        assert at160.abs().mean() < 0.02
        differ.append(float((batch["six"] - blocks).square().mean().sqrt()))
    assert max(differ) > 2 * min(differ)


def test_the_angle_between_spectra_ignores_brightness_dark_ground_and_absent_bands():
    truth, mask = torch.full((1, 3, 2, 2), 0.4), torch.ones(1, 3, 1, 1)
    tilted = truth * torch.tensor([1.1, 1.0, 1.0])[:, None, None]
    angle = torch.nn.functional.cosine_similarity(tilted[0, :, 0, 0], truth[0, :, 0, 0], dim=0).acos()
    assert angle_loss(tilted, truth, mask) == pytest.approx(float(angle) ** 2, rel=0.03)
    assert angle_loss(1.1 * truth, truth, mask) < 0.01 * angle_loss(tilted, truth, mask)
    assert angle_loss(0.01 * tilted, 0.01 * truth, mask) < 0.05 * angle_loss(tilted, truth, mask)
    mask[:, 0] = 0
    assert angle_loss(tilted, truth, mask) == 0


def test_errors_are_relative_to_each_images_means_and_averaged_over_the_images_that_have_a_band():
    truth = torch.full((2, 3, 4, 4), 0.17) * torch.tensor([1.0, 2.0])[:, None, None, None]
    found = truth * torch.tensor([1.1, 1.2, 1.3])[:, None, None]
    mask = torch.tensor([[1.0, 1, 0], [1, 0, 0]])[:, :, None, None]
    relative = torch.tensor([0.17 / 0.2, 0.34 / 0.37])
    errors, held = squared_by_band(found, truth, mask)
    expected = [0.01 * float(relative.square().mean()), 0.04 * float(relative[0]) ** 2, 0.0]
    assert errors.tolist() == pytest.approx(expected, rel=1e-4)
    assert held.tolist() == [1, 1, 0]


def test_the_same_gain_counts_the_same_in_every_band(monkeypatch):
    """Errors of near infrared are small, and should shrink as those of short waves do."""
    made = task(X4, [tile()])
    batch = made.batch(Draw.seeded(0))
    off = 0.02 * batch["truth"] * torch.tensor([1.0, 2, 3, 4, 5, 6])[:, None, None]
    losses = []
    for halved in (None, 2, 4):
        left = torch.tensor([0.5 if band == halved else 1.0 for band in range(6)])[:, None, None]
        monkeypatch.setattr(span_training, "estimate", lambda *_, left=left: batch["truth"] + left * off)
        monkeypatch.setattr(span_training, "ANGLES", 0.0)
        losses.append(float(made.loss(STAGE, batch, Draw.seeded(0))))
    assert losses[0] - losses[1] == pytest.approx(np.log(4) / 6, rel=0.02)
    assert losses[0] - losses[2] == pytest.approx(np.log(4) / 6, rel=0.02)


@pytest.mark.parametrize("kind", [X2, X4])
def test_a_few_steps_reduce_the_loss(kind):
    ground = tile()
    means = functional.avg_pool2d(torch.from_numpy(ground.rho[10]), 2)
    ground.rho[20][:] = 0.1 + (means - 0.2).abs()[[0, 1, 2, 3, 0, 1]].numpy()  # the regression is linear
    made = task(kind, [ground])
    batch, draw = made.batch(Draw.seeded(0)), Draw.seeded(0)
    optimiser = torch.optim.Adam(made.network.parameters(), 3e-3)
    losses = []
    for _ in range(30):
        losses.append(made.loss(STAGE, batch, draw))
        optimiser.zero_grad()
        losses[-1].backward()
        optimiser.step()
    assert losses[-1] < losses[0] - 0.1  # of logarithms


def test_finishing_drops_a_residual_that_makes_all_places_worse():
    made = task(X2, [tile(side=16)])
    torch.nn.init.normal_(made.network.exit.weight, std=5.0, generator=torch.Generator().manual_seed(0))
    torch.nn.init.normal_(made.network.conv_cat.weight, generator=torch.Generator().manual_seed(1))
    made.finish()
    assert not any(parameter.any() for parameter in made.network.exit.parameters())


def test_finishing_keeps_a_residual_of_the_bands_that_it_makes_better():
    """Half of B05 is best, of B11 no share is better than another, and no watched place has the other bands."""
    made = task(X2, [tile(side=16)])
    generator = torch.Generator().manual_seed(0)
    for parameter in made.network.exit.parameters():
        parameter.data.normal_(generator=generator)
    before = made.network.exit.weight.detach().clone()
    made._watched_errors = lambda: (
        {"B05": 1.0, "B11": 1.0} | ({"B05": 0.5} if torch.equal(made.network.exit.weight[0], 0.5 * before[0]) else {})
    )
    made.finish()
    kept = made.network.exit.weight.detach()
    torch.testing.assert_close(kept, before * torch.tensor([0.5, 0.5, 0.5, 0.5, 0, 0.5])[:, None, None, None])


@pytest.mark.parametrize("kind", [X2, X4])
def test_validation_and_samples_name_what_stands_beside(kind):
    made = task(kind, [tile(side=16)])
    measured = made.validate(STAGE)
    assert measured.text.startswith(f"{span_wald.LABELS[kind]} (GSA) 1: ERGAS ")
    assert set(measured.values) == {"ergas 1", "sam 1"}
    (row,) = made.samples(STAGE)
    assert list(row) == ["guide", "input", "ours", "truth"]


def judged(kind, tmp_path):
    made = task(kind, [tile(side=16)])
    save_bundle(tmp_path / f"{kind}.safetensors", made.bundle(), made.network.state_dict())
    return load_bundle(tmp_path / f"{kind}.safetensors")


def test_both_are_judged_alone_band_by_band_and_in_turn(tmp_path):
    x2, x4 = (judged(kind, tmp_path) for kind in (X2, X4))
    rho, judge = tile(side=40).rho, registry.of_kind(X4).judge
    names = {}
    for name, bundle, others in (("x2", x2, [x2, x4]), ("x4", x4, [x2, x4]), ("alone", x4, [x4])):
        loaded = judge.loaded(bundle, others)
        assert loaded.bundle == bundle
        assert not isinstance(loaded, wald.Fuser)
        rows = {row.task: row for row in judge.measure(loaded, rho, wald.OUT_BANDS)}
        names[name] = [task for task in rows if not task.endswith(wald.BANDS_20M)]
    assert names["x2"] == ["20 m x2", "20 m x2, block means only"]
    assert names["alone"] == ["20 m x4", "20 m x4, block means only"]
    assert names["x4"] == [*names["alone"], "20 m x8"]
    methods = set(rows["20 m x4"].scores)
    assert {"bicubic", "GSA", "Fusion X4"} <= methods == set(rows["20 m x4, B8A"].scores)
    squares = [rows[f"20 m x4, {band}"].ergas["GSA"] ** 2 for band in wald.BANDS_20M]
    assert np.mean(squares) == pytest.approx(rows["20 m x4"].ergas["GSA"] ** 2)


def test_both_in_turn_stand_beside_the_pipelines_own_fusion(tmp_path):
    x2, x4 = (SpanFusion.from_bundle(judged(kind, tmp_path)) for kind in (X2, X4))
    scene = wald.Scene({gsd: torch.from_numpy(values) for gsd, values in tile(side=32).rho.items()})
    assert not list(span_wald.eight(x2, x4, wald.Scene({g: v[:, : 960 // g] for g, v in scene.rho.items()})))
    (both,) = span_wald.eight(x2, x4, scene)
    assert set(both.learned) == {span_wald.CHAIN, span_wald.PIPELINE}
    assert both.guides.shape == (4, 96, 96)
    assert all(image.shape == both.truth.shape for image in both.learned.values())


def test_tasks_of_a_scene_leave_out_bands_that_it_lacks(tmp_path):
    fusion = SpanFusion.from_bundle(judged(X2, tmp_path))
    present = tuple(band for band in wald.OUT_BANDS if band != "B07")
    scene = wald.Scene({gsd: torch.from_numpy(values) for gsd, values in tile(side=17).rho.items()}, present)
    first, _ = span_wald.tasks(fusion, scene)
    assert first.bands == ("B05", "B06", "B8A", "B11", "B12")
    assert first.truth.shape == (5, 48, 48)
    assert picture_fusion.samples(first, (slice(None), slice(None)), span_wald.LABELS[X2])
    assert not list(span_wald.tasks(fusion, wald.Scene(scene.rho, ("B01",))))


@pytest.mark.slow
@pytest.mark.parametrize("kind", [X2, X4])
def test_a_network_on_another_device_is_trained_validated_and_finished(kind, far):
    made = task(kind, [tile(side=16)])
    made.network.to(far)
    batch = {name: x.to(far) for name, x in made.batch(Draw.seeded(0)).items()}
    made.loss(STAGE, batch, Draw.seeded(0)).backward()
    made.finish()
    assert made.validate(STAGE).text.startswith(span_wald.LABELS[kind])
    assert all(image.device.type == "cpu" for row in made.samples(STAGE) for image in row.values())
    assert next(made.network.parameters()).device == far
