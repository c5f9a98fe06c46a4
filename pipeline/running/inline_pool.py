"""A pool that runs units in the calling process, one after another or a few at once, in threads.

Where the networks run on a GPU, one thread cannot keep it busy: it also reads, blends and writes. Several units at once
do, since each needs the GPU in turn (`superres.turns`). What bounds the memory is their number: each unit holds one
strip and the windows that its next strip needs (`planning.estimate`).
"""

from __future__ import annotations

from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from threading import Event
from typing import TYPE_CHECKING

from pipeline.process import device_lost, without_device
from pipeline.running.stop import end_with

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pipeline.planning.units import Unit
    from pipeline.store.receipts import Receipt

    Outcome = tuple[Unit, int, Receipt | BaseException]


class InlinePool:
    """Runs units in the calling thread, one after another."""

    capacity = 1

    def __init__(self, run: Callable[[Unit, int], Receipt]) -> None:
        self._run = run
        self._waiting: list[tuple[Unit, int]] = []

    def submit(self, unit: Unit, attempt: int) -> None:
        """Queue a unit. It runs in `next`."""
        self._waiting.append((unit, attempt))

    def next(self, timeout_s: float) -> Outcome | None:
        """Run the oldest queued unit, however long it takes."""
        del timeout_s
        unit, attempt = self._waiting.pop(0)
        try:
            return unit, attempt, self._run(unit, attempt)
        except Exception as error:
            if device_lost(error):
                raise without_device(error) from error
            return unit, attempt, error

    def set_demand(self, units: int) -> None:
        """Do nothing."""


class ThreadPool:
    """Runs up to `capacity` units at once, each in a thread of this process."""

    def __init__(self, run: Callable[[Unit, int], Receipt], capacity: int, threads: ThreadPoolExecutor) -> None:
        self.capacity = capacity
        self._run, self._threads = run, threads
        self._running: dict[Future[Receipt], tuple[Unit, int]] = {}

    def submit(self, unit: Unit, attempt: int) -> None:
        """Start a unit."""
        self._running[self._threads.submit(self._run, unit, attempt)] = unit, attempt

    def next(self, timeout_s: float) -> Outcome | None:
        """Wait for the next unit to end. Raises Interrupted if this process has lost its GPU."""
        done, _ = wait(self._running, timeout_s, FIRST_COMPLETED)
        if not done:
            return None
        future = next(one for one in self._running if one in done)  # in the order of submission
        unit, attempt = self._running.pop(future)
        error = future.exception()
        if error is not None and device_lost(error):
            raise without_device(error) from error
        return unit, attempt, future.result() if error is None else error

    def set_demand(self, units: int) -> None:
        """Do nothing."""


@contextmanager
def inline_pool(run: Callable[[Unit, int], Receipt], at_once: int) -> Iterator[InlinePool | ThreadPool]:
    """Open a pool of this process for `at_once` units. Units that are left at the end stop before their next window."""
    if at_once == 1:
        yield InlinePool(run)
        return
    abandoned = Event()
    threads = ThreadPoolExecutor(at_once, "unit", end_with, (abandoned,))
    try:
        yield ThreadPool(run, at_once, threads)
    finally:
        abandoned.set()
        threads.shutdown(cancel_futures=True)
