"""`python -m pipeline.run`: plan and compute a store."""

from __future__ import annotations

import logging
import math
import sys
from typing import TYPE_CHECKING

from pipeline import run_file
from pipeline.arguments import aoi_of, config_of, parser
from pipeline.bbox import joined
from pipeline.config import RunConfig
from pipeline.errors import EXIT_OK, EXIT_QUARANTINE, LeaseLost, PipelineError, StorageError, UsageError
from pipeline.logs import spoken
from pipeline.plain import LOADING
from pipeline.planning.parts import MAX_PARTS
from pipeline.process import share_heap
from pipeline.redaction import redact_logs
from pipeline.report import FrozenPlan, PartReport, PlanPreview, RunReport, show_report
from pipeline.store.place import place_of
from pipeline.terminal import refuse, tell

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence
    from pathlib import Path

    from pipeline.planning.parts import Part
    from pipeline.planning.plan import Plan
    from pipeline.store.lease import Lease
    from pipeline.store.place import Place
    from pipeline.terminal import Progress

_log = logging.getLogger("pipeline.run")  # __name__ is "__main__" in a command


def _picture(plan: Plan, store: Place, *, anew: bool) -> Path | None:
    """Return the quicklook, drawn if `anew` or missing. Failures only give warnings, since the store is finished."""
    from pipeline.products.quicklook import is_quicklook
    from pipeline.running.quicklook import PICTURE_NEEDS, write_quicklook

    path = store.picture
    if not anew and is_quicklook(path):
        return path
    _log.info("drawing the quicklook", extra={"facts": {"stage": "quicklook"}})
    try:
        drawn = write_quicklook(plan, store)
        if drawn is None:
            tell(f"no quicklook: {PICTURE_NEEDS}")
        return drawn
    except LeaseLost:
        raise
    except StorageError as error:
        tell(f"warning: the store is complete, but it has no picture: {error}")
        return None
    except Exception as error:
        cure = f"if bytes are damaged, python -m pipeline.check {store} --verify full finds them"
        tell(f"warning: the store is complete, but its picture failed ({error}); {cure}")
        return None


def execute(arguments: argparse.Namespace, progress: Progress) -> int:
    """Plan and run, and print the report. Raises PipelineError."""
    if arguments.shard_of or arguments.finalise:
        raise UsageError("--shard-of or --finalise without --plan", "--plan STORE, after a run with --plan-only")
    if arguments.of_pass is not None:
        raise UsageError("--pass without --plan", "--plan STORE --shard-of J/N, after a run with --plan-only")
    if arguments.wait_for_plan:
        raise UsageError("--wait-for-plan without --plan", "--plan STORE, whose plan another process makes")
    parts = _parts_of(arguments)
    from pipeline.archive.read.gdal import restrict_drivers
    from pipeline.planning.estimate import estimate
    from pipeline.running.choices import HERE, affordable, at_work, require_precision
    from pipeline.running.stored_plan import RunRequest, begin_or_continue, draft, freeze, proposed, writable
    from pipeline.store.lease import lease

    restrict_drivers()  # before GDAL is first used
    config, aoi = config_of(arguments), aoi_of(arguments)
    for warning in aoi.warnings:
        tell(f"warning: {warning}")
    shown = place_of(arguments.out or f"{aoi.name}.zarr")
    limit_gb = math.inf if arguments.dry_run else arguments.max_output_gb
    together = arguments.cluster in HERE
    near = together and not arguments.plan_only
    if near and not arguments.dry_run:
        require_precision(arguments.cluster, config.precision)
    request = RunRequest(config, aoi, writable(shown), arguments.overwrite, limit_gb, near)
    if arguments.workers is not None and arguments.workers < 1:
        raise UsageError(f"--workers {arguments.workers}", "at least 1")
    workers = at_work(arguments.cluster, arguments.workers)
    if parts:
        workers = parts * (arguments.workers or 1)
    if arguments.plan_only and not arguments.dry_run:
        plan = freeze(request, workers, progress.say)
        return _frozen(plan, request.store, shown, parts, arguments, progress)
    plan = draft(request, workers, progress.say) if arguments.dry_run else proposed(request, workers, progress.say)
    progress.say("timing one window on this machine" if arguments.dry_run else LOADING)
    cost = estimate(plan, workers, timed=arguments.dry_run, together=together)
    if arguments.dry_run:
        progress.clear()
        show_report(PlanPreview(plan, cost, shown, aoi.describe(), arguments.price_per_hour), as_json=arguments.json)
        return EXIT_OK
    workers = affordable(arguments.cluster, arguments.workers, workers, cost)
    with lease(request.store, say=progress.say) as held:
        return compute(begin_or_continue(plan, held, request), held, shown, arguments, workers, progress)


def _parts_of(arguments: argparse.Namespace) -> int:
    """Return the number of parts to plan for, 0 if none is asked for. Raises UsageError."""
    if arguments.parts is None:
        return 0
    if not arguments.plan_only:
        raise UsageError("--parts without --plan-only", "--plan-only --parts N, which plans for N parts")
    if not 1 <= arguments.parts <= MAX_PARTS:
        raise UsageError(f"--parts {arguments.parts}", f"1 to {MAX_PARTS}")
    return int(arguments.parts)


def _frozen(
    plan: Plan, store: Place, shown: Place, parts: int, arguments: argparse.Namespace, progress: Progress
) -> int:
    """Record the number of parts, if it is asked for, and print what the store holds."""
    from pipeline.running.part_records import plan_parts, planned_parts

    if parts:
        plan_parts(store, plan.digest, parts)
    progress.clear()
    show_report(FrozenPlan(plan, shown, planned_parts(store, plan.digest)), as_json=arguments.json)
    return EXIT_OK


def resume(arguments: argparse.Namespace, progress: Progress) -> int:
    """Compute a store's frozen plan or one part of it, or publish it. Raises PipelineError."""
    from pipeline.archive.read.gdal import restrict_drivers
    from pipeline.planning.estimate import estimate
    from pipeline.planning.parts import Part
    from pipeline.planning.plan import load_plan
    from pipeline.running.choices import affordable, at_work, require_precision
    from pipeline.running.part_records import planned_parts
    from pipeline.running.stored_plan import wait_for_plan, writable
    from pipeline.store.lease import lease

    restrict_drivers()
    decided = [name for name in RunConfig().to_json() if getattr(arguments, name, None) is not None]
    decided += [name for name in ("aoi", "bbox", "out", "config") if getattr(arguments, name) is not None]
    if decided:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in decided)
        raise UsageError(f"{flags} given with --plan", "no setting that the frozen plan already holds", "leave it out")
    if arguments.finalise and arguments.shard_of:
        raise UsageError("--finalise and --shard-of given", "one of them")
    if arguments.plan_only and (arguments.finalise or arguments.shard_of):
        raise UsageError("--plan-only with --finalise or --shard-of", "one of them")
    if arguments.of_pass is not None and not arguments.shard_of:
        raise UsageError("--pass without --shard-of", "--shard-of J/N, whose part of that pass is meant")
    shown = place_of(arguments.plan)
    wait_for_plan(shown, arguments.wait_for_plan, progress.say)  # which may make the store's folder
    store = writable(shown)
    plan, parts = load_plan(store), _parts_of(arguments)
    if arguments.plan_only:
        return _frozen(plan, store, shown, parts, arguments, progress)
    shard = None
    if arguments.shard_of:
        shard = Part.parse(arguments.shard_of, arguments.of_pass, planned_parts(store, plan.digest))
    workers = at_work(arguments.cluster, arguments.workers)
    if not arguments.finalise:
        require_precision(arguments.cluster, plan.config.precision)
    if not arguments.finalise and (shard is None or shard.units(plan)):
        workers = affordable(arguments.cluster, arguments.workers, workers, estimate(plan, workers, timed=False))
    progress.say(LOADING)
    with lease(store, "" if shard is None else shard.label, progress.say) as held:
        return compute(plan, held, shown, arguments, workers, progress, shard)


def compute(
    plan: Plan,
    held: Lease,
    shown: Place,
    arguments: argparse.Namespace,
    workers: int,
    progress: Progress,
    shard: Part | None = None,
) -> int:
    """Run a plan, or one part of it, under its lease, print the report and return the exit code."""
    from pipeline.process import device_name
    from pipeline.running import software
    from pipeline.running.choices import cluster_of
    from pipeline.running.driver import finalise, run_plan
    from pipeline.running.unit_queue import Patience

    units = len(shard.units(plan)) if shard else sum(1 for _ in plan.units())
    cluster = cluster_of(arguments.cluster, units, workers)
    picture, store = None, held.place
    device = "cuda" if cluster == "cuda" else device_name()
    try:
        if arguments.finalise:
            summary = finalise(plan, store, arguments.verify, held)
        else:
            summary = run_plan(
                plan,
                store,
                cluster=cluster,
                workers=workers,
                verify=arguments.verify,
                shard=shard,
                patience=Patience(max_outage_s=60 * arguments.max_outage),
                report=progress.units,
                held=held,
                mixed=arguments.mixed_software,
            )
        if shard is None:
            anew = summary.computed > 0 or arguments.finalise
            picture = _picture(plan, store, anew=anew) and shown.picture
    finally:
        progress.clear()
    if found := software.mixed_words(plan, store):
        tell(f"warning: {shown} was computed by {' and by '.join(found)}")
    if len(summary.arithmetics) > 1:
        tell(f"warning: {shown} was computed on {' and on '.join(summary.arithmetics)}, which round differently")
    if shard is not None:
        total = sum(1 for _ in plan.units())
        show_report(PartReport(shard, summary, shown, total), as_json=arguments.json)
        return EXIT_OK
    show_report(RunReport(plan, summary, shown, picture, device, arguments.price_per_hour), as_json=arguments.json)
    return EXIT_QUARANTINE if summary.quarantined else EXIT_OK


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return the exit code."""
    words = joined(sys.argv[1:] if argv is None else argv)
    redact_logs()
    try:
        arguments = run_file.parse(parser(), words)
    except PipelineError as error:
        return refuse(error, as_json="--json" in words)
    if arguments.price_per_hour is not None and not 0 <= arguments.price_per_hour < math.inf:
        return refuse(UsageError(f"--price-per-hour {arguments.price_per_hour}", "a number of at least 0"))
    share_heap()
    with spoken(arguments.log_format, quiet=arguments.quiet, bar=not arguments.json) as progress:
        try:
            return resume(arguments, progress) if arguments.plan else execute(arguments, progress)
        except PipelineError as error:
            progress.clear()
            return refuse(error, as_json=arguments.json)
        except KeyboardInterrupt:
            progress.clear()
            tell("stopped at once; run the same command again to continue")
            return 130


if __name__ == "__main__":
    sys.exit(main())
