"""A plan for a job array: frozen by pipeline.run in a process of its own, and which of its parts are to do.

In: flags of pipeline.run, or a store. Out: `Planned`. Imports plan, estimate, driver, quarantine, shards, errors.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import EXIT_OK, PipelineError
from pipeline.execution.driver import pending
from pipeline.execution.estimate import estimate
from pipeline.execution.plan import Plan, load_plan, plan_path
from pipeline.execution.quarantine import Quarantine
from pipeline.execution.shards import Shard
from pipeline.store import layout

if TYPE_CHECKING:
    from collections.abc import Sequence

_FINISHED = (layout.STATUS_COMPLETE, layout.STATUS_QUARANTINE)


@dataclass(frozen=True)
class Planned:
    """A plan cut into `parts`, at most one per unit; `todo`: numbers (from 1) of those with units to do."""

    store: Path
    digest: str
    units: int
    worker_mib: float
    parts: int
    todo: tuple[int, ...]
    finished: bool = False  # published already


class PlanningFailed(PipelineError):
    """The planning run refused; words and exit code are its own."""

    def __init__(
        self, found: str, expected: str = "", cure: str = "", exit_code: int = PipelineError.exit_code
    ) -> None:
        super().__init__(found, expected, cure)
        self.exit_code = exit_code


def frozen(flags: Sequence[str], parts: int) -> Planned:
    """Freeze the plan that `flags` ask for, or take the one that its store holds already."""
    return known(Path(_said([*flags, "--plan-only"])["store"]), parts)


def previewed(flags: Sequence[str], out: str | None, parts: int) -> Planned:
    """The plan that `flags` ask for, without writing anything."""
    if out is not None and plan_path(Path(out)).is_file():
        return known(Path(out), parts)
    said = _said([*flags, "--dry-run"])
    plan, units = Plan.from_json(said["plan"]), int(said["estimate"]["units"])
    store, parts = Path(out or f"{plan.aoi_name}.zarr").resolve(), min(parts, units)
    return Planned(store, plan.digest, units, said["estimate"]["worker_mib"], parts, tuple(range(1, parts + 1)))


def known(store: Path, parts: int) -> Planned:
    """The plan of a store. UsageError when it holds none."""
    plan, store = load_plan(store), store.resolve()
    cost = estimate(plan, 1, timed=False)
    parts = min(parts, cost.units)
    todo = _to_do(plan, store, parts)
    finished = not todo and layout.status(store) in _FINISHED
    return Planned(store, plan.digest, cost.units, cost.worker_mib, parts, todo, finished)


def _to_do(plan: Plan, store: Path, of: int) -> tuple[int, ...]:
    """Parts with units that have no valid receipt and are not set aside."""
    aside = Quarantine(store, plan.digest).read()
    todo = {unit for unit in pending(plan, store)[0] if unit.id not in aside}
    units = list(plan.units())
    return tuple(number for number in range(1, of + 1) if not todo.isdisjoint(Shard(number, of).cut(units)))


def _said(words: Sequence[str]) -> dict[str, Any]:
    """What pipeline.run says with --json; its warnings go to our standard error."""
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.run", *words, "--json"], capture_output=True, text=True, check=False
    )
    lines = done.stderr.strip().splitlines()
    if done.returncode != EXIT_OK:
        raise _failure(done.stdout, lines, done.returncode)
    for line in lines:
        print(line, file=sys.stderr)
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def _failure(stdout: str, lines: list[str], code: int) -> PlanningFailed:
    """The refusal in its three parts; of a run that died, the last that it said."""
    try:
        said = json.loads(stdout)
        return PlanningFailed(said["found"], said["expected"], said["cure"], code)
    except (ValueError, KeyError, TypeError):
        return PlanningFailed(lines[-1] if lines else f"planning ended with {code}", exit_code=code)
