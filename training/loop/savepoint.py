"""Checkpoints of a run, written atomically and checked against the run's preset when read.

`torch.load(weights_only=True)` opens them.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
from dataclasses import MISSING, asdict, fields
from typing import TYPE_CHECKING, Any

import torch

from pipeline.errors import StorageError, UsageError
from training.loop.optimisers import OWN
from training.loop.progress import Budget
from training.presets import Preset

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

CHECKPOINT = "checkpoint.pt"
FORMAT_VERSION = 4
READ = (2, 3, 4)  # 2 had one optimiser; before 4, checkpoints did not hold the budget
KEYS = {
    "format_version",
    "preset",
    "config",
    "seed",
    "network",
    "companion",
    "average",
    "average_count",
    "optimisers",
    "at",
}
# Preset fields that may change between resumes: budget and sampler. All others define what is trained.
_FREE = ("minutes", "images", "sampler")
_SHOWN = 160  # maximum characters of a library's message
_UNREADABLE = (RuntimeError, pickle.UnpicklingError, EOFError, OSError, ValueError, KeyError, AttributeError, TypeError)


def recipe_of(preset: Preset) -> dict[str, Any]:
    """Return the fields of a preset that a checkpoint records, in JSON types."""
    described = {name: value for name, value in asdict(preset).items() if name not in _FREE}
    recipe: dict[str, Any] = json.loads(json.dumps(described, sort_keys=True))
    return recipe


@contextlib.contextmanager
def storing(path: Path) -> Iterator[None]:
    """Convert write errors inside the block to a StorageError that names `path`."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch raises RuntimeError
        found = f"{path} cannot be written ({_first_line(error)})"
        raise StorageError(found, "a folder on a writable disk with room", "another --out, or make room") from error


def write(folder: Path, content: dict[str, Any]) -> None:
    """Write `content` to the folder's checkpoint, replacing the last one atomically. Raises StorageError."""
    partial = folder / (CHECKPOINT + ".partial")
    with storing(folder / CHECKPOINT):
        folder.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            torch.save({"format_version": FORMAT_VERSION, **content}, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(folder / CHECKPOINT)


def read(folder: Path, preset: Preset) -> dict[str, Any]:
    """Read the folder's checkpoint of a run of a preset of that name. Raises UsageError if there is none."""
    path = folder / CHECKPOINT
    expected = f"a checkpoint of preset {preset.name}"
    if not path.is_file():
        cure = f"--resume {folder.parent}" if folder.name == CHECKPOINT else "give another with --resume"
        raise UsageError(f"no {CHECKPOINT} in {folder}", "the folder of a run", cure)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        found = f"{path} is no readable checkpoint ({_first_line(error)})"
        raise UsageError(found, expected, "start anew without --resume") from error
    if isinstance(content, dict) and content.get("format_version") == 2 and "optimiser" in content:
        content = _upgraded(content, preset)
    if not isinstance(content, dict) or not content.keys() >= KEYS or content["format_version"] not in READ:
        raise UsageError(f"{path} is no checkpoint of this version", expected, "start anew without --resume")
    if content["preset"] != preset.name:
        raise UsageError(f"{path} is of preset {content['preset']}", expected, f"--preset {content['preset']}")
    return content


def check(folder: Path, content: Mapping[str, Any], preset: Preset, shipped: Mapping[str, Any] | None = None) -> None:
    """Raise UsageError if a checkpoint of `folder` has other settings than `preset`.

    `shipped` is the preset's recipe without the user's changes.
    """
    stored = _completed(json.loads(content["config"]), shipped or {})
    _check_recipe(folder / CHECKPOINT, stored, recipe_of(preset))


def budget_of(content: Mapping[str, Any]) -> Budget | None:
    """Return the budget of the run that wrote a checkpoint; None before format 4. Raises UsageError if invalid."""
    try:
        return Budget(**content["budget"]) if "budget" in content else None
    except TypeError as error:
        raise UsageError(f"the checkpoint has the budget {content['budget']!r:.80}", "minutes or images") from error


def _upgraded(content: dict[str, Any], preset: Preset) -> dict[str, Any]:
    """Convert a checkpoint of format 2, which had one optimiser and other task names, to the current names."""
    config = {**json.loads(content["config"]), "task": preset.task}
    return {
        **content,
        "config": json.dumps(config),
        "optimisers": {OWN: content["optimiser"]},
    }


def _completed(stored: dict[str, Any], shipped: Mapping[str, Any]) -> dict[str, Any]:
    """Return the recorded settings with defaults for those that did not exist when they were written."""
    added = {one.name: one.default for one in fields(Preset) if one.default is not MISSING}
    return {**json.loads(json.dumps(added)), **stored, "recipe": {**shipped, **stored.get("recipe", {})}}


def _check_recipe(path: Path, stored: dict[str, Any], now: dict[str, Any]) -> None:
    names = sorted((now.keys() | stored.keys()).difference(_FREE))
    changed = [name for name in names if now.get(name) != stored.get(name)]
    if changed:
        raise UsageError(
            f"{path} was trained with {changed[0]} = {stored.get(changed[0])}",
            f"{changed[0]} = {now.get(changed[0])} as now",
            "give the same options as before, or start anew without --resume",
        )


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:_SHOWN]
