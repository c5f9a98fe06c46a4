"""Small images for tests of training data: written as users have them, with values that tell where they are."""

from __future__ import annotations

import warnings
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import rasterio
from rasterio.errors import NotGeoreferencedWarning
from rasterio.transform import from_origin

from training.places import CELL_M, cell_split

if TYPE_CHECKING:
    from pathlib import Path

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
