"""The training tasks by name: those in `training.tasks`, and those that packages bring."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from pipeline import discovery
from pipeline.errors import UsageError
from training import tasks
from training.task_spec import TaskSpec

if TYPE_CHECKING:
    from training.presets import Preset

PLUGINS = "sen2fine.tasks"  # group of entry points

_REGISTERED: dict[str, TaskSpec] = {}


def register(task: TaskSpec) -> None:
    """Make a task known in this process as `--task NAME`. UsageError for a name that another task or preset has.

    Commands are processes of their own: they find what a package names as an entry point of the group
    `sen2fine.tasks`, such as `mine = "my_package:TASK"`.
    """
    if known().get(task.name, task) != task:
        raise UsageError(f"there is a task {task.name} already", "a name of its own")
    others = {preset.name for other in known().values() if other.name != task.name for preset in other.presets}
    twice = sorted(others & {preset.name for preset in task.presets})
    if twice:
        raise UsageError(f"there is a preset {twice[0]} already", "a name of its own")
    _REGISTERED[task.name] = task


def known() -> dict[str, TaskSpec]:
    """The tasks of this package, then those registered so far."""
    return {**_shipped(), **_REGISTERED}


def every() -> dict[str, TaskSpec]:
    """All tasks by name, those of installed packages included."""
    _installed()
    return known()


def presets() -> dict[str, Preset]:
    """All presets by name."""
    return {preset.name: preset for task in every().values() for preset in task.presets}


def task_of(preset: Preset) -> TaskSpec:
    """The task that a preset names. UsageError where nobody knows it."""
    found = every().get(preset.task)
    if found is None:
        raise UsageError(f"preset {preset.name}: there is no task {preset.task}", f"one of {', '.join(every())}")
    return found


def of_kind(kind: str) -> TaskSpec | None:
    """The task whose bundles call themselves so (`Bundle.system`), or None."""
    return next((task for task in every().values() if task.kind == kind), None)


@lru_cache(maxsize=1)
def _shipped() -> dict[str, TaskSpec]:
    """`TASK` of every module of the package `tasks` that has one; the others are shared by several."""
    return {one.name: one for one in discovery.in_package(tasks, "TASK", TaskSpec)}


@lru_cache(maxsize=1)
def _installed() -> None:
    """Register, once, what installed packages bring: a `TaskSpec`, or a module that registers its own."""
    for one in discovery.in_entry_points(PLUGINS, TaskSpec):
        register(one)
