"""Units that share a process: read and written while networks of others run, one network at a time, same pixels."""

import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pipeline.aoi.aoi import read_aoi
from pipeline.bands import BAND_NAMES
from pipeline.errors import Interrupted, StorageError
from pipeline.planning.planner import make_plan
from pipeline.running import pools
from pipeline.running.choices import Crew, crew_of
from pipeline.running.driver import pending, prepare, run_plan
from pipeline.running.inline_pool import InlinePool, inline_pool
from pipeline.running.rolling_read import RollingRead
from pipeline.running.stop import require_wanted
from pipeline.store.receipts import Ledger
from pipeline.superres import registry, superres
from pipeline.superres.sweep import Sweep
from tests.running.conftest import chunk_digests, config_for, values
from tests.toys import waiting

GIVES_UP_S = 60.0


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.setitem(registry._REGISTERED, waiting.SYSTEM.name, waiting.SYSTEM)
    return waiting.SYSTEM


def plan_in(store, archive, aoi, bands=BAND_NAMES[1:4]):
    plan = make_plan(config_for(archive, sr=waiting.SYSTEM.name, bands=bands), read_aoi(str(aoi)), workers=3)
    prepare(plan, store)
    return plan


def test_units_are_read_while_others_wait_and_no_network_runs_beside_another(archive, aoi, tmp_path, toy, monkeypatch):
    """The first window goes on only when three units have been read, which one after another would never be."""
    read, running, most, passed = set(), [], [], threading.Event()
    real_read, real_predict = RollingRead._read, waiting.Waiting.predict

    def counted(self, *given):
        read.add(self._job.unit)
        if len(read) >= 3:
            passed.set()
        return real_read(self, *given)

    def predict(self, stage, given):
        running.append(stage)
        most.append(len(running))
        assert passed.wait(GIVES_UP_S), "no other unit was read meanwhile"
        running.pop()
        return real_predict(self, stage, given)

    monkeypatch.setattr(RollingRead, "_read", counted)
    monkeypatch.setattr(waiting.Waiting, "predict", predict)
    plan = plan_in(tmp_path / "a.zarr", archive, aoi)
    summary = run_plan(plan, tmp_path / "a.zarr", cluster="inline", workers=3)
    assert summary.computed == summary.units >= 4
    assert set(most) == {1}


def test_the_next_window_of_a_unit_is_prepared_while_one_is_at_the_device(archive, aoi, tmp_path, toy, monkeypatch):
    prepared, second = [], threading.Event()
    real_input, real_predict = superres.window_input, waiting.Waiting.predict

    def counted(*given):
        found = real_input(*given)
        prepared.append(found)
        if len(prepared) >= 2:
            second.set()
        return found

    def predict(self, stage, given):
        assert second.wait(GIVES_UP_S), "no window was prepared meanwhile"
        return real_predict(self, stage, given)

    monkeypatch.setattr(superres, "window_input", counted)
    monkeypatch.setattr(waiting.Waiting, "predict", predict)
    plan = plan_in(tmp_path / "a.zarr", archive, aoi)
    summary = run_plan(plan, tmp_path / "a.zarr", cluster="inline", workers=1)
    assert summary.computed == summary.units


@pytest.mark.slow
def test_pixels_and_receipts_are_those_of_units_one_by_one(archive, aoi, tmp_path, toy):
    receipts = {}
    for workers in (1, 3):
        store = tmp_path / f"{workers}.zarr"
        plan = plan_in(store, archive, aoi, BAND_NAMES)
        assert run_plan(plan, store, cluster="inline", workers=workers).computed == len(list(plan.units()))
        found = Ledger(store, plan.digest).read_all()
        receipts[workers] = {one.unit: (one.chunks, one.valid, one.windows, one.scenes, one.detail) for one in found}
    assert receipts[1] == receipts[3]
    assert np.array_equal(values(tmp_path / "1.zarr"), values(tmp_path / "3.zarr"))
    assert chunk_digests(tmp_path / "1.zarr") == chunk_digests(tmp_path / "3.zarr")


def test_a_failure_leaves_the_other_units_whole_and_the_run_can_go_on(archive, aoi, tmp_path, toy, monkeypatch):
    store = tmp_path / "a.zarr"
    plan = plan_in(store, archive, aoi)
    third, real = list(plan.units())[2], pools.process

    def full(unit, *given):
        if unit == third:
            raise StorageError("no space left")
        return real(unit, *given)

    monkeypatch.setattr(pools, "process", full)
    with pytest.raises(StorageError, match="no space"):
        run_plan(plan, store, cluster="inline", workers=3)
    todo, done = pending(plan, store, "full")
    assert third in todo
    monkeypatch.setattr(pools, "process", real)
    assert run_plan(plan, store, cluster="inline", workers=3).resumed == len(done)
    assert pending(plan, store, "full")[0] == []


class TestInlinePool:
    def test_one_at_a_time_runs_in_the_calling_thread(self):
        with inline_pool(lambda unit, attempt: (unit, attempt, threading.current_thread()), 1) as pool:
            assert isinstance(pool, InlinePool)
            pool.submit("u", 2)
            assert pool.next(0)[2] == ("u", 2, threading.main_thread())

    def test_several_run_at_once_and_come_as_they_end(self):
        gates = {unit: threading.Event() for unit in "abc"}
        met = threading.Barrier(4, timeout=GIVES_UP_S)

        def run(unit, attempt):
            met.wait()
            assert gates[unit].wait(GIVES_UP_S)
            if unit == "b":
                raise RuntimeError("a cosmic ray")
            return f"{unit} by try {attempt}"

        with inline_pool(run, 3) as pool:
            assert pool.capacity == 3
            for i, unit in enumerate("abc"):
                pool.submit(unit, i)
            met.wait()
            assert pool.next(0) is None
            gates["c"].set()
            assert pool.next(GIVES_UP_S) == ("c", 2, "c by try 2")
            gates["b"].set()
            unit, attempt, error = pool.next(GIVES_UP_S)
            assert (unit, attempt, str(error)) == ("b", 1, "a cosmic ray")
            gates["a"].set()
            assert pool.next(GIVES_UP_S)[2] == "a by try 0"

    def test_a_lost_gpu_ends_the_run(self):
        def run(unit, attempt):
            raise getattr(torch, "AcceleratorError", RuntimeError)("CUDA error: unspecified launch failure")

        with inline_pool(run, 2) as pool:
            pool.submit("a", 1)
            with pytest.raises(Interrupted, match="GPU of this process has failed"):
                pool.next(GIVES_UP_S)

    def test_what_is_left_ends_before_its_next_window(self):
        """As after a second Ctrl-C: the run does not wait for whole units."""
        begun, windows = threading.Event(), []

        def run(unit, attempt):
            with Sweep(require=require_wanted) as sweep:
                for _ in sweep.in_order(windows.append, range(10**9)):
                    begun.set()

        with inline_pool(run, 2) as pool:
            pool.submit("a", 1)
            assert begun.wait(GIVES_UP_S)
        assert 0 < len(windows) < 10**9
        with Sweep(require=require_wanted) as sweep:  # no other thread is told to end
            assert list(sweep.in_order(abs, [-1])) == [1]


@pytest.mark.parametrize(
    ("cluster", "workers", "units", "at_once", "crew"),
    [
        ("inline", 4, 9, 1, (1, 1, 4)), ("local", 4, 9, 1, (4, 1, 1)), ("local", 4, 2, 1, (2, 1, 2)),
        ("inline", 3, 9, 3, (1, 3, 1)), ("inline", 3, 1, 3, (1, 1, 3)), ("inline", 1, 9, 3, (1, 1, 1)),
        ("inline", 3, 2, 3, (1, 2, 1)), ("local", 12, 99, 3, (4, 3, 1)), ("local", 12, 5, 3, (4, 2, 1)),
        ("local", 12, 2, 3, (2, 1, 6)), ("cuda", 6, 99, 3, (2, 3, 1)), ("local", 2, 0, 1, (1, 1, 2)),
    ],
)  # fmt: skip
def test_workers_are_divided_over_processes_units_and_threads(cluster, workers, units, at_once, crew):
    assert Crew.of(cluster, workers, units, at_once) == Crew(*crew)


def test_only_workers_of_this_machine_share_a_process(toy):
    """A job of a cluster, or a worker of a scheduler, has as many threads as whoever started it gave it."""
    there = {cluster: crew_of(cluster, 6, 99, toy.name) for cluster in ("local", "cuda", "slurm", "tcp://there:8786")}
    assert {cluster: crew.at_once for cluster, crew in there.items()} == {
        "local": 3, "cuda": 3, "slurm": 1, "tcp://there:8786": 1
    }  # fmt: skip
    assert there["slurm"].processes == 6
    assert crew_of("local", 6, 99, "bicubic") == Crew(6)


def test_what_archives_grant_is_divided_by_processes_and_not_by_their_threads():
    class Client:
        def nthreads(self):
            return {"tcp://a": 3, "tcp://b": 3}

        def submit(self, *given, **_named):
            sent.append(given)
            return SimpleNamespace(key="u#1")

    sent = []
    pool = pools.DaskPool.__new__(pools.DaskPool)
    pool._client, pool._processes, pool._units = Client(), 1, {}
    pool._done = SimpleNamespace(add=lambda _future: None)
    pool._store, pool._digest = "s", "d"
    assert pool.capacity == 6
    pool.submit(SimpleNamespace(id="u"), 1)
    assert sent[0][1] == 2
