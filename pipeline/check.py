"""`python -m pipeline.check`: whether a store is complete, and its bytes are what was written.

In: a store. Out: words or JSON, and an exit code: 0 complete and sound, 3 nothing measured, 4 but for quarantined
units, 75 to be continued, 7 damaged, 2 not ours. With --repair, exactly the units that are damaged, missing or
quarantined are computed again, and small files are written anew from the plan.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pipeline.errors import (
    EXIT_INTEGRITY,
    EXIT_NO_DATA,
    EXIT_OK,
    EXIT_QUARANTINE,
    EXIT_RESUMABLE,
    IntegrityError,
    PipelineError,
    StorageError,
    UsageError,
)
from pipeline.plain import plain
from pipeline.store.place import place_of
from pipeline.store.receipts import VERIFY_LEVELS
from pipeline.terminal import show

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.execution.plan import Plan
    from pipeline.store.place import Place, Where

_SHOWN = 10
FINISHED = ("complete", "complete_with_quarantine")


def examine(store: Where, verify: str) -> dict[str, Any]:
    """Status of a store and of each unit. `verify` full compares checksums and decodes every chunk."""
    from pipeline.execution import examine as examination

    place = place_of(store)
    found = examination.examine(_plan(place), place, verify)
    return {"store": str(store), **asdict(found), "verify": verify}


def _plan(place: Place) -> Plan:
    """The store's plan. IntegrityError where a run was here and the plan is gone, UsageError where none was."""
    from pipeline.execution.plan import load_plan
    from pipeline.store.identity import known_as_ours

    try:
        return load_plan(place)
    except UsageError:
        if not known_as_ours(place):
            raise
    raise IntegrityError(
        f"{place} has lost its plan, without which nothing can be checked or written anew",
        "_run/plan.json as the run wrote it",
        "bring it back from a copy, or start a new store with --overwrite",
    )


def repair(store: Where, verify: str, workers: int) -> None:
    """Compute again exactly the units that fail `verify` or were set aside, and publish. PipelineError as in a run."""
    from pipeline.execution.driver import run_plan
    from pipeline.execution.examine import mend

    place = place_of(store)
    plan = _plan(place)
    cluster = "inline" if workers == 1 else "local"
    # nothing is touched before the store is held: a run may be at work on it
    run_plan(plan, place, cluster=cluster, workers=workers, verify=verify, first=lambda held: mend(plan, held, verify))


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
    if exit_code(report) == EXIT_NO_DATA:
        lines.append("  no pixel was measured: the scenes hold nodata all over the area")
    lines += [f"  to do    {unit}" for unit in report["missing"][:_SHOWN]]
    damaged = list(report["damaged"].items())[:_SHOWN]
    lines += [f"  damaged  {unit}: {plain('; '.join(faults[:2]))}" for unit, faults in damaged]
    for unit, why in list(report["quarantined"].items())[:_SHOWN]:
        lines += [f"  set aside {unit}: {plain(why['error'])}", f"           see it fail: {plain(why['reproduce'])}"]
    hidden = max(0, len(report["missing"]) - _SHOWN) + max(0, len(report["damaged"]) - _SHOWN)
    if hidden:
        lines.append(f"  and {hidden} more")
    lines += [f"  note     {note}" for note in report["notes"][:_SHOWN]]
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
    except OSError as error:
        refused = StorageError(f"{arguments.store} cannot be read ({error.strerror or error})")
        print(f"error: {refused}", file=sys.stderr)
        return refused.exit_code
    show(json.dumps(report) if arguments.json else in_words(report))
    return exit_code(report)


if __name__ == "__main__":
    sys.exit(main())
