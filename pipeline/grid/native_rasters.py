"""Measured pixels of one time step, every band on its native grid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.bands import BY_NAME, NODATA_DN
from pipeline.grid.grid import GSD_M

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.grid.grid import Window

SCL_GSD_M = 20  # of the scene classification


def factor_at(gsd_m: float) -> int:
    """Pixels of 2.5 m per pixel of `gsd_m`, along one axis."""
    return round(gsd_m / GSD_M)


def factor_of(band: str) -> int:
    """Pixels of 2.5 m per native pixel of `band`, along one axis: 4, 8 or 24."""
    return factor_at(BY_NAME[band].gsd_m)


@dataclass(frozen=True)
class NativeRasters:
    """DN over `window` (2.5 m px; edges on whole pixels of every raster), 0 is nodata, by GSD in metres.

    `dn[gsd_m]` (band, y, x) holds the bands `bands[gsd_m]`, `scl` (y, x) the classes at 20 m. `scenes`: ids of those
    that supplied a pixel, best first; empty where that was not recorded.
    """

    window: Window
    dn: dict[int, NDArray[np.uint16]]
    bands: dict[int, tuple[str, ...]]
    scl: NDArray[np.uint8] | None = None
    scenes: tuple[str, ...] = ()

    def over(self, window: Window, gsd_m: int) -> NDArray[np.uint16]:
        """(band, y, x): all bands of one GSD over `window` (2.5 m px)."""
        part: NDArray[np.uint16] = self.dn[gsd_m][(slice(None), *self._place(window, gsd_m))]
        return part

    def cut(self, window: Window) -> dict[int, NDArray[np.uint16]]:
        """All rasters over `window` (2.5 m px), by GSD."""
        return {gsd_m: self.over(window, gsd_m) for gsd_m in self.dn}

    def band(self, name: str, window: Window) -> NDArray[np.uint16]:
        """(y, x): one band over `window` (2.5 m px). KeyError for a band that was not read."""
        for gsd_m, names in self.bands.items():
            if name in names:
                part: NDArray[np.uint16] = self.over(window, gsd_m)[names.index(name)]
                return part
        raise KeyError(name)

    def holds(self, name: str) -> bool:
        """Whether a band was read."""
        return any(name in names for names in self.bands.values())

    def measured(self, window: Window) -> bool:
        """Whether any pixel of any band that meets `window` (2.5 m px) has data."""
        return any(bool((self.over(window.snap_out(factor_at(gsd_m)), gsd_m) != NODATA_DN).any()) for gsd_m in self.dn)

    def scl_over(self, window: Window) -> NDArray[np.uint8] | None:
        """(y, x): classes at 20 m over `window` (2.5 m px)."""
        if self.scl is None:
            return None
        part: NDArray[np.uint8] = self.scl[self._place(window, SCL_GSD_M)]
        return part

    def seen(self, gsd_m: int, needed: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """(y, x) at `gsd_m`: True where any band has data."""
        return np.asarray(self.dn[gsd_m].any(axis=0) & needed)

    def _place(self, window: Window, gsd_m: int) -> tuple[slice, slice]:
        factor = factor_at(gsd_m)
        return window.coarsen(factor).slices(self.window.coarsen(factor))
