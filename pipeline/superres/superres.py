"""A piece of ground: run every model window that touches it, blend, make consistent, quantise.

Nothing here depends on how the ground was cut into pieces: windows are absolute, whole and independent, noise is keyed
by position, and blending sums them in ascending order.
"""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from pipeline.bands import DN_OFFSET, DN_SCALE, TARGET_GSD_M
from pipeline.errors import PipelineError
from pipeline.superres import classes
from pipeline.superres.canvas import Canvas, Handed
from pipeline.superres.chain import at_gsd, cells_by_group, groups_of
from pipeline.superres.contract import agreeing
from pipeline.superres.noise_source import noise_source
from pipeline.superres.windows import Draw, detail_of, run_window, window_input

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from pipeline.grid.grid import Window
    from pipeline.grid.native_rasters import NativeRasters
    from pipeline.superres.chain import Group
    from pipeline.superres.options import Options
    from pipeline.superres.spec import NoiseSource, SceneState, Stage
    from pipeline.superres.system import System

    StateOf = Callable[[Window], SceneState | None]

T = TypeVar("T")


@dataclass
class Result:
    """Output over one window: `dn` (bands, ny, nx), `quality` (ny, nx), `spread` in DN or None, seconds per stage.

    Nodata is 0 in `dn` and 65535 in `spread`. `causes` (ny, nx) index `masks.CAUSES`: what is nearest of that which
    withholds detail; None where none is withheld or none is generated at all.
    """

    dn: NDArray[np.uint16]
    quality: NDArray[np.uint8]
    spread: NDArray[np.uint16] | None
    causes: NDArray[np.uint8] | None = None
    windows: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))


def super_resolve(
    native: NativeRasters,
    window: Window,
    system: System,
    order: tuple[str, ...],
    options: Options,
    state_of: StateOf = lambda _window: None,
    wanted: Sequence[Window] = (),
) -> Result:
    """All bands of `order` at 2.5 m over `window` (edges multiples of 24 px), from native DN around it.

    `native.window` must hold `chain.read_window` of the run's groups. `wanted`: the parts of `window` that are needed,
    all of it where empty; model windows that touch none of them are not computed, and pixels elsewhere mean nothing.
    """
    seconds: dict[str, float] = defaultdict(float)
    groups, reach = groups_of(system.stages, order), options.reach_px(order)
    generated = any(group.stages for group in groups)
    drawn = {band for group in groups if group.varying for band in group.bands}
    canvas = Canvas.over(window.pad(reach), order, spread=options.members > 1 and bool(drawn), generated=generated)
    parts = [part.pad(reach) for part in wanted or [window]]
    for group, cells in zip(groups, cells_by_group(groups, parts), strict=True):
        _GroupRun(group, native, system, options, state_of, canvas, seconds).run(cells)
    started = time.perf_counter()
    result = _finished(canvas, native, window, options, groups, drawn)
    seconds["project"] += time.perf_counter() - started
    result.windows, result.seconds = canvas.windows, seconds
    return result


def _finished(
    canvas: Canvas, native: NativeRasters, window: Window, options: Options, groups: Sequence[Group], drawn: set[str]
) -> Result:
    """The canvas made consistent, cut to `window` and quantised."""
    order, image = canvas.order, canvas.image
    image -= np.float32(DN_OFFSET)
    image /= np.float32(DN_SCALE)
    sensors = [options.sensor(name) for name in order]
    images = agreeing(image, canvas.area, window, sensors, lambda i, part: native.band(order[i], part), canvas.void)
    inside = window.slices(canvas.area)
    dn = classes.quantised(images, native, window, order, options.consistency)
    quality = classes.quality(dn, order, canvas.detail[inside])
    spread = canvas.spread
    return Result(
        dn,
        quality,
        None if spread is None else classes.spread_dn(spread[(..., *inside)], dn, order, quality, drawn),
        classes.nearest_cause(native, window, quality, groups),
    )


@dataclass(frozen=True)
class _GroupRun:
    """All windows of one group, blended into the canvas in ascending order."""

    group: Group
    native: NativeRasters
    system: System
    options: Options
    state_of: StateOf
    canvas: Canvas
    seconds: dict[str, float]

    def run(self, cells: list[tuple[int, int]]) -> None:
        """Compute and blend the windows of these cells."""
        group, canvas = self.group, self.canvas
        weight = group.lattice.weight()
        detail = np.zeros(canvas.area.shape, np.float32)
        handed = Handed(group, cells, self._count) if group.handed and cells else None
        for cell in cells:
            self._window(cell, weight, detail, handed)
        if group.stages and group.bands:
            np.minimum(canvas.detail, detail, out=canvas.detail)
        if handed is not None:
            handed.close()
            canvas.handed |= dict.fromkeys((stage.name for stage in group.stages), handed)

    @property
    def _count(self) -> int:
        """Passes through the networks per window."""
        return max(1, self.options.members) if self.group.varying else 1

    def _window(
        self, cell: tuple[int, int], weight: NDArray[np.float32], detail: NDArray[np.float32], handed: Handed | None
    ) -> None:
        group, canvas, lattice = self.group, self.canvas, self.group.lattice
        started = time.perf_counter()
        window, part = lattice.window(*cell), canvas.part(group, cell)
        given = window_input(self.native, window, group, self.system.device)
        if given is None:
            if part is not None:
                canvas.void.append(part)
            return
        earlier = partial(canvas.read_by, group, window, device=self.system.device)
        compute = partial(run_window, given, self.system, group, self._draws(window), earlier)
        found = _within_memory(compute, self.system, group)
        self.seconds["superres"] += time.perf_counter() - started
        started = time.perf_counter()
        canvas.add(group, cell, weight, found)
        if group.stages and part is not None:
            share = weight[part.slices(lattice.support(*cell))]
            detail[part.slices(canvas.area)] += share * detail_of(given, lattice.window_px)[part.slices(window)]
        if handed is not None:
            handed.add(cell, weight, found.handed)
        self.seconds["blend"] += time.perf_counter() - started
        canvas.windows += 1

    def _draws(self, window: Window) -> list[Draw]:
        """The passes through the networks that a window takes."""
        stochastic = [stage.name for stage in self.system.stages if stage.stochastic]
        state = self.state_of(at_gsd(window, self.group.gsd_m, TARGET_GSD_M)) if self.group.stages else None

        def noise_of(member: int, stage: Stage) -> NoiseSource | None:
            if not self.options.members:
                return None
            return noise_source(window, stochastic.index(stage.name), member, self.options, self.system.device)

        return [Draw(partial(noise_of, i), state, self.options.consistency) for i in range(self._count)]


def _within_memory(compute: Callable[[], T], system: System, group: Group) -> T:
    """One window's result; where a GPU's memory runs out, once more with all that torch holds in reserve given back.

    Windows go through the networks one by one, so that there is no batch to halve: their pixels are the same whatever
    else is computed. PipelineError when one window does not fit.
    """
    import torch

    try:
        return compute()
    except torch.OutOfMemoryError:
        pass  # what its trace holds is let go first
    torch.cuda.empty_cache()
    try:
        return compute()
    except torch.OutOfMemoryError as error:
        side = group.lattice.window_px
        found = f"a window of {side} x {side} px of {system.name} does not fit into the memory of {system.device}"
        raise PipelineError(
            f"{found} ({str(error).partition('. ')[0]})",
            "free memory for one window",
            "end other processes on that GPU, use one worker per GPU, or another --sr",
        ) from None
