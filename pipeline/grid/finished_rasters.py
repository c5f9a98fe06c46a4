"""Pixels of a finished group of a store: what a later pass of a run is computed from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from pipeline.bands import NODATA_DN

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pipeline.grid.grid import Window


class Rasters(Protocol):
    """What a piece of ground is computed from; windows count px of one GSD."""

    @property
    def window(self) -> Window:
        """The ground that is there."""
        ...

    def band(self, name: str, window: Window) -> NDArray[np.uint16]:
        """(y, x): DN of one band over `window`, on its own grid. KeyError for a band that was not read."""
        ...

    def holds(self, name: str) -> bool:
        """Whether a band was read."""
        ...

    def measured(self, window: Window) -> bool:
        """Whether any pixel of any band that meets `window` has data."""
        ...


@dataclass(frozen=True)
class FinishedRasters:
    """DN (band, y, x) and quality classes (y, x) over `window`, in pixels `factor` times those that `window` counts.

    The edges of `window` lie on whole pixels of them.
    """

    window: Window
    factor: int
    bands: tuple[str, ...]
    dn: NDArray[np.uint16]
    quality: NDArray[np.uint8]

    def band(self, name: str, window: Window) -> NDArray[np.uint16]:
        """(y, x): one band over `window`. KeyError for a band that was not read."""
        if name not in self.bands:
            raise KeyError(name)
        part: NDArray[np.uint16] = self.dn[(self.bands.index(name), *self._place(window))]
        return part

    def holds(self, name: str) -> bool:
        """Whether a band was read."""
        return name in self.bands

    def measured(self, window: Window) -> bool:
        """Whether any pixel of any band that meets `window` has data."""
        return bool((self.dn[(slice(None), *self._place(window.snap_out(self.factor)))] != NODATA_DN).any())

    def quality_over(self, window: Window) -> NDArray[np.uint8]:
        """(y, x): classes of generated detail over `window`."""
        part: NDArray[np.uint8] = self.quality[self._place(window)]
        return part

    def _place(self, window: Window) -> tuple[slice, slice]:
        return window.coarsen(self.factor).slices(self.window.coarsen(self.factor))
