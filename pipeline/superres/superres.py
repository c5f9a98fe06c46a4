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
from typing import TYPE_CHECKING, TypeVar

from pipeline.bands import TARGET_GSD_M
from pipeline.errors import PipelineError
from pipeline.grid.grid import Window
from pipeline.grid.placed_rasters import placed_on
from pipeline.superres import batches, classes
from pipeline.superres.canvas import Canvas, Canvases, Handed, Tile, Weights
from pipeline.superres.chain import at_gsd
from pipeline.superres.layers import Layer, finished
from pipeline.superres.noise_source import noise_source
from pipeline.superres.passes import passes_of
from pipeline.superres.sweep import Sweep
from pipeline.superres.windows import Draw, detail_of, run_window, window_input

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy as np
    import torch
    from numpy.typing import NDArray

    from pipeline.grid.arrays import Array
    from pipeline.grid.finished_rasters import Rasters
    from pipeline.superres.batches import Steps
    from pipeline.superres.chain import Group
    from pipeline.superres.options import Options
    from pipeline.superres.passes import Pass
    from pipeline.superres.spec import NoiseSource, SceneState, Stage
    from pipeline.superres.sweep import Cell, Due
    from pipeline.superres.system import System
    from pipeline.superres.windows import Maps, WindowInput, WindowResult

    StateOf = Callable[[Window], SceneState | None]

T = TypeVar("T")


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
    (blended,) = in_blocks(native, parts, system, order, options, state_of, number, maps, sweep or Sweep())
    return blended


def in_blocks(
    native: Rasters,
    blocks: Sequence[Sequence[Window]],
    system: System,
    order: tuple[str, ...],
    options: Options,
    state_of: StateOf,
    number: int,
    maps: Maps | None,
    sweep: Sweep,
) -> Iterator[Blended]:
    """Compute and blend a strip, and yield each block as soon as it is complete. Arguments as for `super_resolve`.

    Each block lists its wanted parts; blocks lie side by side, the leftmost first. It has to be finished before the
    next one or the next strip is asked for: what only it needs is then dropped. The strip is done at the end.
    """
    of, before = passes_of(system.stages, order)[number], sweep.windows
    reach = of.reach_px(options)
    padded = [[part.pad(reach) for part in block] for block in blocks]
    parts, later = [part for block in padded for part in block], [part.pad(reach) for part in sweep.then]
    if sweep.canvases is None:
        sweep.canvases = _empty(of, reduce(Window.union, [*parts, *later]), options, system.device)
    canvases, native = sweep.canvases, placed_on(native, system.device)
    canvases.drop(min(part.row for part in (*parts, *later)))
    due = sweep.due(of.groups, of.cells(parts), of.cells([*parts, *later]))
    runs = [
        _GroupRun(i, of, native, system, options, state_of, maps, canvases, sweep).run(one) for i, one in enumerate(due)
    ]
    for run in runs[:-1]:
        deque(run, maxlen=0)
    top_row, done = min((part.row for part in later), default=math.inf), 0
    for i, block in enumerate(padded):
        needed = bisect_right(due[-1].cells, max(of.cells(block)[-1]))
        deque(islice(runs[-1], max(0, needed - done)), maxlen=0)
        done = max(done, needed)
        yield Blended(native, options, of, canvases, sweep, before)
        canvases.drop(top_row, min((part.col for rest in padded[i + 1 :] for part in rest), default=-math.inf))
    deque(runs[-1], maxlen=0)
    canvases.handed.clear()


def _empty(of: Pass, area: Window, options: Options, device: torch.device) -> Canvases:
    """Return empty canvases of a pass over `area`, in its px, on a device."""
    found = []
    for output in of.outputs:
        givers = {i: one for i, one in enumerate(of.groups) if output.gsd_m in (given.gsd_m for given in one.outputs)}
        generating = tuple(i for i, group in givers.items() if group.stages)
        found.append(
            Canvas.over(
                output.gsd_m,
                at_gsd(area, of.gsd_m, output.gsd_m),
                output.bands,
                device,
                spread=options.members > 1 and any(group.varying for group in givers.values()),
                generated=bool(generating),
                generating=generating,
            )
        )
    return Canvases(of.gsd_m, found)


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

    def run(self, due: Due) -> Iterator[Cell]:
        """Compute and blend the windows that are due. Yield each when it is blended."""
        group, sweep, device = self.group, self.sweep, self.system.device
        weights = Weights.of(group, device)
        handed = Handed(group, due.read, self._count, device) if group.handed and due.read else None
        wanted, size = due.cells, self.options.batch
        together = [wanted[i : i + size] for i in range(0, len(wanted), size)]
        fresh = chain.from_iterable(sweep.in_order(self._compute, together))
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
        found = dict(zip(given, _within_memory(compute, self.system, group, self.options.batch), strict=True))
        self.sweep.count(len(given))
        side = group.lattice.window_px
        details = {cell: detail_of(one, side) if group.stages else None for cell, one in given.items()}
        return [_Computed(found[cell], details[cell]) if cell in given else _Computed(None) for cell in cells]

    def _steps(self, cell: Cell, given: WindowInput) -> Steps[WindowResult]:
        window = self.group.lattice.window(*cell)
        earlier = partial(self.canvases.read_by, self.group, window)
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


def _within_memory(compute: Callable[[], T], system: System, group: Group, size: int) -> T:
    """Return the result of one batch. If GPU memory runs out, empty torch's cache and try once more.

    The size of batches is fixed, since pixels would depend on another. Raises PipelineError if one does not fit.
    """
    import torch

    try:
        return compute()
    except torch.OutOfMemoryError:
        pass  # leave the handler first, which frees what the traceback holds
    torch.cuda.empty_cache()
    try:
        return compute()
    except torch.OutOfMemoryError as error:
        side = group.lattice.window_px
        windows = f"a window of {side} x {side} px" if size == 1 else f"a batch of {size} windows of {side} x {side} px"
        found = f"{windows} of {system.name} does not fit into the memory of {system.device}"
        smaller = "" if size == 1 else f"a new store with --batch {size // 2}, "
        raise PipelineError(
            f"{found} ({str(error).partition('. ')[0]})",
            f"free memory for one {'window' if size == 1 else 'batch'}",
            f"end other processes on that GPU, {smaller}use one worker per GPU, or another --sr",
        ) from None
