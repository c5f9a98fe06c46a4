"""Reflectance windows from which `SuperResolver.scene_state` computes the state of a scene.

They depend on the scene alone, not on the AOI.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import numpy as np

from pipeline.bands import NODATA_DN
from pipeline.grid.grid import Grid, Window, align_up
from pipeline.superres.masks import reflectance

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from pipeline.archive.read.access import Access
    from pipeline.archive.scene import Scene

_SIZE_10M = 64
_CELL_PX = 288  # 720 m: 12 pixels of 60 m, the smallest whole number that holds 64 pixels of 10 m
_STEP_PX = 96  # 240 m: any scene of one kilometre contains a window
_CLEAR_SHARE = 0.98
_CLEAR_SCL = (4, 5, 6, 7, 11)  # vegetation, bare, water, unclassified, snow
_TRIES_PER_WINDOW = 2


def state_windows(scene: Scene, bands: tuple[str, ...], access: Access, count: int) -> Tensor | None:
    """Return up to `count` windows of reflectance (K, bands, 64, 64), chosen by a hash of their position, clear first.

    If too few are clear, the clearest of the tried windows are used. Returns None if every tried window holds nodata.
    """
    import torch

    from pipeline.archive.read.cube import read_period

    found: list[tuple[float, np.ndarray]] = []
    for tried, grid in enumerate(_candidates(scene)):
        if tried == count * _TRIES_PER_WINDOW or sum(clear >= _CLEAR_SHARE for clear, _ in found) == count:
            break
        pixels = read_period((scene,), "mosaic", grid, bands, access)
        dn = np.stack([pixels.dn[10][pixels.bands[10].index(name)] for name in bands])[:, :_SIZE_10M, :_SIZE_10M]
        if (dn != NODATA_DN).all():
            clear = 1.0 if pixels.scl is None else float(np.isin(pixels.scl, _CLEAR_SCL).mean())
            found.append((clear, reflectance(dn)))
    best = sorted(found, key=lambda pair: pair[0] < _CLEAR_SHARE and 1 - pair[0])[:count]
    return torch.from_numpy(np.stack([window for _, window in best])) if best else None


def _candidates(scene: Scene) -> Iterator[Grid]:
    """Yield squares of 720 m inside the scene's 10 m raster, in an order that depends only on their position."""
    raster = next((r for r in scene.rasters if r.gsd_m == 10), None)
    if raster is None:
        return
    size = (raster.left_m, raster.top_m - raster.ny * 10, raster.left_m + raster.nx * 10, raster.top_m)
    whole = Grid.covering(scene.epsg, size, scene.phase, step_px=4).window
    cells = [
        (row, col)
        for row in range(align_up(whole.row, _STEP_PX), whole.row_end - _CELL_PX + 1, _STEP_PX)
        for col in range(align_up(whole.col, _STEP_PX), whole.col_end - _CELL_PX + 1, _STEP_PX)
    ]
    for row, col in sorted(cells, key=lambda cell: zlib.crc32(f"{scene.epsg}/{cell[0]}/{cell[1]}".encode())):
        yield Grid(scene.epsg, Window(row, col, _CELL_PX, _CELL_PX), phase=scene.phase)
