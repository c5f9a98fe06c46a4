"""Images that take memory only where something was added and is still needed, tile by tile.

An area is walked from the top and from the left, so what is held at a time is a few rows of it, whatever its height.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pipeline.grid.arrays import blank, paged
from pipeline.grid.grid import Window

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from pipeline.grid.arrays import Array

ROWS_PX, COLS_PX = 24, 480  # of a tile; at most one row of tiles more is held above and below what is needed


@dataclass
class Tiles:
    """Float images of one GSD, one behind the other (`planes`), 0 where nothing was added. All windows count its px.

    Nothing is added beyond `area`, and no memory taken there.
    """

    planes: int
    device: torch.device
    area: Window
    _tiles: dict[Window, Array] = field(default_factory=dict)

    def add(self, first: int, part: Window, share: Array, images: Array) -> None:
        """Add `share` (ny, nx) times `images` (n, ny, nx), which cover `part`, to the planes from `first` on."""
        planes = slice(first, first + len(images))
        for place in self._places(part):
            if place not in self._tiles:
                self._tiles[place] = paged((self.planes, *place.shape), self.device)
            common = place.intersect(part)
            of = common.slices(part)
            there = self._tiles[place][(planes, *common.slices(place))]
            there += share[of] * images[(slice(None), *of)]

    def cut(self, planes: slice, window: Window) -> Array:
        """Return a copy (n, ny, nx) of some planes over `window`."""
        image = blank((len(range(self.planes)[planes]), *window.shape), self.device)
        for place in self._places(window):
            if (tile := self._tiles.get(place)) is not None:
                common = place.intersect(window)
                image[(slice(None), *common.slices(window))] = tile[(planes, *common.slices(place))]
        return image

    def drop(self, row: float, col: float) -> None:
        """Drop the tiles that lie above `row` and left of `col`."""
        done = [place for place in self._tiles if place.row_end <= row and place.col_end <= col]
        for place in done:
            del self._tiles[place]

    @property
    def places(self) -> list[Window]:
        """The windows of the tiles that there are."""
        return list(self._tiles)

    @property
    def held(self) -> list[Array]:
        """The tiles (planes, ny, nx) that there are."""
        return list(self._tiles.values())

    def _places(self, part: Window) -> Iterator[Window]:
        """Yield the windows of the tiles that meet a part, cut to the area."""
        part = part.intersect(self.area)
        if part.empty:
            return
        for row in range(part.row // ROWS_PX, (part.row_end - 1) // ROWS_PX + 1):
            for col in range(part.col // COLS_PX, (part.col_end - 1) // COLS_PX + 1):
                yield Window(row * ROWS_PX, col * COLS_PX, ROWS_PX, COLS_PX).intersect(self.area)
