"""Which stages a run needs, which of them share windows, and how much ground each must cover."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING

from pipeline.bands import BLOCK_60M, BY_NAME, TARGET_GSD_M
from pipeline.grid.grid import Window
from pipeline.grid.lattice import Lattice

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from pipeline.superres.spec import Stage

INTERPOLATION = Lattice(480, 384, 48, 24)  # windows of bands that are interpolated, 2.5 m
CONTEXT = 2  # source pixels around a window that bicubic interpolation needs


@dataclass(frozen=True)
class Output:
    """Bands that are stored at one GSD."""

    gsd_m: float
    bands: tuple[str, ...]


@dataclass(frozen=True)
class Group:
    """Consecutive stages of one lattice, run window by window without blending between them.

    A group without stages interpolates. `outputs` are its stored bands, at its own GSD, and at 2.5 m as block means if
    nothing else gives a band there. `handed` lists what later groups read of it: (stage, band). `varying` names the
    stages whose output differs between draws. `source_gsd_m` is the GSD of the finished group that it is computed from,
    0 for the native rasters.
    """

    stages: tuple[Stage, ...]
    lattice: Lattice
    gsd_m: float
    outputs: tuple[Output, ...]
    handed: tuple[tuple[str, str], ...] = ()
    varying: frozenset[str] = frozenset()
    source_gsd_m: float = 0.0

    @property
    def bands(self) -> tuple[str, ...]:
        """Stored bands of this group at any GSD."""
        return tuple(dict.fromkeys(band for output in self.outputs for band in output.bands))

    @property
    def nest_px(self) -> int:
        """Side, in its px, of the smallest square that holds whole pixels of all rasters it reads or gives."""
        if not self.stages:
            return BLOCK_60M
        coarsest = [round(output.gsd_m / self.gsd_m) for output in self.outputs]
        return math.lcm(1, *(stage.nest_px for stage in self.stages), *coarsest)

    @property
    def context_px(self) -> int:
        """Context read around a window, in its px."""
        return CONTEXT * self.nest_px

    @property
    def required(self) -> tuple[str, ...]:
        """Bands without which its stages cannot run."""
        return tuple(dict.fromkeys(band for stage in self.stages for band in stage.required))

    @property
    def natives(self) -> tuple[str, ...]:
        """Bands whose rasters it reads, as input of its stages or for consistency."""
        read = (band for stage in self.stages for band in (*stage.measured, *stage.finished))
        given = (band for stage in self.stages for band in stage.gives if band in BY_NAME)
        return tuple(dict.fromkeys((*read, *given, *self.bands)))

    @property
    def bright_reflectance(self) -> float:
        """Reflectance above which no detail is generated."""
        return min((stage.bright_reflectance for stage in self.stages), default=float("inf"))

    def source_factor(self, band: str) -> int:
        """Return the pixels of its GSD per pixel of a band as it is read, along one axis."""
        return round((self.source_gsd_m or BY_NAME[band].gsd_m) / self.gsd_m)

    def reads(self, earlier: Group) -> bool:
        """Return whether its stages read the output of those of `earlier`."""
        own = {stage.name for stage in earlier.stages}
        return any(stage.sources & own for stage in self.stages)


def sources(stages: Sequence[Stage]) -> dict[tuple[float, str], Stage]:
    """Return {(GSD, band): the last stage that gives it there} for the stored GSDs, 2.5 m and finer."""
    return {
        (stage.gsd_m, band): stage
        for stage in stages
        if stage.gsd_m <= TARGET_GSD_M
        for band in stage.gives
        if band in BY_NAME
    }


def needed(stages: Sequence[Stage], order: Collection[str]) -> tuple[Stage, ...]:
    """Return the stages that the bands of `order` depend on, at any stored GSD."""
    wanted = {(stage.name, band) for (_, band), stage in sources(stages).items() if band in order}
    kept: list[Stage] = []
    for stage in reversed(stages):
        if any((stage.name, band) in wanted for band in stage.gives):
            kept.append(stage)
            wanted |= {(given.source, band) for given in stage.reads for band in given.bands}
    return tuple(reversed(kept))


def varying(stages: Sequence[Stage]) -> frozenset[str]:
    """Return the names of the stages that draw, or read what was drawn."""
    found: set[str] = set()
    for stage in stages:
        if stage.stochastic or stage.sources & found:
            found.add(stage.name)
    return frozenset(found)


def bands_read(stages: Sequence[Stage], order: Sequence[str]) -> set[str]:
    """Return the measured bands that those of `order` depend on, including these."""
    return {*order, *(band for stage in needed(stages, order) for band in stage.measured)}


def bands_required(stages: Sequence[Stage], order: Sequence[str]) -> set[str]:
    """Return the measured bands, other than `order`, without which `order` cannot be made."""
    required = {band for stage in needed(stages, order) for band in stage.required if band not in stage.finished}
    return required - {*order}


def outputs_of(stages: Sequence[Stage], order: Sequence[str]) -> tuple[Output, ...]:
    """Return the stored bands of these stages by GSD below 2.5 m, coarsest first, bands in the order of `order`."""
    last = sources(stages)
    gsds = sorted({gsd_m for gsd_m, _ in last if gsd_m < TARGET_GSD_M}, reverse=True)
    found = (Output(gsd_m, tuple(band for band in order if (gsd_m, band) in last)) for gsd_m in gsds)
    return tuple(output for output in found if output.bands)


def groups_of(stages: Sequence[Stage], order: Sequence[str], source_gsd_m: float = 0.0) -> tuple[Group, ...]:
    """Return the groups that a pass over `stages` needs for the bands `order`, in the order in which they run.

    In a pass over the native rasters, the last group interpolates the bands that no stage gives.
    """
    running, last = needed(stages, order), sources(stages)
    parts: list[list[Stage]] = []
    for stage in running:
        if parts and (parts[-1][-1].lattice, parts[-1][-1].gsd_m) == (stage.lattice, stage.gsd_m):
            parts[-1].append(stage)
        else:
            parts.append([stage])
    finer = outputs_of(stages, order)
    groups, differ = [], varying(running)
    for i, part in enumerate(parts):
        own, gsd_m = {stage.name for stage in part}, part[0].gsd_m
        later = (given for others in parts[i + 1 :] for stage in others for given in stage.reads)
        handed = {(given.source, band) for given in later if given.source in own for band in given.bands}
        bands = tuple(band for band in order if (gsd_m, band) in last and last[gsd_m, band].name in own)
        outputs = [Output(gsd_m, bands)] if bands else []
        if not source_gsd_m and (means := _means(gsd_m, bands, last, finer)):
            outputs.append(Output(TARGET_GSD_M, means))
        groups.append(
            Group(
                tuple(part), part[0].lattice, gsd_m, tuple(outputs), tuple(sorted(handed)), differ & own, source_gsd_m
            )
        )
    made = {band for _, band in last}
    rest = tuple(band for band in order if band not in made)
    if rest and not source_gsd_m:
        groups.append(Group((), INTERPOLATION, TARGET_GSD_M, (Output(TARGET_GSD_M, rest),)))
    return tuple(groups)


def _means(
    gsd_m: float, bands: Sequence[str], last: Collection[tuple[float, str]], finer: Sequence[Output]
) -> tuple[str, ...]:
    """Return those of `bands`, given at `gsd_m`, that are stored at 2.5 m as block means of that output."""
    if gsd_m >= TARGET_GSD_M:
        return ()
    coarsest = {band: output.gsd_m for output in reversed(finer) for band in output.bands}
    return tuple(band for band in bands if (TARGET_GSD_M, band) not in last and coarsest[band] == gsd_m)


def at_gsd(window: Window, from_m: float, to_m: float) -> Window:
    """Return a window in px of another GSD, grown to whole pixels."""
    if from_m >= to_m:
        return window.refine(round(from_m / to_m))
    factor = round(to_m / from_m)
    return window.snap_out(factor).coarsen(factor)


def cells_by_group(
    groups: Sequence[Group], wanted: Sequence[Window], gsd_m: float = TARGET_GSD_M
) -> list[list[tuple[int, int]]]:
    """Return the cells that each group has to compute for `wanted` windows of the output (px of `gsd_m`), ascending."""
    found: list[list[tuple[int, int]]] = [[] for _ in groups]
    for i in reversed(range(len(groups))):
        group = groups[i]
        own = [at_gsd(part, gsd_m, group.gsd_m) for part in wanted] if group.outputs else []
        found[i] = group.lattice.cells_touching_any([*own, *_parts_read(groups, i, found)])
    return found


def cells_read(
    groups: Sequence[Group], number: int, cells: Sequence[Sequence[tuple[int, int]]]
) -> list[tuple[int, int]]:
    """Return the cells of group `number` that the cells of later groups, listed by group, read; ascending."""
    return groups[number].lattice.cells_touching_any(_parts_read(groups, number, cells))


def _parts_read(groups: Sequence[Group], number: int, cells: Sequence[Sequence[tuple[int, int]]]) -> list[Window]:
    """Return the windows of later groups that read group `number`, in its px."""
    own = groups[number]
    readers = [j for j in range(number + 1, len(groups)) if groups[j].reads(own)]
    windows = ((groups[j].gsd_m, groups[j].lattice.window(*cell)) for j in readers for cell in cells[j])
    return [at_gsd(window, gsd_m, own.gsd_m) for gsd_m, window in windows]


def read_window(
    groups: Sequence[Group], window: Window, gsd_m: float = TARGET_GSD_M, snap_px: int = BLOCK_60M
) -> Window:
    """Return the window to read for the output over `window`, in px of `gsd_m`; edges are multiples of `snap_px`."""
    whole = window
    for group, cells in zip(groups, cells_by_group(groups, [window], gsd_m), strict=True):
        if cells:
            seen = reduce(Window.union, (group.lattice.window(*cell) for cell in cells)).pad(group.context_px)
            whole = whole.union(at_gsd(seen, group.gsd_m, gsd_m))
    return whole.snap_out(snap_px)


def reach_m(groups: Sequence[Group]) -> float:
    """Return how far beyond an area the ground lies that its output depends on, along one axis, in metres."""
    return sum((group.lattice.window_px + group.context_px) * group.gsd_m for group in groups)
