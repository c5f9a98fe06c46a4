r"""The absolute lattice of model windows and the weights that blend them.

Along one axis, with stride S, ramp R and margin m, cell k owns [kS, (k+1)S). Its weight rises over the R px centred on
kS, falls over the R px centred on (k+1)S, and is 1 between; the window that the model sees adds m px of context on
either side, where the weight is 0:

    window   |<-m->|<-R->|<------ S-R ------>|<-R->|<-m->|        T = S + R + 2m
    weight    0000  /^^^  1111111111111111111  ^^^\  0000

Neighbouring ramps are w and 1 - w, so the weights of all windows sum to one by construction; nothing is renormalised.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from pipeline.grid.grid import Window

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


@dataclass(frozen=True)
class Lattice:
    """Windows of `window_px` every `stride_px`, anchored at the zone's (0, 0) plus phase. All in px of one GSD."""

    window_px: int
    stride_px: int
    ramp_px: int
    margin_px: int

    def __post_init__(self) -> None:
        faults = []
        if self.window_px != self.stride_px + self.ramp_px + 2 * self.margin_px:
            faults.append("window = stride + ramp + 2 * margin does not hold")
        if self.ramp_px % 2:
            faults.append("ramp must be even")
        if min(self.ramp_px, self.margin_px) < 0 or self.ramp_px > self.stride_px or self.stride_px <= 0:
            faults.append("0 <= ramp <= stride and margin >= 0 must hold")
        if faults:
            msg = f"{self}: " + "; ".join(faults)
            raise ValueError(msg)

    @property
    def reach_px(self) -> int:
        """How far a window extends beyond its own cell."""
        return self.margin_px + self.ramp_px // 2

    def window(self, cell_row: int, cell_col: int) -> Window:
        """Input window of a cell: a square of `window_px`."""
        size = self.window_px
        return Window(cell_row * self.stride_px - self.reach_px, cell_col * self.stride_px - self.reach_px, size, size)

    def cells_touching(self, window: Window) -> list[tuple[int, int]]:
        """Cells (row, col) whose weight is not zero somewhere in `window`, ascending."""
        if window.empty:
            return []
        rows = self._cells(window.row, window.row_end)
        cols = self._cells(window.col, window.col_end)
        return [(row, col) for row in rows for col in cols]

    def cells_touching_any(self, windows: Sequence[Window], around_px: int = 0) -> list[tuple[int, int]]:
        """Cells (row, col) whose weight is not zero within `around_px` of one of `windows`, ascending."""
        if not windows:
            return []
        if _tiled(windows):
            return self.cells_touching(reduce(Window.union, windows).pad(around_px))
        return sorted({cell for window in windows for cell in self.cells_touching(window.pad(around_px))})

    def _cells(self, start: int, stop: int) -> range:
        half = self.ramp_px // 2
        return range((start - half) // self.stride_px, (stop - 1 + half) // self.stride_px + 1)

    def support(self, cell_row: int, cell_col: int) -> Window:
        """Where the weight of a cell is not zero: its window less the margin."""
        return self.window(cell_row, cell_col).pad(-self.margin_px)

    def weight(self) -> NDArray[np.float32]:
        """Blend weight over a cell's `support`, shape (stride + ramp, stride + ramp); the same for every cell."""
        line = self.profile()
        return np.outer(line, line).astype(np.float32)

    def profile(self) -> NDArray[np.float64]:
        """Weight along one axis of the support, shape (stride + ramp,); rise + fall is 1 at every pixel."""
        line = np.ones(self.stride_px + self.ramp_px)
        if self.ramp_px:
            t = (np.arange(self.ramp_px) + 0.5) / self.ramp_px
            rise = 0.5 - 0.5 * np.cos(np.pi * t)
            line[: self.ramp_px] = rise
            line[-self.ramp_px :] = 1.0 - rise
        return line


def _tiled(windows: Sequence[Window]) -> bool:
    """Return whether windows fill a rectangle side by side, without overlap, as the chunks of most units do.

    >>> _tiled([Window(0, 0, 4, 4), Window(0, 4, 4, 2)]), _tiled([Window(0, 0, 4, 4), Window(0, 3, 4, 4)])
    (True, False)
    """
    rows = sorted({(window.row, window.row_end) for window in windows})
    cols = sorted({(window.col, window.col_end) for window in windows})
    if len(set(windows)) != len(rows) * len(cols):
        return False
    return all(before[1] == after[0] for line in (rows, cols) for before, after in pairwise(line))
