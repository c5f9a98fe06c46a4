"""Passes of a system over the ground: the first reads the native rasters, each further one a finished group.

A pass has its own units, receipts and grid, and begins when the previous one is complete.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.bands import BLOCK_60M, BY_NAME, TARGET_GSD_M
from pipeline.errors import UsageError
from pipeline.superres.chain import CONTEXT, Output, cells_by_group, groups_of, outputs_of, reach_m, read_window
from pipeline.superres.spec import FINISHED, MEASURED

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pipeline.grid.grid import Window
    from pipeline.superres.chain import Group
    from pipeline.superres.declared import Condition, Settings
    from pipeline.superres.options import Options
    from pipeline.superres.spec import Bundles, Input, Stage, SystemSpec

_FINER_AT_ONCE = 5  # GSDs that one pass may give below 2.5 m; tying each to the one above takes context


@dataclass(frozen=True)
class Pass:
    """One pass. Its windows, chunks and units count px of `gsd_m`, the coarsest GSD that it gives.

    `outputs` come coarsest first. `source_gsd_m` is that of the finished group it reads, 0 for the native rasters.
    """

    number: int
    outputs: tuple[Output, ...]
    groups: tuple[Group, ...]
    source_gsd_m: float = 0.0

    @property
    def gsd_m(self) -> float:
        """GSD of its coarsest output."""
        return self.outputs[0].gsd_m

    @property
    def finer(self) -> tuple[Output, ...]:
        """Its outputs below 2.5 m."""
        return tuple(output for output in self.outputs if output.gsd_m < TARGET_GSD_M)

    @property
    def natives(self) -> tuple[str, ...]:
        """Bands that it reads from the native rasters or the finished group."""
        return tuple(dict.fromkeys(band for group in self.groups for band in group.natives))

    @property
    def source_px(self) -> int:
        """Side of the largest pixel that it reads, in its px."""
        return round(self.source_gsd_m / self.gsd_m) if self.source_gsd_m else BLOCK_60M

    @property
    def tie_px(self) -> int:
        """Context for making an output agree with the one above it, in px of this pass."""
        return CONTEXT * (self.source_px if self.source_gsd_m else 1)

    @property
    def margin_px(self) -> int:
        """Context over which the coarsest output has to be known for the finer ones to agree with it, in its px."""
        if not self.source_gsd_m:
            return BLOCK_60M if self.finer else 0
        return self.tie_px * len(self.outputs)

    def reach_px(self, options: Options) -> int:
        """Return how far around an area its bands are predicted, in its px."""
        measured = 0 if self.source_gsd_m else options.reach_px(self.outputs[0].bands)
        return measured + self.margin_px

    def cells(self, wanted: Sequence[Window]) -> list[list[tuple[int, int]]]:
        """Return the cells that each group computes for `wanted` windows, ascending."""
        return cells_by_group(self.groups, wanted, self.gsd_m)

    def read_window(self, window: Window) -> Window:
        """Return the window to read for the output over `window`."""
        return read_window(self.groups, window, self.gsd_m, self.source_px)

    def reach_m(self, options: Options) -> float:
        """Return how far beyond an area the ground lies that its output depends on, along one axis, in metres."""
        return reach_m(self.groups) + self.reach_px(options) * self.gsd_m


def passes_of(stages: Sequence[Stage], order: Sequence[str]) -> tuple[Pass, ...]:
    """Return the passes of a run for the bands `order`. Raises UsageError if a pass reads bands that are not stored."""
    numbers = pass_numbers(stages)
    first = [stage for stage in stages if not numbers[stage.name]]
    found = [Pass(0, (Output(TARGET_GSD_M, tuple(order)), *outputs_of(first, order)), groups_of(first, order))]
    for number in range(1, max(numbers.values(), default=0) + 1):
        own = [stage for stage in stages if numbers[stage.name] == number]
        outputs = outputs_of(own, order)
        if not outputs:
            continue
        source = next(given.gsd_m for given in _inputs(own) if given.source == FINISHED)
        groups = groups_of(own, order, source)
        _require_stored(found, groups, source)
        found.append(Pass(len(found), outputs, groups, source))
    return tuple(found)


def pass_numbers(stages: Sequence[Stage]) -> dict[str, int]:
    """Return {stage: its pass}: one after the pass that completes the group it reads, or that of its source stages."""
    numbers: dict[str, int] = {}
    completed = {TARGET_GSD_M: 0}  # GSD of a group -> pass that completes it
    for stage in stages:
        number = max((numbers.get(name, 0) for name in stage.sources), default=0)
        for given in stage.reads:
            if given.source == FINISHED:
                number = max(number, 1 + completed.get(given.gsd_m, 0))
        numbers[stage.name] = number
        if stage.gsd_m < TARGET_GSD_M:
            completed[stage.gsd_m] = max(number, completed.get(stage.gsd_m, 0))
    return numbers


def _require_stored(earlier: Sequence[Pass], groups: Iterable[Group], source_gsd_m: float) -> None:
    stored = {
        band for one in earlier for output in one.outputs if output.gsd_m == source_gsd_m for band in output.bands
    }
    for group in groups:
        lacking = [band for band in dict.fromkeys((*group.required, *group.bands)) if band not in stored]
        if lacking:
            raise UsageError(
                f"stage {group.stages[0].name} reads {', '.join(lacking)} at {source_gsd_m:g} m, which are not stored",
                "bands that hold what later passes read",
                f"add {','.join(lacking)} to --bands",
            )


def stages_of(spec: SystemSpec, bundles: Bundles, options: Settings | None = None) -> tuple[Stage, ...]:
    """Return the stages of a system with these bundles and options (or its defaults). Raises UsageError on a misfit."""
    try:
        stages = spec.stages(bundles, spec.defaults if options is None else options)
        check_chain(stages, spec.conditions)
    except (ValueError, KeyError) as error:
        raise UsageError(f"--sr {spec.name}: {error}", "weights and stages that fit together") from error
    return stages


def check_chain(stages: Sequence[Stage], conditions: Sequence[Condition] = ()) -> None:
    """Raise ValueError unless all inputs of a stage exist when it runs and all bands are given at 2.5 m or finer."""
    before: dict[str, Stage] = {}
    for stage in stages:
        if stage.name in before or stage.name in (MEASURED, FINISHED):
            msg = f"two stages are called {stage.name}"
            raise ValueError(msg)
        for given in stage.reads:
            _check_input(stage, given, before, conditions)
        taken = {one.name for one in conditions if one.whole}
        if unknown := sorted({*stage.whole} - taken):
            msg = f"stage {stage.name} takes {unknown[0]} whole; expected one of {', '.join(sorted(taken)) or 'none'}"
            raise ValueError(msg)
        before[stage.name] = stage
    _check_passes(stages)
    stored = {band for stage in stages if stage.gsd_m <= TARGET_GSD_M for band in stage.gives}
    for stage in stages:
        lost = [band for band in stage.gives if band in BY_NAME and band not in stored]
        if lost:
            where = f"stage {stage.name}, at {stage.gsd_m:g} m"
            msg = f"{lost[0]} comes last from {where}; expected {TARGET_GSD_M:g} m or less"
            raise ValueError(msg)


def _check_input(stage: Stage, given: Input, before: dict[str, Stage], conditions: Sequence[Condition]) -> None:
    if given.condition:
        _check_condition(stage, given, conditions)
    if not given.stage:
        return
    source = before.get(given.source)
    if source is None:
        msg = f"stage {stage.name} reads from {given.source}, which is no stage before it"
        raise ValueError(msg)
    lacking = [band for band in given.bands if band not in source.gives]
    if lacking or given.gsd_m != source.gsd_m:
        msg = (
            f"stage {stage.name} reads {', '.join(given.bands)} at {given.gsd_m:g} m from {source.name}, which "
            f"gives {', '.join(source.gives)} at {source.gsd_m:g} m"
        )
        raise ValueError(msg)


def _check_condition(stage: Stage, given: Input, conditions: Sequence[Condition]) -> None:
    found = next((one for one in conditions if one.name == given.condition), None)
    if found is None:
        msg = f"stage {stage.name} reads the condition {given.condition}, which the system does not declare"
        raise ValueError(msg)
    lacking = [name for name in given.bands if name not in found.channels]
    if lacking:
        msg = f"stage {stage.name} reads {', '.join(lacking)} of the condition {found.name}, which has {found.channels}"
        raise ValueError(msg)


def _check_passes(stages: Sequence[Stage]) -> None:
    """Raise ValueError if a pass reads two groups, or what is not stored, or gives nothing finer than it reads."""
    numbers = pass_numbers(stages)
    given_in: dict[float, int] = {TARGET_GSD_M: 0}
    for number in range(max(numbers.values(), default=0) + 1):
        own = [stage for stage in stages if numbers[stage.name] == number]
        read = {given.gsd_m for given in _inputs(own) if given.source == FINISHED}
        finer = {stage.gsd_m for stage in own if stage.gsd_m < TARGET_GSD_M}
        names = ", ".join(stage.name for stage in own)
        faults = []
        if number:
            faults += [f"reads {MEASURED} bands" for given in _inputs(own) if given.source == MEASURED]
            faults += [f"reads stage {name}" for stage in own for name in stage.sources if numbers[name] != number]
            faults += [f"reads groups of {sorted(read)} m"] if len(read) != 1 else []
            faults += [f"gives {gsd:g} m" for gsd in {stage.gsd_m for stage in own} if gsd >= min(read)]
        faults += [f"reads a group of {gsd:g} m, which no pass before gives" for gsd in read if gsd not in given_in]
        faults += [f"gives {gsd:g} m, as an earlier pass does" for gsd in finer if given_in.get(gsd, number) != number]
        if len(finer) > _FINER_AT_ONCE:
            faults.append(
                f"gives {len(finer)} GSDs below {TARGET_GSD_M:g} m at once, expected {_FINER_AT_ONCE} at most"
            )
        if faults:
            msg = f"pass {number + 1} ({names}) {'; '.join(dict.fromkeys(faults))}"
            raise ValueError(msg)
        given_in |= dict.fromkeys(finer, number)


def _inputs(stages: Iterable[Stage]) -> list[Input]:
    return [given for stage in stages for given in stage.reads]
