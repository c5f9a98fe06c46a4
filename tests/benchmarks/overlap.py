"""Wall time of a run whose networks only wait, as for a GPU, against the longer of its two halves.

The rest is what the same units take one by one if no window waits: reading, masks, blending, consistency, quantisation,
writing, overviews and publication. The waits are chosen as shares of it. If the rest goes on while windows wait, a run
takes as long as the longer of the two, but for its ends: reading before the first window, writing after the last.

Several processes may share the GPU, for which the lock of a file stands: one window waits at a time. Their rest is what
the units take in as many processes if nothing waits, so that the waits are shorter for the same shares.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.superres.system import AT_ONCE
from tests.benchmarks.scene import area_geojson, repeated_scene
from tests.conftest import DATA
from tests.toys import waiting
from tests.toys.installed import write_package

if TYPE_CHECKING:
    from collections.abc import Iterator

SHARES = (0.3, 1.0, 3.0)
COUNTS = (1, 2)  # processes that share the GPU
SIDE_M = 5000
UNITS = {"chunk_px": 240, "unit_chunks": 4}  # nine units of up to 2.4 km: three times as many as are computed at once


def measure(
    folder: Path, side_m: int = SIDE_M, shares: tuple[float, ...] = SHARES, counts: tuple[int, ...] = COUNTS
) -> list[tuple[str, str]]:
    """Return (figure, value) for an area of `side_m` and each number of processes."""
    from pipeline.superres.registry import register

    register(waiting.SYSTEM)
    index, _ = repeated_scene(folder, DATA, side_m=side_m + 1000)
    aoi = area_geojson(folder / "aoi.geojson", 32632, 600_480, 5_100_000 - side_m - 480, side_m)
    few = area_geojson(folder / "few.geojson", 32632, 600_480, 5_098_000, 1200)
    _run(folder / "warm.zarr", index, few, 0.0, 1)
    rows = []
    with _found_by_workers(folder):
        for processes in counts:
            rows += _rows_of(folder / str(processes), index, aoi, shares, processes)
    return rows


def _rows_of(folder: Path, index: Path, aoi: Path, shares: tuple[float, ...], processes: int) -> list[tuple[str, str]]:
    folder.mkdir()
    who = "one process" if processes == 1 else f"{processes} processes"
    rest, windows, units, _ = _run(folder / "rest.zarr", index, aoi, 0.0, 1 if processes == 1 else AT_ONCE, processes)
    rows = [
        (f"{who}: units, windows, processors", f"{units}, {windows}, {os.cpu_count()}"),
        (f"{who}: seconds of the rest alone{', units one by one' if processes == 1 else ''}", f"{rest:.1f}"),
    ]
    if processes == 1:
        beside, _, _, _ = _run(folder / "beside.zarr", index, aoi, 0.0, AT_ONCE)
        rows.append((f"{who}: seconds of the rest alone, {AT_ONCE} units at once", f"{beside:.1f}"))
    for share in shares:
        waits = share * rest
        wall, _, _, mib = _run(folder / f"{share}.zarr", index, aoi, 1000 * waits / windows, AT_ONCE, processes)
        rows.append(
            (
                f"{who}, waits of {share:g} times the rest: seconds waited, wall, times the longer, peak MiB",
                f"{waits:.1f}, {wall:.1f}, {wall / max(waits, rest):.2f}, {mib:.0f}",
            )
        )
    return rows


@contextmanager
def _found_by_workers(folder: Path) -> Iterator[None]:
    """Let worker processes, which look for modules where this one does, find the system."""
    added = [str(write_package(folder / "site", (waiting,))), str(Path(__file__).resolve().parents[2])]
    sys.path[:0] = added
    try:
        yield
    finally:
        for path in added:
            sys.path.remove(path)


def _run(
    store: Path, index: Path, aoi: Path, milliseconds: float, at_once: int, processes: int = 1
) -> tuple[float, int, int, float]:
    """Return wall seconds, windows, units and the peak memory so far in MiB of a run in this process, or several."""
    from pipeline.aoi.aoi import read_aoi
    from pipeline.config import RunConfig
    from pipeline.planning.planner import make_plan
    from pipeline.running.driver import prepare, run_plan
    from pipeline.store.receipts import Ledger

    config = RunConfig(
        catalog=str(index),
        sr=waiting.SYSTEM.name,
        max_cloud=100.0,
        options=(f"milliseconds={milliseconds}", *([f"device={store}.device"] if processes > 1 else [])),
        **UNITS,
    )
    plan = make_plan(config, read_aoi(str(aoi)), workers=AT_ONCE, together=True)
    prepare(plan, store)
    started = time.perf_counter()
    cluster = "inline" if processes == 1 else "local"
    summary = run_plan(plan, store, cluster=cluster, workers=at_once * processes)
    wall = time.perf_counter() - started
    windows = sum(receipt.windows for receipt in Ledger(store, plan.digest).read_all())
    return wall, windows, summary.units, summary.peak_worker_mib
