"""Rasters whose bands are also at hand as tensors on a device, each of them moved there once."""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING, Any, TypeAlias

from pipeline.grid import arrays

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from pipeline.grid.arrays import Array
    from pipeline.grid.finished_rasters import Rasters
    from pipeline.grid.grid import Window


_Attribute: TypeAlias = Any  # a method or property of the rasters


class PlacedRasters:
    """What `rasters` hold, and `placed`. Everything else is asked of `rasters`, on the host."""

    def __init__(self, rasters: Rasters, device: torch.device) -> None:
        self._rasters, self._device = rasters, device
        self._placed: dict[str, Array] = {}
        self._moving = Lock()  # threads that prepare windows share the rasters

    def __getattr__(self, name: str) -> _Attribute:
        return getattr(self._rasters, name)

    @property
    def window(self) -> Window:
        """The ground that is there."""
        return self._rasters.window

    def band(self, name: str, window: Window) -> NDArray[np.uint16]:
        """(y, x): DN of one band over `window`, on the host."""
        return self._rasters.band(name, window)

    def holds(self, name: str) -> bool:
        """Whether a band was read."""
        return self._rasters.holds(name)

    def measured(self, window: Window) -> bool:
        """Whether any pixel of any band that meets `window` has data."""
        return self._rasters.measured(window)

    def placed(self, name: str, window: Window) -> Array:
        """(y, x): DN of one band over `window` on the device, as int32."""
        with self._moving:
            if name not in self._placed:
                self._placed[name] = arrays.on_device(self.band(name, self.window), self._device)
            whole = self._placed[name]
        factor = self.window.ny // whole.shape[-2]
        return whole[window.coarsen(factor).slices(self.window.coarsen(factor))]


def placed_on(rasters: Rasters, device: torch.device) -> Rasters:
    """Rasters for windows that are computed on a device: themselves on the CPU, where arrays need no move."""
    if arrays.takes_numpy(device) or isinstance(rasters, PlacedRasters):
        return rasters
    return PlacedRasters(rasters, device)


def at_hand(rasters: Rasters, name: str, window: Window) -> Array:
    """(y, x): DN of one band over `window`, where windows are computed."""
    return rasters.placed(name, window) if isinstance(rasters, PlacedRasters) else rasters.band(name, window)
