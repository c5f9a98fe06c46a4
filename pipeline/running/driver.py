"""The driver of a run: write the store's template, submit units, collect receipts and publish.

The driver holds unit addresses and receipts, never arrays. It has at most one unit in flight per worker, so a stop only
waits for those. A run leaves a store that is complete or can be continued.
"""

from __future__ import annotations

import logging
import time
from contextlib import ExitStack, nullcontext
from typing import TYPE_CHECKING
from uuid import uuid4

from pipeline.errors import Interrupted, NoDataError, UpstreamError
from pipeline.plain import counted
from pipeline.planning.plan import plan_file
from pipeline.running import build_overviews, integrity, part_records, software
from pipeline.running.begin import continue_store, settle
from pipeline.running.choices import crew_of
from pipeline.running.expected import write_template
from pipeline.running.part_records import recorded
from pipeline.running.pools import open_pool
from pipeline.running.quarantine import Quarantine, allowed
from pipeline.running.stop import stop_on_signals
from pipeline.running.stray_chunks import chunks_of
from pipeline.running.trust import require_local_access
from pipeline.running.unit_queue import Summary, UnitQueue
from pipeline.store import layout, overview_records
from pipeline.store.current import Current
from pipeline.store.keys import PLAN_KEY
from pipeline.store.lease import lease
from pipeline.store.place import place_of
from pipeline.store.receipts import Ledger, Receipt
from pipeline.store.stac_item import ITEM_KEY

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable
    from contextlib import AbstractContextManager

    from pipeline.planning.parts import Part
    from pipeline.planning.plan import Plan
    from pipeline.planning.units import Unit
    from pipeline.running.unit_queue import Patience, Report
    from pipeline.store.lease import Lease
    from pipeline.store.place import Place, Where

_log = logging.getLogger(__name__)
_SHOWN = 10


def prepare(plan: Plan, store: Where) -> None:
    """Write the store's template, then the frozen plan. The store must not exist or must hold nothing but leases.

    The plan is written after the template: a store without a plan has not begun.
    """
    place = place_of(store)
    write_template(plan, place)
    place.write(PLAN_KEY, plan_file(plan))
    Current(plan.digest, uuid4().hex).put(place)


def pending(
    plan: Plan, store: Where, verify: str = "size", units: Iterable[Unit] | None = None
) -> tuple[list[Unit], list[Receipt]]:
    """Return the pending ones of `units` (default: all units of the plan), and the receipts of the done ones."""
    asked = list(plan.units() if units is None else units)
    todo, done = [], []
    found = Ledger(store, plan.digest).survey([unit.id for unit in asked], verify)
    for unit, (receipt, faults) in zip(asked, found, strict=True):
        if receipt is None or faults:
            todo.append(unit)
        else:
            done.append(receipt)
    return todo, done


def survey(plan: Plan, store: Where, verify: str, shard: Part | None = None) -> tuple[list[Unit], Summary]:
    """Return the units to do, and a summary of the units that are done or quarantined."""
    todo, done = pending(plan, store, verify, None if shard is None else shard.units(plan))
    aside = Quarantine(store, plan.digest).read()
    held = tuple(sorted(unit.id for unit in todo if unit.id in aside))
    summary = Summary(units=len(todo) + len(done), resumed=len(done), quarantined=held)
    for receipt in done:
        summary.add(receipt)
    return [unit for unit in todo if unit.id not in aside], summary


def run_plan(
    plan: Plan,
    store: Where,
    *,
    cluster: str,
    workers: int,
    verify: str = "size",
    shard: Part | None = None,
    patience: Patience | None = None,
    report: Report = lambda _summary, _running: None,
    held: Lease | None = None,
    mixed: bool = False,
    first: Callable[[Place], None] = lambda _place: None,
) -> Summary:
    """Compute the units without a receipt, then publish. A shard computes only its part and does not publish.

    Uses the lease `held`, or acquires one. `mixed` allows other software than that which began the store. `first` is
    called under the lease, before the store is read. Raises Interrupted if asked to stop, and PipelineError if more
    units fail than may be quarantined.
    """
    started = time.perf_counter()
    with _under(held, store, shard) as mine, ExitStack() as under:
        place = continue_store(plan, mine, part=shard is not None)
        first(place)
        under.enter_context(recorded(place, plan.digest, shard))
        layout.status(place)  # report unreadable metadata once, not for every unit
        if shard is None:  # other shards may be writing
            Ledger(place, plan.digest).sweep()
        todo, summary = survey(plan, place, verify, shard)
        crew = crew_of(cluster, workers, len(todo), plan.system.name)
        _begin(place, summary, len(todo), crew.processes if crew.at_once > 1 else workers, cluster, shard)
        if todo:
            software.require_same(plan, place, done=summary.resumed, mixed=mixed)
            require_local_access(plan)
            with (
                stop_on_signals() as stop,
                open_pool(cluster, crew.processes, str(place), plan.digest, stop, crew.threads, crew.at_once) as pool,
            ):
                work = UnitQueue(pool, summary, report, stop, place, plan.digest, patience, mine)
                for number in range(len(plan.passes)):
                    part = [unit for unit in todo if unit.number == number]
                    if number and part and not stop.asked:
                        _require_before(plan, place, number, verify)
                    work.run(part)
                work.raise_unless_whole()
            _stage("units", f"computed {counted(summary.computed, 'unit')} in {time.perf_counter() - started:.1f} s")
        if shard is None:
            _publish(plan, mine, summary, verify, changed=bool(todo), mixed=mixed)
    summary.seconds = time.perf_counter() - started
    return summary


def _begin(place: Place, summary: Summary, todo: int, workers: int, cluster: str, shard: Part | None) -> None:
    which = f"part {shard.number} of {shard.of}: " if shard else ""
    how = f", {min(workers, todo)} workers" if cluster in ("local", "slurm") else ""
    text = f"{which}{todo} of {counted(summary.units, 'unit')} of {place} to compute ({cluster}{how})"
    _stage("units", text, units=summary.units, done=summary.resumed, cluster=cluster, workers=workers)


def _stage(stage: str, text: str, **facts: object) -> None:
    """Log that a stage of the run begins or has ended."""
    _log.info("%s", text, extra={"facts": {"stage": stage, **facts}})


def _require_before(plan: Plan, place: Place, number: int, verify: str) -> None:
    """Raise Interrupted or UpstreamError unless the pass before `number`, the input of this one, is complete."""
    before = list(plan.units_of(number - 1))
    todo, _ = pending(plan, place, verify, before)
    if not todo:
        return
    aside = Quarantine(place, plan.digest).read()
    found = f"{len(todo)} of {len(before)} units of pass {number} of {len(plan.passes)} are not there"
    if all(unit.id in aside for unit in todo):
        raise UpstreamError(
            f"{found}: they are set aside", "a whole pass before the next", f"python -m pipeline.check {place} --repair"
        )
    raise Interrupted(
        found, "a whole pass before the next", "run this again when the parts that compute them have ended"
    )


def finalise(plan: Plan, store: Where, verify: str = "size", held: Lease | None = None) -> Summary:
    """Publish a store whose shards are all done. Raises Interrupted, with a list, if units are missing."""
    started = time.perf_counter()
    with _under(held, store) as mine:
        place = continue_store(plan, mine)
        Ledger(place, plan.digest).sweep()
        todo, summary = survey(plan, place, verify)
        _require_all(todo, summary.units, store)
        _publish(plan, mine, summary, verify, changed=True)
    summary.seconds = time.perf_counter() - started
    return summary


def _under(held: Lease | None, store: Where, shard: Part | None = None) -> AbstractContextManager[Lease]:
    return lease(store, shard.label if shard else "") if held is None else nullcontext(held)


def _require_all(todo: list[Unit], units: int, store: Where) -> None:
    """Raise Interrupted, with unit names, if there are units to do."""
    if todo:
        named = ", ".join(unit.id for unit in todo[:_SHOWN]) + (", ..." if len(todo) > _SHOWN else "")
        raise Interrupted(
            f"{len(todo)} of {units} units are missing or damaged: {named}",
            "every unit in the store as its receipt says",
            f"run the missing shards again, or python -m pipeline.run --plan {store} to compute the rest here",
        )


def _publish(plan: Plan, held: Lease, summary: Summary, verify: str, *, changed: bool, mixed: bool = False) -> None:
    """Complete the overviews, then set the store's status, and add the overviews to the summary.

    Raises Interrupted if computed units have since gone from the store, UpstreamError if too many units are
    quarantined, and NoDataError if no pixel was measured.
    """
    place = held.place
    if changed:
        todo, found = survey(plan, place, verify)
        _require_all(todo, found.units, place)
        summary.take_from(found)
    held.renew()
    settle(plan, held)
    _complete(plan, place, summary, verify, changed=changed, mixed=mixed)
    for record in overview_records.read_all(place, plan.digest).values():
        summary.add_overviews(record)


def _complete(plan: Plan, place: Place, summary: Summary, verify: str, *, changed: bool, mixed: bool) -> None:
    full = verify == "full"
    if verify != "none":
        build_overviews.discard_faulty(plan, place, full=full)
    if not summary.quarantined and not any(summary.valid.values()):
        _refuse_empty(plan)
    status = layout.STATUS_QUARANTINE if summary.quarantined else layout.STATUS_COMPLETE
    facts = facts_of(plan, place, summary)
    settled = not changed and place.size(ITEM_KEY) is not None
    settled = settled and integrity.is_published(plan, place, facts, status, full=full)
    if settled and build_overviews.is_complete(plan, place, summary.quarantined):
        return
    if len(summary.quarantined) > allowed(summary.units):
        raise UpstreamError(
            f"{len(summary.quarantined)} of {summary.units} units are quarantined",
            f"at most {allowed(summary.units)}",
            f"fix the cause, then python -m pipeline.check {place} --repair",
        )
    _discard_unfinished(plan, place, summary.quarantined)
    if missing := build_overviews.missing_blocks(plan, place, summary.quarantined):
        software.require_same_code(plan, place, mixed=mixed)
    _stage(
        "overviews",
        f"building overviews: {counted(len(missing), 'block')} that no unit has built, and the coarsest levels",
    )
    build_overviews.complete(plan, place, summary.quarantined)
    _stage("publish", f"publishing {place}")
    part_records.forget(place)
    integrity.publish(plan, place, facts, status)
    _stage("publish", f"{place} is {status}", status=status)


def facts_of(plan: Plan, place: Place, summary: Summary) -> dict[str, object]:
    """Return what a published store states about its units, and of software and processors if they differ."""
    facts: dict[str, object] = {
        "valid_fraction": round(summary.valid_fraction, 6),
        "scenes_used": list(summary.scenes),
        "units": summary.units,
        "quarantined": list(summary.quarantined),
    }
    if shares := summary.detail_shares:
        facts["detail"] = shares
    if computed_with := software.mixed_words(plan, place):
        facts["computed_with"] = computed_with
    if len(summary.arithmetics) > 1:
        facts["computed_on"] = list(summary.arithmetics)
    return facts


def _refuse_empty(plan: Plan) -> None:
    """Raise NoDataError. Catalogue footprints are wider than the images, so only the pixels show missing data."""
    names = ", ".join(list(plan.scenes)[:_SHOWN]) + (", ..." if len(plan.scenes) > _SHOWN else "")
    raise NoDataError(
        f"no pixel over {plan.aoi_name} was measured: {names} hold nodata there, and the store is left incomplete",
        "at least one scene whose pixels reach into the area",
        "widen --start/--end or --max-cloud, or look at the AOI's place; then run again with --overwrite",
    )


def _discard_unfinished(plan: Plan, place: Place, quarantined: Collection[str]) -> None:
    """Delete the chunks of quarantined units without a receipt. They are partial, but would enter the overviews."""
    ledger = Ledger(place, plan.digest)
    for unit in plan.units() if quarantined else ():
        if unit.id in quarantined and ledger.read(unit.id) is None:
            for key in sorted(chunks_of(plan, unit)):
                place.delete(key)
