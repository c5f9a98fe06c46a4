"""Plans for job arrays: the parts of a plan, and which of them have units to do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.planning.estimate import estimate, units_at_gpu
from pipeline.planning.parts import Part
from pipeline.planning.plan import load_plan
from pipeline.running.driver import pending
from pipeline.running.part_records import planned_parts
from pipeline.running.quarantine import Quarantine
from pipeline.running.stored_plan import draft, freeze
from pipeline.store import layout
from pipeline.store.keys import PLAN_KEY
from pipeline.store.place import LocalPlace, place_of

if TYPE_CHECKING:
    from pipeline.planning.estimate import Estimate
    from pipeline.planning.plan import Plan
    from pipeline.running.stored_plan import RunRequest
    from pipeline.store.place import Place, Where

DEFAULT_PARTS = 16
_FINISHED = (layout.STATUS_COMPLETE, layout.STATUS_QUARANTINE)


@dataclass(frozen=True)
class JobPlan:
    """A plan cut into `parts`, at most one per unit. `todo` holds, by pass, the parts (from 1) with units to do.

    A worker process takes `worker_mib` with one unit, and `unit_mib` more for each further one that it computes at
    once: as many as `at_gpu` where it has a GPU.
    """

    store: Place
    digest: str
    units: int
    worker_mib: float
    unit_mib: float
    at_gpu: int
    parts: int
    todo: tuple[tuple[int, ...], ...]
    finished: bool = False  # published already

    @property
    def logs(self) -> Path:
        """Folder of the jobs' logs: beside the store, or for an object store in the working folder."""
        if isinstance(self.store, LocalPlace):
            return self.store.path.with_name(f"{self.store.path.name}.slurm")
        return Path(f"{self.store.picture.stem}.zarr.slurm").absolute()

    def process_mib(self, gpus: int) -> float:
        """Return the memory in MiB of each process of a part that has so many GPUs, or none."""
        per_process = -(-self.units // max(1, self.parts * gpus))
        at_once = max(1, min(self.at_gpu, per_process)) if gpus else 1
        return self.worker_mib + (at_once - 1) * self.unit_mib

    @property
    def parts_to_do(self) -> tuple[int, ...]:
        """Parts (from 1) with units to do in any pass."""
        return tuple(sorted({number for numbers in self.todo for number in numbers}))


def freeze_job(request: RunRequest, parts: int, workers: int) -> JobPlan:
    """Freeze the plan of `request` into its store, or use its existing plan. `workers` counts those of all parts.

    `parts` may be 0, as for `load_job`.
    """
    freeze(request, workers, _silent)
    return load_job(request.store, parts)


def preview_job(request: RunRequest, parts: int, workers: int) -> JobPlan:
    """Return the job plan of `request` without writing anything."""
    store = request.store
    if store.read(PLAN_KEY) is not None:
        return load_job(store, parts)
    plan = draft(request, workers, _silent)
    cost = estimate(plan, workers, timed=False)
    parts = min(parts or DEFAULT_PARTS, cost.units)
    todo = (tuple(range(1, parts + 1)),) * len(plan.passes)
    return _job_plan(plan, store.absolute(), cost, parts, todo)


def load_job(where: Where, parts: int) -> JobPlan:
    """Return the job plan of a store. `parts` 0: as many as it was planned for. Raises UsageError without a plan."""
    plan, store = load_plan(where), place_of(where).absolute()
    cost = estimate(plan, 1, timed=False)
    parts = min(parts or planned_parts(store, plan.digest) or DEFAULT_PARTS, cost.units)
    todo = _to_do(plan, store, parts)
    finished = not any(todo) and layout.status(store) in _FINISHED
    return _job_plan(plan, store, cost, parts, todo, finished=finished)


def _job_plan(
    plan: Plan, store: Place, cost: Estimate, parts: int, todo: tuple[tuple[int, ...], ...], *, finished: bool = False
) -> JobPlan:
    of_units = cost.units, cost.worker_mib, cost.unit_mib, units_at_gpu(plan)
    return JobPlan(store, plan.digest, *of_units, parts, todo, finished)


def _to_do(plan: Plan, store: Place, of: int) -> tuple[tuple[int, ...], ...]:
    """Return, by pass, the parts with units that have no valid receipt and are not quarantined."""
    aside = Quarantine(store, plan.digest).read()
    todo = {unit for unit in pending(plan, store)[0] if unit.id not in aside}
    passes = [list(plan.units_of(number)) for number in range(len(plan.passes))]
    return tuple(
        tuple(number for number in range(1, of + 1) if not todo.isdisjoint(Part(number, of).cut(units)))
        for units in passes
    )


def _silent(_text: str) -> None:
    """Show no progress line."""
