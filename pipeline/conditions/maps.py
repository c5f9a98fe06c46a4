"""The maps of a run over one UTM zone, read as channels of a window."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.conditions import raster_map, vector_map
from pipeline.grid.grid import Window, align_down
from pipeline.superres.registry import spec_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from pipeline.conditions.frozen import Frozen
    from pipeline.grid.grid import Grid
    from pipeline.superres.declared import Condition

TILE_PX = 512  # maps are read in tiles of a fixed grid, so that pixels do not depend on the requested window


@dataclass(frozen=True)
class ZoneMaps:
    """Maps by name, with their declaration by the system, on the grid of a zone."""

    maps: Mapping[str, tuple[Condition, Frozen]]
    grid: Grid

    @classmethod
    def of(cls, frozen: Sequence[Frozen], system: str, grid: Grid) -> ZoneMaps | None:
        """Return the maps of a plan, or None if it has none."""
        if not frozen:
            return None
        declared = {one.name: one for one in spec_of(system).conditions}
        return cls({one.name: (declared[one.name], one) for one in frozen}, grid)

    def over(
        self, condition: str, channels: tuple[str, ...], window: Window, gsd_m: float
    ) -> NDArray[np.float32] | None:
        """Read channels (channels, h, w) over `window` (px of `gsd_m`).

        Return None if the condition was not given, or is too coarse for this GSD (`Condition.coarsest_px`).
        """
        if condition not in self.maps:
            return None
        declared, frozen = self.maps[condition]
        if too_coarse(declared, frozen, self.grid.epsg, gsd_m):
            return None
        rows = [declared.channels.index(name) for name in channels]
        found = np.zeros((len(channels), *window.shape), np.float32)
        for row in range(align_down(window.row, TILE_PX), window.row_end, TILE_PX):
            for col in range(align_down(window.col, TILE_PX), window.col_end, TILE_PX):
                tile = Window(row, col, TILE_PX, TILE_PX)
                part = tile.intersect(window)
                values = self._tile(declared, frozen, self.grid.at_gsd(gsd_m).of(tile))
                found[(..., *part.slices(window))] = values[(rows, *part.slices(tile))]
        return found

    def _tile(self, declared: Condition, frozen: Frozen, grid: Grid) -> NDArray[np.float32]:
        if declared.kind == "vector":
            return vector_map.channels(declared, frozen, grid, self.grid)
        return raster_map.channels(declared, frozen, grid)


def too_coarse(declared: Condition, frozen: Frozen, epsg: int, gsd_m: float) -> bool:
    """Return whether a map tells nothing to an input of `gsd_m`: see `Condition.coarsest_px`."""
    if declared.kind == "vector" or math.isinf(declared.coarsest_px):
        return False
    return raster_map.pixel_m(frozen, epsg) >= declared.coarsest_px * gsd_m
