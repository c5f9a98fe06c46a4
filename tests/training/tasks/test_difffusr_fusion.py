"""DiffFuSR's fusion, tiny: Wald's examples, groups that fit, what is learned, and the bundle in the pipeline."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional

from pipeline.errors import UsageError
from pipeline.models.bundle import load_bundle, save_bundle
from pipeline.models.difffusr import Networks, difffusr_bundle
from pipeline.models.difffusr_fusion import INPUTS, DiffFuSRFusion, name_of
from pipeline.superres.system import load
from pipeline.superres.weights import choose
from training.data.tiles import Tile
from training.loop.run import Budget, Draw, Run
from training.presets import Preset, Stage
from training.tasks.difffusr_fusion import WALD, DiffFuSRFusionTask, dropped
from training.tasks.wald_groups import FACTORS, coarser, example_of, group_of, inputs_of, statistics, unit_60m

TINY = Preset(
    name="tiny-wald",
    task="difffusr-fusion",
    architecture={"channels": 8, "growth": 4, "blocks": 1, "reduction": 4},
    stages=(Stage("wald", 1.0, (), 1e-3),),
    images=12,
    batch=2,
    crop_px=24,
    warmup_steps=0,
    recipe=dict(WALD),
)
ALL = inputs_of(60)


def tile_of(side_60m, present=ALL, seed=0):
    """A tile of `side_60m` px of 60 m whose bands are smooth ground of different brightness."""
    rng = np.random.default_rng(seed)
    ground = torch.from_numpy(rng.random((1, 1, side_60m + 1, side_60m + 1)))
    fine = functional.interpolate(ground, side_60m * 6, mode="bilinear")[0, 0].numpy()
    rho = {}
    for gsd, bands in INPUTS.items():
        f = gsd // 10
        native = fine.reshape(side_60m * 6 // f, f, side_60m * 6 // f, f).mean((1, 3))
        rho[gsd] = np.stack([(0.1 + 0.02 * k) * (1 + native) for k in range(len(bands))]).astype(np.float32)
    return Tile.of(f"made/{seed}", rho, np.ones((side_60m, side_60m), bool), tuple(present))


class Data:
    """Tiles in place of a training file."""

    licence = "nobody"
    file = SimpleNamespace(path="mine.toml")

    def __init__(self, *tiles):
        self._tiles = list(tiles)

    def tiles(self, split):
        return self._tiles

    def watched_tiles(self):
        return self._tiles[:1]

    def describe(self, use):
        return {"data": "made"}


def task_of(*tiles, **changes):
    torch.manual_seed(0)
    return DiffFuSRFusionTask(replace(TINY, **changes), Data(*tiles))


@pytest.fixture(scope="module")
def large():
    return tile_of(26)


def test_crops_hold_whole_pixels_of_the_60_m_lattice():
    assert {gsd: unit_60m(gsd) * 60 for gsd in INPUTS} == {10: 120, 20: 480, 60: 1440}
    assert group_of(60, [tile_of(23)], 24) is None
    assert group_of(60, [tile_of(24)], 96).side_60m == 24
    assert group_of(60, [tile_of(24, ALL[:-1])], 24) is None  # without B09
    assert group_of(20, [tile_of(24, ALL[:10])], 96).side_60m == 24  # 1920 m wanted, 1440 m there
    assert group_of(10, [tile_of(24), tile_of(16, seed=1)], 96).side_60m == 16
    assert len(group_of(10, [tile_of(24), tile_of(16, seed=1)], 96).tiles) == 2


def test_published_blur_of_wide_sigma_is_nearly_a_box():
    image = torch.rand(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    boxed = functional.avg_pool2d(functional.pad(image, (2, 2, 2, 2), mode="reflect"), 5, stride=1)
    torch.testing.assert_close(coarser(image, 24), functional.avg_pool2d(boxed, 24), atol=1e-3, rtol=0)
    taps = torch.exp(-0.5 * (torch.arange(-2.0, 3) / 4) ** 2)
    kernel = torch.outer(taps, taps) / taps.sum() ** 2
    padded = functional.pad(image[:, :1], (2, 2, 2, 2), mode="reflect")
    by_hand = functional.avg_pool2d(functional.conv2d(padded, kernel[None, None]), 4)
    torch.testing.assert_close(coarser(image, 4)[:, :1], by_hand, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("gsd", "n"), [(10, 48), (20, 96), (60, 144)])
def test_an_example_has_every_band_unshifted_on_its_grid(gsd, n):
    rho = {}
    for native, bands in INPUTS.items():  # values are metres to the east of the crop
        side = n * gsd // native
        rho[native] = ((torch.arange(side) + 0.5) * native).expand(1, len(bands), side, side)
    example = example_of(rho, gsd)
    assert example.guide.shape == (1, 3, n, n)
    assert example.seen.shape == (1, len(inputs_of(gsd)), n, n)
    assert example.truth.shape == (1, len(INPUTS[gsd]), n, n)
    truth = (torch.arange(n) + 0.5) * gsd
    torch.testing.assert_close(example.guide[0, 0, n // 2], truth)
    inner = slice(2 * FACTORS[gsd], -2 * FACTORS[gsd])  # beyond the reach of the crop's border
    for band in example.seen[0]:
        torch.testing.assert_close(band[n // 2, inner], truth[inner], atol=0.05, rtol=0)
    assert example.seen[0, 0, n // 2, inner].numel() >= 32


def test_statistics_are_of_measured_ground_and_present_bands():
    one, two = tile_of(4), tile_of(4, present=ALL[:10], seed=1)
    two.valid[:2] = False
    found = statistics([one, two])
    values = np.concatenate([one.rho[20][4].ravel(), two.rho[20][4][6:].ravel()])
    assert found["B11"] == pytest.approx((values.mean(), values.std()), rel=1e-5)
    assert found["B09"] == pytest.approx((one.rho[60][1].mean(), one.rho[60][1].std()), rel=1e-5)
    assert "B09" not in statistics([two])


def test_statistics_may_be_the_released_ones(large):
    measured, released = task_of(large), task_of(large, recipe={**WALD, "statistics": "released"})
    assert released.normalisation["mean"]["B04"] == 0.1318
    assert measured.normalisation["mean"]["B04"] == pytest.approx(float(large.rho[10][0].mean()), rel=1e-4)
    truth = measured.batch(Draw.seeded(0))["truth20"]
    assert float(truth.mean()) == pytest.approx(0, abs=0.5)
    assert measured.bundle().normalisation == measured.normalisation
    with pytest.raises(UsageError, match="statistics=guess"):
        task_of(large, recipe={**WALD, "statistics": "guess"})


def test_guides_are_disturbed_where_the_recipe_says_so(large):
    plain = task_of(large, recipe={**WALD, "disturb_guide": False}).batch(Draw.seeded(0))
    disturbed = task_of(large).batch(Draw.seeded(0))
    assert torch.equal(plain["truth10"], disturbed["truth10"])
    assert not torch.equal(plain["guide10"], disturbed["guide10"])


def test_dropout_falls_on_the_guide_while_training_only():
    layer = torch.nn.Identity()
    ones = torch.ones(4, 8, 32, 32)
    with dropped(layer, 0.2, torch.Generator().manual_seed(0)):
        out = layer(ones)
    assert sorted(set(out.flatten().tolist())) == [0.0, 1.25]
    assert float((out == 0).float().mean()) == pytest.approx(0.2, abs=0.01)
    assert torch.equal(layer(ones), ones)


def test_dropout_on_another_device_draws_nothing_on_the_cpu(large):
    task, draw = task_of(large), Draw.seeded(0, 1)
    batch = {name: tensor.to("meta") for name, tensor in task.batch(Draw.seeded(0)).items()}
    before = draw.torch.get_state()
    task.network.to("meta")
    assert task.loss(TINY.stages[0], batch, draw).total.device.type == "meta"
    assert torch.equal(draw.torch.get_state(), before)


def test_a_file_without_scenes_is_refused_by_name():
    with pytest.raises(UsageError, match=r"mine\.toml: no Sentinel-2 scene to train on; expected a source of role"):
        task_of()


def test_the_loss_is_the_sum_over_groups_and_trains_all_three(large):
    task = task_of(large, recipe={**WALD, "dropout": 0.0})
    batch = task.batch(Draw.seeded(0))
    objective = task.loss(TINY.stages[0], batch, Draw.seeded(0, 1))
    assert list(objective.parts) == ["10m", "20m", "60m"]
    torch.testing.assert_close(objective.total, sum(objective.parts.values()))
    fused = task.network.get_submodule(name_of(20))(batch["guide20"], batch["seen20"])
    torch.testing.assert_close(objective.parts["20m"], (fused - batch["truth20"]).abs().mean())
    objective.total.backward()
    assert all(parameter.grad is not None for parameter in task.network.parameters())


def test_a_group_without_room_is_left_out_and_said_so():
    task = task_of(tile_of(16))
    assert list(task.groups) == [10, 20]
    assert task.describe()["untrained"] == {"60 m": "no tile of 1440 m with " + ", ".join(ALL)}
    silent = task.network.get_submodule(name_of(60))
    out = silent(torch.rand(1, 3, 24, 24), torch.rand(1, 12, 24, 24))
    assert not out.detach().any()
    assert not any(name.endswith("60") for name in task.batch(Draw.seeded(0)))
    with pytest.raises(UsageError, match="no Sentinel-2 tile is large enough"):
        task_of(tile_of(16, present=("B04", "B03", "B02")))


@pytest.mark.slow
def test_training_lowers_the_loss_and_resumes_bit_by_bit(large, tmp_path):
    whole = Run(task_of(large), TINY, Budget(images=12), tmp_path / "whole", seed=1)
    lines = []
    whole.train(say=lines.append, every_s=0.0)
    assert "10m=" in lines[0]
    assert "ERGAS (bilinear) 10 m " in lines[0]
    assert len(list((tmp_path / "whole" / "samples").iterdir())) == 6
    Run(task_of(large), TINY, Budget(images=12), tmp_path / "part", seed=1).train(every_s=1e9, until_images=6)
    again = Run(task_of(large), TINY, Budget(images=12), tmp_path / "part", seed=1)
    again.resume(tmp_path / "part")
    again.train(every_s=1e9)
    for name, value in whole.task.network.state_dict().items():
        assert torch.equal(value, again.task.network.state_dict()[name]), name


def test_samples_and_scores_are_of_the_watched_tiles(large):
    task = task_of(large)
    (row,) = task.samples(TINY.stages[0])
    assert list(row) == ["guide", "bilinear", "ours", "truth"]
    assert all(image.shape[0] == 3 for image in row.values())
    assert task.validate(TINY.stages[0]).text.count("m ") == 3


def test_networks_on_another_device_are_validated_and_shown(large, far):
    task = task_of(large)
    task.network.to(far)
    assert task.validate(TINY.stages[0]).text.startswith("ERGAS (bilinear) 10 m ")
    assert all(image.device == torch.device("cpu") for row in task.samples(TINY.stages[0]) for image in row.values())


def test_the_bundle_runs_in_the_pipeline_beside_a_super_resolver(large, tmp_path):
    task = task_of(large)
    Run(task, TINY, Budget(images=4), tmp_path, seed=1).train(every_s=1e9)
    fusion = tmp_path / "fusion.safetensors"
    save_bundle(fusion, task.bundle(task.describe(), "MIT"), task.network.state_dict())
    architecture = {"base": 8, "mults": [1, 2], "res_blocks": 1, "groups": 4, "attention_strides": [], "features": 8}
    architecture |= {"growth": 4, "encoder_blocks": 1, "degradation_base": 2}
    described = difffusr_bundle(architecture)
    sr = tmp_path / "sr.safetensors"
    save_bundle(sr, described, Networks(**described.architecture).state_dict())
    fuser = load(choose("difffusr", (str(sr), f"fusion={fusion}")), "cpu").predictor.fuser
    assert isinstance(fuser, DiffFuSRFusion)
    assert load_bundle(fusion).provenance["untrained"] == {}
    ms = {10: torch.full((1, 4, 24, 24), 0.1), 20: torch.full((1, 6, 12, 12), 0.2), 60: torch.full((1, 2, 4, 4), 0.1)}
    out = fuser.predict(torch.full((1, 3, 96, 96), 0.1), ms, ALL)
    assert out.shape == (1, 9, 96, 96)
    assert torch.isfinite(out).all()
