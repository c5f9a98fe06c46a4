"""Checks of arguments before a training run, its budget, and remarks for the user."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.errors import UsageError
from training import registry

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from typing import Any

    from training.loop.run import Budget, Run
    from training.presets import Preset

GENTLE = 0.3  # of the preset's learning rates, for weights that have been trained already


def check_out(out: Path | None, resume: Path | None) -> None:
    """Raise UsageError without an output folder or if it holds another run, StorageError if it is not writable."""
    from training.loop import distributed
    from training.loop.log import LOG
    from training.loop.savepoint import CHECKPOINT
    from training.quality.tables import check_writable

    if out is None:
        raise UsageError("no --out", "a folder for checkpoint, log and weights")
    if (out / CHECKPOINT).exists() and (resume is None or resume.resolve() != out.resolve()):
        raise UsageError(f"{out} holds a run already", "a new folder", f"--resume {out} to go on, or another --out")
    if distributed.rank() == 0:
        check_writable(out / LOG)  # fail before the training starts


def check_init(path: Path, preset: Preset) -> None:
    """Raise UsageError if `path` is not a bundle that the preset's network can start from."""
    from pipeline.models.bundle import load_bundle

    task = registry.task_of(preset)
    kind = task.kind
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "does not exist"
        inside = sorted(path.glob("*.safetensors"))
        cure = f"--init {inside[0]}" if inside else ""
        raise UsageError(f"--init {path} {found}", f"weights of {kind} (.safetensors)", cure)
    bundle = load_bundle(path)
    if bundle.system in task.follows:
        return
    alike = [other for task in registry.every().values() if task.kind == bundle.system for other in task.presets]
    presets = [other.name for other in alike if other.architecture == bundle.architecture] or [p.name for p in alike]
    cure = f"--preset {' or '.join(presets)}, or other weights" if presets else "other weights"
    if bundle.system != kind:
        raise UsageError(f"--init {path} holds {bundle.system}", f"{kind}, as {preset.name} trains", cure)
    if preset.scales and (bundle.in_bands, bundle.scale) != (preset.bands, preset.scale):
        raise UsageError(
            f"--init {path} is x{bundle.scale} of {', '.join(bundle.in_bands)}",
            f"x{preset.scale} of {', '.join(preset.bands)}",
            f"--set scale={bundle.scale} --set bands={','.join(bundle.in_bands)}, or other weights",
        )
    for name, ours in preset.architecture.items():
        if (theirs := bundle.architecture.get(name, ours)) != ours:
            raise UsageError(f"--init {path} has {name} = {theirs}", f"{ours}, as {preset.name} has", cure)


def rate_of(given: float | None, init: Path | None, resumed: Mapping[str, Any], kind: str) -> float:
    """Return the factor on the preset's learning rates: the user's, that of the resumed run, or the default.

    Weights of the same `kind` have been trained already: their default is `GENTLE`. Weights of another, which the task
    builds on, are not.
    """
    from pipeline.models.bundle import load_bundle

    if given is not None or resumed:
        return given if given is not None else float(resumed.get("rate", 1.0))
    trained = init is not None and init.is_file() and load_bundle(init).system == kind
    return GENTLE if trained else 1.0


def check_follows(preset: Preset) -> None:
    """Raise UsageError if the preset's task must start from other weights. Call this if none are given."""
    task = registry.task_of(preset)
    if task.follows:
        others = ", ".join(other.name for kind in task.follows if (other := registry.of_kind(kind)) is not None)
        raise UsageError(
            f"{preset.name} without --init",
            f"weights of {' or '.join(task.follows)} to begin from",
            f"train them first (--task {others}) and give them with --init" if others else "",
        )


def budget_of(preset: Preset, minutes: float | None, images: int | None, before: Budget | None = None) -> Budget:
    """Return the budget: the user's, else that of the resumed run, else the preset's images, else its minutes."""
    from training.loop.run import Budget

    if before is not None and minutes is None and images is None:
        return before
    images = images or (None if minutes else preset.images)
    return Budget(None if images else minutes or preset.minutes, images)


def remarks(run: Run, resumed: Path, data: Path) -> list[str]:
    """Return remarks for the user about a resumed run."""
    at, said = run.at, [f"goes on from {resumed}: {run.at.images} images in {run.at.elapsed_s / 60:.1f} minutes"]
    if run.before is not None:
        said.append(f"its budget was {run.before} and is {run.budget} now{_extension(run)}")
    if run.budget.progress(at.elapsed_s, at.images) >= 1:
        said.append(f"the budget is already spent: {run.budget} in all; increase --minutes or --images")
    if (now := distributed_batch(run)) != (before := run.processes_before * run.preset.batch):
        said.append(f"every step takes {now} images, before it took {before}: another number of processes")
    if len(run.learned_from) > 1:
        said.append(f"{data} has changed since the run began: it may have been trained on places that are now held out")
    return said


def distributed_batch(run: Run) -> int:
    """Return the images per step over all processes."""
    from training.loop import distributed

    return distributed.world() * run.preset.batch


def _extension(run: Run) -> str:
    """Describe how a larger budget continues a finished run; "" for other runs."""
    if not run.extending:
        return ""
    unit = "images" if run.budget.images else "minutes"
    begin, parts = run.budget.spent(run.at), []
    left = run.budget.total - begin
    for stage in run.preset.stages:
        end = begin + left * stage.share
        first, last = (round(edge if run.budget.images else edge / 60, 1) for edge in (begin, end))
        parts.append(f"{stage.name} from {first:g} to {last:g}")
        begin = end
    return (
        f": all stages begin anew from the averaged weights, with warm-up and the preset's rates "
        f"({', '.join(parts)} {unit})"
    )
