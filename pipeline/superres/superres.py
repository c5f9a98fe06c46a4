"""Process an area in one pass: run every model window that touches it, blend, make consistent, quantise.

The result does not depend on how the ground is cut into areas: windows are absolute, whole and independent, noise is
keyed by position, and blending sums windows in ascending order.
"""

from __future__ import annotations

import math
import time
from bisect import bisect_right
from collections import deque
from dataclasses import dataclass
from functools import partial, reduce
from itertools import chain, islice
from typing import TYPE_CHECKING

from pipeline.bands import TARGET_GSD_M
from pipeline.grid.grid import Window
from pipeline.grid.placed_rasters import placed_on
from pipeline.superres import batches, classes
from pipeline.superres.canvas import Canvases, Handed, Tile, Weights
from pipeline.superres.chain import at_gsd
from pipeline.superres.layers import Layer, finished
from pipeline.superres.noise_source import noise_source
from pipeline.superres.passes import passes_of
from pipeline.superres.sweep import Sweep
from pipeline.superres.windows import Draw, detail_of, run_window, window_input

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from pipeline.grid.arrays import Array
    from pipeline.grid.finished_rasters import Rasters
    from pipeline.superres.batches import Steps
    from pipeline.superres.chain import Group
    from pipeline.superres.options import Options
    from pipeline.superres.passes import Pass
    from pipeline.superres.spec import NoiseSource, SceneState, Stage
    from pipeline.superres.sweep import Cell, Due, Ordered
    from pipeline.superres.system import System
    from pipeline.superres.windows import Made, Maps, WindowInput, WindowResult

    StateOf = Callable[[Window], SceneState | None]


@dataclass
class Result:
    """Output over one window by GSD in metres, coarsest first, and the number of windows computed.

    `causes` (ny, nx), at 2.5 m, index `masks.CAUSES`: the nearest cause that withholds detail. None if no detail is
    withheld, none is generated at all, or the pass reads a finished group.
    """

    layers: dict[float, Layer]
    causes: NDArray[np.uint8] | None = None
    windows: int = 0

    @property
    def first(self) -> Layer:
        """The coarsest layer."""
        return next(iter(self.layers.values()))

    @property
    def dn(self) -> NDArray[np.uint16]:
        """DN (bands, ny, nx) of the coarsest layer."""
        return self.first.dn

    @property
    def quality(self) -> NDArray[np.uint8]:
        """Quality (ny, nx) of the coarsest layer."""
        return self.first.quality

    @property
    def spread(self) -> NDArray[np.uint16] | None:
        """Spread (bands, ny, nx) of the coarsest layer."""
        return self.first.spread


def super_resolve(
    native: Rasters,
    window: Window,
    system: System,
    order: tuple[str, ...],
    options: Options,
    state_of: StateOf = lambda _window: None,
    wanted: Sequence[Window] = (),
    number: int = 0,
    maps: Maps | None = None,
) -> Result:
    """Return the output of pass `number` of a run of the bands `order` over `window`, from DN around it.

    Windows count px of the pass; in the first pass these are 2.5 m and edges are multiples of 24 px. `native.window`
    must hold `Pass.read_window`. `wanted` lists the parts of `window` that are needed, all of it if empty. Model
    windows that touch none of them are not computed, and pixels elsewhere are undefined.
    """
    return blend(native, window, system, order, options, state_of, wanted, number, maps).finish(window)


@dataclass(frozen=True)
class Blended:
    """What is blended of a part of an area, of which parts are finished. Arguments as for `super_resolve`."""

    native: Rasters
    options: Options
    of: Pass
    canvases: Canvases
    sweep: Sweep
    before: int  # windows that were computed earlier in the walk

    @property
    def windows(self) -> int:
        """Number of model windows computed."""
        return self.sweep.windows - self.before

    def finish(self, part: Window, chunks: Sequence[Window] = ()) -> Result:
        """Return the output over a part of the area: made to agree with the measurement, and quantised.

        `chunks` make up the part, and causes are sought for each (`classes.nearest_causes`); the part itself if empty.
        """
        of, native, options = self.of, self.native, self.options
        layers = finished(self.canvases, native, part, options, of, self.sweep.in_order)
        causes = None
        if not of.source_gsd_m:
            quality = next(iter(layers.values())).quality
            causes = classes.nearest_causes(native, part, quality, chunks or [part], of.groups)
        return Result(layers, causes, self.windows)


def blend(
    native: Rasters,
    window: Window,
    system: System,
    order: tuple[str, ...],
    options: Options,
    state_of: StateOf = lambda _window: None,
    wanted: Sequence[Window] = (),
    number: int = 0,
    maps: Maps | None = None,
    sweep: Sweep | None = None,
) -> Blended:
    """Compute and blend the model windows that the output over `window` needs. Arguments as for `super_resolve`.

    `sweep`: the walk over a larger area of which `window` is one strip.
    """
    parts = [[*wanted] or [window]]
    begun = Begun(native, parts, system, order, options, state_of, number, maps, sweep or Sweep())
    (blended,) = begun.blocks()
    return blended


class Begun:
    """A strip whose windows are about to be computed and blended. Arguments as for `super_resolve`.

    Each block lists its wanted parts; blocks lie side by side, the leftmost first. Strips begin in their order, and one
    may begin while the last block of the strip before is still to be finished.
    """

    def __init__(
        self,
        native: Rasters,
        blocks: Sequence[Sequence[Window]],
        system: System,
        order: tuple[str, ...],
        options: Options,
        state_of: StateOf,
        number: int,
        maps: Maps | None,
        sweep: Sweep,
    ) -> None:
        self._of, self._options, self._sweep = passes_of(system.stages, order)[number], options, sweep
        of, self._before = self._of, sweep.windows
        reach = of.reach_px(options)
        self._padded = [[part.pad(reach) for part in block] for block in blocks]
        parts, later = [part for block in self._padded for part in block], [part.pad(reach) for part in sweep.then]
        if sweep.canvases is None:
            sweep.canvases = Canvases.empty(of, reduce(Window.union, [*parts, *later]), options, system.device)
        self._canvases, self._native = sweep.canvases, placed_on(native, system.device)
        self._top_row = min(part.row for part in (*parts, *later))
        self._later_row = min((part.row for part in later), default=math.inf)
        self._due = sweep.due(of.groups, of.cells(parts), of.cells([*parts, *later]))
        self._runs = [
            _GroupRun(i, of, self._native, system, options, state_of, maps, self._canvases, sweep)
            for i in range(len(self._due))
        ]
        self._fresh = [run.computed(one) for run, one in zip(self._runs, self._due, strict=True)]

    def ahead(self) -> None:
        """Let threads compute windows while something else is done."""
        self._fresh[-1].ahead()

    def follow(self, later: Begun) -> None:
        """Go on with windows of a later strip where this one has no more: those of its first group, which read none."""
        self._fresh[-1].then = later._fresh[0]

    def blocks(self) -> Iterator[Blended]:
        """Compute and blend the strip, and yield each block as soon as it is complete.

        It has to be finished before the next one or the next strip is asked for: what only it needs is then dropped.
        The strip is done at the end.
        """
        of, padded, cells = self._of, self._padded, self._due[-1].cells
        self._canvases.drop(self._top_row)
        runs = [run.run(due, fresh) for run, due, fresh in zip(self._runs, self._due, self._fresh, strict=True)]
        for run in runs[:-1]:
            deque(run, maxlen=0)
        done = 0
        for i, block in enumerate(padded):
            needed = bisect_right(cells, max(of.cells(block)[-1]))
            deque(islice(runs[-1], max(0, needed - done)), maxlen=0)
            done = max(done, needed)
            yield Blended(self._native, self._options, of, self._canvases, self._sweep, self._before)
            left_col = min((part.col for rest in padded[i + 1 :] for part in rest), default=-math.inf)
            self._canvases.drop(self._later_row, left_col)
        deque(runs[-1], maxlen=0)
        self._canvases.handed.clear()


@dataclass(frozen=True)
class _Computed:
    """What the networks gave in one window; None if nothing was measured in it.

    `detail` (T, T) is the weight of generated detail, None for a group that interpolates.
    """

    found: WindowResult | None
    detail: Array | None = None


@dataclass(frozen=True)
class _GroupRun:
    """Run the windows of one group, and blend them into the canvases in ascending order."""

    number: int
    of: Pass
    native: Rasters
    system: System
    options: Options
    state_of: StateOf
    maps: Maps | None
    canvases: Canvases
    sweep: Sweep

    @property
    def group(self) -> Group:
        """The group whose windows are run."""
        return self.of.groups[self.number]

    def computed(self, due: Due) -> Ordered[list[Cell], list[_Computed]]:
        """Return what computes the windows that are due, batch by batch."""
        size = self.options.batch
        return self.sweep.in_order(self._compute, [due.cells[i : i + size] for i in range(0, len(due.cells), size)])

    def run(self, due: Due, found: Iterable[list[_Computed]]) -> Iterator[Cell]:
        """Blend the windows that are due, which are found batch by batch. Yield each when it is blended."""
        group, sweep, device = self.group, self.sweep, self.system.device
        weights = Weights.of(group, device)
        handed = Handed(group, due.read, self._count, device) if group.handed and due.read else None
        fresh = chain.from_iterable(found)
        new, read = frozenset(due.cells), frozenset(due.read)
        for cell in sorted(new | read):
            if cell not in new:
                self._hand_on(handed, cell, sweep.take(self.number, cell, keep=cell in due.kept))
                continue
            started = time.perf_counter()
            computed = next(fresh)
            blending = time.perf_counter()
            self._blend(Tile(group, cell, weights), computed)
            images = None if computed.found is None else computed.found.handed
            if cell in read:
                self._hand_on(handed, cell, images)
            if cell in due.kept:
                sweep.keep(self.number, cell, images)
            del computed, images
            sweep.spend("superres", blending - started)
            sweep.spend("blend", time.perf_counter() - blending)
            yield cell
        if handed is not None:
            self.canvases.handed |= dict.fromkeys((stage.name for stage in group.stages), handed)

    @property
    def _count(self) -> int:
        """Number of draws per window."""
        return max(1, self.options.members) if self.group.varying else 1

    def _compute(self, cells: list[Cell]) -> list[_Computed]:
        """Compute one batch of windows. Those in which nothing was measured take no place in it."""
        group = self.group
        given = {
            cell: one
            for cell in cells
            if (one := window_input(self.native, group.lattice.window(*cell), group, self.of, self.system.device,
                                    self.maps)) is not None
        }  # fmt: skip
        runs = [partial(self._steps, cell, one) for cell, one in given.items()]
        compute = partial(batches.run, runs, self.system, self.options.batch)
        found = dict(zip(given, batches.within_memory(compute, self.system, group, self.options.batch), strict=True))
        self.sweep.count(len(given))
        side = group.lattice.window_px
        details = {cell: detail_of(one, side) if group.stages else None for cell, one in given.items()}
        return [_Computed(found[cell], details[cell]) if cell in given else _Computed(None) for cell in cells]

    def _steps(self, cell: Cell, given: WindowInput) -> Steps[WindowResult]:
        window = self.group.lattice.window(*cell)
        # The first group reads none, and may run while the strip before hands on images of its own.
        earlier = partial(self.canvases.read_by, self.group, window) if self.number else _nothing
        return run_window(given, self.system, self.group, self._draws(window), earlier)

    def _blend(self, tile: Tile, computed: _Computed) -> None:
        for canvas, bands in self.canvases.of(self.group):
            if computed.found is None:
                if (part := canvas.part(tile)) is not None:
                    canvas.void.append(part)
                continue
            canvas.add(tile, bands, computed.found)
            if computed.detail is not None:
                canvas.add_detail(self.number, tile, computed.detail)

    @staticmethod
    def _hand_on(handed: Handed | None, cell: Cell, images: list[Array] | None) -> None:
        if handed is not None and images is not None:
            handed.add(cell, images)

    def _draws(self, window: Window) -> list[Draw]:
        """Return the draws of a window, each one run of the networks."""
        stochastic = [stage.name for stage in self.system.stages if stage.stochastic]
        state = self.state_of(at_gsd(window, self.group.gsd_m, TARGET_GSD_M)) if self.group.stages else None

        def noise_of(member: int, stage: Stage) -> NoiseSource | None:
            if not self.options.members:
                return None
            return noise_source(window, stochastic.index(stage.name), member, self.options, self.system.device)

        how = self.options
        return [Draw(partial(noise_of, i), state, how.consistency, how.variant) for i in range(self._count)]


def _nothing(_draw: int) -> Made:
    return {}
