"""Plans for job arrays: the parts of a plan, and which of them have units to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.planning.estimate import estimate
from pipeline.planning.parts import Part
from pipeline.planning.plan import load_plan, plan_path
from pipeline.running.driver import pending
from pipeline.running.quarantine import Quarantine
from pipeline.running.stored_plan import draft, freeze
from pipeline.store import layout
from pipeline.store.place import LocalPlace

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.planning.plan import Plan
    from pipeline.running.stored_plan import RunRequest

_FINISHED = (layout.STATUS_COMPLETE, layout.STATUS_QUARANTINE)


@dataclass(frozen=True)
class JobPlan:
    """A plan cut into `parts`, at most one per unit. `todo` holds, by pass, the parts (from 1) with units to do."""

    store: Path
    digest: str
    units: int
    worker_mib: float
    parts: int
    todo: tuple[tuple[int, ...], ...]
    finished: bool = False  # published already

    @property
    def parts_to_do(self) -> tuple[int, ...]:
        """Parts (from 1) with units to do in any pass."""
        return tuple(sorted({number for numbers in self.todo for number in numbers}))


def freeze_job(request: RunRequest, parts: int, workers: int) -> JobPlan:
    """Freeze the plan of `request` into its store, or use its existing plan. `workers` counts those of all parts."""
    freeze(request, workers, _silent)
    return load_job(_folder(request), parts)


def preview_job(request: RunRequest, parts: int, workers: int) -> JobPlan:
    """Return the job plan of `request` without writing anything."""
    store = _folder(request)
    if plan_path(store).is_file():
        return load_job(store, parts)
    plan = draft(request, workers, _silent)
    cost = estimate(plan, workers, timed=False)
    parts = min(parts, cost.units)
    todo = (tuple(range(1, parts + 1)),) * len(plan.passes)
    return JobPlan(store, plan.digest, cost.units, cost.worker_mib, parts, todo)


def load_job(store: Path, parts: int) -> JobPlan:
    """Return the job plan of a store. Raises UsageError if the store has no plan."""
    plan, store = load_plan(store), store.resolve()
    cost = estimate(plan, 1, timed=False)
    parts = min(parts, cost.units)
    todo = _to_do(plan, store, parts)
    finished = not any(todo) and layout.status(store) in _FINISHED
    return JobPlan(store, plan.digest, cost.units, cost.worker_mib, parts, todo, finished)


def _to_do(plan: Plan, store: Path, of: int) -> tuple[tuple[int, ...], ...]:
    """Return, by pass, the parts with units that have no valid receipt and are not quarantined."""
    aside = Quarantine(store, plan.digest).read()
    todo = {unit for unit in pending(plan, store)[0] if unit.id not in aside}
    passes = [list(plan.units_of(number)) for number in range(len(plan.passes))]
    return tuple(
        tuple(number for number in range(1, of + 1) if not todo.isdisjoint(Part(number, of).cut(units)))
        for units in passes
    )


def _folder(request: RunRequest) -> Path:
    """Return the folder of the store. `submit` requires a local one, on a file system that all jobs share."""
    assert isinstance(request.store, LocalPlace)
    return request.store.path.resolve()


def _silent(_text: str) -> None:
    """Show no progress line."""
