"""Where units run: in this process, on a local Dask cluster, on one worker per GPU, or on any scheduler.

In: units. Out: receipts or errors, in the order in which they finish. Imports unit; dask only inside functions.
"""

from __future__ import annotations

import asyncio
import math
import os
import signal
import threading
import time
from concurrent.futures import CancelledError
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from pipeline.errors import Interrupted, PipelineError, UsageError
from pipeline.running.dask_scheduler import existing_scheduler
from pipeline.running.scaling import Demand
from pipeline.running.software import this_software
from pipeline.running.stop import Stop
from pipeline.running.unit import process
from pipeline.running.worker_check import require_able

if TYPE_CHECKING:
    from collections.abc import Iterator

    from distributed import Client, Future

    from pipeline.planning.units import Unit
    from pipeline.store.receipts import Receipt

Outcome = tuple["Unit", "int", "Receipt | BaseException"]
_WORKERS_TIMEOUT_S = 120
_MEMORY_SHARE = 0.7
_POLL_S = (0.0005, 0.05)  # pauses between looks at the cluster, growing
_ASK_EVERY_S = 5.0
_SILENCE_S = 60.0  # a scheduler that cannot be reached for so long is gone
# glibc gives memory back to the system after every multi-megabyte array unless both thresholds are raised
# (measured: 2.4 times the CPU seconds per unit otherwise, with what the nanny sets by itself). It also keeps an arena
# for every thread that packs chunks: the peak grew from 890 to 1157 MiB over 48 equal units of 23 km2, bicubic. With
# one arena it was 830 MiB after the first unit and 863 after 32.
_MALLOC = {
    "MALLOC_TRIM_THRESHOLD_": "268435456",
    "MALLOC_MMAP_THRESHOLD_": "268435456",
    "MALLOC_ARENA_MAX": "1",
}
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", **_MALLOC}


class Pool(Protocol):
    """Runs units of one plan."""

    @property
    def capacity(self) -> int:
        """Units it can work on at once."""
        ...

    def submit(self, unit: Unit, attempt: int) -> None:
        """Start a unit."""
        ...

    def next(self, timeout_s: float) -> Outcome | None:
        """Wait for the next unit to end: (unit, attempt, receipt or error); None when none did in time."""
        ...

    def expect(self, units: int) -> None:
        """Hear how many units are left, those at work included."""
        ...


class InlinePool:
    """Runs units in the calling process, one after another."""

    capacity = 1

    def __init__(self, store: str, digest: str) -> None:
        self._store, self._digest = store, digest
        self._waiting: list[tuple[Unit, int]] = []

    def submit(self, unit: Unit, attempt: int) -> None:
        """Queue a unit; it runs when its result is asked for."""
        self._waiting.append((unit, attempt))

    def next(self, timeout_s: float) -> Outcome | None:
        """Run the oldest queued unit, however long it takes."""
        del timeout_s
        unit, attempt = self._waiting.pop(0)
        try:
            return unit, attempt, process(unit, self._store, self._digest, attempt)
        except Exception as error:
            return unit, attempt, error

    def expect(self, units: int) -> None:
        """Nothing follows from it."""


class DaskPool:
    """Runs units as one Dask task each; tasks return receipts of a few hundred bytes, never arrays."""

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
        self._workers = 1
        self._unmanned_s = unmanned_s  # so long it may be without any worker
        self._client, self._store, self._digest = client, store, digest
        self._done = as_completed(raise_errors=False)
        self._units: dict[str, tuple[Unit, int]] = {}
        self._heard = self._manned = time.monotonic()  # when the scheduler last answered, and last had a worker
        self._asked = 0.0

    @property
    def capacity(self) -> int:
        """Threads of all workers: GPU and CPU workers here have one each."""
        with _interrupted_where_gone():
            threads: dict[str, int] = self._client.nthreads()
        self._workers = max(1, sum(threads.values()))
        return self._workers

    def expect(self, units: int) -> None:
        """Tell a cluster that grows and shrinks."""
        self._demand.units = units

    def submit(self, unit: Unit, attempt: int) -> None:
        """Send a unit to the cluster."""
        key = f"{unit.id}#{attempt}"
        self._units[key] = (unit, attempt)
        task = (self._workers, unit, self._store, self._digest, attempt, str(this_software()))
        with _interrupted_where_gone():
            self._done.add(self._client.submit(_beside_others, *task, key=key, pure=False, retries=0))

    def next(self, timeout_s: float) -> Outcome | None:
        """Wait for any unit. Interrupted when the scheduler is gone, or has had no worker for minutes."""
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
        with _interrupted_where_gone():  # it may have died since the task ended
            error = future.exception() if future.status == "error" else None
            outcome: Receipt | BaseException = future.result() if error is None else _explained(error, unit)
        future.release()
        return unit, attempt, outcome

    def _ended(self) -> Future[Receipt] | None:
        """A unit that has ended and whose receipt still exists.

        One that died with its worker before we asked for it is made again by the scheduler, unasked: wait for that.
        """
        while self._done.has_ready():
            future: Future[Receipt] = next(self._done)
            if future.status != "lost":
                return future
            self._done.add(future)
        return None

    def _check(self) -> None:
        """A scheduler that is gone never answers, and one without workers never finishes: both are found out here."""
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
    """All that a client raises once its scheduler is away. Which of these it is depends on the moment."""
    from distributed.client import ClosedClientError

    try:
        yield
    except (OSError, TimeoutError, asyncio.CancelledError, CancelledError, ClosedClientError) as error:
        raise _gone() from error


def _beside_others(processes: int, unit: Unit, store: str, digest: str, attempt: int, software: str = "") -> Receipt:
    """`process` in a worker that is one of so many: they share what archives grant, and log no secret.

    UsageError from a worker, perhaps one that came late, with other `software` than the driver's.

    Errors travel without what caused them. Dask would send that along, and where it cannot be pickled, as those of
    GDAL, the driver would get a plain Exception and know neither an outage nor a damaged file for what it is.
    """
    from pipeline.archive.read.rate_limit import share
    from pipeline.redaction import redact_logs

    redact_logs()  # a worker that we did not start has run no `worker_setup`
    share(processes)
    if software not in ("", str(this_software())):
        raise UsageError(f"a worker computes with {this_software()}", software, "start it from the run's environment")
    try:
        return process(unit, store, digest, attempt)
    except PipelineError as error:
        failure = type(error)(error.found, error.expected, error.cure)
    raise failure  # out here it has no context


def _explained(error: BaseException, unit: Unit) -> BaseException:
    """A dead worker in words; other errors as they are."""
    from distributed import KilledWorker

    if not isinstance(error, KilledWorker):
        return error
    return PipelineError(
        f"unit {unit.id}: its worker process died",
        cure="if memory ran out, use fewer --workers or a smaller --unit-chunks; --dry-run shows the need",
    )


@contextmanager
def open_pool(cluster: str, workers: int, store: str, digest: str, stop: Stop | None = None) -> Iterator[Pool]:
    """A pool for `cluster`: "inline", "local", "cuda", "slurm", or the address of a Dask scheduler.

    Interrupted when `stop` is asked for before there is a worker.
    """
    if cluster == "inline":
        yield InlinePool(store, digest)
        return
    if cluster == "slurm" and "://" in store:
        found = f"--cluster slurm with the store {store}"
        raise UsageError(
            found, "a folder that all nodes see, for keys and logs", "--plan-only, then --shard-of in jobs"
        )
    demand = Demand(workers)
    with _client(cluster, workers, Path(store), demand, stop or Stop()) as client:
        if cluster not in _STARTED:  # those that we start are copies of this process
            require_able(client, store, digest)
        # a queue may keep workers waiting for hours; elsewhere nobody would bring them any more
        yield DaskPool(client, store, digest, math.inf if cluster == "slurm" else _WORKERS_TIMEOUT_S, demand, stop)


@contextmanager
def _client(cluster: str, workers: int, store: Path, demand: Demand, stop: Stop) -> Iterator[Client]:
    import dask
    from distributed import Client

    settings = {
        "distributed.nanny.pre-spawn-environ": _ENVIRONMENT,
        "distributed.scheduler.allowed-failures": 0,  # attempts are counted by the driver, which can tell why
        "distributed.worker.preload": ["pipeline.running.worker_setup"],
        "distributed.comm.timeouts.connect": "30s",
        "distributed.logging": {"distributed": "error", "distributed.nanny": "critical"},
    }
    with dask.config.set(settings):
        if cluster in _STARTED:
            with _STARTED[cluster](workers, store, demand) as started, Client(started) as client:
                yield client
            return
        with existing_scheduler(cluster, _WORKERS_TIMEOUT_S, stop) as client:
            yield client


@contextmanager
def _cuda(workers: int, store: Path, demand: Demand) -> Iterator[object]:
    """One worker per GPU; their number is the machine's, not the caller's."""
    import torch

    del workers, store, demand
    if not torch.cuda.is_available():
        raise UsageError("--cluster cuda, but torch sees no GPU", "a CUDA build of torch and a driver", "use local")
    try:
        from dask_cuda import LocalCUDACluster
    except Exception as error:
        raise UsageError(f"dask-cuda cannot be used ({error})", cure='pip install "sen2fine[cuda]"') from error
    with _sigint_ignored():
        gpus = LocalCUDACluster(threads_per_worker=1, device_memory_limit=0, dashboard_address="127.0.0.1:0")
    with gpus:
        yield gpus


@contextmanager
def _local(workers: int, store: Path, demand: Demand) -> Iterator[object]:
    from distributed import LocalCluster

    del store, demand
    with _sigint_ignored():
        local = LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            memory_limit=0,  # the plan sees to it that workers fit; Dask would pause or kill them on a guess
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            silence_logs=50,
        )
    with local:
        yield local


@contextmanager
def _slurm(workers: int, store: Path, demand: Demand) -> Iterator[object]:
    from pipeline.running.slurm_workers import slurm_workers

    with slurm_workers(workers, store, _ENVIRONMENT, demand) as jobs:
        yield jobs


_STARTED = {"local": _local, "cuda": _cuda, "slurm": _slurm}


@contextmanager
def _sigint_ignored() -> Iterator[None]:
    """Children started here ignore SIGINT from their first instruction (the disposition survives exec)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def processors() -> int:
    """Processors this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


def fitting_workers(wanted: int, worker_mib: float) -> int:
    """At most `wanted` workers of `worker_mib` that fit in 70 % of the memory limit (cgroups v1 and v2 included)."""
    from distributed.system import MEMORY_LIMIT

    return max(1, min(wanted, int(_MEMORY_SHARE * MEMORY_LIMIT / 2**20 / max(1.0, worker_mib))))


def require_memory(workers: int, worker_mib: float) -> None:
    """UsageError, with the numbers, when `workers` of `worker_mib` need more than 70 % of the memory limit."""
    from distributed.system import MEMORY_LIMIT

    limit_mib = MEMORY_LIMIT / 2**20
    if workers * worker_mib <= _MEMORY_SHARE * limit_mib:
        return
    fitting = int(_MEMORY_SHARE * limit_mib / worker_mib)
    cure = f"--workers {fitting}" if fitting else "a smaller --unit-chunks, or a machine with more memory"
    raise UsageError(
        f"{workers} workers of about {worker_mib:.0f} MiB need {workers * worker_mib:.0f} MiB",
        f"at most {_MEMORY_SHARE:.0%} of this machine's limit of {limit_mib:.0f} MiB",
        cure,
    )
