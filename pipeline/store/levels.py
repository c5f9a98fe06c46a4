"""The levels of one zone: the 2.5 m arrays, finer ones, overviews and the measured input.

Overviews halve the resolution repeatedly: 5, 10, 20, 40 ... m. They are computed in blocks of whole chunks, or over the
whole zone, from the last level of the blocks, once chunks of a block would become too small.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.bands import GSDS_M, bands_at

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.grid.grid import Grid

BANDED = ("reflectance", "uncertainty")  # arrays (time, band, y, x); others lack `band`
OVERVIEWS, MEASURED, FINER = "overviews", "measured", "finer"
BLOCK_CHUNKS = 4  # chunks of 2.5 m along one side of a block; if sharded, a block is one shard
_LEAST_CHUNK_PX = 48  # smaller chunks would make many tiny files
_SMALL_PX = 256  # the first overview whose larger side is at most this is the last
_LEAST_FACTOR = 4  # the 10 m overview always exists


@dataclass(frozen=True)
class Raster:
    """Georeference of a level: UTM zone, outer upper left corner in metres, GSD, shape (ny, nx)."""

    epsg: int
    left_m: float
    top_m: float
    gsd_m: float
    shape: tuple[int, int]

    @property
    def transform(self) -> tuple[float, float, float, float, float, float]:
        """Affine coefficients (a, b, c, d, e, f) as in rasterio and STAC `proj:transform`."""
        return self.gsd_m, 0.0, self.left_m, 0.0, -self.gsd_m, self.top_m

    @property
    def bounds_m(self) -> tuple[float, float, float, float]:
        """(left, bottom, right, top) of the outer pixel edges."""
        ny, nx = self.shape
        return self.left_m, self.top_m - ny * self.gsd_m, self.left_m + nx * self.gsd_m, self.top_m


@dataclass(frozen=True)
class Level:
    """One group of arrays of a zone. `path` is relative to the zone's group, "" for the 2.5 m arrays themselves.

    A finer level has `parts` pixels along one side of a 2.5 m pixel.
    """

    path: str
    factor: int  # pixel size over 2.5 m; 1 for finer levels
    raster: Raster
    chunk_px: int
    bands: tuple[str, ...]
    arrays: tuple[str, ...]
    shard_px: int = 0  # 0: unsharded
    by_band: bool = False  # one chunk per band; else a chunk holds all bands. A shard always holds all bands
    late: bool = False  # an overview computed at the end, from the previous level
    parts: int = 1

    @property
    def step_px(self) -> int:
        """Side of one stored object: a shard, or a chunk."""
        return self.shard_px or self.chunk_px

    def chunk_keys(self, array: str, time_index: int, row: int, col: int) -> list[str]:
        """Return the keys of the stored objects at one place, relative to the zone's group; `row`, `col` count objects.

        >>> Level("overviews/5m", 2, None, 240, ("B02",), ("quality",)).chunk_keys("quality", 0, 1, 2)
        ['overviews/5m/quality/c/0/1/2']
        """
        lead = f"{self.path}/{array}" if self.path else array
        parts = len(self.bands) if self.by_band and not self.shard_px else 1
        middles = [f"{part}/" for part in range(parts)] if array in BANDED else [""]
        return [f"{lead}/c/{time_index}/{middle}{row}/{col}" for middle in middles]


def gsd_name(gsd_m: float) -> str:
    """Return the name of a level of that GSD: "5m" for 5.0, "2.5m" for 2.5."""
    return f"{gsd_m:g}m"


def block_px(chunk_px: int, shard_px: int) -> int:
    """Return the side of a block in 2.5 m px."""
    return shard_px or BLOCK_CHUNKS * chunk_px


def coarser(grid: Grid, factor: int) -> Raster:
    """Return the grid in pixels `factor` times larger; the last row and column may extend beyond it."""
    ny, nx = (-(-length // factor) for length in grid.shape)
    return Raster(grid.epsg, grid.left_m, grid.top_m, grid.gsd_m * factor, (ny, nx))


def overviews(
    grid: Grid,
    bands: tuple[str, ...],
    arrays: tuple[str, ...],
    chunk_px: int,
    shard_px: int = 0,
    *,
    by_band: bool = False,
) -> tuple[Level, ...]:
    """Return levels of 5, 10, 20 ... m, finest first, until the larger side is at most 256 px; at least 5 and 10 m."""
    found: list[Level] = []
    block, factor, late = block_px(chunk_px, shard_px), 1, False
    while factor < _LEAST_FACTOR or max(found[-1].raster.shape) > _SMALL_PX:
        factor *= 2
        side = block // factor
        late = late or bool(block % factor) or side < _LEAST_CHUNK_PX
        chunk = chunk_px if late or side % chunk_px == 0 else side
        raster = coarser(grid, factor)
        path = f"{OVERVIEWS}/{gsd_name(raster.gsd_m)}"
        found.append(Level(path, factor, raster, chunk, bands, arrays, by_band=by_band, late=late))
    return tuple(found)


def finer(
    grid: Grid,
    outputs: Sequence[tuple[float, tuple[str, ...]]],
    arrays: tuple[str, ...],
    chunk_px: int,
    shard_px: int,
    *,
    by_band: bool = False,
) -> tuple[Level, ...]:
    """Return the levels of `outputs` (GSD, bands) below 2.5 m, coarsest first. Chunks have as many px as at 2.5 m."""
    found = []
    for gsd_m, bands in outputs:
        fine = grid.at_gsd(gsd_m)
        raster, parts = coarser(fine, 1), round(grid.gsd_m / gsd_m)
        path = f"{FINER}/{gsd_name(gsd_m)}"
        found.append(Level(path, 1, raster, chunk_px, bands, arrays, shard_px, by_band, parts=parts))
    return tuple(found)


def measured(
    grid: Grid, bands: tuple[str, ...], chunk_px: int, shard_px: int = 0, *, by_band: bool = False
) -> tuple[Level, ...]:
    """Return the levels of 10, 20 and 60 m that hold the input of the bands measured at that GSD."""
    found = []
    for gsd_m in GSDS_M:
        if native := bands_at(gsd_m, bands):
            raster = coarser(grid, factor := round(gsd_m / grid.gsd_m))
            chunk = (shard_px or chunk_px) // factor
            path = f"{MEASURED}/{gsd_name(gsd_m)}"
            found.append(Level(path, factor, raster, chunk, native, ("reflectance",), by_band=by_band))
    return tuple(found)
