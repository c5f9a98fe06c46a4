"""Small images for tests of training data: written as users have them, with values that tell where they are."""

from __future__ import annotations

import warnings
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import rasterio
from rasterio.errors import NotGeoreferencedWarning
from rasterio.transform import from_origin

from tests.archive.synthetic import make_scene
from tests.training.tasks_for_tests import add_preset
from training.data.places import CELL_M, cell_split
from training.presets import Preset, Stage
from training.tasks.super_resolution import SENSOR

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

UTM = "EPSG:32632"


def write_raster(path: Path, pixels: np.ndarray, **profile: object) -> Path:
    """`pixels` (bands, y, x) as a raster file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = pixels.shape
    shape = {"count": count, "height": height, "width": width, "dtype": pixels.dtype}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path, "w", **{"driver": "GTiff", **shape, **profile}) as file:
            file.write(pixels)
    return path


def placed(left_m: float, top_m: float, gsd_m: float, crs: str = UTM) -> dict[str, object]:
    """Georeferencing for `write_raster`."""
    return {"crs": crs, "transform": from_origin(left_m, top_m, gsd_m, gsd_m)}


def texture(height: int, width: int, seed: int = 0, bands: int = 3) -> np.ndarray:
    """8-bit blocks of 4 px (bands, height, width): bright, never black, never flat."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(30, 220, (bands, -(-height // 4), -(-width // 4)))
    return np.kron(blocks, np.ones((1, 4, 4), int))[:, :height, :width].astype(np.uint8)


def write_toml(folder: Path, text: str) -> Path:
    """A training file."""
    path = folder / "mine.toml"
    path.write_text(text)
    return path


def corner_in(split: str, skip: int = 0) -> tuple[float, float]:
    """Upper-left corner of a cell of one split, in metres of EPSG:32632; the `skip`-th one."""
    cells = ((row, col) for row in range(-660, -640) for col in range(60, 80) if cell_split(32632, row, col) == split)
    row, col = next(islice(cells, skip, None))
    return col * CELL_M, -row * CELL_M


TINY_SR = Preset(
    name="lite-sr",
    task="lite-sr",
    architecture={"width": 8, "blocks": 1, "denoiser_width": 8, "denoiser_blocks": 1},
    stages=(Stage("mean", 0.5, ("encoder.", "mean_head.", "spread_head.")), Stage("detail", 0.5, ("denoiser.",))),
    minutes=1,
    batch=4,
    warmup_steps=2,
    sampler={"name": "ddim", "steps": 2},
    recipe=dict(SENSOR),
)
TINY_FUSION = Preset(
    name="lite-fusion",
    task="lite-fusion",
    architecture={"sharpen_width": 8, "sharpen_blocks": 1, "detail_width": 8, "detail_blocks": 1},
    stages=(Stage("wald", 1.0, ()),),
    minutes=1,
    batch=2,
)
TOML = """
name = "our town"
licence = "city of Example, CC BY 4.0"

[[source]]
name = "orthos"
role = "hr"
path = "orthos"
target_gsd_m = [1.0, 1.4]

[[source]]
name = "scenes"
role = "sentinel2"
path = "scenes"
"""


def own_imagery(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Orthophotos of 0.5 m and scenes, in cells of both splits, and presets of few parameters; the training file."""
    add_preset(monkeypatch, TINY_SR)
    add_preset(monkeypatch, TINY_FUSION)
    for number, split in enumerate(("train", "train", "held-out")):
        left, top = corner_in(split, number)
        photo = texture(320, 320, number)
        write_raster(tmp_path / "orthos" / f"{number}.tif", photo, **placed(left + 1000, top - 1000, 0.5))
        left, top = (round(metres / 60) * 60 for metres in (left + 600, top - 600))
        make_scene(tmp_path / "scenes", scene_id=f"S2_{number}", left_m=left, top_m=top, size_m=1800, scl=False)
    return write_toml(tmp_path, TOML)
