"""Begin a new store or continue an existing one. Both need the store's lease before they write or delete."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING
from uuid import uuid4

from pipeline.errors import LeaseLost, UsageError
from pipeline.planning.plan import load_plan
from pipeline.store.current import TRUSTED_S, Current, read_current
from pipeline.store.keys import BEGINNING_KEY, CURRENT_KEY, LEASES, PLAN_KEY
from pipeline.store.layout import STATUS_INCOMPLETE
from pipeline.store.ownership import Standing, standing

if TYPE_CHECKING:
    from pipeline.planning.plan import Plan
    from pipeline.store.lease import Lease
    from pipeline.store.place import Place


def clear_store(held: Lease) -> None:
    """Delete the content of a store of this pipeline, so that a new one can begin. Nothing else is ever deleted.

    Processes at work on the old store stop writing before its content is deleted. A kill at any moment leaves a store
    that can be continued, or one that the next run begins anew. Raises UsageError if the store is not of this pipeline.
    """
    held.renew()
    place = held.place
    found = standing(place)
    if found is Standing.FOREIGN:
        raise UsageError(f"{place} is not a store of this pipeline", "one of ours to overwrite", "choose another --out")
    place.write(BEGINNING_KEY, json.dumps({"run": held.owner}).encode())
    if found is Standing.EMPTY:
        return
    _mark_incomplete(place)
    place.delete(PLAN_KEY)
    place.delete(CURRENT_KEY)
    time.sleep(2 * TRUSTED_S)  # until every process at work has noticed
    place.clear((LEASES, BEGINNING_KEY))


def _mark_incomplete(place: Place) -> None:
    """Set the status to incomplete for current readers. Unreadable metadata is left alone: readers cannot use it."""
    try:
        root = json.loads(place.read("zarr.json") or b"")
        root["attributes"]["status"] = STATUS_INCOMPLETE
    except (ValueError, KeyError, TypeError):
        return
    place.write("zarr.json", json.dumps(root).encode())


def continue_store(plan: Plan, held: Lease, *, part: bool = False) -> Place:
    """Take over the store of `plan` for writing and return its place. Raises LeaseLost if another run began it anew.

    Units of an earlier run that are still at work stop writing. Units of parallel parts (`part`) continue.
    """
    place = held.place
    try:
        there = load_plan(place).digest
    except UsageError as error:  # no plan
        raise _other(place, error.found) from error
    if there != plan.digest:
        raise _other(place, f"its plan is {there[:12]}, not {plan.digest[:12]}")
    found = read_current(place)
    ours = found if found is not None and found.plan_digest == plan.digest else Current(plan.digest, "")
    wanted = ours if part else Current(plan.digest, ours.begun or uuid4().hex, held.owner)
    if wanted != found:
        wanted.put(place)
    place.delete(BEGINNING_KEY)
    return place


def settle(plan: Plan, held: Lease) -> None:
    """Record that no run is at work on the store. Units that are still at work write nothing more.

    Raises LeaseLost if the store is no longer that of `plan`.
    """
    found = read_current(held.place)
    if found is None or found.plan_digest != plan.digest:
        raise _other(held.place, f"{CURRENT_KEY} names another plan")
    if found.run:
        Current(plan.digest, found.begun).put(held.place)


def _other(place: Place, found: str) -> LeaseLost:
    return LeaseLost(
        f"another run began {place} anew meanwhile ({found})",
        "the plan that this run began with",
        "run the same command again, if this run is still wanted",
    )
