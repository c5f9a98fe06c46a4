"""Check a store unit by unit and file by file, and repair what can be repaired before units are computed."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pipeline.errors import IntegrityError, PipelineError, StoreUnreachable
from pipeline.running import build_overviews, integrity, software, stray_chunks
from pipeline.running.driver import facts_of
from pipeline.running.quarantine import Quarantine, command
from pipeline.running.unit_queue import Summary
from pipeline.store import published
from pipeline.store.current import read_current
from pipeline.store.keys import CURRENT_KEY
from pipeline.store.layout import STATUS_COMPLETE, STATUS_QUARANTINE
from pipeline.store.receipts import Ledger

if TYPE_CHECKING:
    from collections.abc import Collection

    import zarr

    from pipeline.planning.plan import Plan
    from pipeline.planning.units import Unit
    from pipeline.running.integrity import Look
    from pipeline.store.place import Place
    from pipeline.store.published import Published
    from pipeline.store.receipts import Receipt

FINISHED = (STATUS_COMPLETE, STATUS_QUARANTINE)
_NAMED = 5


@dataclass
class Findings:
    """Result of the check of a store."""

    status: str
    units: int
    missing: list[str] = field(default_factory=list)
    damaged: dict[str, list[str]] = field(default_factory=dict)  # unit, file or overview -> faults
    damaged_units: int = 0
    quarantined: dict[str, dict[str, str]] = field(default_factory=dict)
    chunks: int = 0
    notes: list[str] = field(default_factory=list)
    measured: bool = True  # False if every unit is done and no pixel was measured


def examine(plan: Plan, place: Place, verify: str) -> Findings:
    """Return the status of a store and of each unit. `verify` "full" compares checksums and decodes every chunk."""
    record, faults = _record(plan, place)
    status = _status(place, record)
    units = list(plan.units())
    found = Findings(status, len(units))
    summary, receipts, without = Summary(units=len(units)), [], []
    survey = Ledger(place, plan.digest).survey([unit.id for unit in units], verify)
    for unit, (receipt, wrong) in zip(units, survey, strict=True):
        if receipt is None:
            without.append(unit)
            continue
        summary.add(receipt)
        receipts.append(receipt)
        found.chunks += len(receipt.chunks)
        if wrong:
            found.damaged[unit.id] = wrong
    _count_out(plan, place, found, without)
    summary.quarantined = tuple(sorted(found.quarantined))
    found.damaged_units = len(found.damaged)
    found.measured = bool(without) or any(summary.valid.values())
    if verify != "none":
        found.damaged |= faults
        found.damaged |= _run_files(plan, place, record)
        _look_over(plan, place, found, summary, record, verify)
        if status in FINISHED:
            found.damaged |= build_overviews.faults(plan, place, full=verify == "full")
        _unnamed(plan, place, found, record, receipts, without)
    if verify == "full":
        _decode(plan, place, found, units)
    return found


def _record(plan: Plan, place: Place) -> tuple[Published | None, dict[str, list[str]]]:
    """Return the publication record, and its faults."""
    try:
        record = published.read(place)
    except (OSError, ValueError) as error:
        return None, {published.KEY: [f"cannot be read ({error})"]}
    if record is not None and record.plan_digest != plan.digest:
        return None, {published.KEY: ["belongs to another plan"]}
    return record, {}


def _run_files(plan: Plan, place: Place, record: Published | None) -> dict[str, list[str]]:
    """Return faults of the run folder's files. They change during runs, so the record holds no digests of them."""
    wrong = {key: ["cannot be read: what computed units is not known"] for key in software.damaged(place)}
    kept = record is not None and record.kept  # published by a version that writes CURRENT_KEY
    current = read_current(place)
    if current is None and (kept or place.size(CURRENT_KEY) is not None):
        wrong[CURRENT_KEY] = ["is missing or damaged"]
    if current is not None and current.plan_digest != plan.digest:
        wrong[CURRENT_KEY] = ["names another plan"]
    return wrong


def _status(place: Place, record: Published | None) -> str:
    """Return the status from the record, else from the root's metadata; "unknown" if that cannot be read."""
    if record is not None:
        return record.status
    try:
        return str(published.attributes_of(place.read("zarr.json")).get("status", "unknown"))
    except (OSError, ValueError):
        return "unknown"


def _count_out(plan: Plan, place: Place, found: Findings, without: Collection[Unit]) -> None:
    """Sort units without a receipt into quarantined, damaged (in a finished store) and missing."""
    aside = Quarantine(place, plan.digest).read()
    for unit in without:
        if unit.id in aside:
            # Build the command here instead of printing the stored one: the store may be untrusted.
            again = shlex.join(["python", *command(unit, place)[1:]])
            found.quarantined[unit.id] = {"error": aside[unit.id].error, "reproduce": again}
        elif found.status in FINISHED:
            found.damaged[unit.id] = [f"{Ledger.key(unit.id)} is missing or damaged, and the unit not set aside"]
        else:
            found.missing.append(unit.id)


def _look_over(
    plan: Plan, place: Place, found: Findings, summary: Summary, record: Published | None, verify: str
) -> None:
    """Check the small files, and compare the publication record with the receipts."""
    finished = found.status in FINISHED
    facts = facts_of(plan, place, summary) if finished else None
    seen = integrity.look(plan, place, record, facts, found.status, full=verify == "full")
    found.damaged |= seen.faults
    found.notes += seen.notes
    if record is None and finished and published.KEY not in found.damaged:
        found.damaged[published.KEY] = ["is missing, though the store is said to be finished"]
    if record is None:
        return
    if not record.files:
        found.notes.append(f"{published.KEY} holds no digests: published by an earlier version")
    lacking = found.damaged_units or found.missing
    wrong = [name for name, value in facts_of(plan, place, summary).items() if record.facts.get(name) != value]
    if wrong and not lacking:
        found.damaged[published.KEY] = [f"{', '.join(wrong)} not as the receipts say"]


def _unnamed(
    plan: Plan,
    place: Place,
    found: Findings,
    record: Published | None,
    receipts: Collection[Receipt],
    without: Collection[Unit],
) -> None:
    """Find chunks that no receipt names, and note groups and arrays that the run did not write."""
    try:
        keys = _files(place)
    except StoreUnreachable:
        raise
    except (PipelineError, OSError) as error:
        found.notes.append(f"files cannot be listed, so chunks that no receipt names would not be seen ({error})")
        return
    for key in stray_chunks.unnamed_chunks(plan, place, keys, receipts, without):
        found.damaged[key] = ["no receipt names this chunk"]
    if record is not None and record.files:
        nodes = sorted(key for key in keys if key.endswith("/zarr.json") and key not in record.files)
        more = ", ..." if len(nodes) > _NAMED else ""
        if nodes:
            found.notes.append(f"the run did not write {', '.join(nodes[:_NAMED])}{more}")


def _decode(plan: Plan, place: Place, found: Findings, units: Collection[Unit]) -> None:
    """Read every chunk back through the codecs, for arrays with intact metadata."""
    arrays = {(unit.epsg, unit.number): unit for unit in units}
    opened = {key: _arrays(plan, place, unit, found) for key, unit in arrays.items()}
    for unit in units:
        if unit.id not in found.damaged and unit.id not in found.missing and unit.id not in found.quarantined:
            wrong = _undecodable(plan, place, unit, opened[unit.epsg, unit.number])
            if wrong:
                found.damaged[unit.id] = wrong
                found.damaged_units += 1


def _arrays(plan: Plan, place: Place, unit: Unit, found: Findings) -> list[tuple[str, float, zarr.Array[Any]]]:
    """Return (name, GSD, array) of the arrays that a unit's pass fills, without those with damaged metadata."""
    import zarr

    group = plan.group(unit.epsg)
    arrays = []
    levels = stray_chunks.levels_of(plan, unit)
    for name, gsd_m in ((f"{one.path}/{name}".lstrip("/"), one.raster.gsd_m) for one in levels for name in one.arrays):
        path = f"{group}/{name}".lstrip("/")
        if f"{path}/zarr.json" in found.damaged:
            continue
        try:
            with place.reading():
                arrays.append((name, gsd_m, zarr.open_array(place.zarr_store(path), mode="r", zarr_format=3)))
        except PipelineError:
            raise
        except Exception as error:  # zarr raises many types for damaged metadata
            found.damaged[f"{path}/zarr.json"] = [f"cannot be opened ({type(error).__name__}: {error})"]
    return arrays


def _undecodable(plan: Plan, place: Place, unit: Unit, arrays: list[tuple[str, float, zarr.Array[Any]]]) -> list[str]:
    """Return the faults of a unit's chunks that cannot be decoded. The codecs' checksums raise on damaged bytes."""
    grid = plan.grid(unit)
    faults = []
    for chunk in plan.chunks(unit):
        for name, gsd_m, array in arrays:
            parts = round(grid.gsd_m / gsd_m)
            rows, cols = chunk.refine(parts).slices(grid.window.refine(parts))
            try:
                with place.reading():
                    array[(unit.period, ..., rows, cols)]
            except PipelineError:
                raise
            except Exception as error:  # codecs share no error type
                faults.append(f"{name} at rows {rows.start}.., columns {cols.start}.. cannot be decoded ({error})")
    return faults


def repair(plan: Plan, place: Place, verify: str) -> None:
    """Restore small files, delete chunks that no receipt names, and release quarantined units.

    Needs the lease of the store. Raises IntegrityError, before any change, if a file cannot be restored.
    """
    record, _ = _record(plan, place)
    ledger = Ledger(place, plan.digest)
    units = list(plan.units())
    known = {unit: ledger.read(unit.id) for unit in units}
    receipts = [receipt for receipt in known.values() if receipt is not None]
    seen = _mendable(plan, place, record, receipts, verify)
    without = [unit for unit, receipt in known.items() if receipt is None]
    stray = stray_chunks.unnamed_chunks(plan, place, _files(place), receipts, without)
    integrity.put(place, seen.repairs)
    for key in stray:
        place.delete(key)
    quarantine = Quarantine(place, plan.digest)
    for unit_id in quarantine.read():
        quarantine.release(unit_id)


def _mendable(plan: Plan, place: Place, record: Published | None, receipts: Collection[Receipt], verify: str) -> Look:
    status, summary = _status(place, record), Summary(units=sum(1 for _ in plan.units()))
    for receipt in receipts:
        summary.add(receipt)
    facts = facts_of(plan, place, summary) if status in FINISHED else None
    # If the status is unknown, the root's metadata is unreadable and all small files have to be compared.
    seen = integrity.look(plan, place, record, facts, status, full=verify == "full" or status == "unknown")
    if seen.refused:
        key, why = next(iter(seen.refused.items()))
        raise IntegrityError(
            f"{place.shown(key)} {seen.faults[key][0]} and cannot be written anew: {why}",
            "the file as it was published",
            "bring it back from a copy, or start a new store with --overwrite",
        )
    return seen


def _files(place: Place) -> list[str]:
    """Return the keys of all files of a store, without empty folders."""
    return [key for key in place.walk() if key and not key.endswith("/")]
