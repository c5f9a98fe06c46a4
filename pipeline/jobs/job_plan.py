"""Plans for job arrays: how a plan is cut into parts, and which parts have units to do."""

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
    """A plan cut into `parts`, at most one per unit; `todo`: numbers (from 1) of those with units to do, by pass."""

    store: Path
    digest: str
    units: int
    worker_mib: float
    parts: int
    todo: tuple[tuple[int, ...], ...]
    finished: bool = False  # published already

    @property
    def parts_to_do(self) -> tuple[int, ...]:
        """Numbers of the parts with units to do in any pass."""
        return tuple(sorted({number for numbers in self.todo for number in numbers}))


def freeze_job(request: RunRequest, parts: int, workers: int) -> JobPlan:
    """Freeze the plan of `request` into its store, or take the one that it holds already; `workers` of all parts."""
    freeze(request, workers, _silent)
    return load_job(_folder(request), parts)


def preview_job(request: RunRequest, parts: int, workers: int) -> JobPlan:
    """The plan of `request`, without writing anything."""
    store = _folder(request)
    if plan_path(store).is_file():
        return load_job(store, parts)
    plan = draft(request, workers, _silent)
    cost = estimate(plan, workers, timed=False)
    parts = min(parts, cost.units)
    todo = (tuple(range(1, parts + 1)),) * len(plan.passes)
    return JobPlan(store, plan.digest, cost.units, cost.worker_mib, parts, todo)


def load_job(store: Path, parts: int) -> JobPlan:
    """The plan of a store. UsageError when it holds none."""
    plan, store = load_plan(store), store.resolve()
    cost = estimate(plan, 1, timed=False)
    parts = min(parts, cost.units)
    todo = _to_do(plan, store, parts)
    finished = not any(todo) and layout.status(store) in _FINISHED
    return JobPlan(store, plan.digest, cost.units, cost.worker_mib, parts, todo, finished)


def _to_do(plan: Plan, store: Path, of: int) -> tuple[tuple[int, ...], ...]:
    """Parts with units that have no valid receipt and are not set aside, by pass."""
    aside = Quarantine(store, plan.digest).read()
    todo = {unit for unit in pending(plan, store)[0] if unit.id not in aside}
    passes = [list(plan.units_of(number)) for number in range(len(plan.passes))]
    return tuple(
        tuple(number for number in range(1, of + 1) if not todo.isdisjoint(Part(number, of).cut(units)))
        for units in passes
    )


def _folder(request: RunRequest) -> Path:
    """The folder of the store, which submit wants on a file system that all jobs share."""
    assert isinstance(request.store, LocalPlace)
    return request.store.path.resolve()


def _silent(_text: str) -> None:
    """No progress line: the jobs have their logs."""
