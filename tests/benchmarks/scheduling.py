"""Overhead of the driver and Dask, measured with units that do nothing on a local cluster."""

from __future__ import annotations

import time
from itertools import islice
from typing import TYPE_CHECKING

import psutil

from pipeline.running import pools
from pipeline.running.stop import Stop
from pipeline.running.unit_queue import Summary, UnitQueue
from pipeline.store.receipts import Receipt

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.planning.plan import Plan, Unit


def idle(processes: int, unit: Unit, store: str, digest: str, attempt: int, software: str = "") -> Receipt:
    """Return a receipt of realistic size without doing any work. The workers import this function."""
    del processes, store, software
    chunks = {f"reflectance/c/0/0/{unit.row}/{unit.col + k}": [1_000_000, 2**31] for k in range(16)}
    return Receipt(unit.id, digest, "done", "", chunks, {}, 1, None, ("S2A_BENCH",), attempts=attempt)


def run_idle_units(plan: Plan, folder: Path, workers: int, count: int) -> tuple[float, list[float]]:
    """Return the seconds for `count` units and the driver's memory in MiB, sampled about ten times."""
    todo = list(islice(plan.units(), count))
    memory: list[float] = []

    def watch(summary: Summary, running: int) -> None:
        del running
        if summary.computed >= len(memory) * count // 10:
            memory.append(psutil.Process().memory_info().rss / 2**20)

    real, pools._run_on_worker = pools._run_on_worker, idle
    try:
        with pools.open_pool("local", workers, str(folder), plan.digest) as pool:
            started = time.perf_counter()
            UnitQueue(pool, Summary(units=count), watch, Stop(), folder, plan.digest).run(todo)
            return time.perf_counter() - started, memory
    finally:
        pools._run_on_worker = real
