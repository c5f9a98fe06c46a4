"""The plan of a store: the existing one, to continue, or a new one to freeze into it."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pipeline.config import differences
from pipeline.errors import Interrupted, UsageError
from pipeline.planning.output_size import MAX_OUTPUT_GB
from pipeline.planning.plan import load_plan
from pipeline.planning.planner import make_plan
from pipeline.running.begin import clear_store
from pipeline.running.driver import prepare
from pipeline.store.keys import BEGINNING_KEY, PLAN_KEY
from pipeline.store.lease import lease
from pipeline.store.ownership import Standing, standing
from pipeline.store.place import LocalPlace
from pipeline.temporary import require_parent

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.aoi.aoi import Aoi
    from pipeline.config import RunConfig
    from pipeline.planning.plan import Plan
    from pipeline.store.lease import Lease
    from pipeline.store.place import Place

    Say = Callable[[str], None]

_POLL_S = 5.0  # between looks for a plan


@dataclass(frozen=True)
class RunRequest:
    """The settings, the AOI and the store of a run. `overwrite` deletes an existing store.

    A new plan that would store more than `max_output_gb`, uncompressed, is refused. `together`: its workers are on one
    machine.
    """

    config: RunConfig
    aoi: Aoi
    store: Place  # from `writable`
    overwrite: bool = False
    max_output_gb: float = MAX_OUTPUT_GB
    together: bool = True


def writable(out: Place) -> Place:
    """Return the store's absolute path or URL. Raises UsageError if it is read-only, unreachable or without parent."""
    if str(out).startswith(("http://", "https://")):
        raise UsageError(f"--out {out} can only be read", "a folder, s3://BUCKET/NAME, gs://BUCKET/NAME or az://...")
    try:
        store = out.absolute()
        store.exists()
    except OSError as error:
        raise UsageError(f"--out {str(out)[:80]}: {error.strerror}", "a path that this user may reach") from error
    if isinstance(store, LocalPlace):
        require_parent(store.path)
    return store


def existing_plan(request: RunRequest) -> Plan | None:
    """Return the plan of the store to continue, or None if there is none.

    Raises UsageError if the store was begun with other settings, has lost its plan, or is not of this pipeline.
    """
    store, found = request.store, standing(request.store)
    if found in (Standing.EMPTY, Standing.BEGINNING):
        return None
    if found is Standing.ORPHANED:
        raise UsageError(
            f"{store} is a store of this pipeline that has lost its plan",
            "a new path, or a store with its plan to continue",
            "choose another --out, or delete what is left with --overwrite",
        )
    if found is Standing.FOREIGN:
        raise UsageError(f"{store} exists and is not a store of this pipeline", "a new path", "choose another --out")
    plan, aoi = load_plan(store), request.aoi
    # units and batches as they are, unless others are asked for
    asked = request.config
    unit_chunks, batch = asked.unit_chunks or plan.config.unit_chunks, asked.batch or plan.batch
    differ = differences(replace(plan.config, batch=plan.batch), replace(asked, unit_chunks=unit_chunks, batch=batch))
    if plan.aoi_digest != aoi.digest:
        differ.insert(0, f"AOI: {plan.aoi_name} ({plan.aoi_digest[:8]}) -> {aoi.name} ({aoi.digest[:8]})")
    if differ:
        raise UsageError(
            f"{store} was begun with other settings ({'; '.join(differ)})",
            "the same settings, to continue it",
            "choose another --out, or start anew with --overwrite",
        )
    return plan


def wait_for_plan(store: Place, seconds: float, say: Say) -> None:
    """Return once there is a frozen plan in a store. Raises Interrupted if there is none after `seconds`.

    Does nothing if `seconds` is 0.
    """
    end = time.monotonic() + seconds
    while seconds > 0 and store.read(PLAN_KEY) is None:
        if (left := end - time.monotonic()) <= 0:
            raise Interrupted(
                f"no plan in {store} after {seconds:.0f} s",
                "one that another process makes",
                "see what that process says, then run the same command again",
            )
        say(f"waiting for the plan of {store}")
        time.sleep(min(_POLL_S, left))


def draft(request: RunRequest, workers: int, say: Say) -> Plan:
    """Make a new plan, whatever the store holds, and write nothing.

    Raises UsageError if --overwrite names a foreign folder.
    """
    if request.overwrite and standing(request.store) is Standing.FOREIGN:
        raise UsageError(
            f"{request.store} is not a store of this pipeline", "one of ours to overwrite", "choose another --out"
        )
    return make_plan(
        request.config,
        request.aoi,
        workers=workers,
        together=request.together,
        say=say,
        max_output_gb=request.max_output_gb,
    )


def proposed(request: RunRequest, workers: int, say: Say) -> Plan:
    """Return the plan to run: the existing one, or a new one if there is none or it is overwritten. Writes nothing."""
    there = None if request.overwrite else existing_plan(request)
    return draft(request, workers, say) if there is None else there


def begin_or_continue(plan: Plan, held: Lease, request: RunRequest) -> Plan:
    """Return the plan of the store under its lease. If there is nothing to continue, begin the store with `plan`.

    The lookup is repeated, since another run may have begun the store before the lease was taken. Errors as in
    `existing_plan`.
    """
    there = None if request.overwrite else existing_plan(request)
    if there is not None:
        return there
    clear_store(held)
    prepare(plan, held.place)
    held.place.delete(BEGINNING_KEY)
    return plan


def freeze(request: RunRequest, workers: int, say: Say) -> Plan:
    """Write the plan into its store, ready for others to run. An existing plan stays unchanged."""
    there = None if request.overwrite else existing_plan(request)
    if there is not None:
        return there
    plan = draft(request, workers, say)
    with lease(request.store, say=say) as held:
        return begin_or_continue(plan, held, request)
