"""`python -m pipeline.run`: plan and compute a store."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING

from pipeline.arguments import aoi_of, config_of, parser
from pipeline.bbox import joined
from pipeline.config import RunConfig
from pipeline.errors import EXIT_OK, EXIT_QUARANTINE, LeaseLost, PipelineError, StorageError, UsageError
from pipeline.redaction import redact_logs
from pipeline.report import FrozenPlan, PartReport, PlanPreview, RunReport, show_report
from pipeline.store.place import place_of
from pipeline.terminal import Progress, refuse, tell

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence
    from pathlib import Path

    from pipeline.planning.estimate import Estimate
    from pipeline.planning.plan import Plan
    from pipeline.store.lease import Lease
    from pipeline.store.place import Place


_HERE = ("auto", "inline", "local")  # clusters whose workers are on this machine


def _picture(plan: Plan, store: Place, *, anew: bool) -> Path | None:
    """Return the quicklook, drawn if `anew` or missing. Failures only give warnings, since the store is finished."""
    from pipeline.products.quicklook import is_quicklook
    from pipeline.running.quicklook import write_quicklook

    path = store.picture
    if not anew and is_quicklook(path):
        return path
    try:
        return write_quicklook(plan, store)
    except LeaseLost:
        raise
    except StorageError as error:
        print(f"warning: the store is complete, but it has no picture: {error}", file=sys.stderr)
        return None
    except Exception as error:
        cure = f"if bytes are damaged, python -m pipeline.check {store} --verify full finds them"
        tell(f"warning: the store is complete, but its picture failed ({error}); {cure}")
        return None


def _cluster_of(arguments: argparse.Namespace, units: int, workers: int) -> str:
    """Resolve "auto": one worker per GPU if there are several, or a local cluster if several workers can be busy."""
    if arguments.cluster != "auto":
        return str(arguments.cluster)
    import torch

    if torch.cuda.is_available() and torch.cuda.device_count() > 1:
        return "cuda"
    if torch.cuda.is_available():
        return "inline"
    return "local" if min(units, workers) > 1 else "inline"


def _at_work(arguments: argparse.Namespace, wanted: int) -> int:
    """Return how many workers will be at work: one per GPU where the run uses GPUs of this machine, else `wanted`."""
    if arguments.cluster not in ("auto", "inline", "cuda"):
        return wanted
    import torch

    if not torch.cuda.is_available():
        return wanted
    return 1 if arguments.cluster == "inline" else torch.cuda.device_count()


def execute(arguments: argparse.Namespace) -> int:
    """Plan and run, and print the report. Raises PipelineError."""
    if arguments.shard_of or arguments.finalise:
        raise UsageError("--shard-of or --finalise without --plan", "--plan STORE, after a run with --plan-only")
    if arguments.of_pass is not None:
        raise UsageError("--pass without --plan", "--plan STORE --shard-of J/N, after a run with --plan-only")
    from pipeline.archive.read.gdal import restrict_drivers
    from pipeline.planning.estimate import estimate
    from pipeline.running.pools import processors
    from pipeline.running.stored_plan import RunRequest, begin_or_continue, draft, freeze, proposed, writable
    from pipeline.store.lease import lease

    restrict_drivers()  # before GDAL is first used
    progress = Progress(quiet=arguments.quiet or arguments.json)
    config, aoi = config_of(arguments), aoi_of(arguments)
    for warning in aoi.warnings:
        tell(f"warning: {warning}")
    shown = place_of(arguments.out or f"{aoi.name}.zarr")
    limit_gb = math.inf if arguments.dry_run else arguments.max_output_gb
    together = arguments.cluster in _HERE
    near = together and not arguments.plan_only
    request = RunRequest(config, aoi, writable(shown), arguments.overwrite, limit_gb, near)
    workers = processors() if arguments.workers is None else arguments.workers
    if workers < 1:
        raise UsageError(f"--workers {workers}", "at least 1")
    workers = _at_work(arguments, workers)
    if arguments.plan_only and not arguments.dry_run:
        return _frozen(freeze(request, workers, progress.say), shown, arguments, progress)
    plan = draft(request, workers, progress.say) if arguments.dry_run else proposed(request, workers, progress.say)
    cost = estimate(plan, workers, timed=arguments.dry_run, together=together)
    if arguments.dry_run:
        progress.clear()
        show_report(PlanPreview(plan, cost, shown, aoi.describe()), as_json=arguments.json)
        return EXIT_OK
    workers = _affordable(arguments, workers, cost)
    with lease(request.store, say=progress.say) as held:
        return compute(begin_or_continue(plan, held, request), held, shown, arguments, workers, progress)


def _frozen(plan: Plan, shown: Place, arguments: argparse.Namespace, progress: Progress) -> int:
    progress.clear()
    show_report(FrozenPlan(plan, shown), as_json=arguments.json)
    return EXIT_OK


def resume(arguments: argparse.Namespace) -> int:
    """Compute a store's frozen plan or one part of it, or publish it. Raises PipelineError."""
    from pipeline.archive.read.gdal import restrict_drivers
    from pipeline.planning.estimate import estimate
    from pipeline.planning.parts import Part
    from pipeline.planning.plan import load_plan
    from pipeline.running.pools import processors
    from pipeline.running.stored_plan import writable
    from pipeline.store.lease import lease

    restrict_drivers()
    decided = [name for name in RunConfig().to_json() if getattr(arguments, name, None) is not None]
    decided += [name for name in ("aoi", "bbox", "out", "config") if getattr(arguments, name) is not None]
    if decided:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in decided)
        raise UsageError(f"{flags} given with --plan", "no setting that the frozen plan already holds", "leave it out")
    if arguments.finalise and arguments.shard_of:
        raise UsageError("--finalise and --shard-of given", "one of them")
    if arguments.of_pass is not None and not arguments.shard_of:
        raise UsageError("--pass without --shard-of", "--shard-of J/N, whose part of that pass is meant")
    shown = place_of(arguments.plan)
    store = writable(shown)
    plan = load_plan(store)
    workers = _at_work(arguments, arguments.workers or processors())
    if not arguments.finalise:
        workers = _affordable(arguments, workers, estimate(plan, workers, timed=False))
    shard = Part.parse(arguments.shard_of).label if arguments.shard_of else ""
    progress = Progress(quiet=arguments.quiet or arguments.json)
    with lease(store, shard, progress.say) as held:
        return compute(plan, held, shown, arguments, workers, progress)


def _affordable(arguments: argparse.Namespace, workers: int, cost: Estimate) -> int:
    """Limit the workers of this machine to its memory; other clusters are not limited.

    Raises UsageError if --workers is too many.
    """
    from pipeline.process import device_name
    from pipeline.running.memory import CUDA_MIB, fitting_workers, require_memory

    if arguments.cluster not in (*_HERE, "cuda"):
        return workers
    processes = 1 if arguments.cluster == "inline" else max(1, min(workers, cost.units))
    threads, cuda_mib = max(1, workers // processes), CUDA_MIB if device_name() != "cpu" else 0
    worker_mib = cost.worker_mib + cuda_mib + cost.thread_mib * (threads - 1)
    if arguments.workers is None and arguments.cluster != "cuda":
        fitting = fitting_workers(processes, worker_mib)
        processes, workers = fitting, workers if fitting == processes else fitting * threads
    require_memory(processes, worker_mib)
    return workers


def compute(
    plan: Plan, held: Lease, shown: Place, arguments: argparse.Namespace, workers: int, progress: Progress
) -> int:
    """Run a plan under its lease, print the report and return the exit code."""
    from pipeline.planning.parts import Part
    from pipeline.running import software
    from pipeline.running.driver import finalise, run_plan
    from pipeline.running.unit_queue import Patience

    shard = Part.parse(arguments.shard_of, arguments.of_pass) if arguments.shard_of else None
    units = len(shard.units(plan)) if shard else sum(1 for _ in plan.units())
    cluster = _cluster_of(arguments, units, workers)
    picture, store = None, held.place
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
            progress.say("drawing the quicklook")
            anew = summary.computed > 0 or arguments.finalise
            picture = _picture(plan, store, anew=anew) and shown.picture
    finally:
        progress.clear()
    if found := software.mixed_words(plan, store):
        print(f"warning: {shown} was computed by {' and by '.join(found)}", file=sys.stderr)
    if len(summary.arithmetics) > 1:
        kinds = " and on ".join(summary.arithmetics)
        print(f"warning: {shown} was computed on {kinds}, which round differently", file=sys.stderr)
    if shard is not None:
        show_report(PartReport(shard, summary, shown), as_json=arguments.json)
        return EXIT_OK
    show_report(RunReport(plan, summary, shown, picture), as_json=arguments.json)
    return EXIT_QUARANTINE if summary.quarantined else EXIT_OK


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return the exit code."""
    arguments = parser().parse_args(joined(sys.argv[1:] if argv is None else argv))
    redact_logs()
    try:
        return resume(arguments) if arguments.plan else execute(arguments)
    except PipelineError as error:
        return refuse(error, as_json=arguments.json)
    except KeyboardInterrupt:
        print("stopped at once; run the same command again to continue", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
