"""`python -m training.staged --preset NAME --stage natural=photos.toml --stage degraded=s2.toml ... --out runs/a`.

Train in stages, each on a training file of its own, from the weights of the one before. Every stage is a run of
`training.train` in a folder below --out. Ctrl-C writes a checkpoint; the same command goes on. The last weights are
`<out>/<preset>.safetensors`, and their provenance names all stages. What a task keeps beside its network, such as a
discriminator, goes on as well.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pipeline.errors import Interrupted, PipelineError, UsageError
from pipeline.terminal import show
from training import registry, train
from training.arguments import RankZeroParser, adapted, add_shared, duration, positive
from training.arguments import parser as train_parser

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from training.stage_record import Record, StageRecord

    Number = TypeVar("Number", int, float)

# Recipe settings of stages by name (OpenSR thesis, section 3.2), where a preset has them: for bands with red, green and
# blue, and for others. Natural images have colours only; aerial ones lack the bands of 20 m.
STAGES: dict[str, dict[str, tuple[str, str]]] = {
    "natural": {"other_bands": ("1", "1")},
    "degraded": {"other_bands": ("0", "0")},
    "aerial": {"other_bands": ("0", "1")},
}
FULL_RATE = 1.0  # of the preset's learning rates in every stage: new data, not a touch-up
_NAME = re.compile(r"[a-z0-9_-]+")


@dataclass(frozen=True)
class DataStage:
    """One stage: its name, its folder, and the arguments of its run."""

    name: str
    folder: Path
    args: argparse.Namespace

    @property
    def weights(self) -> Path:
        """The bundle that it ends with."""
        return self.folder / f"{self.args.preset}.safetensors"


def parser() -> argparse.ArgumentParser:
    """Return the parser of `python -m training.staged`."""
    p = RankZeroParser(prog="python -m training.staged", description=__doc__)
    p.add_argument("--preset", required=True, choices=sorted(registry.presets()), help="as of training.train")
    settings = "; ".join(
        f"{name}: {', '.join(f'{key}={value[0]}' for key, value in of.items())}" for name, of in STAGES.items()
    )
    p.add_argument(
        "--stage",
        action="append",
        required=True,
        metavar="NAME=FILE",
        help=f"a stage and its training file; repeat it, in order. Names with settings of their own: {settings}",
    )
    budget = p.add_mutually_exclusive_group()
    budget.add_argument("--minutes", help="of each stage, such as 30,30,60, or one number for all")
    budget.add_argument("--images", help="of each stage instead: reproducible")
    p.add_argument("--out", type=Path, required=True, help="folder for the stages' folders, record and last weights")
    p.add_argument("--init", type=Path, help="bundle whose weights the first stage starts from")
    p.epilog = "--set STAGE:NAME=VALUE changes a setting of one stage. --rate is 1 in every stage unless given."
    add_shared(p)
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. Return the exit code."""
    from training.loop import distributed

    try:
        run(parser().parse_args(arguments))
    except KeyboardInterrupt:
        print("stopped at once; what a checkpoint holds is kept", file=sys.stderr)
        return train.EXIT_AT_ONCE
    except PipelineError as error:
        distributed.by_first(partial(print, error, file=sys.stderr))
        return error.exit_code
    finally:
        distributed.end()
    return 0


def run(args: argparse.Namespace) -> None:
    """Run the stages that have not finished, in order. Raises PipelineError, and Interrupted on a signal."""
    from training.loop import distributed
    from training.stage_record import check_weights

    stages = stages_of(args)
    record = distributed.agreed(partial(begun, args, stages))
    for number, stage in enumerate(stages):
        title = f"stage {number + 1} of {len(stages)}, {stage.name}"
        if record.stages[number].weights:
            distributed.agreed(partial(check_weights, stage.weights, record.stages[number]))
            distributed.by_first(partial(show, f"{title}: finished before"))
            continue
        distributed.by_first(partial(show, f"{title}: {stage.folder}"))
        run_stage(stage, stages[number - 1] if number else None)
        distributed.agreed(partial(ended, stage, record, number))  # the others wait for the weights
    if distributed.rank() == 0:
        show(f"wrote {copied(stages[-1].weights, args.out)}")


def begun(args: argparse.Namespace, stages: Sequence[DataStage]) -> Record:
    """Return the record, checked against the command and written. Raises PipelineError."""
    from training.loop import distributed
    from training.stage_record import opened

    record = opened(args.out, [described(stage) for stage in stages])
    if distributed.rank() == 0:
        record.write()
    return record


def run_stage(stage: DataStage, before: DataStage | None) -> None:
    """Run one stage after another, or resume it from its checkpoint. Raises PipelineError."""
    from training.loop import distributed
    from training.loop.savepoint import CHECKPOINT

    args = argparse.Namespace(**vars(stage.args))
    if (stage.folder / CHECKPOINT).exists():
        args.resume, args.init = stage.folder, None
    ready = distributed.agreed(partial(train.prepared, args))
    assert ready is not None  # no dry run
    if before is not None and not args.resume:
        distributed.agreed(partial(take_companion, ready, before))
    try:
        train.train(ready)
    except Interrupted as error:
        raise Interrupted(f"stage {stage.name} {error.found}", cure="the same command goes on there") from error


def ended(stage: DataStage, record: Record, number: int) -> None:
    """Record the weights of a stage in process 0. Raises UsageError if its budget left out some of its training."""
    from training.loop import distributed
    from training.stage_record import digest_of

    if distributed.rank() == 0:
        record.finish(number, digest_of(finished(stage)))
        record.write()


def take_companion(ready: train.Ready, before: DataStage) -> None:
    """Load what the task keeps beside its network from the checkpoint of the stage before. Raises UsageError."""
    from training.loop import savepoint
    from training.loop.task import HasCompanion

    if isinstance(ready.task, HasCompanion):
        content = savepoint.read(before.folder, ready.run.preset)
        ready.task.companion.load_state_dict(content["companion"])


def finished(stage: DataStage) -> Path:
    """Return the bundle of a stage that has been run. Raises UsageError if its budget left out some of its training."""
    if stage.weights.is_file():
        return stage.weights
    raise UsageError(
        f"the budget of stage {stage.name} ended before all stages of {stage.args.preset}",
        "one that reaches them all",
        "a larger --minutes or --images, in another --out",
    )


def copied(weights: Path, out: Path) -> Path:
    """Copy the last weights to the folder of all stages, replaced atomically. Raises StorageError."""
    from training.loop.savepoint import storing

    path = out / weights.name
    partial_path = path.with_suffix(".partial")
    with storing(path):
        shutil.copyfile(weights, partial_path)
        partial_path.replace(path)
    return path


def stages_of(args: argparse.Namespace) -> list[DataStage]:
    """Return the stages of a command line. Raises UsageError."""
    pairs = [_named(text) for text in args.stage]
    names = [name for name, _ in pairs]
    if twice := {name for name in names if names.count(name) > 1}:
        raise UsageError(f"--stage {min(twice)} twice", "a name of its own for every stage")
    minutes = _each("--minutes", args.minutes, duration, len(pairs))
    images = _each("--images", args.images, positive, len(pairs))
    found: list[DataStage] = []
    for number, (name, data) in enumerate(pairs):
        own = argparse.Namespace(**vars(train_parser().parse_args(["--preset", args.preset])))
        for key in vars(own).keys() & vars(args).keys():
            setattr(own, key, getattr(args, key))
        own.data, own.out, own.data_stage = data, args.out / f"{number + 1}-{name}", name
        own.minutes, own.images = minutes[number], images[number]
        own.init = found[-1].weights if found else args.init
        own.rate = FULL_RATE if args.rate is None else args.rate
        own.seed = args.seed + number  # the same draws would repeat the places of the stage before
        own.set = _settings(args.set or (), name, names)
        own.recipe = [*_built_in(own, name), *(args.recipe or ())]
        found.append(DataStage(name, own.out, own))
    return found


def described(stage: DataStage) -> StageRecord:
    """Return what the record says of a stage. Raises UsageError."""
    from training.data.sources import SHIPPED
    from training.loop.savepoint import recipe_of
    from training.stage_record import StageRecord, digest_of
    from training.starting import budget_of

    args = stage.args
    preset = registry.presets()[args.preset]
    file = SHIPPED if args.data.is_dir() else args.data
    if not file.is_file():
        raise UsageError(f"--stage {stage.name}: {file} does not exist", "a training file")
    given = args.init if stage.folder.name.startswith("1-") else None
    budget = budget_of(preset, args.minutes, args.images)
    changed = adapted(args, preset, args.rate)
    texts = {name: value for name, value in changed.recipe.items() if isinstance(value, str) and value}
    return StageRecord(
        name=stage.name,
        data=digest_of(file),
        settings=recipe_of(changed),
        budget={"minutes": budget.minutes, "images": budget.images},
        rate=args.rate,
        seed=args.seed,
        files={name: digest_of(Path(value)) for name, value in texts.items() if Path(value).is_file()},
        begun_from=digest_of(given) if given is not None and given.is_file() else "",
    )


def _named(text: str) -> tuple[str, Path]:
    """Parse "NAME=FILE"."""
    name, given, path = text.partition("=")
    if not given or not path or not _NAME.fullmatch(name):
        raise UsageError(f"--stage {text}", "NAME=FILE, with a name of small letters, such as natural=photos.toml")
    return name, Path(path)


def _each(flag: str, text: str | None, parse: Callable[[str], Number], count: int) -> list[Number] | list[None]:
    """Parse one number for each stage, or one for all."""
    if text is None:
        return [None] * count
    try:
        numbers = [parse(part) for part in text.split(",")]
    except (ValueError, argparse.ArgumentTypeError) as error:
        raise UsageError(f"{flag} {text} ({error})", "numbers above 0, such as 30,30,60") from None
    if len(numbers) not in (1, count):
        raise UsageError(f"{flag} {text} for {count} stages", "one number, or as many as stages")
    return numbers * count if len(numbers) == 1 else numbers


def _settings(texts: Sequence[str], stage: str, names: Sequence[str]) -> list[str]:
    """Return the settings NAME=VALUE of one stage: those of all, and its own without "STAGE:"."""
    found = []
    for text in texts:
        before, colon, rest = text.partition(":")
        if not colon or "=" in before:
            found.append(text)
        elif before not in names:
            raise UsageError(f"--set {text}: there is no stage {before}", f"one of {', '.join(names)}")
        elif before == stage:
            found.append(rest)
    return found


def _built_in(args: argparse.Namespace, name: str) -> list[str]:
    """Return the recipe settings that come with a stage's name, of those that the preset has."""
    from pipeline.bands import RGB

    preset = adapted(args, registry.presets()[args.preset])
    place = 0 if set(RGB) <= set(preset.bands) else 1
    return [f"{key}={value[place]}" for key, value in STAGES.get(name, {}).items() if key in preset.recipe]


if __name__ == "__main__":
    sys.exit(main())
