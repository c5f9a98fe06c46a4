"""Where units run: other people's schedulers, and words where there is none."""

import asyncio

import numpy as np
import pytest

from pipeline.aoi.aoi import read_aoi
from pipeline.archive.read.rate_limit import connections_here
from pipeline.errors import Unreachable, UsageError
from pipeline.planning.planner import make_plan
from pipeline.run import main
from pipeline.running import driver, pools
from pipeline.running.dask_scheduler import INSECURE_VARIABLE
from pipeline.running.pools import open_pool
from tests.conftest import without_log
from tests.running.conftest import config_for, run, values


def logs_redacted():
    import logging

    return type(logging.getLogRecordFactory()).__name__


@pytest.mark.slow
def test_an_existing_scheduler_gives_the_same_store(archive, aoi, tmp_path):
    """Its workers, which ran no set-up of ours, share what archives grant and log no secret.

    Each computes two units at once. What archives grant is shared by processes.
    """
    from distributed import Client, LocalCluster

    run(config_for(archive), aoi, tmp_path / "here.zarr")
    with LocalCluster(n_workers=2, threads_per_worker=2, host="127.0.0.1", dashboard_address="127.0.0.1:0") as other:
        run(config_for(archive), aoi, tmp_path / "there.zarr", cluster=other.scheduler_address)
        with Client(other) as client:
            assert set(client.run(connections_here, 8).values()) == {4}
            assert set(client.run(logs_redacted).values()) == {"_RedactedRecords"}
    assert np.array_equal(values(tmp_path / "here.zarr"), values(tmp_path / "there.zarr"))


def test_no_scheduler_at_the_address_is_one_line(monkeypatch):
    monkeypatch.setattr("pipeline.running.dask_scheduler._CONNECT_TIMEOUT", "1s")
    with (
        pytest.raises(UsageError, match=r"no Dask scheduler with workers at tcp://127\.0\.0\.1:9"),
        open_pool("tcp://127.0.0.1:9", 1, "x", "y"),
    ):
        pass


@pytest.mark.parametrize(
    "address",
    ["tcp://10.0.0.5:8786", "10.0.0.5:8786", "tcp://scheduler:8786", "ucx://[fe80::1]:1", "ws://127.example:1"],
)
def test_a_scheduler_that_others_can_reach_needs_encryption(monkeypatch, address):
    """Refused before anything is sent there; who knows the network may say so."""
    reached = []

    def client(there, **_):
        reached.append(there)
        raise OSError("nobody is there")

    monkeypatch.setattr("distributed.Client", client)
    with pytest.raises(UsageError, match="can run code as its owner") as caught, open_pool(address, 1, "x", "y"):
        pass
    assert "tls://HOST:PORT" in caught.value.expected
    assert f"{INSECURE_VARIABLE}=1" in caught.value.cure
    assert reached == []
    monkeypatch.setenv(INSECURE_VARIABLE, "yes")
    with pytest.raises(UsageError, match="can run code as its owner"), open_pool(address, 1, "x", "y"):
        pass
    monkeypatch.setenv(INSECURE_VARIABLE, "1")
    with pytest.raises(UsageError, match="no Dask scheduler"), open_pool(address, 1, "x", "y"):
        pass
    assert reached == [address]


@pytest.mark.parametrize(
    "address",
    [
        "tls://scheduler:8786",
        "wss://10.0.0.5:1",
        "tcp://127.0.0.1:1",
        "127.0.0.1:1",
        "tcp://localhost:1",
        "tcp://[::1]:1",
    ],
)
def test_encrypted_and_loopback_schedulers_are_reached(monkeypatch, address):
    def client(there, **_):
        raise OSError(f"reached {there}")

    monkeypatch.setattr("distributed.Client", client)
    with pytest.raises(UsageError, match="reached") as caught, open_pool(address, 1, "x", "y"):
        pass
    assert address in str(caught.value)


def test_cuda_without_a_gpu_is_one_line(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UsageError, match="sees no GPU"), open_pool("cuda", 1, "x", "y"):
        pass


class FromGdal(Exception):
    """As the errors behind rasterio's: pickled, but not to be loaded again."""

    def __init__(self, number, text):
        self.number, self.text = number, text

    @property
    def args(self):
        return self.number, self.text


def test_errors_from_a_worker_keep_their_kind(monkeypatch):
    from distributed.core import clean_exception, error_message

    def process(unit, store, digest, attempt):
        try:
            raise FromGdal(403, "https://archive.example/a.tif?sig=CANARY")
        except FromGdal:
            raise Unreachable("archive.example does not answer", "an answer", "wait") from None

    def sent(call):
        """What Dask would send (in bytes, as a comm would bring it)."""
        try:
            call()
        except Unreachable as error:
            return {**error_message(error), "exception": error_message(error)["exception"].data, "traceback": None}

    lost = clean_exception(**sent(lambda: process(None, "s", "d", 1)))[1]
    assert type(lost) is Exception, "Dask brings causes along by now; this detour is not needed any more"
    monkeypatch.setattr(pools, "process", process)
    message = sent(lambda: pools._run_on_worker(1, None, "s", "d", 1))
    assert "CANARY" not in str(message)
    arrived = clean_exception(**message)[1]
    assert type(arrived) is Unreachable
    assert (arrived.found, arrived.expected, arrived.cure) == ("archive.example does not answer", "an answer", "wait")


def test_a_receipt_that_dies_with_its_worker_is_waited_for_again(monkeypatch):
    """The scheduler makes it a second time by itself; that is not the end of the scheduler."""
    import threading
    import time
    from types import SimpleNamespace

    from distributed import Client, LocalCluster

    calls, again = [], threading.Event()

    def process(unit, store, digest, attempt):
        calls.append(attempt)
        assert len(calls) == 1 or again.wait(60)
        return f"receipt {len(calls)}"

    def until(true):
        ends = time.monotonic() + 60
        while not true():
            assert time.monotonic() < ends
            time.sleep(0.01)

    monkeypatch.setattr(pools, "process", process)
    unit = SimpleNamespace(id="u1")
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None) as two,
        Client(two) as client,
    ):
        pool = pools.DaskPool(client, "s", "d")
        pool.submit(unit, 1)
        until(pool._done.has_ready)
        holder = next(worker for worker in two.workers.values() if "u1#1" in worker.data)
        client.sync(holder.close)
        until(lambda: client.futures["u1#1"].status == "lost")
        assert pool.next(0) is None
        again.set()
        assert pool.next(60) == (unit, 1, "receipt 2")
        assert pool.next(0) is None


def lost_connection():
    from distributed.client import FutureCancelledError

    return FutureCancelledError("u1#1", "scheduler-connection-lost")


def closed_client():
    from distributed.client import ClosedClientError

    return ClosedClientError("Client is closed. Can't send update-graph message.")


@pytest.mark.parametrize("error", [lost_connection, closed_client, OSError, TimeoutError, asyncio.CancelledError])
@pytest.mark.parametrize("asked", ["nthreads", "submit", "result"])
def test_a_scheduler_that_dies_at_any_moment_interrupts(monkeypatch, asked, error):
    """A client raises other things when it asks for a result, sends a task or counts workers."""
    from types import SimpleNamespace

    from distributed import Client, LocalCluster
    from distributed.client import Future

    from pipeline.errors import Interrupted

    def dead(*_given, **_named):
        raise error()

    monkeypatch.setattr(pools, "process", lambda *_given: "receipt")
    unit = SimpleNamespace(id="u1")
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None) as one,
        Client(one) as client,
    ):
        pool = pools.DaskPool(client, "s", "d")
        monkeypatch.setattr(Future if asked == "result" else Client, asked, dead)
        with pytest.raises(Interrupted, match="scheduler is gone"):
            pool.capacity, pool.submit(unit, 1), pool.next(60)
        monkeypatch.undo()


@pytest.mark.slow
def test_a_failing_unit_is_tried_again_and_the_others_are_done(archive, aoi, tmp_path, monkeypatch):
    """One unit fails twice, then works: the run completes and its receipt says so."""
    real, failures = pools.process, []

    def flaky(unit, store, digest, attempt=1):
        if unit.row == 0 and unit.col == 0 and attempt < 3:
            failures.append(attempt)
            msg = "a cosmic ray"
            raise RuntimeError(msg)
        return real(unit, store, digest, attempt)

    monkeypatch.setattr(pools, "process", flaky)
    _, summary = run(config_for(archive), aoi, tmp_path / "flaky.zarr")
    assert failures == [1, 2]
    assert summary.computed == summary.units


@pytest.mark.slow
def test_a_full_disk_stops_the_run_at_once(archive, aoi, tmp_path, monkeypatch, capsys):
    """ENOSPC is nobody's bad unit: exit 6, and with space again the run goes on."""
    import errno

    from pipeline.store.layout import RegionWriter

    real = RegionWriter.write

    def full(self, rows, cols, arrays):
        from pipeline.store.layout import storage_error

        raise storage_error(OSError(errno.ENOSPC, "No space left on device"), tmp_path)

    words = ["--aoi", str(aoi), "--catalog", str(archive), "--sr", "bicubic", "--chunk-px", "240", "--unit-chunks", "1",
             "--max-cloud", "100", "--out", str(tmp_path / "full.zarr"), "--cluster", "inline"]  # fmt: skip
    monkeypatch.setattr(RegionWriter, "write", full)
    assert main(words) == 6
    said = capsys.readouterr().err
    assert "no space left" in said
    assert len(without_log(said).splitlines()) == 1
    monkeypatch.setattr(RegionWriter, "write", real)
    assert main(words) == 0


def test_an_archive_that_stays_away_stops_the_run_with_75(archive, aoi, tmp_path, monkeypatch):
    """An outage costs time, not units: few tries, everything done is kept, and the same run can go on."""
    from pipeline.errors import Interrupted
    from pipeline.running.unit_queue import Patience

    real, asked = pools.process, []

    def away(unit, store, digest, attempt=1):
        asked.append(unit)
        if len(asked) > 2:
            raise Unreachable("B04 of scene S at https://archive.example: Could not resolve host")
        return real(unit, store, digest, attempt)

    monkeypatch.setattr(pools, "process", away)
    store = tmp_path / "away.zarr"
    plan = make_plan(config_for(archive, unit_chunks=1), read_aoi(str(aoi)))
    driver.prepare(plan, store)
    with pytest.raises(Interrupted, match=r"archive\.example") as caught:
        driver.run_plan(plan, store, cluster="inline", workers=1, patience=Patience(0.01, 0.02, 0.05))
    assert caught.value.exit_code == 75
    assert 5 <= len(asked) <= 9
    assert len(driver.pending(plan, store)[1]) == 2


def test_workers_are_as_many_as_fit_into_memory(monkeypatch):
    from pipeline.running.memory import fitting_workers

    monkeypatch.setattr("distributed.system.MEMORY_LIMIT", 8 * 2**30)
    assert fitting_workers(16, 1000.0) == 5
    assert fitting_workers(2, 1000.0) == 2
    assert fitting_workers(16, 50_000.0) == 1


def test_more_workers_than_memory_are_refused_with_the_numbers(archive, wide_aoi, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("distributed.system.MEMORY_LIMIT", 3 * 2**30)
    words = ["--aoi", str(wide_aoi), "--catalog", str(archive), "--sr", "bicubic", "--max-cloud", "100"]
    store = tmp_path / "large.zarr"
    small = ["--chunk-px", "240", "--unit-chunks", "1"]  # six units; workers that share one take less memory
    assert main([*words, *small, "--out", str(store), "--workers", "8"]) == 2
    said = capsys.readouterr().err
    assert "6 workers" in said
    assert "limit of 3072 MiB" in said
    assert "--workers 2" in said or "--workers 3" in said
    monkeypatch.setattr("distributed.system.MEMORY_LIMIT", 2**28)
    assert main([*words, "--out", str(store)]) == 2
    assert "--unit-chunks" in capsys.readouterr().err


@pytest.mark.slow
def test_a_scheduler_that_dies_ends_the_driver_with_75(archive, aoi, tmp_path):
    """Never a hang: the driver notices within its silence, keeps what is done, and the store can be continued."""
    import re
    import signal
    import subprocess
    import time

    from tests.running.conftest import PYTHON

    log = (tmp_path / "scheduler.log").open("w+")
    scheduler = subprocess.Popen(
        [PYTHON, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard"],
        stdout=log, stderr=log,
    )  # fmt: skip
    address = None
    while address is None:
        assert scheduler.poll() is None
        time.sleep(0.1)
        found = re.search(r"tcp://127\.0\.0\.1:\d+", (tmp_path / "scheduler.log").read_text())
        address = found and found[0]
    worker = subprocess.Popen(
        [PYTHON, "-m", "distributed.cli.dask_worker", address, "--nthreads", "1", "--no-nanny", "--no-dashboard"],
        stdout=log, stderr=log,
    )  # fmt: skip
    store = tmp_path / "dies.zarr"
    run = subprocess.Popen(
        [PYTHON, "-m", "pipeline.run", "--aoi", str(aoi), "--catalog", str(archive), "--sr", "lite", "--chunk-px",
         "120", "--unit-chunks", "1", "--max-cloud", "100", "--out", str(store), "--cluster", address],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        while not list(store.glob("_run/receipts/*.json")):
            assert run.poll() is None
            time.sleep(0.05)
        scheduler.send_signal(signal.SIGKILL)
        said = run.communicate(timeout=120)[1]
    finally:
        for process in (scheduler, worker, run):
            process.kill()
            process.wait()
        log.close()
    assert run.returncode == 75, said
    assert "scheduler is gone" in said.strip().splitlines()[-1]
