"""Which stages a run needs, which of them share windows, and how much ground each has to cover."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING

from pipeline.bands import BLOCK_60M, BY_NAME, TARGET_GSD_M
from pipeline.grid.grid import Window
from pipeline.grid.lattice import Lattice
from pipeline.superres.spec import MEASURED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.superres.spec import Stage

INTERPOLATION = Lattice(480, 384, 48, 24)  # windows of bands that no stage gives, 2.5 m
CONTEXT = 2  # native pixels around a window that bicubic interpolation sees


@dataclass(frozen=True)
class Group:
    """Consecutive stages of one lattice, run window by window without blending between them.

    Without stages: interpolation. `bands` are those of the run's output that come from here, `handed` what later groups
    read of it: (stage, band). `varying` names the stages whose output differs from draw to draw.
    """

    stages: tuple[Stage, ...]
    lattice: Lattice
    gsd_m: float
    bands: tuple[str, ...]
    handed: tuple[tuple[str, str], ...] = ()
    varying: frozenset[str] = frozenset()

    @property
    def nest_px(self) -> int:
        """Side, in its px, of the smallest square that holds whole pixels of all rasters it meets."""
        if not self.stages:
            return BLOCK_60M
        return math.lcm(*(stage.nest_px for stage in self.stages))

    @property
    def context_px(self) -> int:
        """How far around a window native rasters are looked at."""
        return CONTEXT * self.nest_px

    @property
    def required(self) -> tuple[str, ...]:
        """Measured bands without which its stages cannot run."""
        return tuple(dict.fromkeys(band for stage in self.stages for band in stage.required))

    @property
    def natives(self) -> tuple[str, ...]:
        """Bands whose native rasters it reads, for its stages or to agree with."""
        read = (band for stage in self.stages for band in stage.measured)
        given = (band for stage in self.stages for band in stage.gives if band in BY_NAME)
        return tuple(dict.fromkeys((*read, *given, *self.bands)))

    @property
    def bright_reflectance(self) -> float:
        """Above it no detail is generated."""
        return min((stage.bright_reflectance for stage in self.stages), default=float("inf"))


def needed(stages: Sequence[Stage], order: Sequence[str]) -> tuple[Stage, ...]:
    """Those stages that decide the bands of `order`."""
    wanted = {(stage.name, band) for band, stage in sources(stages).items() if band in order}
    kept: list[Stage] = []
    for stage in reversed(stages):
        if any((stage.name, band) in wanted for band in stage.gives):
            kept.append(stage)
            wanted |= {(given.source, band) for given in stage.reads for band in given.bands}
    return tuple(reversed(kept))


def sources(stages: Sequence[Stage]) -> dict[str, Stage]:
    """{band: the last stage that gives it}."""
    return {band: stage for stage in stages for band in stage.gives}


def varying(stages: Sequence[Stage]) -> frozenset[str]:
    """Names of the stages that draw, or read what was drawn."""
    found: set[str] = set()
    for stage in stages:
        if stage.stochastic or any(given.source in found for given in stage.reads):
            found.add(stage.name)
    return frozenset(found)


def bands_read(stages: Sequence[Stage], order: Sequence[str]) -> set[str]:
    """Measured bands that decide those of `order`, which are among them."""
    return {*order, *(band for stage in needed(stages, order) for band in stage.measured)}


def bands_required(stages: Sequence[Stage], order: Sequence[str]) -> set[str]:
    """Measured bands without which `order` cannot be made, less those of it."""
    return {band for stage in needed(stages, order) for band in stage.required} - {*order}


def groups_of(stages: Sequence[Stage], order: Sequence[str]) -> tuple[Group, ...]:
    """The groups that a run of the bands `order` needs, in the order in which they run; interpolation comes last."""
    running, last = needed(stages, order), sources(stages)
    parts: list[list[Stage]] = []
    for stage in running:
        if parts and (parts[-1][-1].lattice, parts[-1][-1].gsd_m) == (stage.lattice, stage.gsd_m):
            parts[-1].append(stage)
        else:
            parts.append([stage])
    groups, differ = [], varying(running)
    for i, part in enumerate(parts):
        own = {stage.name for stage in part}
        later = (given for others in parts[i + 1 :] for stage in others for given in stage.reads)
        handed = {(given.source, band) for given in later if given.source in own for band in given.bands}
        bands = tuple(band for band in order if band in last and last[band].name in own)
        groups.append(Group(tuple(part), part[0].lattice, part[0].gsd_m, bands, tuple(sorted(handed)), differ & own))
    if rest := tuple(band for band in order if band not in last):
        groups.append(Group((), INTERPOLATION, TARGET_GSD_M, rest))
    return tuple(groups)


def at_gsd(window: Window, from_m: float, to_m: float) -> Window:
    """The ground of a window in px of another GSD, grown to whole pixels of it."""
    if from_m >= to_m:
        return window.refine(round(from_m / to_m))
    factor = round(to_m / from_m)
    return window.snap_out(factor).coarsen(factor)


def cells_by_group(groups: Sequence[Group], wanted: Sequence[Window]) -> list[list[tuple[int, int]]]:
    """Cells that each group has to compute for `wanted` windows of the output (2.5 m px), ascending."""
    found: list[list[tuple[int, int]]] = [[] for _ in groups]
    for i in reversed(range(len(groups))):
        group, parts = groups[i], []
        if group.bands:
            parts += [at_gsd(part, TARGET_GSD_M, group.gsd_m) for part in wanted]
        for j in range(i + 1, len(groups)):
            if _reads(groups[j], group):
                windows = (groups[j].lattice.window(*cell) for cell in found[j])
                parts += [at_gsd(window, groups[j].gsd_m, group.gsd_m) for window in windows]
        found[i] = group.lattice.cells_touching_any(parts)
    return found


def read_window(groups: Sequence[Group], window: Window) -> Window:
    """What has to be read (2.5 m px) to compute the output over `window` (likewise)."""
    whole = window
    for group, cells in zip(groups, cells_by_group(groups, [window]), strict=True):
        if cells:
            seen = reduce(Window.union, (group.lattice.window(*cell) for cell in cells)).pad(group.context_px)
            whole = whole.union(at_gsd(seen, group.gsd_m, TARGET_GSD_M))
    return whole.snap_out(BLOCK_60M)


def reach_m(groups: Sequence[Group]) -> float:
    """How far beyond an area the ground lies that its output depends on, along one axis."""
    return sum((group.lattice.window_px + group.context_px) * group.gsd_m for group in groups)


def _reads(later: Group, earlier: Group) -> bool:
    own = {stage.name for stage in earlier.stages}
    return any(given.source in own for stage in later.stages for given in stage.reads if given.source != MEASURED)
