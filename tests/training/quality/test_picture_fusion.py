"""Sheets of fusion: what they show of a scene whose truth is known, and what is said where there is none to show."""

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.models import difffusr_fusion
from pipeline.models.bundle import save_bundle
from tests.archive.synthetic import make_scene
from tests.training.imagery import write_toml
from training import evaluate
from training.data.tiles import BANDS, Tile
from training.quality import baselines, picture_fusion, wald
from training.quality.picture import GAP_PX, LABEL_PX, ZOOM
from training.quality.picture_fusion import shown_bands

SIDE_60M = 48  # 2.88 km
TOML = """
[[source]]
name = "scenes"
role = "sentinel2"
path = "scenes"
split = "held-out"
"""


def task_of(names):
    """20 m x8 on random bands, under a fusion that adds a ramp to what bicubic makes."""
    generator = torch.Generator().manual_seed(0)
    rho = {g: 0.1 + 0.2 * torch.rand(len(b), SIDE_60M * 60 // g, SIDE_60M * 60 // g, generator=generator)
           for g, b in BANDS.items()}  # fmt: skip
    (part,) = wald.eighths(wald.Scene(rho, names))
    held = part.held(BANDS[20])
    coarse = part.coarser(8)[20][held]
    ours = baselines.bicubic(coarse[None], 8)[0]
    ours = ours + torch.linspace(0, 0.1, ours.shape[-1])
    guides, bands = wald.wald_coarser(part.rho[10][:3], 2), tuple(BANDS[20][i] for i in held)
    return wald.Task("20 m x8", 8, coarse, guides, part.rho[20][held], {"mine": ours}, bands)


@pytest.mark.parametrize(
    ("held", "shown"),
    [
        (BANDS[20], ("B11", "B8A", "B05")),
        (("B05", "B06", "B12"), ("B05", "B06", "B12")),
        (("B06", "B11"), ("B11", "B06", "B06")),
    ],
)
def test_false_colour_is_made_of_the_bands_there_are(held, shown):
    assert shown_bands(held) == shown


def test_panels_show_one_task_and_the_stored_one_keeps_its_input():
    task = task_of(BANDS[20])
    part = slice(8, 104), slice(40, 136)
    shown = {panel.label: panel.pixels for panel in picture_fusion.panels("mine", task, part)}
    assert list(shown) == [
        "guide: RGB, 20 m", "input, 160 m", "bicubic", "ATPRK-like", "mine, as stored", "truth, 20 m",
    ]  # fmt: skip
    assert {tuple(pixels.shape) for pixels in shown.values()} == {(3, 96, 96)}
    false_colour = task.truth[[BANDS[20].index(band) for band in ("B11", "B8A", "B05")]]
    assert torch.equal(shown["truth, 20 m"], false_colour[:, 8:104, 40:136])
    means = baselines.box(shown["mine, as stored"][None], 8)
    torch.testing.assert_close(means, shown["input, 160 m"][None, :, ::8, ::8], atol=1e-6, rtol=0)


def tile_of(columns, measured=slice(None), side=64, place="a"):
    """A tile whose brightness rises by columns of 1920 m, measured in some columns of 60 m; the rest is 0."""
    valid = np.zeros((32, side), bool)
    valid[:, measured] = True
    rng, rho = np.random.default_rng(0), {}
    for g, bands in BANDS.items():
        f = 60 // g
        level = np.repeat(np.array(columns, np.float32), 32 * f)[None, None]
        noise = 1 + 0.1 * rng.random((len(bands), 32 * f, side * f))
        rho[g] = (level * noise * valid.repeat(f, 0).repeat(f, 1)).astype(np.float32)
    return Tile.of(place, rho, valid, wald.OUT_BANDS)


def test_views_differ_in_land_cover_and_see_the_ground_around_them():
    tile = tile_of((0.1, 0.2, 0.3), side=96)
    middle, first, last = picture_fusion.chosen([tile])
    whole = torch.from_numpy(tile.rho[20])
    assert middle.why == "the median of its set"
    assert first.why.startswith("darker")
    assert last.why.startswith("brighter")
    for view, left in ((middle, 96), (first, 0), (last, 192)):
        assert torch.equal(view.scene.rho[20][(slice(None), *view.part)], whole[:, :96, left : left + 96])
    assert middle.scene.rho[60].shape[2] == 32 + 2 * 8
    assert first.scene.rho[60].shape[2] == 32 + 8  # the edge of the tile
    assert [view.why for view in picture_fusion.chosen([tile], count=1)] == [middle.why]


def test_no_view_shows_ground_that_was_not_measured():
    tiles = [tile_of((0.1, 0.3), slice(20, 60)), tile_of((0.1, 0.3), slice(0, 31), place="b")]
    (view,) = picture_fusion.chosen(tiles)
    assert view.tile.place == "a"
    assert all(float(values.min()) > 0 for values in view.scene.rho.values())


@pytest.fixture
def weights(tmp_path):
    """A DiffFuSR fusion of few parameters."""
    torch.manual_seed(0)
    bundle = difffusr_fusion.difffusr_fusion_bundle({"channels": 8, "growth": 4, "blocks": 1})
    path = tmp_path / "fusion.safetensors"
    save_bundle(path, bundle, difffusr_fusion.FusionNetworks(**bundle.architecture).state_dict())
    return path


@pytest.mark.parametrize("side_m", [2880, 1800])
def test_a_command_draws_fusion_or_says_why_not(tmp_path, capsys, weights, side_m):
    make_scene(tmp_path / "scenes", scene_id="S2_0", size_m=side_m, scl=False)
    sheets = tmp_path / "sheets"
    command = [str(weights), "--on", str(write_toml(tmp_path, TOML)), "--picture", str(sheets)]
    assert evaluate.main(command) == 0
    said = capsys.readouterr().err
    if side_m == 1800:
        assert "difffusr-fusion: no sheet, since no held-out or watched scene measures 1920 m" in said
        assert not sheets.exists()
        return
    (path,) = sheets.iterdir()
    assert path.name == "difffusr-fusion-scenes-scenes_S2_0-0.png"
    assert f"wrote {path}" in said
    with Image.open(path) as image:
        side = 96 * ZOOM
        assert image.size == (3 * (side + GAP_PX) + GAP_PX, 2 * LABEL_PX + 2 * (side + LABEL_PX + GAP_PX))
        assert len(np.unique(np.asarray(image))) > 50
