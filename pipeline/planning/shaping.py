"""The shape and size of units, by what they cost: windows at the border of two units are computed by both.

Units are computed strip by strip from the top, so their height costs no memory and their width does. Wide and long
units compute the fewest windows twice; workers, and what is lost when one is killed, ask for more of them. Where
workers share a machine, several may compute one unit in threads.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import partial
from itertools import pairwise, product
from typing import TYPE_CHECKING

from pipeline.grid.grid import Window

if TYPE_CHECKING:
    from pipeline.grid.grid import Grid
    from pipeline.superres.passes import Pass

_WIDEST_PX = 4320  # of a unit: a row of windows over it is held in memory
_MOST_WINDOWS = 320  # of a unit on one machine; about four minutes of one processor with small networks
_MOST_WINDOWS_APART = 96  # where workers come and go, and their number is not known
_LEAST_WINDOWS = 64  # that a unit may have, however many draws are averaged
THREAD_SHARE = 0.92  # of the work of a worker of its own that one more thread does
_MORE_ROWS = 8  # further divisions that are compared, besides one for each worker

Breaks = tuple[int, ...]
_Windows = tuple[int, ...]  # by group


@dataclass(frozen=True)
class Shaping:
    """What decides the shape of the units of a plan with one pass.

    `together`: the workers are on one machine, and may share a unit.
    """

    of: Pass
    reach_px: int
    draws: int
    workers: int
    together: bool

    def breaks(self, grid: Grid, chunk_px: int) -> tuple[Breaks, Breaks]:
        """Return the unit breaks, in chunk rows and columns, that are expected to take the least time."""
        counts = tuple(-(-length // chunk_px) for length in grid.shape)
        rows, cols = (_Axis.of(self.of, self.reach_px, grid.window, chunk_px, axis) for axis in (0, 1))
        narrowest = -(-counts[1] // max(1, _WIDEST_PX // chunk_px))
        found = [
            (cost, row_breaks, col_breaks)
            for parts in range(min(narrowest, counts[1]), min(counts[1], narrowest + self.workers) + 1)
            for col_breaks in [_even(counts[1], parts)]
            for cost, row_breaks in self._rows(rows, Counter(cols.windows(col_breaks)), counts[0])
        ]
        _, row_breaks, col_breaks = min(found)
        return row_breaks, col_breaks

    def _rows(self, rows: _Axis, widths: Counter[_Windows], count: int) -> list[tuple[tuple[float, float], Breaks]]:
        """Return ((time, windows), row breaks) for some divisions into rows, given the windows across each column."""
        cost = partial(self._cost, rows, widths)
        parts = 1
        while parts < count and cost(_even(count, parts))[2] > self._limit:
            parts += max(1, parts // 8)
        fewest = min(parts, count)
        found = []
        for parts in range(fewest, min(count, fewest + self.workers + _MORE_ROWS) + 1):
            time, windows, _ = cost(_even(count, parts))
            found.append(((time, windows), _even(count, parts)))
        return found

    @property
    def _limit(self) -> float:
        most = _MOST_WINDOWS if self.together else _MOST_WINDOWS_APART
        return max(_LEAST_WINDOWS, most / max(1, self.draws))

    def _cost(self, rows: _Axis, widths: Counter[_Windows], breaks: Breaks) -> tuple[float, float, float]:
        """Return (time, windows in all, those of the largest unit), in windows of the first group's size.

        `widths` counts columns of units by the windows across them. Most units are alike, and counted together.
        """
        sizes = [float(group.lattice.window_px * group.gsd_m) ** 2 for group in self.of.groups]
        count, windows, largest = 0, 0.0, 0.0
        for (height, high), (width, wide) in product(Counter(rows.windows(breaks)).items(), widths.items()):
            unit = sum(size * down * across for size, down, across in zip(sizes, height, width, strict=True)) / sizes[0]
            count, windows, largest = count + high * wide, windows + high * wide * unit, max(largest, unit)
        workers = self.workers
        if count >= workers or not self.together:
            return largest * -(-count // workers), windows, largest
        return largest / (1 + THREAD_SHARE * (workers // count - 1)), windows, largest


@dataclass(frozen=True)
class _Axis:
    """The first window of every group that a unit beginning at a chunk needs, and the last if it ends there."""

    first: list[list[int]]  # by chunk, by group
    last: list[list[int]]

    @classmethod
    def of(cls, of: Pass, reach_px: int, window: Window, chunk_px: int, axis: int) -> _Axis:
        step = of.source_px
        begin, end = (window.row, window.row_end) if axis == 0 else (window.col, window.col_end)
        first, last = [], []
        for place in range(begin, end, chunk_px):
            first.append([cells[0] for cells in _cells(of, reach_px, place, step, axis)])
            stop = min(place + chunk_px, end)
            last.append([cells[-1] for cells in _cells(of, reach_px, stop - step, step, axis)])
        return cls(first, last)

    def windows(self, breaks: Breaks) -> list[_Windows]:
        """Return the windows of every group along this axis, by unit."""
        return [
            tuple(last - first + 1 for first, last in zip(self.first[begin], self.last[end - 1], strict=True))
            for begin, end in pairwise(breaks)
        ]


def _cells(of: Pass, reach_px: int, place: int, step: int, axis: int) -> list[list[int]]:
    """Return the rows or columns of windows, by group, that `step` px at `place` need along an axis."""
    here = Window(place, 0, step, step) if axis == 0 else Window(0, place, step, step)
    return [sorted({cell[axis] for cell in cells}) for cells in of.cells([here.pad(reach_px)])]


def _even(count: int, parts: int) -> Breaks:
    return tuple(count * i // parts for i in range(parts + 1))
