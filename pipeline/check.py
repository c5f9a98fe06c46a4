"""`python -m pipeline.check`: verify a store, and repair it on request.

Exit codes: 0 complete and sound, 3 nothing measured, 4 complete but for quarantined units, 75 to be continued,
7 damaged, 2 not a store of this pipeline. With --repair, exactly the units that are damaged, missing or
quarantined are computed again, and small files are rewritten from the plan.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from pipeline.errors import (
    EXIT_INTEGRITY,
    EXIT_INTERRUPTED,
    EXIT_NO_DATA,
    EXIT_OK,
    EXIT_QUARANTINE,
    EXIT_RESUMABLE,
    IntegrityError,
    PipelineError,
    StorageError,
    UsageError,
)
from pipeline.help_text import Help, example, exit_codes
from pipeline.logs import FORMATS, spoken
from pipeline.parsers import CommandParser
from pipeline.plain import plain
from pipeline.report import show_report
from pipeline.store.gdal_names import GDAL_READS, GDAL_READS_SHARDS, dataset_name
from pipeline.store.place import place_of
from pipeline.store.receipts import VERIFY_LEVELS
from pipeline.terminal import refuse, show

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from pipeline.planning.plan import Plan
    from pipeline.running.examine import Findings
    from pipeline.running.unit_queue import Report
    from pipeline.store.place import Place, Where

_SHOWN = 10
_EVERY_S = 5.0
_EXITS = (0, 2, 3, 4, 6, 7, 75, 130)
_HOW = {"none": "receipts", "size": "receipts and sizes", "full": "every byte, read back and decoded"}
FINISHED = ("complete", "complete_with_quarantine")
DAMAGED = "damaged"


@dataclass(frozen=True, repr=False)
class StoreReport:
    """Findings of the check of a store at the level `verify`. Its `repr` is the text for people."""

    store: str
    found: Findings
    verify: str
    gdal: tuple[str, ...] = ()  # names of the zones' reflectance for GDAL and QGIS
    gdal_version: str = ""  # the first that reads them

    def __repr__(self) -> str:
        return self.text()

    @property
    def ok(self) -> bool:
        """True if the store is complete and sound."""
        return self.exit_code == EXIT_OK

    @property
    def exit_code(self) -> int:
        """Exit code for the findings."""
        found = self.found
        if found.damaged:
            return EXIT_INTEGRITY
        if found.missing:
            return EXIT_RESUMABLE
        if not found.measured and not found.quarantined:
            return EXIT_NO_DATA
        if found.status not in FINISHED:
            return EXIT_RESUMABLE
        return EXIT_QUARANTINE if found.quarantined else EXIT_OK

    @property
    def verdict(self) -> str:
        """What the store is: the status that it states, or "damaged" if it is published and not what was published."""
        return DAMAGED if self.found.damaged and self.found.status in FINISHED else self.found.status

    def to_json(self) -> dict[str, Any]:
        """Return all findings. `status` is the verdict, `stated` the status that the store itself states."""
        found = asdict(self.found)
        stated = found.pop("status")
        of = {"store": self.store, "status": self.verdict, "stated": stated}
        return {**of, **found, "verify": self.verify, "gdal": list(self.gdal)}

    def text(self) -> str:
        """Return the first findings of each kind, and how to repair them."""
        found = self.found
        done = found.units - len(found.missing) - found.damaged_units - len(found.quarantined)
        checked = f"{_HOW[self.verify]}, {found.chunks} chunks"
        what = "damaged since it was published" if self.verdict == DAMAGED else found.status
        lines = [f"{self.store}: {what}; {done} of {found.units} units sound ({checked})"]
        if self.exit_code == EXIT_NO_DATA:
            lines.append("  no pixel was measured: the scenes hold nodata all over the area")
        lines += [f"  to do    {unit}" for unit in found.missing[:_SHOWN]]
        damaged = list(found.damaged.items())[:_SHOWN]
        lines += [f"  damaged  {unit}: {plain('; '.join(faults[:2]))}" for unit, faults in damaged]
        for unit, why in list(found.quarantined.items())[:_SHOWN]:
            lines += [
                f"  set aside {unit}: {plain(why['error'])}",
                f"           reproduce: {plain(why['reproduce'])}",
            ]
        hidden = max(0, len(found.missing) - _SHOWN) + max(0, len(found.damaged) - _SHOWN)
        if hidden:
            lines.append(f"  and {hidden} more")
        lines += [f"  note     {note}" for note in found.notes[:_SHOWN]]
        if found.missing or found.damaged or found.quarantined:
            lines.append(f"  python -m pipeline.check {self.store} --verify {self.verify} --repair computes them")
        elif found.status in FINISHED:
            lines += [f"  QGIS     {name}  (with GDAL {self.gdal_version} or later)" for name in self.gdal[:_SHOWN]]
        return "\n".join(lines)


def examine(store: Where, verify: str) -> StoreReport:
    """Return the status of a store and of each unit. `verify` "full" compares checksums and decodes every chunk."""
    from pipeline.running import examine as examination

    place = place_of(store)
    plan = _plan(place)
    names = tuple(dataset_name(str(place.absolute()), plan.group(zone.epsg)) for zone in plan.zones)
    version = GDAL_READS_SHARDS if plan.config.shard else GDAL_READS
    return StoreReport(str(store), examination.examine(plan, place, verify), verify, names, version)


def _plan(place: Place) -> Plan:
    """Return the store's plan. Raises IntegrityError if it is lost, UsageError if the store is not of this pipeline."""
    from pipeline.planning.plan import load_plan
    from pipeline.store.identity import known_as_ours

    try:
        return load_plan(place)
    except UsageError:
        if not known_as_ours(place):
            raise
    raise IntegrityError(
        f"{place} has lost its plan, without it nothing can be checked or repaired",
        "_run/plan.json as the run wrote it",
        "bring it back from a copy, or start a new store with --overwrite",
    )


def repair(store: Where, verify: str, workers: int, report: Report = lambda _summary, _running: None) -> None:
    """Recompute exactly the units that fail `verify` or are quarantined, and publish. Raises the errors of a run."""
    from pipeline.running.choices import at_work, require_precision
    from pipeline.running.driver import run_plan
    from pipeline.running.examine import repair

    place = place_of(store)
    plan = _plan(place)
    cluster = "inline" if workers == 1 else "local"
    require_precision(cluster, plan.config.precision)  # before the store is opened again
    # Repairs start only under the lease, since a run may be active.
    run_plan(
        plan,
        place,
        cluster=cluster,
        workers=at_work(cluster, workers),
        verify=verify,
        report=report,
        first=lambda held: repair(plan, held, verify),
    )


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    p = CommandParser(
        "python -m pipeline.check",
        description="Check a store that pipeline.run wrote, mend it, or watch it being written.",
        epilog=exit_codes(*_EXITS),
        formatter_class=Help,
    )
    p.add_argument("store", help="folder or URL")
    p.add_argument("--json", action="store_true", help="one JSON object on stdout instead of words")
    look = p.add_argument_group("verify and mend", example("run.zarr --verify full --repair --workers 8"))
    look.add_argument(
        "--verify",
        choices=VERIFY_LEVELS,
        default="size",
        help="how closely finished units are checked; full reads every byte back (default: %(default)s)",
    )
    look.add_argument("--repair", action="store_true", help="compute damaged, missing and quarantined units again")
    look.add_argument(
        "--workers", type=int, default=1, metavar="N", help="local worker processes for --repair (default: %(default)s)"
    )
    look.add_argument(
        "--log-format",
        choices=FORMATS,
        help="log lines on stderr instead of a progress line (default: text where stderr is no terminal)",
    )
    look.add_argument(
        "--quiet",
        action="store_true",
        help="with --repair: no progress line and no log lines; warnings, errors and findings are still printed",
    )
    shown = p.add_argument_group("watch a run, from any machine", example("s3://bucket/run.zarr --watch --every 30"))
    shown.add_argument(
        "--watch",
        action="store_true",
        help="show units done, speed, time left, and the state of each part of an array, until the store is complete",
    )
    shown.add_argument("--once", action="store_true", help="with --watch: show this once (75 while it is not complete)")
    shown.add_argument(
        "--every",
        type=float,
        default=_EVERY_S,
        metavar="S",
        help="with --watch: seconds between looks; each lists the receipts (default: %(default)g)",
    )
    shown.add_argument(
        "--parts",
        type=int,
        default=0,
        metavar="N",
        help="with --watch: parts of the array (default: as planned, or as those begun say)",
    )
    made = p.add_argument_group("its settings", example("run.zarr --as-config > run.toml"))
    made.add_argument("--as-config", action="store_true", help="print the settings of its plan as a file for --config")
    return p


def _shown(arguments: argparse.Namespace) -> int | None:
    """Print what is asked of a store without checking it. Return the exit code, or None if it is to be checked."""
    if arguments.as_config:
        from pipeline.run_file import as_toml

        show(as_toml(_plan(place_of(arguments.store))))
        return EXIT_OK
    if not (arguments.watch or arguments.once):
        return None
    if arguments.repair:
        raise UsageError("--watch with --repair", "one of them", "watch from another terminal")
    if not arguments.every > 0 or arguments.parts < 0:
        raise UsageError(
            f"--every {arguments.every:g} --parts {arguments.parts}", "seconds above 0, and 0 or more parts"
        )
    from pipeline.watch import watch

    place = place_of(arguments.store)
    try:
        return watch(
            _plan(place),
            place,
            every_s=arguments.every,
            once=arguments.once,
            parts=arguments.parts,
            as_json=arguments.json,
        )
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return the exit code."""
    arguments = parser().parse_args(argv)
    try:
        if (code := _shown(arguments)) is not None:
            return code
        if arguments.repair:
            with spoken(arguments.log_format, quiet=arguments.quiet, bar=not arguments.json) as progress:
                repair(place_of(arguments.store).absolute(), arguments.verify, arguments.workers, progress.units)
        report = examine(arguments.store, arguments.verify)
    except PipelineError as error:
        return refuse(error)
    except OSError as error:
        return refuse(StorageError(f"{arguments.store} cannot be read ({error.strerror or error})"))
    show_report(report, as_json=arguments.json)
    return report.exit_code


if __name__ == "__main__":
    sys.exit(main())
