"""`python -m training.train --preset NAME --data my_training.toml --out runs/a`: train a network, write its bundle.

A training file names your images: training/example.toml shows every key. Ctrl-C writes a checkpoint; the same command
with `--resume runs/a` goes on. On several GPUs, or CPUs: `torchrun --nproc-per-node N -m training.train ... --device
cuda`.
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from pipeline.errors import Interrupted, PipelineError, UsageError
from pipeline.terminal import show
from training import registry
from training.data.rasters import default_data
from training.presets import table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from _typeshed import SupportsWrite

    from pipeline.models.bundle import Bundle
    from training.data.sources import TrainingData
    from training.loop.run import Run
    from training.loop.task import Trainable
    from training.presets import Preset
    from training.task_spec import TaskSpec

LICENCE = "MIT"
EXIT_AT_ONCE = 130  # after a second Ctrl-C, or one before the first step


class OneVoice(argparse.ArgumentParser):
    """Argument parser of which only rank 0 prints, since under torchrun all processes parse the same command line."""

    def print_help(self, file: SupportsWrite[str] | None = None) -> None:
        """Print the help in rank 0 only."""
        if os.environ.get("RANK", "0") == "0":
            super().print_help(file)

    def error(self, message: str) -> NoReturn:
        """Exit with a message. Under torchrun raise UsageError, since a process that exits early ends the others."""
        if "RANK" in os.environ:
            raise UsageError(f"{self.format_usage()}{self.prog}: error: {message}")
        super().error(message)


class ListPresets(argparse.Action):
    """Print the presets and exit, like --help."""

    def __call__(self, parser: argparse.ArgumentParser, *rest: object) -> None:
        """Print the presets in rank 0 and exit."""
        if os.environ.get("RANK", "0") == "0":
            show(table(registry.presets().values()))
        parser.exit()


def natural(text: str) -> int:
    """Parse an integer of at least 0."""
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative; expected 0 or more")
    return number


def positive(text: str) -> int:
    """Parse an integer of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return number


def duration(text: str) -> float:
    """Parse a finite number above 0."""
    number = float(text)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is no number above 0")
    return number


def interval(text: str) -> float:
    """Parse a number of at least 0."""
    number = float(text)
    if not number >= 0:
        raise argparse.ArgumentTypeError(f"{text} is no number of at least 0")
    return number


def parser() -> argparse.ArgumentParser:
    """Return the argument parser of `python -m training.train`."""
    p = OneVoice(prog="python -m training.train", description=__doc__)
    tasks = "; ".join(f"{task.name}: {task.summary}" for task in registry.every().values())
    p.add_argument("--preset", choices=sorted(registry.presets()), help="a recipe of a task, as --list shows them")
    p.add_argument(
        "--task", choices=sorted(registry.every()), help=f"a task by its first preset, or that of --preset ({tasks})"
    )
    p.add_argument("--list", action=ListPresets, nargs=0, help="print all presets and stop")
    p.add_argument(
        "--data",
        type=Path,
        default=default_data(),
        help="training file (TOML), or the root of the imagery of the shipped weights (default: %(default)s)",
    )
    p.add_argument("--out", type=Path, help="folder for checkpoint, log and weights (default: that of --resume)")
    budget = p.add_mutually_exclusive_group()
    budget.add_argument("--minutes", type=duration, help="training time over all resumes (default: the preset's)")
    budget.add_argument("--images", type=positive, help="train on this many images instead: reproducible")
    start = p.add_mutually_exclusive_group()
    start.add_argument("--resume", type=Path, help="folder of the run to go on from")
    start.add_argument("--init", type=Path, help="bundle whose weights a new run starts from")
    p.add_argument("--seed", type=natural, default=0, help="of all chance; a resumed run keeps its own")
    p.add_argument("--threads", type=positive, default=1, help="of PyTorch on a CPU (default: %(default)s)")
    p.add_argument("--workers", type=natural, default=0, help="processes that make batches (default: none, in line)")
    p.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 ...; cuda under torchrun is one GPU per process")
    p.add_argument("--bf16", action="store_true", help="bfloat16 convolutions, on CPUs and GPUs that have them")
    p.add_argument("--every", type=interval, default=60.0, help="seconds between lines and checkpoints (default: 60)")
    p.add_argument(
        "--rate", type=duration, default=1.0, help="times the preset's learning rates, such as 0.3 with --init"
    )
    p.add_argument("--recipe", action="append", metavar="NAME=VALUE", help="change a setting of the preset's recipe")
    p.add_argument(
        "--as-published",
        nargs="*",
        metavar="NAME",
        help=f"do as released code where it departs from its paper, in all or in some ({_switches()})",
    )
    p.add_argument("--dry-run", action="store_true", help="load the data, print what would run, and stop")
    return p


def _switches() -> str:
    """Return the values of `--as-published`, by the owner of the code."""
    tasks = [task for task in registry.every().values() if task.switches]
    return "; ".join(f"{task.whose}: {', '.join(task.switches)}" for task in tasks)


def chosen(args: argparse.Namespace) -> Preset:
    """Return the requested preset, by its name or its task. Raises UsageError if neither is given or they disagree."""
    if args.preset is None and args.task is None:
        raise UsageError("neither --preset nor --task", "what to train", "--list shows all presets")
    if args.preset is None:
        return registry.every()[args.task].presets[0]
    preset = registry.presets()[args.preset]
    if args.task not in (None, preset.task):
        raise UsageError(
            f"--preset {preset.name} with --task {args.task}", f"--task {preset.task}", "leave one of them out"
        )
    return preset


def adapted(args: argparse.Namespace, preset: Preset) -> Preset:
    """Return the preset with the requested learning rates, recipe and `--as-published` switches. Raises UsageError."""
    recipe = dict(preset.recipe)
    for text in args.recipe or ():
        name, _, value = text.partition("=")
        if name not in recipe:
            raise UsageError(f"--recipe {text}: {preset.name} has no {name}", ", ".join(recipe) or "no --recipe at all")
        recipe[name] = parsed(text, value, recipe[name])
    switches = preset.published
    if args.as_published is not None:
        known = registry.task_of(preset).switches
        if not known:
            raise UsageError(f"--as-published with {preset.name}", f"a task that has switches ({_switches()})")
        switches = tuple(args.as_published or known)
        unknown = [name for name in switches if name not in known]
        if unknown:
            raise UsageError(f"--as-published {unknown[0]} is not known", f"none (for all), or of {', '.join(known)}")
    stages = tuple(replace(stage, learning_rate=args.rate * stage.learning_rate) for stage in preset.stages)
    return replace(preset, recipe=recipe, published=switches, stages=stages)


def parsed(text: str, value: str, like: float | str) -> float | str:
    """Parse a setting in the type of the one it replaces. Raises UsageError if it does not fit."""
    try:
        return {"true": True, "false": False}[value] if isinstance(like, bool) else type(like)(value)
    except (KeyError, ValueError):
        raise UsageError(f"--recipe {text}", f"a value like {str(like).lower()}") from None


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
        ready = distributed.agreed(lambda: prepared(parser().parse_args(arguments)))
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


def prepared(args: argparse.Namespace) -> Ready | None:
    """Prepare the requested run. Return None for a dry run. Raises PipelineError."""
    import torch

    from pipeline.models.bundle import load_bundle
    from training.data.sources import load_data
    from training.loop import distributed, savepoint
    from training.loop.run import Run
    from training.placement import check_bf16
    from training.starting import budget_of, check_follows, check_init, check_out, remarks

    shipped = chosen(args)
    preset = adapted(args, shipped)
    device = distributed.device_of(args.device)
    if args.bf16:
        check_bf16(device)
    distributed.begin(device)
    args.out = args.out or args.resume
    checkpoint = savepoint.read(args.resume, preset, shipped.recipe) if args.resume else {}
    if args.init:
        check_init(args.init, preset)
    elif not args.resume:
        check_follows(preset)
    if not args.dry_run:
        check_out(args.out, args.resume)
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)  # initial weights
    task = make_task(preset, load_data(args.data))
    if args.init:
        begin_from(task, registry.task_of(preset), load_bundle(args.init))
    task.network.to(device)
    if distributed.rank() == 0:
        weights = sum(p.numel() for p in task.network.parameters())
        spec = registry.task_of(preset)
        sources = task.data.summary(spec.use, preset.least_px, spec.bands)
        show("\n".join([f"{preset.name}: {weights / 1e6:.2f} M parameters", *sources]))
    if args.dry_run:
        return None
    digest = task.data.file.digest
    run = Run(
        task, preset, budget_of(preset, args.minutes, args.images), args.out, args.seed, args.bf16, args.workers, digest
    )
    if args.init:
        run.begin_from(load_bundle(args.init))
    if args.resume:
        run.resume(args.resume, checkpoint)
        if distributed.rank() == 0:
            show("\n".join(remarks(run, args.resume, args.data)))
    return Ready(run, task, args)


def train(ready: Ready) -> None:
    """Train and write the bundle. Only process 0 prints and writes. Raises PipelineError, or Interrupted on a signal.

    On Ctrl-C, SIGTERM and SIGUSR1 (Slurm's warning before its time limit), finish the step and write a checkpoint.
    """
    from pipeline.execution.stop import stop_on_signals
    from training.loop import distributed

    with stop_on_signals() as stop:
        if distributed.launched():  # torchrun forwards a Ctrl-C that its processes already got; do not count it twice
            signal.signal(signal.SIGINT, lambda *given: stop(signal.SIGTERM, None))
        ready.run.train(say=show, every_s=ready.args.every, stop=lambda: stop.asked)
    if distributed.rank() == 0:
        show(write_bundle(ready.run, ready.task, ready.args))


def write_bundle(run: Run, task: Trainable, args: argparse.Namespace) -> str:
    """Write the averaged network as `<out>/<preset>.safetensors`. Return its scores and digest as text."""
    from pipeline.models.bundle import save_bundle

    task.network.eval()
    provenance: dict[str, Any] = {
        **task.describe(),
        "preset": run.preset.name,
        "seed": run.seed,
        "data_before": run.learned_from[:-1],
        "started_from": run.started_from,
        "trained": run.lineage.described(),
        "images": run.at.images,
        "steps": run.at.step,
        "minutes": round(run.at.elapsed_s / 60, 1),
        "held_out": task.validate(run.stage),
        "credits": task.data.licence,
    }
    path = args.out / f"{run.preset.name}.safetensors"
    digest = save_bundle(path, task.bundle(provenance, LICENCE), task.network.state_dict())
    return f"held out: {provenance['held_out']}\nwrote {path} sha256 {digest}"


if __name__ == "__main__":
    sys.exit(main())
