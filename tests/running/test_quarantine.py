"""Units that fail for good: tried alone, set aside, named, repaired; and a common cause stops the run instead."""

import json
import shlex
import subprocess
import sys
import warnings

import pytest

import pipeline
from pipeline import check
from pipeline.aoi.aoi import read_aoi
from pipeline.errors import PipelineError
from pipeline.planning.planner import make_plan
from pipeline.running import driver, pools, quarantine
from pipeline.store import layout
from tests.running.conftest import chunk_digests, config_for, run

POISON = (0, 1)  # row and column


@pytest.fixture(scope="module")
def sound(archive, wide_aoi, tmp_path_factory):
    """A run that nothing disturbs."""
    store = tmp_path_factory.mktemp("sound") / "sound.zarr"
    run(config_for(archive), wide_aoi, store)
    return store


@pytest.fixture
def begun(archive, wide_aoi, tmp_path):
    """A plan and its empty store."""
    store = tmp_path / "run.zarr"
    plan = make_plan(config_for(archive), read_aoi(str(wide_aoi)))
    driver.prepare(plan, store)
    return plan, store


def poisoned(monkeypatch, fails, *, alone=True):
    """Units for which `fails` is true break the pool, and a process of their own too if `alone`."""
    real = pools.process

    def process(unit, store, digest, attempt=1):
        if fails(unit):
            msg = "bad token sig=CANARY123 broke it"
            raise RuntimeError(msg)
        return real(unit, store, digest, attempt)

    monkeypatch.setattr(pools, "process", process)
    if alone:
        broken = [sys.executable, "-c", "import sys; sys.exit('error: broken for good')"]
        monkeypatch.setattr(quarantine, "isolated", lambda unit, store: PipelineError(f"unit {unit.id}: {broken[2]}"))
        monkeypatch.setattr("pipeline.running.unit_queue.isolated", quarantine.isolated)
    return real


def at_poison(unit):
    return (unit.row, unit.col) == POISON


def go(plan, store):
    return driver.run_plan(plan, store, cluster="inline", workers=1)


@pytest.mark.slow
def test_a_unit_that_fails_only_beside_others_is_computed_alone(begun, sound, monkeypatch):
    plan, store = begun
    poisoned(monkeypatch, at_poison, alone=False)
    summary = go(plan, store)
    assert summary.quarantined == ()
    assert summary.computed == summary.units
    assert chunk_digests(store) == chunk_digests(sound)


@pytest.mark.slow
def test_a_unit_that_always_fails_is_set_aside(begun, sound, monkeypatch, capsys):
    plan, store = begun
    real = poisoned(monkeypatch, at_poison)
    summary = go(plan, store)
    assert len(summary.quarantined) == 1
    assert layout.status(store) == layout.STATUS_QUARANTINE
    with pytest.warns(UserWarning, match=summary.quarantined[0]):
        pipeline.open_store(store)
    assert check.main([str(store), "--verify", "full"]) == 4
    said = capsys.readouterr().out
    assert summary.quarantined[0] in said
    assert "--repair" in said

    assert go(plan, store).computed == 0  # a requeued job does not burn itself on the same unit again
    monkeypatch.setattr(pools, "process", real)
    assert check.main([str(store), "--verify", "full", "--repair"]) == 0
    assert chunk_digests(store) == chunk_digests(sound)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipeline.open_store(store)


@pytest.mark.slow
def test_the_record_tells_how_to_repeat_the_failure(begun, monkeypatch):
    plan, store = begun
    poisoned(monkeypatch, at_poison)
    monkeypatch.setattr("pipeline.running.unit_queue.worth_isolating", lambda error: False)
    unit = go(plan, store).quarantined[0]
    text = (store / "_run" / "quarantine" / f"{unit}.json").read_text()
    assert "CANARY123" not in text
    words = shlex.split(json.loads(text)["reproduce"])
    done = subprocess.run([sys.executable, *words[1:]], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split(":")[0]) == (0, unit)  # nothing is wrong with it in truth


@pytest.mark.slow
def test_failures_beyond_one_percent_stop_the_run(begun, sound, monkeypatch):
    plan, store = begun
    tried = []
    real = poisoned(monkeypatch, lambda unit: bool(tried.append(unit.id)) or True)
    with pytest.raises(PipelineError, match="tried 3 times"):
        go(plan, store)
    assert len(set(tried)) < sum(1 for _ in plan.units())
    assert layout.status(store) == layout.STATUS_INCOMPLETE
    assert quarantine.Quarantine(store, plan.digest).read() == {}
    monkeypatch.setattr(pools, "process", real)
    go(plan, store)
    assert chunk_digests(store) == chunk_digests(sound)


def test_a_unit_alone_says_what_is_wrong_in_one_line(begun, tmp_path):
    _, store = begun
    for words, code in (([str(store), "z1-r9"], 2), ([str(tmp_path), "z1"], 2)):
        done = subprocess.run(
            [sys.executable, "-m", "pipeline.running.single", *words], capture_output=True, text=True, check=False
        )
        assert done.returncode == code
        assert done.stderr.startswith("error: ")
        assert len(done.stderr.strip().splitlines()) == 1


def test_allowed_is_one_percent_and_one_in_small_runs():
    assert [quarantine.allowed(units) for units in (1, 99, 100, 199, 1000)] == [1, 1, 1, 1, 10]
