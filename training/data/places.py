"""Train and held-out splits by place on the ground.

Georeferenced ground is divided into the cells of one fixed lattice per UTM zone. Images of the same ground therefore
agree on its split, whatever their CRS.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Literal

import numpy as np

from pipeline.grid.grid import GSD_M

if TYPE_CHECKING:
    from numpy.typing import NDArray

Split = Literal["train", "held-out"]
SPLITS: tuple[Split, Split] = ("train", "held-out")
HELD_OUT_SHARE = 0.2
SPLIT_SALT = "place-1"  # a change moves places between splits, so older weights are no longer comparable
CELL_PX = 3072  # cell side in 2.5 m px: 8 strides of the model lattice
CELL_M = CELL_PX * GSD_M  # 7.68 km
SPLIT_RULE = (
    f"sha256 of '{SPLIT_SALT}/<place>' below {HELD_OUT_SHARE:g} is held out; a place is what the file's name says, "
    f"else a cell of {CELL_M / 1000:g} km of the UTM zone, else the file"
)
_BLOCK_M = 120.0  # resolution of a split map; mixed blocks along a border belong to neither split
_PAD_M = 2.0  # padding of reprojected boxes, whose edges are curved
_PAD_DEG = 1e-4  # ground within this distance of a zone edge counts for both zones
_TRAIN, _HELD_OUT = 1, 2  # bits of a block's mask
_BIT: dict[Split, int] = {"train": _TRAIN, "held-out": _HELD_OUT}


def split_of(place: str) -> Split:
    """Return the split of a place from a hash of its name, independent of other places."""
    digest = hashlib.sha256(f"{SPLIT_SALT}/{place}".encode()).digest()
    return "held-out" if int.from_bytes(digest[:4]) / 2**32 < HELD_OUT_SHARE else "train"


def cell_name(epsg: int, row: int, col: int) -> str:
    """Return the place name of a cell. Rows count south and columns east from the zone's (0, 0)."""
    return f"EPSG:{epsg}/{row}/{col}"


@lru_cache(maxsize=100_000)
def cell_split(epsg: int, row: int, col: int) -> Split:
    """Return the split of a cell."""
    return split_of(cell_name(epsg, row, col))


def zone_of(lon: NDArray[np.float64], lat: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the EPSG codes 326zz / 327zz of the six-degree UTM zones of points. Longitudes may exceed 180."""
    zone = np.floor((lon + 180.0) / 6.0).astype(np.int64) % 60 + 1
    return np.where(lat >= 0, 32600, 32700) + zone


@dataclass(frozen=True)
class Georeference:
    """Georeference: CRS as WKT or "EPSG:n", affine (a, b, c, d, e, f) of pixel corners, shape (ny, nx)."""

    crs: str
    affine: tuple[float, float, float, float, float, float]
    shape: tuple[int, int]

    def ground(self, rows: NDArray[np.float64], cols: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
        """Return CRS coordinates (x, y) of pixel corners."""
        a, b, c, d, e, f = self.affine
        return a * cols + b * rows + c, d * cols + e * rows + f

    def pixels(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
        """Return (rows, cols) of CRS coordinates, in pixel corners."""
        a, b, c, d, e, f = self.affine
        cols, rows = np.linalg.inv([[a, b], [d, e]]) @ np.stack([x.ravel() - c, y.ravel() - f])
        return rows, cols

    def at(self, row: float, col: float, scale: int = 1) -> tuple[float, float, float, float, float, float]:
        """Return the affine of pixels `scale` times as fine whose first corner is (row, col) of these pixels."""
        a, b, c, d, e, f = self.affine
        return (
            a / scale, b / scale, a * col + b * row + c,
            d / scale, e / scale, d * col + e * row + f,
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class SplitMap:
    """Split of every block of a raster.

    `masks` (ny, nx) holds the bits train and held-out; mixed blocks have both. `cells` (ny, nx) is one cell that each
    block touches, as an index into `places`.
    """

    masks: NDArray[np.uint8]
    cells: NDArray[np.int32]
    places: tuple[str, ...]
    block_px: int

    def share(self, split: Split) -> float:
        """Return the share of blocks entirely in `split`."""
        return float((self.masks == _BIT[split]).mean())

    def blocks(self, split: Split) -> NDArray[np.int64]:
        """Return the blocks entirely in `split`, (n, 2) as (row, column)."""
        return self._blocks[split]

    @cached_property
    def _blocks(self) -> dict[Split, NDArray[np.int64]]:
        return {split: np.argwhere(self.masks == _BIT[split]) for split in SPLITS}

    def holds(self, split: Split, y: int, x: int, ny: int, nx: int) -> bool:
        """Return True if the window [y, y + ny) x [x, x + nx) lies entirely in `split`."""
        n = self.block_px
        touched = self.masks[y // n : -(-(y + ny) // n), x // n : -(-(x + nx) // n)]
        return bool((touched == _BIT[split]).all())

    def squares(self, split: Split, count: int) -> list[tuple[str, int, int, int]]:
        """Return up to `count` largest squares of blocks in `split`, one per place, as (place, row, column, side)."""
        free = self.masks == _BIT[split]
        found: list[tuple[str, int, int, int]] = []
        while len(found) < count and free.any():
            reach = _square_sides(free)
            row, col = (int(i) for i in np.unravel_index(int(reach.argmax()), reach.shape))
            side = int(reach[row, col])
            row, col = row - side + 1, col - side + 1
            place = int(self.cells[row + side // 2, col + side // 2])
            found.append((self.places[place], row, col, side))
            free[row : row + side, col : col + side] = False
            free &= self.cells != place
        return found


def _square_sides(free: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Return the side of the largest square of True that ends at each block, by dynamic programming."""
    sides = free.astype(np.int32)
    for row in range(1, free.shape[0]):
        for col in range(1, free.shape[1]):
            if free[row, col]:
                sides[row, col] = 1 + min(sides[row - 1, col], sides[row, col - 1], sides[row - 1, col - 1])
    return sides


def split_map(raster: Georeference, gsd_m: float) -> SplitMap:
    """Return the split of every block of a raster. A block may be assigned extra cells, but never too few."""
    from pyproj import CRS, Transformer

    block_px = max(1, round(_BLOCK_M / gsd_m))
    edges = [np.minimum(np.arange(-(-side // block_px) + 1) * block_px, side) for side in raster.shape]
    rows, cols = np.meshgrid(*(edge.astype(np.float64) for edge in edges), indexing="ij")
    x, y = raster.ground(rows, cols)
    crs = CRS.from_user_input(raster.crs)
    lon, lat = Transformer.from_crs(crs, 4326, always_xy=True).transform(x, y)
    blocks = tuple(len(edge) - 1 for edge in edges)
    masks, cells = np.zeros(blocks, np.uint8), np.zeros(blocks, np.int32)
    places: dict[str, int] = {}
    near = np.stack([zone_of(lon + i * _PAD_DEG, lat + j * _PAD_DEG) for i in (-1, 1) for j in (-1, 1)])
    for epsg in np.unique(near).tolist():
        inside = _any_corner((near == epsg).any(axis=0))
        same = crs.to_epsg() == epsg
        east, north = (x, y) if same else Transformer.from_crs(4326, epsg, always_xy=True).transform(lon, lat)
        for row in _cell_range(north, -1, same):
            for col in _cell_range(east, 1, same):
                _mark(masks, cells, places, epsg, inside, row, col)
    return SplitMap(masks, cells, tuple(places), block_px)


def _any_corner(corners: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Reduce flags of corners (ny + 1, nx + 1) to flags of blocks (ny, nx) by logical or."""
    flags: NDArray[np.bool_] = corners[:-1, :-1] | corners[1:, :-1] | corners[:-1, 1:] | corners[1:, 1:]
    return flags


def _cell_range(metres: NDArray[np.float64], sign: int, exact: bool) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the first and last cell along one axis that each block touches."""
    at = sign * metres
    parts = np.stack([at[:-1, :-1], at[1:, :-1], at[:-1, 1:], at[1:, 1:]])
    pad = -1e-6 if exact else _PAD_M
    first, last = (parts.min(axis=0) - pad) / CELL_M, (parts.max(axis=0) + pad) / CELL_M
    return np.floor(first).astype(np.int64), np.floor(last).astype(np.int64)


def _mark(
    masks: NDArray[np.uint8],
    cells: NDArray[np.int32],
    places: dict[str, int],
    epsg: int,
    inside: NDArray[np.bool_],
    row: NDArray[np.int64],
    col: NDArray[np.int64],
) -> None:
    """Add cell (row, col) of one zone to the mask of each block `inside` the zone. Blocks are smaller than cells."""
    touched, index = np.unique(np.stack([row[inside], col[inside]], axis=1), axis=0, return_inverse=True)
    if not len(touched):
        return
    bits = np.array([_BIT[cell_split(epsg, int(r), int(c))] for r, c in touched], np.uint8)
    numbers = [places.setdefault(cell_name(epsg, int(r), int(c)), len(places)) for r, c in touched]
    masks[inside] |= bits[index.ravel()]
    cells[inside] = np.array(numbers, np.int32)[index.ravel()]
