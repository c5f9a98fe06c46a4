"""`python -m pipeline.check`: whether a store is complete, and its bytes are what was written.

In: a store. Out: words or JSON, and an exit code: 0 complete and sound, 4 but for quarantined units, 75 to be
continued, 3 no pixel was measured, 7 damaged, 2 not ours. With --repair, exactly the units that are damaged, missing or
quarantined are computed again.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from pipeline.errors import (
    EXIT_INTEGRITY,
    EXIT_NO_DATA,
    EXIT_OK,
    EXIT_QUARANTINE,
    EXIT_RESUMABLE,
    IntegrityError,
    PipelineError,
)
from pipeline.store.place import place_of
from pipeline.store.receipts import VERIFY_LEVELS
from pipeline.terminal import show

if TYPE_CHECKING:
    from collections.abc import Sequence

    import zarr

    from pipeline.execution.plan import Plan, Unit
    from pipeline.store.place import Place, Where

_SHOWN = 10
FINISHED = ("complete", "complete_with_quarantine")


def examine(store: Where, verify: str) -> dict[str, Any]:
    """Status of a store and of each unit. `verify` full compares checksums and decodes every chunk."""
    from pipeline.execution import pyramid
    from pipeline.execution.plan import load_plan
    from pipeline.execution.quarantine import Quarantine
    from pipeline.store import layout
    from pipeline.store.receipts import Ledger

    place = place_of(store)
    plan = load_plan(store)
    ledger, aside = Ledger(store, plan.digest), Quarantine(store, plan.digest).read()
    missing, damaged, quarantined, chunks = [], {}, {}, 0
    measured = False
    units = list(plan.units())
    found = ledger.survey([unit.id for unit in units], verify)
    for unit, (receipt, faults) in zip(units, found, strict=True):
        if receipt is None and unit.id in aside:
            quarantined[unit.id] = {"error": aside[unit.id].error, "reproduce": aside[unit.id].reproduce}
            continue
        if receipt is None:
            missing.append(unit.id)
            continue
        if verify == "full" and not faults:
            faults = _decode(plan, place, unit)
        chunks += len(receipt.chunks)
        measured |= any(receipt.valid.values())
        if faults:
            damaged[unit.id] = faults
    damaged_units = len(damaged)
    if verify == "full":
        damaged.update(_coordinates(plan, place))
    if verify != "none" and layout.status(store) in FINISHED:
        damaged.update(pyramid.faults(plan, place, full=verify == "full"))
    return {
        "store": str(store),
        "status": layout.status(store),
        "units": len(units),
        "missing": missing,
        "damaged": damaged,
        "damaged_units": damaged_units,
        "quarantined": quarantined,
        "chunks": chunks,
        "measured": measured,
        "verify": verify,
    }


def _coordinates(plan: Plan, place: Place) -> dict[str, list[str]]:
    """Compare everything but the images (axes, bands, dates, CRS) with what the plan would write today."""
    import tempfile

    import zarr

    from pipeline.execution.outline import template_of
    from pipeline.store import template

    damaged = {}
    for zone in plan.zones:
        group = plan.group(zone.epsg)
        with tempfile.TemporaryDirectory() as folder:
            template.create(folder, "", template_of(plan, zone))
            expected = zarr.open_group(folder, mode="r")
            try:
                with place.reading():
                    found = zarr.open_group(place.zarr_store(group), mode="r", use_consolidated=False)
                    arrays = {name: node for name, node in expected.members(max_depth=None) if hasattr(node, "dtype")}
                    faults = [name for name, array in arrays.items() if not _same(array, found.get(name))]
                if found.attrs.get("plan_digest") != plan.digest:
                    faults.append("plan_digest")
            except (OSError, ValueError, RuntimeError, KeyError) as error:
                faults = [f"metadata ({error})"]
        if faults:
            damaged[f"group {group or '/'}"] = [f"{name} is not what the plan says" for name in faults]
    return damaged


def _same(expected: zarr.Array, found: object) -> bool:
    """Same shape, attributes and, for coordinates, values."""
    import numpy as np
    import zarr

    if not isinstance(found, zarr.Array) or found.shape != expected.shape or found.dtype != expected.dtype:
        return False
    if dict(found.attrs) != dict(expected.attrs):
        return False
    return expected.ndim > 2 or bool(np.array_equal(np.asarray(found[...]), np.asarray(expected[...])))


def _decode(plan: Plan, place: Place, unit: Unit) -> list[str]:
    """Read a unit's chunks back through the codecs; their checksums raise on damaged bytes."""
    import zarr

    with place.reading():
        group = zarr.open_group(place.zarr_store(plan.group(unit.epsg)), mode="r")
        arrays = [(name, array) for name, array in group.arrays() if array.ndim >= 3]
    grid = plan.zone(unit.epsg).grid.window
    faults = []
    for chunk in plan.chunks(unit):
        rows, cols = chunk.slices(grid)
        for name, array in arrays:
            try:
                with place.reading():
                    array[(unit.period, ..., rows, cols)]
            except (RuntimeError, ValueError, OSError) as error:
                faults.append(f"{name} at rows {rows.start}.., columns {cols.start}.. cannot be decoded ({error})")
    return faults


def repair(store: Where, verify: str, workers: int) -> None:
    """Compute again exactly the units that fail `verify` or were set aside, and publish. PipelineError as in a run."""
    from pipeline.execution.driver import run_plan
    from pipeline.execution.plan import load_plan
    from pipeline.execution.quarantine import Quarantine

    plan = load_plan(store)
    quarantine = Quarantine(store, plan.digest)
    for unit in quarantine.read():
        quarantine.release(unit)
    _restore_metadata(plan, place_of(store), verify)
    run_plan(plan, store, cluster="inline" if workers == 1 else "local", workers=workers, verify=verify)


def _restore_metadata(plan: Plan, place: Place, verify: str) -> None:
    """Write metadata and coordinates anew from the plan where they cannot be read or are not what it says."""
    from pipeline.execution.driver import write_metadata
    from pipeline.store import layout

    try:
        layout.status(place)
        sound = verify != "full" or not _coordinates(plan, place)
    except IntegrityError:
        sound = False
    if not sound:
        write_metadata(plan, place)


def exit_code(report: dict[str, Any]) -> int:
    """Exit code for what `examine` found."""
    if report["damaged"]:
        return EXIT_INTEGRITY
    if report["missing"]:
        return EXIT_RESUMABLE
    if not report["measured"] and not report["quarantined"]:
        return EXIT_NO_DATA
    if report["status"] not in FINISHED:
        return EXIT_RESUMABLE
    return EXIT_QUARANTINE if report["quarantined"] else EXIT_OK


def in_words(report: dict[str, Any]) -> str:
    """What `examine` found, for people."""
    done = report["units"] - len(report["missing"]) - report["damaged_units"] - len(report["quarantined"])
    how = {"none": "receipts", "size": "receipts and sizes", "full": "every byte, read back and decoded"}
    checked = f"{how[report['verify']]}, {report['chunks']} chunks"
    lines = [f"{report['store']}: {report['status']}; {done} of {report['units']} units sound ({checked})"]
    lines += [f"  to do    {unit}" for unit in report["missing"][:_SHOWN]]
    lines += [
        f"  damaged  {unit}: {'; '.join(faults[:2])}" for unit, faults in list(report["damaged"].items())[:_SHOWN]
    ]
    for unit, why in list(report["quarantined"].items())[:_SHOWN]:
        lines += [f"  set aside {unit}: {why['error']}", f"           see it fail: {why['reproduce']}"]
    if exit_code(report) == EXIT_NO_DATA:
        lines.append("  no pixel was measured: the scenes hold nodata all over the area")
    hidden = max(0, len(report["missing"]) - _SHOWN) + max(0, len(report["damaged"]) - _SHOWN)
    if hidden:
        lines.append(f"  and {hidden} more")
    if report["missing"] or report["damaged"] or report["quarantined"]:
        lines.append(f"  python -m pipeline.check {report['store']} --verify {report['verify']} --repair computes them")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    p = argparse.ArgumentParser("python -m pipeline.check", description="Check a store that pipeline.run wrote.")
    p.add_argument("store", help="folder or URL")
    p.add_argument("--verify", choices=VERIFY_LEVELS, default="size", help="how closely (%(default)s)")
    p.add_argument("--repair", action="store_true", help="compute damaged, missing and quarantined units again")
    p.add_argument("--workers", type=int, default=1, help="local worker processes for --repair (%(default)s)")
    p.add_argument("--json", action="store_true", help="one JSON object instead of words")
    arguments = p.parse_args(argv)
    try:
        if arguments.repair:
            repair(place_of(arguments.store).absolute(), arguments.verify, arguments.workers)
        report = examine(arguments.store, arguments.verify)
    except PipelineError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    show(json.dumps(report) if arguments.json else in_words(report))
    return exit_code(report)


if __name__ == "__main__":
    sys.exit(main())
