"""Tiles: Sentinel-2 ground at the native 10, 20 and 60 m, read lazily.

Tiles are cut along the cells of the split lattice, so each is read at once and lies in one split. Indices count 60 m
pixels, in which the other grids nest.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np

from pipeline.bands import BY_NAME, DN_OFFSET, DN_SCALE, NODATA_DN
from pipeline.grid.grid import Window
from training.data.places import CELL_M, Georeference, split_map, split_of
from training.data.rasters import check_reflectance, reading

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray
    from xarray import DataArray

    from pipeline.archive.read.access import Access
    from pipeline.archive.scene import Scene
    from pipeline.grid.grid import Grid
    from training.data.images import Values
    from training.data.places import Split
    from training.data.rasters import Stored

BANDS: dict[int, tuple[str, ...]] = {
    10: ("B04", "B03", "B02", "B08"),
    20: ("B05", "B06", "B07", "B8A", "B11", "B12"),
    60: ("B01", "B09"),
}
GSD_M = 60  # GSD of tile indices
CELL_PX = round(CELL_M / GSD_M)  # 128
MIN_SIDE_PX = 16  # smaller tiles hold no crop
CACHE_BYTES = 1_000_000_000  # of tiles, per process; a tile takes at most 13 MB


@dataclass(frozen=True, eq=False)
class Nested:
    """Reflectance `rho` (bands, h, w) float32 by GSD in metres, in the order of `BANDS`; absent bands are 0.

    `valid` (h, w) at 60 m is True where every 10 m pixel was measured.
    """

    rho: dict[int, NDArray[np.float32]]
    valid: NDArray[np.bool_]

    @property
    def shape(self) -> tuple[int, int]:
        """(ny, nx) at 60 m."""
        return self.valid.shape[0], self.valid.shape[1]

    @property
    def nbytes(self) -> int:
        """Size of all arrays."""
        return self.valid.nbytes + sum(values.nbytes for values in self.rho.values())

    def load(self, window: Window) -> Nested:
        """Return the part within `window`."""
        cut = {gsd: values[:, *_slices(window, gsd)] for gsd, values in self.rho.items()}
        return Nested(cut, self.valid[_slices(window, GSD_M)])

    def trimmed(self) -> Nested | None:
        """Return it without outer rows and columns that have no valid pixel; None if no pixel is valid."""
        if not self.valid.any():
            return None
        rows, cols = (np.flatnonzero(self.valid.any(axis=axis)) for axis in (1, 0))
        top, left = int(rows[0]), int(cols[0])
        return self.load(Window(top, left, int(rows[-1]) + 1 - top, int(cols[-1]) + 1 - left))


def _slices(window: Window, gsd_m: int) -> tuple[slice, slice]:
    fine = window.refine(GSD_M // gsd_m)
    return slice(fine.row, fine.row_end), slice(fine.col, fine.col_end)


class Ground(Protocol):
    """Source of a tile's pixels. Picklable; reads in the calling process."""

    @property
    def shape(self) -> tuple[int, int]:
        """(ny, nx) at 60 m."""
        ...

    def load(self, window: Window) -> Nested:
        """Read a window inside the ground."""
        ...


@dataclass(frozen=True, eq=False)
class SceneGround:
    """A scene, read by the pipeline's loader."""

    scene: Scene
    grid: Grid  # 2.5 m, edges on whole 60 m pixels
    access: Access

    @property
    def shape(self) -> tuple[int, int]:
        """(ny, nx) at 60 m."""
        return self.grid.at_gsd(GSD_M).shape

    @property
    def present(self) -> tuple[str, ...]:
        """Bands of the scene."""
        return tuple(band for band in BY_NAME if band in self.scene.hrefs)

    def load(self, window: Window) -> Nested:
        """Read a window as `Ground.load`. Raises ReadError after retries."""
        from pipeline.archive.read.cube import read_period

        whole = self.grid.at_gsd(GSD_M).window
        part = Window(whole.row + window.row, whole.col + window.col, window.ny, window.nx).refine(24)
        pixels = read_period([self.scene], "mosaic", self.grid.of(part), self.present, self.access)
        dn = {gsd_m: _in_order(pixels.dn, pixels.bands, gsd_m, window.shape) for gsd_m in BANDS}
        measured = (dn[10] != NODATA_DN).any(axis=0)
        return Nested({gsd: to_reflectance(values) for gsd, values in dn.items()}, whole_blocks(measured))


@dataclass(frozen=True, eq=False)
class StackReader:
    """Reader of bands (0-based) of a stack, cropped to whole 60 m pixels.

    With `step` = 2 bands of 20 m, which are repeated on the 10 m grid, are read on their own grid, of `shape`.
    """

    open: Callable[[], DataArray]
    bands: tuple[int, ...]
    shape: tuple[int, int]
    itemsize: int
    label: str
    step: int = 1

    def mask(self, y: int, x: int, ny: int, nx: int) -> None:
        """Return None: a stack marks nodata by value."""

    def selecting(self, places: Sequence[int]) -> StackReader:
        """As `Reader.selecting`."""
        return replace(self, bands=tuple(self.bands[place] for place in places))

    def read(self, y: int, x: int, ny: int, nx: int) -> Stored:
        """Return stored values (bands, ny, nx) of a window. Raises ReadError if the file or store is damaged."""
        of = self.step
        rows, cols = slice(of * y, of * (y + ny), of), slice(of * x, of * (x + nx), of)
        with reading(self.label):
            lazy = self.open().isel(band=list(self.bands), y=rows, x=cols)
            stored: Stored = lazy.data.compute(scheduler="synchronous")
        return stored


@dataclass(frozen=True, eq=False)
class StackGround:
    """One date of a stack with all bands on the 10 m grid. `load` subsamples 20 and 60 m bands to their own grids."""

    open: Callable[[], DataArray]  # (band, y, x)
    bands: tuple[tuple[str, int], ...]  # name, 0-based index
    values: Values
    shape: tuple[int, int]
    itemsize: int
    label: str  # file or store

    def reader(self, names: tuple[str, ...], gsd_m: int = 10) -> StackReader:
        """Return a reader of some bands at their native GSD of 10 or 20 m."""
        indices = tuple(dict(self.bands)[name] for name in names)
        shape = self.shape[0] * GSD_M // gsd_m, self.shape[1] * GSD_M // gsd_m
        return StackReader(self.open, indices, shape, self.itemsize, self.label, gsd_m // 10)

    def load(self, window: Window) -> Nested:
        """Read a window as `Ground.load`."""
        rows, cols = _slices(window, 10)
        indices = [index for _, index in self.bands]
        reader = StackReader(self.open, tuple(indices), self.shape, self.itemsize, self.label)
        stored = reader.read(rows.start, cols.start, rows.stop - rows.start, cols.stop - cols.start)
        names = [name for name, _ in self.bands]
        rho = {}
        for gsd, wanted in BANDS.items():
            step = gsd // 10
            rho[gsd] = np.zeros((len(wanted), stored.shape[1] // step, stored.shape[2] // step), np.float32)
            for row, name in enumerate(wanted):
                if name in names:
                    plane = stored[names.index(name), ::step, ::step]
                    given = np.isfinite(plane) & (plane != self.values.nodata)
                    rho[gsd][row] = np.where(given, self.values.decode(plane[None])[0], 0)
                    check_reflectance(f"{name} of {self.label}", rho[gsd][row])
        measured = np.isfinite(stored) & (stored != (self.values.nodata or 0))
        return Nested(rho, whole_blocks(measured.any(axis=0)))


@dataclass(frozen=True, eq=False)
class Tile:
    """A window of ground in one split. `rho` and `valid` read its pixels through an LRU cache."""

    place: str
    ground: Ground
    window: Window
    present: tuple[str, ...]
    split: Split = "train"
    source: str = ""
    weight: float = 1.0
    watched: bool = False
    evaluated: bool = True

    @classmethod
    def of(
        cls, place: str, rho: dict[int, NDArray[np.float32]], valid: NDArray[np.bool_], present: tuple[str, ...]
    ) -> Tile:
        """Return a tile of arrays."""
        return cls(place, Nested(rho, valid), Window(0, 0, *valid.shape), present)

    @property
    def label(self) -> str:
        """Name of the tile in messages."""
        return f"{self.source}: {self.place}"

    @property
    def whole(self) -> Nested:
        """All pixels of the tile."""
        return CACHE.loaded(self)

    @property
    def rho(self) -> dict[int, NDArray[np.float32]]:
        """Reflectance by GSD, as `Nested.rho`."""
        return self.whole.rho

    @property
    def valid(self) -> NDArray[np.bool_]:
        """Measured 60 m pixels, as `Nested.valid`."""
        return self.whole.valid

    @property
    def shape(self) -> tuple[int, int]:
        """(ny, nx) at 60 m. Reads nothing."""
        return self.window.shape


class TileCache:
    """LRU cache of the pixels of tiles, of `limit_bytes` or one tile."""

    def __init__(self, limit_bytes: int = CACHE_BYTES) -> None:
        self.limit_bytes, self.held_bytes = limit_bytes, 0
        self._held: OrderedDict[Tile, Nested] = OrderedDict()

    def loaded(self, tile: Tile) -> Nested:
        """Return the pixels of a tile, read if necessary."""
        found = self._held.get(tile)
        if found is not None:
            self._held.move_to_end(tile)
            return found
        found = self._held[tile] = tile.ground.load(tile.window)
        self.held_bytes += found.nbytes
        while self.held_bytes > self.limit_bytes and len(self._held) > 1:
            self.held_bytes -= self._held.popitem(last=False)[1].nbytes
        return found


CACHE = TileCache()  # of this process


def named_pieces(shape: tuple[int, int]) -> Iterator[Window]:
    """Yield windows of a named ground: the whole, or pieces along an axis that exceeds two cells."""
    rows, cols = (1 if side <= 2 * CELL_PX else -(-side // CELL_PX) for side in shape)
    for i in range(rows):
        for j in range(cols):
            top, left = shape[0] * i // rows, shape[1] * j // cols
            piece = Window(top, left, shape[0] * (i + 1) // rows - top, shape[1] * (j + 1) // cols - left)
            if min(piece.shape) >= MIN_SIDE_PX:
                yield piece


def ground_pieces(raster: Georeference) -> Iterator[tuple[Window, str, Split]]:
    """Yield windows along the lattice cells with place and split. Windows in both splits are skipped."""
    a, _, left, _, e, top = raster.affine
    for row, ny in _along(-top, -e, raster.shape[0]):
        for col, nx in _along(left, a, raster.shape[1]):
            affine = (a, 0.0, left + col * a, 0.0, e, top + row * e)
            found = split_map(Georeference(raster.crs, affine, (ny, nx)), GSD_M)
            split = split_of(found.places[0])
            if found.share(split) == 1:
                yield Window(row, col, ny, nx), found.places[0], split


def _along(start_m: float, step_m: float, count: int) -> Iterator[tuple[int, int]]:
    """Yield (first, count) of the pixels entirely inside each cell along one axis, if enough for a tile."""
    for cell in range(math.floor(start_m / CELL_M), math.ceil((start_m + count * step_m) / CELL_M)):
        first = max(0, math.ceil((cell * CELL_M - start_m) / step_m - 1e-6))
        end = min(count, math.floor(((cell + 1) * CELL_M - start_m) / step_m + 1e-6))
        if end - first >= MIN_SIDE_PX:
            yield first, end - first


def _in_order(
    dn: dict[int, NDArray[np.uint16]], bands: dict[int, tuple[str, ...]], gsd_m: int, shape_60m: tuple[int, int]
) -> NDArray[np.uint16]:
    """Return the bands of one GSD in the order of `BANDS`, with absent bands as nodata."""
    ny, nx = (side * GSD_M // gsd_m for side in shape_60m)
    empty = np.full((ny, nx), NODATA_DN, np.uint16)
    held = bands.get(gsd_m, ())
    return np.stack([dn[gsd_m][held.index(name)] if name in held else empty for name in BANDS[gsd_m]])


def to_reflectance(dn: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Convert canonical DN to reflectance. Nodata becomes 0, which clipped products also use for dark pixels."""
    rho = dn.astype(np.float32) * np.float32(DN_SCALE) + np.float32(DN_OFFSET)
    return np.where(dn == NODATA_DN, np.float32(0), rho)


def whole_blocks(measured: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Reduce flags (6 ny, 6 nx) at 10 m to (ny, nx) at 60 m: True if all 36 pixels are."""
    ny, nx = measured.shape[0] // 6, measured.shape[1] // 6
    valid: NDArray[np.bool_] = np.all(measured.reshape(ny, 6, nx, 6), axis=(1, 3))
    return valid
