"""Registry of training tasks: those in `training.tasks`, and those of installed packages."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from pipeline import discovery
from pipeline.errors import UsageError
from training import tasks
from training.task_spec import TaskSpec

if TYPE_CHECKING:
    from training.conversion import Conversion
    from training.presets import Preset

PLUGINS = "sen2fine.tasks"  # entry point group

_REGISTERED: dict[str, TaskSpec] = {}


def register(task: TaskSpec) -> None:
    """Register a task as `--task NAME` in this process. Raises UsageError if another task or preset has the name.

    For the command line, declare an entry point in the group `sen2fine.tasks`, such as `mine = "my_package:TASK"`.
    """
    if known().get(task.name, task) != task:
        raise UsageError(f"there is a task {task.name} already", "a name of its own")
    others = {preset.name for other in known().values() if other.name != task.name for preset in other.presets}
    twice = sorted(others & {preset.name for preset in task.presets})
    if twice:
        raise UsageError(f"there is a preset {twice[0]} already", "a name of its own")
    _REGISTERED[task.name] = task


def known() -> dict[str, TaskSpec]:
    """Return the tasks of this package and those registered so far."""
    return {**_shipped(), **_REGISTERED}


def every() -> dict[str, TaskSpec]:
    """Return all tasks by name, including those of installed packages."""
    _installed()
    return known()


def conversions() -> dict[str, Conversion]:
    """Return all conversions of checkpoints by name: those of tasks, and the `CONVERSIONS` of modules beside them."""
    of_tasks = [task.convert for task in every().values() if task.convert is not None]
    others = [one for group in discovery.in_package(tasks, "CONVERSIONS", tuple) for one in group]
    return {conversion.name: conversion for conversion in (*of_tasks, *others)}


def presets() -> dict[str, Preset]:
    """Return all presets by name."""
    return {preset.name: preset for task in every().values() for preset in task.presets}


def task_of(preset: Preset) -> TaskSpec:
    """Return the task of a preset. Raises UsageError if it does not exist."""
    found = every().get(preset.task)
    if found is None:
        raise UsageError(f"preset {preset.name}: there is no task {preset.task}", f"one of {', '.join(every())}")
    return found


def of_kind(kind: str) -> TaskSpec | None:
    """Return the task with this kind of bundle (`Bundle.system`), or None."""
    return next((task for task in every().values() if task.kind == kind), None)


@lru_cache(maxsize=1)
def _shipped() -> dict[str, TaskSpec]:
    """Return the `TASK` of every module of `training.tasks` that defines one."""
    return {one.name: one for one in discovery.in_package(tasks, "TASK", TaskSpec)}


@lru_cache(maxsize=1)
def _installed() -> None:
    """Register, once, the tasks of installed packages: a `TaskSpec`, or a module that registers its own."""
    for one in discovery.in_entry_points(PLUGINS, TaskSpec):
        register(one)
