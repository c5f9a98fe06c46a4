"""Presets and tasks that only tests know, for as long as a test lasts."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from training import registry

if TYPE_CHECKING:
    import pytest

    from training.presets import Preset
    from training.task_spec import TaskSpec


def add_preset(monkeypatch: pytest.MonkeyPatch, preset: Preset) -> None:
    """Make `preset` known among those of its task, in place of one of the same name."""
    task = registry.task_of(preset)
    others = tuple(other for other in task.presets if other.name != preset.name)
    add_task(monkeypatch, replace(task, presets=(*others, preset)))


def add_task(monkeypatch: pytest.MonkeyPatch, task: TaskSpec) -> None:
    """Make `task` known, in place of one of the same name."""
    monkeypatch.setitem(registry._REGISTERED, task.name, task)
