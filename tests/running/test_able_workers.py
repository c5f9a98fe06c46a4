"""Schedulers that are there already: signals are heard while waiting, and workers that cannot do the work are named."""

import os
import re
import signal
import subprocess
import time
from contextlib import contextmanager
from dataclasses import replace

import pytest

from pipeline.errors import Interrupted, UsageError
from pipeline.running import pools, software, worker_check
from pipeline.running.stop import Stop
from tests.running.conftest import PYTHON

WORDS = ("--sr", "bicubic", "--chunk-px", "240", "--unit-chunks", "1", "--max-cloud", "100", "--bands", "B02,B03,B04")


def _program(name, *words, log, **more):
    return subprocess.Popen([PYTHON, "-m", f"distributed.cli.{name}", *words], stdout=log, stderr=log, **more)


@contextmanager
def scheduler(folder):
    """A scheduler of its own: its address."""
    with (folder / "scheduler.log").open("w") as log:
        process = _program("dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", log=log)
        try:
            while not (found := re.search(r"tcp://127\.0\.0\.1:\d+", (folder / "scheduler.log").read_text())):
                assert process.poll() is None
                time.sleep(0.1)
            yield found[0]
        finally:
            process.kill()
            process.wait()


@contextmanager
def worker(address, folder, **more):
    with (folder / "worker.log").open("w") as log:
        words = (address, "--nthreads", "1", "--no-nanny", "--no-dashboard")
        process = _program("dask_worker", *words, log=log, **more)
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def start(archive, aoi, store, address):
    return subprocess.Popen(
        [PYTHON, "-m", "pipeline.run", "--aoi", str(aoi), "--catalog", str(archive), "--out", str(store), *WORDS,
         "--cluster", address], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_heard_while_no_worker_is_there(archive, aoi, tmp_path, number):
    with scheduler(tmp_path) as address:
        run = start(archive, aoi, tmp_path / "run.zarr", address)
        while not (tmp_path / "run.zarr" / "_run" / "current.json").exists():
            assert run.poll() is None, run.communicate()
            time.sleep(0.1)
        time.sleep(3)
        run.send_signal(number)
        began = time.monotonic()
        said = run.communicate(timeout=100)[1]
        assert time.monotonic() - began < 40, "it was heard after the time-out for workers"
    assert run.returncode == 75, said
    assert "stopped while waiting for workers" in said
    assert not (tmp_path / "run.zarr" / "_run" / "lease.json").exists()


@pytest.mark.slow
def test_a_worker_without_the_package_is_noticed_at_once(archive, aoi, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "sitecustomize.py").write_text("import sys\nsys.modules['pipeline'] = None\n")
    with scheduler(tmp_path) as address:
        environment = {**os.environ, "PYTHONPATH": str(elsewhere)}
        with worker(address, tmp_path, cwd=elsewhere, env=environment):
            run = start(archive, aoi, tmp_path / "run.zarr", address)
            said = run.communicate(timeout=200)[1]
    assert run.returncode == 2, said
    line = said.strip().splitlines()[-1]
    assert "cannot do the work" in line
    assert "pipeline" in line
    assert "tcp://127.0.0.1" in line
    assert not list((tmp_path / "run.zarr").glob("_run/receipts/*"))


@pytest.fixture
def near():
    """A client of a worker in this process."""
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None) as one,
        Client(one) as client,
    ):
        yield client


def test_a_worker_with_other_software_or_no_store_is_named(near, archive, aoi, tmp_path, monkeypatch):
    from pipeline.aoi.aoi import read_aoi
    from pipeline.planning.planner import make_plan
    from pipeline.running.driver import prepare
    from tests.running.conftest import config_for

    plan, store = make_plan(config_for(archive), read_aoi(str(aoi))), tmp_path / "run.zarr"
    with pytest.raises(UsageError, match=r"run\.zarr does not exist on"):
        worker_check.require_able(near, str(store), plan.digest)
    prepare(plan, store)
    worker_check.require_able(near, str(store), plan.digest)
    assert not list((store / "_run").glob("lease*"))
    other = replace(software.this_software(), version="0.0.9")
    monkeypatch.setattr(worker_check, "look", lambda *_: str(other))
    with pytest.raises(UsageError, match=r"it computes with sen2fine 0\.0\.9"):
        worker_check.require_able(near, str(store), plan.digest)


def test_a_late_worker_with_other_software_computes_nothing(monkeypatch):
    monkeypatch.setattr(pools, "process", lambda *_: pytest.fail("it computed"))
    with pytest.raises(UsageError, match="a worker computes with"):
        pools._run_on_worker(1, None, "s", "d", 1, "sen2fine 0.0.9")


def test_a_stop_without_workers_ends_at_once(near, monkeypatch):
    """As in a queue that keeps workers waiting for hours."""
    stop = Stop()
    pool = pools.DaskPool(near, "s", "d", float("inf"), stop=stop)
    monkeypatch.setattr(near, "nthreads", dict)
    assert pool.next(0.1) is None
    stop.asked = True
    with pytest.raises(Interrupted, match="stopped while no worker was there"):
        pool.next(5.0)
