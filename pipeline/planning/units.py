"""The division of a plan's ground: UTM zones, passes, and the addresses of units."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.archive.scene import Period
from pipeline.bands import TARGET_GSD_M
from pipeline.grid.grid import Grid

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from shapely import Geometry


@dataclass(frozen=True, order=True)
class Address:
    """Address in a run: zone, row, column and time step. Subclasses define what rows and columns count.

    >>> Unit(32631, 2, 0, 0).id
    'z32631-r2-c0-t0'
    """

    epsg: int
    row: int
    col: int
    period: int

    @property
    def id(self) -> str:
        """Name that is safe in file names and task keys."""
        return f"z{self.epsg}-r{self.row}-c{self.col}-t{self.period}"


@dataclass(frozen=True, order=True)
class Unit(Address):
    """One unit of work of pass `number` (from 0). Row and column count the breaks of the zone in that pass.

    >>> Unit(32631, 2, 0, 0, 1).id
    'z32631-r2-c0-t0-p1'
    """

    number: int = 0

    @property
    def id(self) -> str:
        """Name that is safe in file names and task keys."""
        return super().id + (f"-p{self.number}" if self.number else "")


@dataclass(frozen=True)
class Zone:
    """One UTM zone of a run: its 2.5 m grid, the AOI in metres, its time steps, and its division into units."""

    epsg: int
    grid: Grid
    area: dict[str, Any]  # GeoJSON geometry of the AOI's part in this zone, in metres of `epsg`
    periods: tuple[Period, ...]
    row_breaks: tuple[int, ...]  # in chunks, from 0 to the number of chunk rows
    col_breaks: tuple[int, ...]
    resample: bool = False  # scenes differ in phase from the grid and are resampled, nearest neighbour
    blocks: bool = False  # the area fills little of its chunks: only blocks of 60 m that touch it are stored

    @cached_property
    def ground(self) -> Geometry:
        """The AOI's part in this zone as a prepared shape, in metres."""
        import shapely
        from shapely.geometry import shape

        area = shape(self.area)
        shapely.prepare(area)
        return area

    def cuts(self, layouts: Sequence[PassLayout], chunk_px: int, shard_chunks: int = 0) -> list[Cut]:
        """Return the division in every pass of a plan. Arguments as for `cut`.

        Of an earlier pass, those chunks are active that the active ones of the next pass read.
        """
        found: list[Cut] = []
        after: PassLayout | None = None
        for layout in reversed(layouts):
            cut = self.cut(layout, chunk_px, shard_chunks)
            if after is not None and after.reach_m:
                read = read_by(found[0], after.reach_m, cut, chunk_px, max(1, shard_chunks))
                cut = replace(cut, active=cut.active | read)
            found.insert(0, cut)
            after = layout
        return found

    def cut(self, layout: PassLayout, chunk_px: int, shard_chunks: int = 0) -> Cut:
        """Return the division in a pass, in chunks of `chunk_px`. `shard_chunks` is the shard side; 0 for no shards.

        Active are the chunks that the pass itself has to compute, but see `cuts`.
        """
        grid = self.grid.at_gsd(layout.gsd_m)
        ny, nx = (-(-length // chunk_px) for length in grid.shape)
        if shard_chunks:
            rows, cols = ((*range(0, count, shard_chunks), count) for count in (ny, nx))
        else:
            parts = round(self.grid.gsd_m / layout.gsd_m)
            rows, cols = _finer_breaks(self.row_breaks, parts, ny), _finer_breaks(self.col_breaks, parts, nx)
        return Cut(grid, rows, cols, self._active(grid, chunk_px, (ny, nx), layout.rim_m))

    def _active(self, grid: Grid, chunk_px: int, counts: tuple[int, int], rim_m: float) -> NDArray[np.bool_]:
        """Return a mask (rows, cols) of the chunks that touch the AOI grown by `rim_m`."""
        import shapely
        from shapely.geometry import shape

        rows, cols = counts
        size = chunk_px * grid.gsd_m
        left, bottom, right, top = grid.bounds_m
        x0 = left + np.arange(cols) * size
        y1 = top - np.arange(rows) * size
        xs, ys = np.meshgrid(x0, y1)
        # Inset the boxes: a chunk that only shares an edge with the AOI holds none of its pixels.
        inset = 1e-3
        boxes = shapely.box(
            xs + inset,
            np.maximum(ys - size, bottom) + inset,
            np.minimum(xs + size, right) - inset,
            ys - inset,
        )
        area = shape(self.area)
        if rim_m:
            area = area.buffer(rim_m, join_style="mitre")
        shapely.prepare(area)
        touching: NDArray[np.bool_] = shapely.intersects(area, boxes)
        return touching


@dataclass(frozen=True)
class PassLayout:
    """One pass of a plan: the GSD of its pixels, and what it stores at GSDs below 2.5 m, as (GSD, bands).

    `reach_m` is how far beyond what it stores a later pass reads the one before. `rim_m` is how far beyond the AOI a
    pass is computed whatever is read of it, in plans made before `reach_m` was known (0 there).
    """

    gsd_m: float = TARGET_GSD_M
    rim_m: float = 0.0
    finer: tuple[tuple[float, tuple[str, ...]], ...] = ()
    reach_m: float = 0.0


@dataclass(frozen=True)
class MapLayout:
    """A map that is stored as a raster of classes in the group of a GSD."""

    condition: str
    gsd_m: float


@dataclass(frozen=True)
class Cut:
    """Division of a zone in one pass: grid, unit breaks in chunks, and mask (rows, cols) of active chunks."""

    grid: Grid
    rows: tuple[int, ...]
    cols: tuple[int, ...]
    active: NDArray[np.bool_]


def read_by(later: Cut, reach_m: float, earlier: Cut, chunk_px: int, shard_chunks: int) -> NDArray[np.bool_]:
    """Return a mask (rows, cols) of the chunks of a pass that the next one reads: `reach_m` beyond what it stores.

    Whole shards of `shard_chunks` x `shard_chunks` chunks are stored of the later pass.
    """
    stored_m, chunk_m = later.grid.gsd_m * chunk_px * shard_chunks, earlier.grid.gsd_m * chunk_px
    rows, cols = (-(-count // shard_chunks) for count in later.active.shape)
    shards = np.zeros((rows, cols), bool)
    np.logical_or.at(shards, tuple(places // shard_chunks for places in np.nonzero(later.active)), True)

    def meets(count: int, chunks: int) -> NDArray[np.int64]:
        first_m = np.arange(count)[None] * stored_m - reach_m
        chunk_first_m = np.arange(chunks)[:, None] * chunk_m
        within = (chunk_first_m < first_m + stored_m + 2 * reach_m) & (chunk_first_m + chunk_m > first_m)
        return within.astype(np.int64)

    touched: NDArray[np.bool_] = (
        meets(rows, earlier.active.shape[0]) @ shards @ meets(cols, earlier.active.shape[1]).T > 0
    )
    return touched


def _finer_breaks(breaks: tuple[int, ...], parts: int, count: int) -> tuple[int, ...]:
    """Return the breaks in chunks of `parts` times smaller pixels. Each unit is cut into `parts`; `count` is the end.

    >>> _finer_breaks((0, 3, 5), 2, 9)
    (0, 3, 6, 8, 9)
    """
    cut = [first * parts + i * (end - first) for first, end in pairwise(breaks) for i in range(parts)]
    return tuple(sorted({min(place, count) for place in (*cut, count)}))
