"""Training tasks by name: found by their place or by an entry point, one name each."""

import sys
from dataclasses import replace

import pytest

from pipeline.errors import UsageError
from tests.training.tasks_for_tests import add_task
from training import registry, train
from training.presets import Preset, Stage
from training.task_spec import TaskSpec

PRESET = Preset("toy", "toy", {}, (Stage("all", 1.0, ()),), minutes=1)
TOY = TaskSpec("toy", "nothing in particular", "toy-sr", (PRESET, replace(PRESET, name="toy-large")), build=None)


def test_every_preset_names_the_task_that_declares_it():
    for name, task in registry.every().items():
        assert (task.name, task.kind) == (name, registry.of_kind(task.kind).kind)
        assert task.presets
        assert {preset.task for preset in task.presets} == {name}
    presets = [preset.name for task in registry.every().values() for preset in task.presets]
    assert len(presets) == len({*presets}) == len(registry.presets())


def test_a_task_is_found_by_an_entry_point(tmp_path, monkeypatch):
    (tmp_path / "brought-1.0.dist-info").mkdir()
    (tmp_path / "brought-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: brought\nVersion: 1.0\n")
    entry = f"[{registry.PLUGINS}]\ntoy = {__name__}:TOY\n"
    (tmp_path / "brought-1.0.dist-info" / "entry_points.txt").write_text(entry)
    monkeypatch.setattr(registry, "_REGISTERED", {})
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    registry._installed.cache_clear()
    try:
        assert registry.every()["toy"] == TOY
        assert registry.task_of(registry.presets()["toy-large"]) == TOY
        assert registry.of_kind("toy-sr") == TOY
    finally:
        registry._installed.cache_clear()


def test_two_tasks_and_two_presets_cannot_share_a_name(monkeypatch):
    monkeypatch.setattr(registry, "_REGISTERED", {})
    registry.register(TOY)
    registry.register(TOY)
    with pytest.raises(UsageError, match="there is a task toy already"):
        registry.register(replace(TOY, summary="another"))
    with pytest.raises(UsageError, match="there is a preset toy already"):
        registry.register(replace(TOY, name="other"))


def test_a_task_stands_for_its_first_preset(monkeypatch, capsys):
    add_task(monkeypatch, TOY)
    for words, name in ((["--task", "toy"], "toy"), (["--task", "toy", "--preset", "toy-large"], "toy-large")):
        assert train.chosen(train.parser().parse_args(words)).name == name
    other = next(preset for preset in registry.presets().values() if preset.task != "toy")
    assert train.main(["--task", "toy", "--preset", other.name]) == 2
    assert f"--preset {other.name} with --task toy; expected --task {other.task}" in capsys.readouterr().err
    assert train.main([]) == 2
    assert "neither --preset nor --task" in capsys.readouterr().err
