"""Training data and tests of fusion: tiles through the pipeline's loaders, Wald's protocol, masks."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.models.bundle import load_bundle
from pipeline.models.lite_fusion import OUT_BANDS, FusionNetwork, LiteFusion
from training.data.sentinel2 import read_dsen2_scene
from training.data.sources import shipped_data
from training.data.tiles import BANDS, Nested, Tile, to_reflectance, whole_blocks
from training.loop.run import Draw
from training.presets import Preset, Stage
from training.quality import wald
from training.tasks import lite_wald
from training.tasks.fusion import Fusion
from training.tasks.fusion_tiles import Crop, TileSampler, coarser, disturbed, relative_loss, views

WEIGHTS = Path(__file__).resolve().parents[3] / "pipeline" / "models" / "weights" / "lite-fusion.safetensors"
PRESET = Preset(
    name="tiny",
    task="lite-fusion",
    architecture={"sharpen_width": 8, "sharpen_blocks": 1, "detail_width": 8, "detail_blocks": 1},
    stages=(Stage("wald", 1.0, (), 1e-3),),
    minutes=1,
    batch=2,
)


def tile(seed=0, present=OUT_BANDS, side=20) -> Tile:
    rng = np.random.default_rng(seed)
    rho = {
        gsd: rng.uniform(0.05, 0.4, (len(names), side * 60 // gsd, side * 60 // gsd)) for gsd, names in BANDS.items()
    }
    rho = {gsd: values.astype(np.float32) for gsd, values in rho.items()}
    return Tile.of("a/1", rho, np.ones((side, side), bool), tuple(present))


def test_nodata_becomes_zero_reflectance():
    dn = np.array([[0, 1000, 1500]], np.uint16)
    np.testing.assert_allclose(to_reflectance(dn), [[0.0, 0.0, 0.05]], atol=1e-7)


def test_tiles_are_cut_to_whole_measured_60m_pixels():
    rho = {gsd: np.zeros((1, 30 * 60 // gsd, 30 * 60 // gsd), np.float32) for gsd in BANDS}
    rho[10][0, 12:, 6:] = 1
    measured = np.zeros((180, 180), bool)
    measured[7:, 6:] = True
    cut = Nested(rho, whole_blocks(measured)).trimmed()
    assert cut is not None
    assert {gsd: values.shape[1:] for gsd, values in cut.rho.items()} == {10: (168, 174), 20: (84, 87), 60: (28, 29)}
    assert cut.rho[10].all()
    assert Nested(rho, np.zeros((30, 30), bool)).trimmed() is None


def test_crops_nest_and_drop_what_the_product_lacks():
    lacking = tuple(name for name in OUT_BANDS if name not in ("B01", "B06"))
    crop = TileSampler([tile(present=lacking)]).batch(np.random.default_rng(0), 3)
    assert {gsd: rho.shape for gsd, rho in crop.rho.items()} == {
        10: (3, 4, 96, 96),
        20: (3, 6, 48, 48),
        60: (3, 2, 16, 16),
    }
    assert crop.mask.shape == (3, 9, 1, 1)
    assert not crop.mask[:, OUT_BANDS.index("B06")].any()
    assert not crop.rho[20][:, 1].any()
    assert not crop.rho[60][:, 0].any()
    assert crop.rho[20][:, 0].all()


def test_crops_keep_bands_on_the_same_ground():
    """Bands whose values are positions stay aligned through turns and flips (radiometry changes by a straight line)."""
    rows = np.arange(120, dtype=np.float32)[:, None] + 0.5
    columns = np.arange(120, dtype=np.float32)[None] + 0.5
    fine = np.stack([rows + 0 * columns, columns + 0 * rows, rows + columns, rows - columns]) / 300
    twenty = fine.reshape(4, 60, 2, 60, 2).mean((2, 4))
    rho = {10: fine, 20: np.concatenate([twenty, twenty[:2]]), 60: np.zeros((2, 20, 20), np.float32)}
    made = Tile.of("a/1", rho, np.ones((20, 20), bool), OUT_BANDS)
    rng = np.random.default_rng(1)
    for _ in range(6):
        crop = TileSampler([made]).batch(rng, 1)
        means = torch.nn.functional.avg_pool2d(crop.rho[10][0], 2)
        for band in (0, 3):  # B05 and B8A are never dropped
            both = torch.stack([means[band].flatten(), crop.rho[20][0, band].flatten()])
            assert float(torch.corrcoef(both)[0, 1]) > 0.9999


def test_absent_bands_do_not_count():
    truth, mask = torch.full((1, 2, 4, 4), 0.2), torch.tensor([1.0, 0.0])[None, :, None, None]
    wrong = truth.clone()
    wrong[:, 1] = 5.0
    assert relative_loss(wrong, truth, mask) == 0
    wrong[:, 0] = 0.43
    assert relative_loss(wrong, truth, mask) == pytest.approx(1.0)


def test_coarser_without_blur_is_the_block_mean():
    rho = torch.rand(1, 2, 24, 24, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(coarser(rho, 4, 0.0), torch.nn.functional.avg_pool2d(rho, 4))
    assert coarser(rho, 4, 0.6).var() < coarser(rho, 4, 0.0).var()


def test_disturbed_guides_keep_their_place():
    rgb = torch.rand(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    changed = disturbed(rgb, Draw.seeded(0))
    assert changed.shape == rgb.shape
    assert not torch.equal(changed, rgb)
    assert torch.corrcoef(torch.stack([changed.flatten(), rgb.flatten()]))[0, 1] > 0.9


def test_projection_is_exact():
    generator = torch.Generator().manual_seed(0)
    fine, coarse = torch.rand(2, 24, 24, generator=generator), torch.rand(2, 4, 4, generator=generator)
    projected = wald.project(fine, coarse, 6)
    torch.testing.assert_close(torch.nn.functional.avg_pool2d(projected[None], 6)[0], coarse)


@pytest.mark.slow
@pytest.mark.shared_data
def test_the_pipelines_loader_feeds_training(shared_data):
    tiles = [*shipped_data(shared_data).tiles("train"), *shipped_data(shared_data).watched_tiles()]
    by_place = {tile.place: tile for tile in tiles}
    assert len(by_place) == 13
    assert not any(judged in place for place in by_place for judged in ("T33UUB", "433D_629L_3_1"))
    assert set(OUT_BANDS) - set(by_place["argentina_pampas_32720/argentina_pampas_32720"].present) == {
        "B01",
        "B06",
        "B07",
        "B09",
    }


@pytest.mark.shared_data
def test_a_step_of_training_moves_every_parameter(shared_data):
    task = Fusion(PRESET, shipped_data(shared_data))
    draw = Draw.seeded(0)
    for _ in range(2):  # the last convolutions start at zero, so the first step reaches only them
        loss = task.loss(PRESET.stages[0], task.batch(draw), draw)
        task.network.zero_grad()
        loss.backward()
        assert torch.isfinite(loss)
        with torch.no_grad():
            for parameter in task.network.parameters():
                parameter -= 0.01 * parameter.grad
    assert all(float(parameter.grad.abs().max()) > 0 for parameter in task.network.parameters())


@pytest.mark.slow
@pytest.mark.shared_data
def test_shipped_fusion_beats_atprk_like_on_an_unseen_scene(shared_data):
    network = LiteFusion.from_bundle(load_bundle(WEIGHTS)).network
    with torch.inference_mode():
        rows = lite_wald.measure(network, read_dsen2_scene(shared_data / "s2_l1c" / wald.TEST_SCENE))
    twenty = rows[0]
    assert twenty.ergas["lite"] < 0.8 * twenty.ergas["ATPRK-like"]
    assert twenty.projected["lite"] < 0.8 * 2.47  # what peers' ATPRK-like reaches on this row
    for row in rows:
        others = [row.projected[name] for name in ("bicubic", "GSA", "ATPRK-like")]
        assert row.projected["lite"] < min(others), row.task


def test_crop_type_holds_what_the_loss_needs():
    task = Fusion.__new__(Fusion)
    task.preset, task.network = PRESET, FusionNetwork(**PRESET.architecture)
    task.sampler = TileSampler([tile()])
    draw = Draw.seeded(0)
    batch = task.batch(draw)
    assert isinstance(task.sampler.batch(draw.rng, 1), Crop)
    assert batch["detail40"].shape == (2, 9, 24, 24)
    assert batch["detail80"].shape == (2, 9, 12, 12)
    assert batch["truth20"].shape == (2, 7, 48, 48)
    assert batch["sharpen60"].shape == (2, 2, 8, 8)
    assert torch.isfinite(task.loss(PRESET.stages[0], batch, draw))


def gappy(side, first) -> Tile:
    """A tile of `side` px of 60 m, measured from column `first` on; the rest is 0."""
    made = tile(side=side)
    valid = np.zeros((side, side), bool)
    valid[:, first:] = True
    rho = {gsd: values.copy() for gsd, values in made.rho.items()}
    for gsd, values in rho.items():
        values[..., : first * 60 // gsd] = 0
    return Tile.of("a/1", rho, valid, OUT_BANDS)


@pytest.mark.parametrize(("side", "factor", "shown_px"), [(48, 8, 96), (28, 2, 48)])
def test_samples_show_measured_ground_as_the_network_sees_it(side, factor, shown_px):
    task = Fusion.__new__(Fusion)
    torch.manual_seed(0)
    task.preset, task.network = PRESET, FusionNetwork(**PRESET.architecture)
    watched = gappy(side, 12)
    task.views = views([watched])
    (row,) = task.samples(PRESET.stages[0])
    assert list(row) == ["guide", "input", "ours", "truth"]
    assert {tuple(image.shape[1:]) for image in row.values()} >= {(row["truth"].shape[1], shown_px)}
    assert all(image.shape == row["truth"].shape for image in row.values())
    blocks = row["input"].unfold(1, factor, factor).unfold(2, factor, factor)
    assert torch.equal(blocks.amin((3, 4)), blocks.amax((3, 4)))
    b11 = watched.rho[20][BANDS[20].index("B11")]
    (ours,) = (view.scene.rho[20][4][view.part] for view in task.views)
    assert float(ours.min()) >= b11[b11 > 0].min()  # nothing of the gap
    low, high = torch.quantile(ours, 0.005), torch.quantile(ours, 0.995)
    torch.testing.assert_close(row["truth"][0], (ours - low) / (high - low))
    torch.nn.init.constant_(task.network.sharpen_trunk.exit.bias, 1.0)
    (changed,) = task.samples(PRESET.stages[0])
    assert not torch.equal(changed["ours"], row["ours"])
    assert torch.equal(changed["input"], row["input"])


@pytest.mark.slow
def test_a_network_on_another_device_is_validated_and_finished(far):
    task = Fusion.__new__(Fusion)
    task.preset, task.network = PRESET, FusionNetwork(**PRESET.architecture).to(far)
    task.watched = task.judged = {"a/1": tile(side=16).rho}
    task.views = views([tile(side=16)])
    task.finish()
    assert all(image.device.type == "cpu" for row in task.samples(PRESET.stages[0]) for image in row.values())
    said = task.validate(PRESET.stages[0]).text
    assert said.startswith("ERGAS lite (ATPRK-like) 1: 20 m x2 ")
    assert next(task.network.parameters()).device == far


def test_finishing_keeps_the_best_share_of_the_residual():
    """A residual that makes everything worse is shrunk to nothing."""
    task = Fusion.__new__(Fusion)
    task.preset, task.network = PRESET, FusionNetwork(**PRESET.architecture)
    task.watched = {"a/1": tile(side=16).rho}
    for trunk in (task.network.sharpen_trunk, task.network.detail_trunk):
        torch.nn.init.constant_(trunk.exit.bias, 5.0)
    task.finish()
    for trunk in (task.network.sharpen_trunk, task.network.detail_trunk):
        assert not trunk.exit.bias.any()
