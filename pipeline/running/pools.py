"""Pools that run units: in this process, on a local Dask cluster, with one worker per GPU, or on any scheduler.

Pools return receipts or errors in the order in which units finish.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from concurrent.futures import CancelledError
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from pipeline.errors import Interrupted, PipelineError, UsageError
from pipeline.process import device_lost, end_process, set_unit_threads, unit_threads, without_device
from pipeline.running.dask_scheduler import existing_scheduler, explained, tell_dashboard
from pipeline.running.inline_pool import inline_pool
from pipeline.running.local_cluster import local_workers
from pipeline.running.scaling import Demand
from pipeline.running.software import this_software
from pipeline.running.stop import Stop
from pipeline.running.unit import process
from pipeline.running.worker_check import require_able

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from distributed import Client, Future

    from pipeline.planning.units import Unit
    from pipeline.store.receipts import Receipt

_log = logging.getLogger(__name__)
Outcome = tuple["Unit", "int", "Receipt | BaseException"]
_WORKERS_TIMEOUT_S = 120
_POLL_S = (0.0005, 0.05)  # first and longest pause between polls of the cluster
_ASK_EVERY_S = 5.0
_SILENCE_S = 60.0  # a scheduler unreachable for this long counts as gone
# glibc returns memory to the system after every multi-megabyte array unless both thresholds are raised. With the
# nanny's defaults a unit took 2.4 times the CPU seconds. glibc also keeps an arena for every thread that packs chunks:
# the peak grew from 890 to 1157 MiB over 48 equal units of 23 km2, bicubic. With one arena it was 830 MiB after the
# first unit and 863 after 32.
_MALLOC = {
    "MALLOC_TRIM_THRESHOLD_": "268435456",
    "MALLOC_MMAP_THRESHOLD_": "268435456",
    "MALLOC_ARENA_MAX": "1",
}
_PRELOAD = ["pipeline.running.worker_setup"]
_STARTED = ("local", "cuda", "slurm")
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", **_MALLOC}


class Pool(Protocol):
    """Runs units of one plan."""

    @property
    def capacity(self) -> int:
        """Number of units that run at once."""
        ...

    def submit(self, unit: Unit, attempt: int) -> None:
        """Start a unit."""
        ...

    def next(self, timeout_s: float) -> Outcome | None:
        """Wait for the next unit to end. Return (unit, attempt, receipt or error), or None after the timeout."""
        ...

    def set_demand(self, units: int) -> None:
        """Take note of the number of units left, including those at work."""
        ...


class DaskPool:
    """Runs each unit as one Dask task. Tasks return receipts of a few hundred bytes, never arrays."""

    def __init__(
        self,
        client: Client,
        store: str,
        digest: str,
        unmanned_s: float = _WORKERS_TIMEOUT_S,
        demand: Demand | None = None,
        stop: Stop | None = None,
    ) -> None:
        from distributed import as_completed

        self._stop = stop or Stop()
        self._demand = demand or Demand(0)
        self._processes = 1
        self._unmanned_s = unmanned_s  # longest time without any worker
        self._client, self._store, self._digest = client, store, digest
        self._done = as_completed(raise_errors=False)
        self._units: dict[str, tuple[Unit, int]] = {}
        self._heard = self._manned = time.monotonic()  # when the scheduler last answered, and last had a worker
        self._asked = 0.0

    @property
    def capacity(self) -> int:
        """Number of threads of all workers, each of which computes one unit at a time."""
        with _interrupted_where_gone():
            threads: dict[str, int] = self._client.nthreads()
        self._processes = max(1, len(threads))
        return max(1, sum(threads.values()))

    def set_demand(self, units: int) -> None:
        """Pass the number of units left on to an adaptive cluster."""
        self._demand.units = units

    def submit(self, unit: Unit, attempt: int) -> None:
        """Send a unit to the cluster."""
        key = f"{unit.id}#{attempt}"
        self._units[key] = (unit, attempt)
        task = (self._processes, unit, self._store, self._digest, attempt, str(this_software()))
        with _interrupted_where_gone():
            self._done.add(self._client.submit(_run_on_worker, *task, key=key, pure=False, retries=0))

    def next(self, timeout_s: float) -> Outcome | None:
        """Wait for any unit. Raises Interrupted if the scheduler is gone or has had no worker for too long."""
        until, pause_s = time.monotonic() + timeout_s, _POLL_S[0]
        while (future := self._ended()) is None:
            self._check()
            if time.monotonic() >= until:
                return None
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _POLL_S[1])
        unit, attempt = self._units.pop(str(future.key))
        if future.status == "cancelled":
            raise _gone()
        with _interrupted_where_gone():  # the scheduler may be gone since the task ended
            error = future.exception() if future.status == "error" else None
            outcome: Receipt | BaseException = future.result() if error is None else explained(error, unit)
        future.release()
        return unit, attempt, outcome

    def _ended(self) -> Future[Receipt] | None:
        """Return a unit that has ended and whose result still exists, or None.

        If a result is lost with its worker, the scheduler computes it again; wait for that.
        """
        while self._done.has_ready():
            future: Future[Receipt] = next(self._done)
            if future.status != "lost":
                return future
            self._done.add(future)
        return None

    def _check(self) -> None:
        """Raise Interrupted if the scheduler is gone or has had no worker for too long. Neither raises by itself."""
        now = time.monotonic()
        if self._client.status != "running":
            if now - self._heard > _SILENCE_S or self._client.status in ("closed", "closing"):
                raise _gone()
            return
        if now - self._asked < (_POLL_S[1] if self._stop.asked else _ASK_EVERY_S):
            return
        self._asked = now
        with _interrupted_where_gone():
            threads = self._client.nthreads()
        self._heard = now
        if threads:
            self._manned = now
        elif self._stop.asked:
            raise Interrupted("stopped while no worker was there", cure="run the same command again to continue")
        elif now - self._manned > self._unmanned_s:
            raise Interrupted(
                f"the Dask cluster has had no worker for {self._unmanned_s:.0f} s",
                cure="start workers, then run the same command again to continue",
            )


def _gone() -> Interrupted:
    return Interrupted("the Dask scheduler is gone", cure="run the same command again to continue")


@contextmanager
def _interrupted_where_gone() -> Iterator[None]:
    """Raise Interrupted for the errors of a client without a scheduler. Their type depends on the timing."""
    from distributed.client import ClosedClientError

    try:
        yield
    except (OSError, TimeoutError, asyncio.CancelledError, CancelledError, ClosedClientError) as error:
        raise _gone() from error


def _run_on_worker(processes: int, unit: Unit, store: str, digest: str, attempt: int, software: str = "") -> Receipt:
    """Run `process` in one of `processes` workers, which share the archives' rate limits and redact their logs.

    Raises UsageError if the `software` of this worker, which may have joined late, differs from the driver's.

    Errors are raised without their cause. Dask would pickle it too, and if that fails, as for GDAL's errors, the driver
    would get a plain Exception and could not tell an outage from a damaged file.
    """
    from pipeline.archive.read.rate_limit import share
    from pipeline.redaction import redact, redact_logs

    redact_logs()  # external workers have not run `worker_setup`
    share(processes)
    if software not in ("", str(this_software())):
        raise UsageError(f"a worker computes with {this_software()}", software, "start it from the run's environment")
    try:
        return process(unit, store, digest, attempt)
    except PipelineError as error:
        failure = type(error)(error.found, error.expected, error.cure)
    except Exception as error:
        if device_lost(error):
            end_process(redact(str(without_device(error))))
        raise
    raise failure  # outside the except block, so without context


@contextmanager
def open_pool(
    cluster: str,
    workers: int,
    store: str,
    digest: str,
    stop: Stop | None = None,
    threads: int = 1,
    at_once: int = 1,
) -> Iterator[Pool]:
    """Open a pool for `cluster`: "inline", "local", "cuda", "slurm", or the address of a Dask scheduler.

    Each worker of this machine computes `at_once` units at a time, and the windows of a unit in `threads` threads.
    Raises Interrupted if `stop` is requested before an existing scheduler has a worker.
    """
    if cluster == "inline":

        def run(unit: Unit, attempt: int) -> Receipt:
            return process(unit, store, digest, attempt)

        with unit_threads(threads), inline_pool(run, at_once) as pool:
            yield pool
        return
    if cluster == "slurm" and "://" in store:
        found = f"--cluster slurm with the store {store}"
        raise UsageError(
            found, "a folder that all nodes see, for keys and logs", "--plan-only, then --shard-of in jobs"
        )
    demand = Demand(workers)
    _log.info("starting workers", extra={"facts": {"stage": "units"}})
    with _client(cluster, workers, at_once, Path(store), demand, stop or Stop()) as client:
        tell_dashboard(client, started=cluster in _STARTED)
        if cluster in ("local", "cuda") and threads > 1:
            client.register_worker_callbacks(partial(set_unit_threads, threads))
        if cluster not in _STARTED:  # workers started here run the same software as this process
            require_able(client, store, digest)
        # SLURM may queue workers for hours. Elsewhere, workers that stay away will not come.
        yield DaskPool(client, store, digest, math.inf if cluster == "slurm" else _WORKERS_TIMEOUT_S, demand, stop)


@contextmanager
def _client(cluster: str, workers: int, at_once: int, store: Path, demand: Demand, stop: Stop) -> Iterator[Client]:
    import dask
    from distributed import Client

    settings = {
        "distributed.nanny.pre-spawn-environ": _ENVIRONMENT,
        "distributed.scheduler.allowed-failures": 0,  # the driver counts attempts
        "distributed.worker.preload": _PRELOAD,
        "distributed.comm.timeouts.connect": "30s",
        "distributed.logging": {"distributed": "error", "distributed.nanny": "critical"},
    }
    with dask.config.set(settings):
        if cluster in _STARTED:
            with _started(cluster, workers, at_once, store, demand) as started, Client(started) as client:
                yield client
            return
        with existing_scheduler(cluster, _WORKERS_TIMEOUT_S, stop) as client:
            yield client


def _started(cluster: str, workers: int, at_once: int, store: Path, demand: Demand) -> AbstractContextManager[object]:
    """Start workers: one per GPU for "cuda", whatever their number, else `workers`."""
    if cluster == "slurm":
        from pipeline.running.slurm_workers import slurm_workers

        return slurm_workers(workers, store, _ENVIRONMENT, demand)
    if cluster == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise UsageError("--cluster cuda, but torch sees no GPU", "a CUDA build of torch and a driver", "use local")
    return local_workers(cluster, workers, at_once)
