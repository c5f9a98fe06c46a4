"""Process an area in one pass: run every model window that touches it, blend, make consistent, quantise.

The result does not depend on how the ground is cut into areas: windows are absolute, whole and independent, noise is
keyed by position, and blending sums windows in ascending order.
"""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, TypeVar

from pipeline.bands import TARGET_GSD_M
from pipeline.errors import PipelineError
from pipeline.grid.arrays import blank, namespace
from pipeline.grid.placed_rasters import placed_on
from pipeline.superres import batches, classes
from pipeline.superres.canvas import Canvas, Canvases, Handed, Tile, Weights, block_means
from pipeline.superres.chain import at_gsd
from pipeline.superres.layers import Layer, finished
from pipeline.superres.noise_source import noise_source
from pipeline.superres.passes import passes_of
from pipeline.superres.sweep import Computed, Sweep
from pipeline.superres.windows import Draw, detail_of, run_window, window_input

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    import torch
    from numpy.typing import NDArray

    from pipeline.grid.arrays import Array
    from pipeline.grid.finished_rasters import Rasters
    from pipeline.grid.grid import Window
    from pipeline.superres.batches import Steps
    from pipeline.superres.chain import Group
    from pipeline.superres.options import Options
    from pipeline.superres.passes import Pass
    from pipeline.superres.spec import NoiseSource, SceneState, Stage
    from pipeline.superres.sweep import Cell
    from pipeline.superres.system import System
    from pipeline.superres.windows import Maps, WindowInput, WindowResult

    StateOf = Callable[[Window], SceneState | None]

T = TypeVar("T")


@dataclass
class Result:
    """Output over one window by GSD in metres, coarsest first, and seconds by step.

    `causes` (ny, nx), at 2.5 m, index `masks.CAUSES`: the nearest cause that withholds detail. None if no detail is
    withheld, none is generated at all, or the pass reads a finished group.
    """

    layers: dict[float, Layer]
    causes: NDArray[np.uint8] | None = None
    windows: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))

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
    blended = blend(native, window, system, order, options, state_of, wanted, number, maps)
    started = time.perf_counter()
    result = blended.finish(window)
    result.seconds["project"] += time.perf_counter() - started
    return result


@dataclass
class Blended:
    """Blended windows over an area, of which parts are finished one by one. Arguments as for `super_resolve`."""

    native: Rasters
    options: Options
    of: Pass
    canvases: Canvases
    seconds: dict[str, float]

    @property
    def windows(self) -> int:
        """Number of model windows computed."""
        return self.canvases.windows

    def finish(self, part: Window) -> Result:
        """Return the output over a part of the area: made to agree with the measurement, and quantised."""
        of, native, options = self.of, self.native, self.options
        layers = finished(self.canvases, native, part, options, of)
        causes = None
        if not of.source_gsd_m:
            around = of.read_window(part.pad(of.reach_px(options)))
            causes = classes.nearest_cause(native, part, next(iter(layers.values())).quality, of.groups, around)
        return Result(layers, causes, self.windows, defaultdict(float, self.seconds))


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
    seconds: dict[str, float] = defaultdict(float)
    of = passes_of(system.stages, order)[number]
    reach, walk = of.reach_px(options), sweep or Sweep()
    parts = [part.pad(reach) for part in wanted or [window]]
    later = [part.pad(reach) for part in walk.then]
    native = placed_on(native, system.device)
    canvases = _empty(of, window.pad(reach), options, system.device)
    for i, (cells, kept) in enumerate(zip(of.cells(parts), of.cells(later), strict=True)):
        run = _GroupRun(i, of, native, system, options, state_of, maps, canvases, seconds, walk)
        run.run(cells, frozenset(kept), min((part.row for part in later), default=0))
    canvases.to_dn()
    return Blended(native, options, of, canvases, seconds)


def _empty(of: Pass, area: Window, options: Options, device: torch.device) -> Canvases:
    """Return empty canvases of a pass over `area`, in its px, on a device."""
    found = []
    for output in of.outputs:
        givers = [group for group in of.groups if any(one.gsd_m == output.gsd_m for one in group.outputs)]
        spread = options.members > 1 and any(group.varying for group in givers)
        generated = any(group.stages for group in givers)
        here = at_gsd(area, of.gsd_m, output.gsd_m)
        found.append(Canvas.over(output.gsd_m, here, output.bands, device, spread=spread, generated=generated))
    return Canvases(found)


@dataclass(frozen=True)
class _GroupRun:
    """Run all windows of one group, and blend them into the canvases in ascending order."""

    number: int
    of: Pass
    native: Rasters
    system: System
    options: Options
    state_of: StateOf
    maps: Maps | None
    canvases: Canvases
    seconds: dict[str, float]
    sweep: Sweep

    @property
    def group(self) -> Group:
        """The group whose windows are run."""
        return self.of.groups[self.number]

    def run(self, cells: list[Cell], later: frozenset[Cell], top_row: int) -> None:
        """Compute and blend the windows of `cells`. Those of `later` are kept, from `top_row` (px of the pass) on."""
        group, canvases, device = self.group, self.canvases, self.system.device
        weights = Weights.of(group, device)
        details = {canvas.gsd_m: blank(canvas.area.shape, device) for canvas, _ in canvases.of(group)}
        handed = Handed(group, cells, self._count, device) if group.handed and cells else None
        kept = {cell: found for cell in cells if (found := self.sweep.take(self.number, cell)) is not None}
        wanted, size = [cell for cell in cells if cell not in kept], self.options.batch
        together = [wanted[i : i + size] for i in range(0, len(wanted), size)]
        fresh = chain.from_iterable(self.sweep.in_order(self._compute, together))
        for cell in cells:
            started = time.perf_counter()
            computed = kept.pop(cell, None) or next(fresh)
            blending = time.perf_counter()
            self._blend(Tile(group, cell, weights), computed, details, handed)
            if cell in later:
                self.sweep.keep(self.number, group, cell, computed, top_row, self.of.gsd_m)
            self.seconds["superres"] += blending - started
            self.seconds["blend"] += time.perf_counter() - blending
        if group.stages:
            for canvas, _ in canvases.of(group):
                canvas.detail = namespace(canvas.detail).minimum(canvas.detail, details[canvas.gsd_m])
        if handed is not None:
            handed.close()
            canvases.handed |= dict.fromkeys((stage.name for stage in group.stages), handed)

    @property
    def _count(self) -> int:
        """Number of draws per window."""
        return max(1, self.options.members) if self.group.varying else 1

    def _compute(self, cells: list[Cell]) -> list[Computed]:
        """Compute one batch of windows. Those in which nothing was measured take no place in it."""
        group, canvases = self.group, self.canvases
        given = {
            cell: one
            for cell in cells
            if (one := window_input(self.native, group.lattice.window(*cell), group, self.of, self.system.device,
                                    self.maps)) is not None
        }  # fmt: skip
        runs = [partial(self._steps, cell, one) for cell, one in given.items()]
        compute = partial(batches.run, runs, self.system, self.options.batch)
        found = dict(zip(given, _within_memory(compute, self.system, group, self.options.batch), strict=True))
        canvases.count(len(given))
        side = group.lattice.window_px
        details = {cell: detail_of(one, side) if group.stages else None for cell, one in given.items()}
        return [Computed(found[cell], details[cell]) if cell in given else Computed(None) for cell in cells]

    def _steps(self, cell: Cell, given: WindowInput) -> Steps[WindowResult]:
        window = self.group.lattice.window(*cell)
        earlier = partial(self.canvases.read_by, self.group, window)
        return run_window(given, self.system, self.group, self._draws(window), earlier)

    def _blend(self, tile: Tile, computed: Computed, details: dict[float, Array], handed: Handed | None) -> None:
        for canvas, bands in self.canvases.of(self.group):
            if computed.found is None:
                if (part := canvas.part(tile)) is not None:
                    canvas.void.append(part)
                continue
            canvas.add(tile, bands, computed.found, computed.above)
            if computed.detail is not None:
                _add_detail(details[canvas.gsd_m], computed.detail, canvas, tile, computed.above)
        if handed is not None and computed.found is not None:
            handed.add(tile.cell, computed.found.handed)

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


def _add_detail(into: Array, detail: Array, canvas: Canvas, tile: Tile, above: int) -> None:
    """Blend the weight of generated detail over a window, without its `above` first rows, into that over a canvas."""
    part = canvas.part(tile, above)
    if part is None:
        return
    share = tile.weight(canvas.gsd_m)[part.slices(tile.window(canvas.gsd_m))]
    of = part.slices(tile.below(above, canvas.gsd_m))
    factor = round(canvas.gsd_m / tile.group.gsd_m)
    there = into[part.slices(canvas.area)]
    there += share * block_means(detail, factor)[of]


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
