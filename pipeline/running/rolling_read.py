"""Read the scenes of a unit from the top, a bounded number of rows at a time, each row once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pipeline.grid.grid import Window
from pipeline.grid.native_rasters import NativeRasters, factor_at
from pipeline.running.tally import holes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.planning.unit_job import UnitJob

_ROWS_PX = 3840  # read at once, if the unit has as many


class RollingRead:
    """The rasters of a unit that reads scenes, as far as the strip at hand needs them.

    `scenes`: ids of those that supplied a pixel, best first. `holes`: as `tally.holes`, over all rows read so far.
    """

    def __init__(self, job: UnitJob) -> None:
        self._job = job
        self._held: NativeRasters | None = None
        self._used: set[str] = set()
        self.holes: dict[str, int] = {}

    @property
    def scenes(self) -> tuple[str, ...]:
        """Ids of the scenes that supplied a pixel, best first."""
        return tuple(scene.id for scene in self._job.scenes if scene.id in self._used)

    def over(self, window: Window) -> NativeRasters:
        """Return rasters that hold `window`, in the width of the unit. The rows above it are dropped.

        Windows have to follow each other from the top. Rows between two that none needs are not read, unless few.
        """
        held = None if self._held is None or self._held.window.row_end <= window.row else _from(self._held, window.row)
        end = window.row if held is None else held.window.row_end
        if held is None or end < window.row_end:
            new = self._read(end, min(self._job.read.row_end, max(window.row_end, end + _ROWS_PX)))
            held = new if held is None else _joined(held, new)
        self._held = held
        return held

    def _read(self, first: int, end: int) -> NativeRasters:
        from pipeline.archive.read.cube import read_period

        job = self._job
        grid = job.grid.of(Window(first, job.read.col, end - first, job.read.nx))
        found = read_period(
            job.scenes, job.composite, grid, job.bands_read, job.access,
            resample=job.zone.resample, with_scl=job.with_scl,
        )  # fmt: skip
        self._used |= {*found.scenes}
        for band, count in holes(found, job.bands).items():
            self.holes[band] = self.holes.get(band, 0) + count
        return found


def _from(rasters: NativeRasters, row: int) -> NativeRasters:
    """Return a copy of the rows from `row` (2.5 m px) on, and the same rasters if these are all."""
    above = row - rasters.window.row
    if not above:
        return rasters
    whole = rasters.window
    scl = None if rasters.scl is None else rasters.scl[above // factor_at(20) :].copy()
    dn = {gsd_m: raster[:, above // factor_at(gsd_m) :].copy() for gsd_m, raster in rasters.dn.items()}
    return NativeRasters(Window(row, whole.col, whole.ny - above, whole.nx), dn, rasters.bands, scl, rasters.scenes)


def _joined(upper: NativeRasters, lower: NativeRasters) -> NativeRasters:
    """Return the rasters of two windows of one width, the second below the first."""
    dn = {gsd_m: np.concatenate([raster, lower.dn[gsd_m]], axis=1) for gsd_m, raster in upper.dn.items()}
    return NativeRasters(
        upper.window.union(lower.window), dn, upper.bands, _both(upper.scl, lower.scl), upper.scenes + lower.scenes
    )


def _both(upper: NDArray[np.uint8] | None, lower: NDArray[np.uint8] | None) -> NDArray[np.uint8] | None:
    return None if upper is None or lower is None else np.concatenate([upper, lower])
