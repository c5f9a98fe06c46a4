"""Blocks of 60 m that touch an area: what is computed and stored where the area fills little of its chunks.

A chunk that holds one small field would otherwise be computed whole.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from pipeline.grid.grid import Window

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from shapely import Geometry

    from pipeline.grid.grid import Grid

BLOCK_M = 60.0
SPARSE_SHARE = 0.25  # of the chunks' ground; areas that fill less are stored in blocks
_INSET_M = 1e-3  # as for chunks: a block that only shares an edge with the area holds none of its pixels


def is_sparse(area: Geometry, grid: Grid, chunk_px: int, active: NDArray[np.bool_]) -> bool:
    """Return whether `area`, in metres, fills little of its active chunks. `active` (rows, cols) as in `Cut`."""
    ny, nx = grid.shape
    heights, widths = (
        np.minimum(chunk_px, length - chunk_px * np.arange(count))
        for length, count in zip((ny, nx), active.shape, strict=True)
    )
    pixels = float((active * heights[:, None] * widths[None]).sum())
    return bool(area.area < SPARSE_SHARE * pixels * grid.gsd_m**2)


def blocks_of(area: Geometry, grid: Grid, chunk: Window) -> list[Window]:
    """Return the blocks of `chunk` (px of `grid`) that touch `area`, in metres, as windows that do not overlap.

    Edges of `chunk` are multiples of 60 m. If no block touches, all of the chunk is returned.
    """
    import shapely

    left, bottom, right, top = grid.of(chunk).bounds_m
    if shapely.covers(area, shapely.box(left, bottom, right, top)):
        return [chunk]
    step = round(BLOCK_M / grid.gsd_m)
    x0, y1 = left + BLOCK_M * np.arange(chunk.nx // step), top - BLOCK_M * np.arange(chunk.ny // step)
    xs, ys = np.meshgrid(x0, y1)
    near, far = _INSET_M, BLOCK_M - _INSET_M
    mask: NDArray[np.bool_] = shapely.intersects(area, shapely.box(xs + near, ys - far, xs + far, ys - near))
    if not mask.any():
        return [chunk]
    return [
        Window(chunk.row + row * step, chunk.col + first * step, (end - row) * step, (last - first) * step)
        for row, end in _alike(mask)
        for first, last in _runs(mask[row])
    ]


def painted(parts: Sequence[Window], window: Window) -> NDArray[np.bool_]:
    """Return a mask (ny, nx) over `window` that is True within `parts`."""
    mask = np.zeros(window.shape, bool)
    for part in parts:
        if not (there := part.intersect(window)).empty:
            mask[there.slices(window)] = True
    return mask


def _alike(mask: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Return (first, end) of the runs of equal rows."""
    changes = np.flatnonzero((mask[1:] != mask[:-1]).any(1)) + 1
    return list(pairwise([0, *changes.tolist(), len(mask)]))


def _runs(line: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Return (first, end) of the runs of True.

    >>> _runs(np.array([True, True, False, True]))
    [(0, 2), (3, 4)]
    """
    edges = np.flatnonzero(np.diff(np.concatenate([[False], line, [False]]).astype(np.int8))).tolist()
    return list(zip(edges[::2], edges[1::2], strict=True))
