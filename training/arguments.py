"""The command line of `python -m training.train`, and the preset that it asks for."""

from __future__ import annotations

import argparse
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from pipeline.errors import UsageError
from pipeline.parsers import CommandParser
from pipeline.terminal import show
from training import registry
from training.data.rasters import default_data
from training.presets import table
from training.settings import BAND_SETS, changed, of_bands, parsed
from training.starting import GENTLE

if TYPE_CHECKING:
    from _typeshed import SupportsWrite

    from training.presets import Preset


class RankZeroParser(CommandParser):
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
        """Print the presets."""
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
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return number


def interval(text: str) -> float:
    """Parse a number of at least 0."""
    number = float(text)
    if not number >= 0:
        raise argparse.ArgumentTypeError(f"{text} is not a number of at least 0")
    return number


def parser(description: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of `python -m training.train`."""
    p = RankZeroParser(prog="python -m training.train", description=description)
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
        help="training file (TOML), or the root of the imagery of the shipped weights (default: the folder that "
        "SEN2FINE_DATA names)",
    )
    p.add_argument("--out", type=Path, help="folder for checkpoint, log and weights (default: that of --resume)")
    _add_start(p)
    add_shared(p)
    p.add_argument("--check", action="store_true", help="read all images once, list what is wrong, and stop")
    p.add_argument("--dry-run", action="store_true", help="load the data, print what would run, and stop")
    p.set_defaults(data_stage="")
    return p


def add_shared(p: argparse.ArgumentParser) -> None:
    """Add what one run and one of several stages have in common."""
    p.add_argument("--seed", type=natural, default=0, help="random seed; a resumed run keeps its own")
    _add_machine(p)
    p.add_argument(
        "--every",
        type=interval,
        default=60.0,
        help="seconds between lines, and between checkpoints; lines come less often where scores would take more than "
        "a tenth of the time; 0: both after every step (default: 60)",
    )
    _add_changes(p)
    p.add_argument("--licence", default="", help="of the weights, such as CC-BY-4.0 (default: not stated)")
    p.add_argument(
        "--skip", type=natural, default=10, help="unreadable files to leave out before giving up (default: 10)"
    )
    p.add_argument("--tensorboard", action="store_true", help="write the log as TensorBoard scalars too")


def _add_start(p: argparse.ArgumentParser) -> None:
    """Add the budget, and what a run goes on from."""
    budget = p.add_mutually_exclusive_group()
    budget.add_argument(
        "--minutes", type=duration, help="training time over all resumes (default: the preset's, or that of --resume)"
    )
    budget.add_argument("--images", type=positive, help="train on this many images instead: reproducible")
    start = p.add_mutually_exclusive_group()
    start.add_argument("--resume", type=Path, help="folder of the run to go on from")
    start.add_argument("--init", type=Path, help="bundle whose weights a new run starts from")


def _add_machine(p: argparse.ArgumentParser) -> None:
    """Add how a run computes, which changes nothing of what it learns."""
    p.add_argument("--threads", type=positive, default=1, help="number of PyTorch CPU threads (default: %(default)s)")
    p.add_argument(
        "--workers",
        type=natural,
        help="processes that make batches (default: none on a CPU; on a GPU one for each processor that the training "
        "processes of the node leave, at most 8 for each GPU)",
    )
    p.add_argument(
        "--cache-gb",
        type=interval,
        default=1.0,
        help="gigabytes of pixels kept in memory by each process, so times --workers (default: %(default)s)",
    )
    p.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 ...; cuda under torchrun is one GPU per process")
    p.add_argument("--bf16", action="store_true", help="bfloat16 convolutions, on CPUs and GPUs that have them")
    p.add_argument(
        "--channels-last",
        action=argparse.BooleanOptionalAction,
        help="memory layout of networks and batches (default: on a GPU)",
    )
    p.add_argument("--compile", action="store_true", help="networks by torch.compile; needs a C++ compiler")


def _add_changes(p: argparse.ArgumentParser) -> None:
    """Add changes of the preset."""
    p.add_argument(
        "--rate",
        type=duration,
        help=f"factor on the preset's learning rates (default: 1; {GENTLE:g} with --init of the same kind; that "
        "of --resume)",
    )
    p.add_argument(
        "--set",
        action="append",
        metavar="NAME=VALUE",
        help="change a setting of the preset: batch, crop, ema, warmup, learning_rate, bands, scale, or one that "
        "--list shows",
    )
    listed = "; ".join(f"{count}: {','.join(bands)}" for count, bands in BAND_SETS.items())
    p.add_argument(
        "--bands", type=int, choices=sorted(BAND_SETS), help=argparse.SUPPRESS
    )  # its name in earlier versions
    p.add_argument(
        "--band-set",
        dest="bands",
        type=int,
        choices=sorted(BAND_SETS),
        help=f"short for --set bands=... and the settings that suit them ({listed})",
    )
    p.add_argument("--recipe", action="append", metavar="NAME=VALUE", help="change a setting of the preset's recipe")
    p.add_argument(
        "--as-published",
        nargs="*",
        metavar="NAME",
        help=f"reproduce deviations of the released code from its paper: all, or those named ({_switches()})",
    )


def _switches() -> str:
    """List the values of `--as-published` by published code."""
    tasks = [task for task in registry.every().values() if task.switches]
    return "; ".join(f"{task.whose}: {', '.join(task.switches)}" for task in tasks)


def chosen(args: argparse.Namespace) -> Preset:
    """Return the preset named by --preset or --task. Raises UsageError if neither is given or they disagree."""
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


def adapted(args: argparse.Namespace, preset: Preset, rate: float = 1.0) -> Preset:
    """Return the preset with recipe settings and published deviations from the command line.

    `rate` is the factor on its learning rates; those that `--set` states are taken as they are.
    """
    if args.bands:
        preset = of_bands(preset, args.bands, registry.task_of(preset).of_bands.get(args.bands, ()))
    recipe = dict(preset.recipe)
    for text in args.recipe or ():
        name, _, value = text.partition("=")
        if name not in recipe:
            raise UsageError(f"--recipe {text}: {preset.name} has no {name}", ", ".join(recipe) or "no --recipe at all")
        recipe[name] = parsed("--recipe", text, value, recipe[name])
    switches = preset.published
    if args.as_published is not None:
        known = registry.task_of(preset).switches
        if not known:
            raise UsageError(f"--as-published with {preset.name}", f"a task that has switches ({_switches()})")
        switches = tuple(args.as_published or known)
        unknown = [name for name in switches if name not in known]
        if unknown:
            raise UsageError(f"--as-published {unknown[0]} is not known", f"none (for all), or of {', '.join(known)}")
    stages = tuple(replace(stage, learning_rate=rate * stage.learning_rate) for stage in preset.stages)
    return changed(replace(preset, recipe=recipe, published=switches, stages=stages), args.set or ())
