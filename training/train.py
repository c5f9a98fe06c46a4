"""`python -m training.train --preset NAME --data my_training.toml --out runs/a`: train a network, write its bundle.

A training file names your images: training/example.toml shows every key. Ctrl-C writes a checkpoint; the same command
with `--resume runs/a` goes on. On several GPUs, or CPUs: `torchrun --nproc-per-node N -m training.train ... --device
cuda`.
"""

from __future__ import annotations

import signal
import sys
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from pipeline.errors import Interrupted, PipelineError, ReadError
from pipeline.terminal import show
from training import registry
from training.arguments import adapted, chosen, parser

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    import torch

    from pipeline.models.bundle import Bundle
    from training.data.sources import TrainingData
    from training.loop.execution import Execution
    from training.loop.run import Run
    from training.loop.task import Trainable
    from training.presets import Preset
    from training.task_spec import TaskSpec

SHIPPED_LICENCE = "MIT"  # of weights that come with the project
UNFINISHED = ".unfinished"  # in the name of weights whose last stages the budget did not reach
UNREADABLE_LISTED = 50  # files named in provenance
EXIT_AT_ONCE = 130  # after a second Ctrl-C, or one before the first step


def make_task(preset: Preset, data: TrainingData) -> Trainable:
    """Build the task of a preset. Raises UsageError if the data do not suffice."""
    return registry.task_of(preset).build(preset, data)


def begin_from(task: Trainable, spec: TaskSpec, bundle: Bundle) -> None:
    """Load weights of the task's kind, or of one that it follows, into its network. Raises BundleError on mismatch."""
    from pipeline.models.bundle import load_into
    from training.loop.task import BeginsFrom

    if bundle.system != spec.kind and isinstance(task, BeginsFrom):
        task.begin_from(bundle)
    else:
        load_into(task.network, bundle)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. Return the exit code."""
    try:
        return run_command(arguments)
    except KeyboardInterrupt:
        print("stopped at once; what a checkpoint holds is kept", file=sys.stderr)
        return EXIT_AT_ONCE


def run_command(arguments: Sequence[str] | None) -> int:
    """Run the command line without handling Ctrl-C outside of training. Return the exit code."""
    from training.loop import distributed

    try:
        ready = distributed.agreed(lambda: prepared(parser(__doc__).parse_args(arguments)))
    except PipelineError as error:
        distributed.by_first(partial(print, error, file=sys.stderr))
        distributed.end()
        return error.exit_code
    try:
        if ready is not None:
            train(ready)
    except Interrupted as error:  # raised in every process
        distributed.by_first(partial(print, error, file=sys.stderr))
        return error.exit_code
    except PipelineError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    finally:
        distributed.end()
    return 0


@dataclass(frozen=True)
class Ready:
    """A run ready to start: data loaded, weights on their device."""

    run: Run
    task: Trainable
    args: argparse.Namespace


@dataclass(frozen=True)
class Settled:
    """What a run is asked for, checked before data are read.

    `rate` is the factor on the learning rates, `checkpoint` the content of the resumed one, or empty.
    """

    preset: Preset
    rate: float
    device: torch.device
    execution: Execution
    checkpoint: dict[str, Any]


def prepared(args: argparse.Namespace) -> Ready | None:
    """Prepare the requested run. Return None for a dry run. Raises PipelineError."""
    from training.data import unreadable
    from training.loop import distributed

    unreadable.forget()
    if args.check:
        checked(args)
        return None
    settled = settle(args)
    task = loaded(args, settled)
    if distributed.rank() == 0:
        show("\n".join(first_lines(task, settled)))
    return None if args.dry_run else Ready(begun(args, settled, task), task, args)


def settle(args: argparse.Namespace) -> Settled:
    """Check the arguments against each other, the resumed checkpoint and the initial weights. Raises PipelineError."""
    from training.loop import distributed, savepoint
    from training.starting import check_follows, check_init, check_out, rate_of

    shipped = chosen(args)
    checkpoint = savepoint.read(args.resume, shipped) if args.resume else {}
    rate = rate_of(args.rate, args.init, checkpoint, registry.task_of(shipped).kind)
    preset = adapted(args, shipped, rate)
    device = distributed.device_of(args.device)
    execution = execution_of(args, device)
    distributed.begin(device)
    args.out = args.out or args.resume
    if args.resume:
        savepoint.check(args.resume, checkpoint, preset, shipped.recipe)
    if args.init:
        check_init(args.init, preset)
    elif not args.resume:
        check_follows(preset)
    if not args.dry_run:
        check_out(args.out, args.resume)
    return Settled(preset, rate, device, execution, checkpoint)


def loaded(args: argparse.Namespace, settled: Settled) -> Trainable:
    """Load the data and build the task, with its initial weights, on its device. Raises PipelineError."""
    import torch

    from pipeline.models.bundle import load_bundle
    from training.data import tiles
    from training.data.sources import load_data

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)  # initial weights
    tiles.CACHE.limit_bytes = cache_bytes = round(args.cache_gb * 1e9)
    preset = settled.preset
    task = make_task(preset, load_data(args.data, preset.output_gsd_m, preset.total_scale, cache_bytes))
    if args.init:
        begin_from(task, registry.task_of(preset), load_bundle(args.init))
    task.network.to(settled.device)
    return task


def first_lines(task: Trainable, settled: Settled) -> list[str]:
    """Return what a user should know before the first step: size, data, what is watched, how it computes."""
    from training.data.cautions import cautions
    from training.loop.task import HasRemarks, NamesImageBands, NamesWatched

    preset, rate = settled.preset, settled.rate
    weights = sum(p.numel() for p in task.network.parameters())
    bands = task.image_bands if isinstance(task, NamesImageBands) else preset.bands
    sources = task.data.summary(registry.task_of(preset).use, preset.least_px, bands)
    watched = [task.watching] if isinstance(task, NamesWatched) else []
    remarks = task.remarks if isinstance(task, HasRemarks) else []
    gentle = [f"learning rates are {rate:g} of the preset's: change that with --rate"] if rate != 1 else []
    size, how = f"{preset.name}: {weights / 1e6:.2f} M parameters", settled.execution.described(settled.device)
    return [size, *sources, *watched, how, *gentle, *remarks, *cautions(task.data)]


def begun(args: argparse.Namespace, settled: Settled, task: Trainable) -> Run:
    """Return the run, new, from given weights, or resumed. Raises PipelineError."""
    from pipeline.models.bundle import load_bundle
    from training.data import unreadable
    from training.loop import distributed, log, savepoint
    from training.loop.run import Run
    from training.starting import budget_of, remarks

    preset, checkpoint = settled.preset, settled.checkpoint
    budget = budget_of(preset, args.minutes, args.images, savepoint.budget_of(checkpoint))
    run = Run(task, preset, budget, args.out, args.seed, settled.execution, task.data.file.digest, args.skip)
    run.rate, run.data_stage = settled.rate, args.data_stage
    run.skipped.add(unreadable.newly_found(), show)  # held-out images
    if args.tensorboard and distributed.rank() == 0:
        run.journal.scalars = log.Scalars(args.out)
    if args.init:
        run.begin_from(load_bundle(args.init))
    if args.resume:
        run.resume(args.resume, checkpoint)
        if distributed.rank() == 0:
            show("\n".join(remarks(run, args.resume, args.data)))
    return run


def execution_of(args: argparse.Namespace, device: torch.device) -> Execution:
    """Return how the run computes. Raises UsageError for what the device or the machine cannot."""
    from training.loop.execution import Execution, check_compiles
    from training.placement import check_bf16

    if args.bf16:
        check_bf16(device)
    if args.compile:
        check_compiles(device)
    return Execution.on(device, args.workers, args.bf16, args.channels_last, args.compile)


def checked(args: argparse.Namespace) -> None:
    """Read all images of the training file once and print what is wrong with them. ReadError where something is."""
    from training.data.check import check

    shape: tuple[float, int] | tuple[()] = ()
    if args.preset or args.task:
        preset = adapted(args, chosen(args))
        shape = preset.output_gsd_m, preset.total_scale
    found = check(args.data, show, *shape)
    if found.faults:
        raise ReadError(
            f"{args.data}: {found.faults} of {found.files} files cannot be used",
            "files that can be read, and show ground",
            "mend them or leave them out",
        )


def train(ready: Ready) -> None:
    """Train and write the bundle. Only process 0 prints and writes. Raises PipelineError, or Interrupted on a signal.

    On Ctrl-C, SIGTERM and SIGUSR1 (Slurm's warning before its time limit), finish the step and write a checkpoint.
    """
    from pipeline.running.stop import stop_on_signals
    from training.loop import distributed

    with stop_on_signals() as stop:
        if distributed.launched():  # torchrun forwards a Ctrl-C that its processes already got; do not count it twice
            signal.signal(signal.SIGINT, lambda *given: stop(signal.SIGTERM, None))
        ready.run.train(say=show, every_s=ready.args.every, stop=lambda: stop.asked)
    if distributed.rank() == 0:
        show(write_bundle(ready.run, ready.task, ready.args))


def licence_of(given: str, data: TrainingData) -> str:
    """The licence of weights: what the user gave; that of the project where its own data were used; else not stated."""
    return given or (SHIPPED_LICENCE if data.is_ours else "")


def write_bundle(run: Run, task: Trainable, args: argparse.Namespace) -> str:
    """Write the averaged network as `<out>/<preset>.safetensors`. Return its scores and digest as text."""
    from pipeline.models.bundle import save_bundle

    task.network.eval()
    provenance: dict[str, Any] = {
        **task.describe(),
        "preset": run.preset.name,
        "settings": list(args.set or ()),
        "seed": run.seed,
        "data_before": run.learned_from[:-1],
        "started_from": run.started_from,
        "trained": run.lineage.described(),
        "images": run.at.images,
        "steps": run.at.step,
        "minutes": round(run.at.elapsed_s / 60, 1),
        "held_out": task.validate(run.stage).text,
        "credits": task.data.licence,
        "unreadable": sorted(run.skipped.found)[:UNREADABLE_LISTED],
    }
    unfinished = UNFINISHED if run.untrained else ""
    if unfinished:
        provenance["untrained"] = list(run.untrained)
    path = args.out / f"{run.preset.name}{unfinished}.safetensors"
    bundle = task.bundle(provenance, licence_of(args.licence, task.data))
    digest = save_bundle(path, bundle, task.network.state_dict(), half=run.preset.half)
    said = [f"held out: {provenance['held_out']}", f"wrote {path} sha256 {digest}"]
    if not unfinished:
        (args.out / f"{run.preset.name}{UNFINISHED}.safetensors").unlink(missing_ok=True)
    else:
        stages = " and ".join(run.untrained)
        said.append(
            f"these weights are unfinished: the budget ended before {stages}; give more with --resume {args.out}"
        )
    return "\n".join(said)


if __name__ == "__main__":
    sys.exit(main())
