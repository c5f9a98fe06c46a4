"""Wall time of a run whose networks only wait, as for a GPU, against the longer of its two halves.

One half is the rest: what the same units take in one process, one by one, if no window waits: reading, masks, blending,
consistency, quantisation, writing, overviews and publication. The other is the time for which the GPU is taken, by one
window at a time; the lock of a file stands for it. The waits are chosen as shares of the rest. If each half goes on
beside the other, a run takes as long as the longer one, but for its ends: the start of processes and reading before the
first window, writing after the last.

Where several processes share the GPU, they share the rest as well. Their last row asks for more: waits as long as the
rest takes in all of them, so that neither the GPU nor a processor may ever be idle.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pipeline.superres.system import AT_ONCE
from tests.benchmarks.scene import area_geojson, repeated_scene
from tests.conftest import DATA
from tests.toys import waiting
from tests.toys.installed import write_package

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SHARES = (0.3, 1.0, 3.0)
COUNTS = (1, 2)  # processes that share the GPU
SIDE_M = 5000
UNITS = {"chunk_px": 240, "unit_chunks": 4}  # nine units of up to 2.4 km: three times as many as are computed at once


def measure(
    folder: Path, side_m: int = SIDE_M, shares: tuple[float, ...] = SHARES, counts: tuple[int, ...] = COUNTS
) -> Iterator[tuple[str, str]]:
    """Yield (figure, value) for an area of `side_m` and each number of processes."""
    from pipeline.superres.registry import register

    register(waiting.SYSTEM)
    index, _ = repeated_scene(folder, DATA, side_m=side_m + 1000)
    aoi = area_geojson(folder / "aoi.geojson", 32632, 600_480, 5_100_000 - side_m - 480, side_m)
    few = area_geojson(folder / "few.geojson", 32632, 600_480, 5_098_000, 1200)
    run = partial(_run, folder, index, aoi)
    _run(folder, index, few, "warm")
    with _found_by_workers(folder):
        rest = run("rest")
        yield "units, windows, processors", f"{rest.units}, {rest.windows}, {os.cpu_count()}"
        yield "seconds of the rest alone, one process, units one by one", f"{rest.wall_s:.1f}"
        for processes in counts:
            yield from _rows_of(run, rest, shares, processes)


def _rows_of(
    run: Callable[..., _Run], rest: _Run, shares: tuple[float, ...], processes: int
) -> Iterator[tuple[str, str]]:
    who = "one process" if processes == 1 else f"{processes} processes"
    own = run(f"rest-{processes}", at_once=AT_ONCE, processes=processes)
    yield f"{who}: seconds of the rest alone, {AT_ONCE} units at once in each", f"{own.wall_s:.1f}"
    asked = [(f"{share:g} times the rest", share * rest.wall_s, rest.wall_s) for share in shares]
    if processes > 1:
        asked.append((f"the rest in {who}", own.wall_s, own.wall_s))
    for what, waits_s, other_s in asked:
        one = run(f"{processes}-{waits_s}", waits_s / rest.windows, AT_ONCE, processes)
        yield (
            f"{who}, waits of {what}: seconds for which the device was taken, wall, times the longer, peak MiB",
            f"{one.waited_s:.1f}, {one.wall_s:.1f}, {one.wall_s / max(one.waited_s, other_s):.2f}, {one.peak_mib:.0f}",
        )


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


class _Run(NamedTuple):
    """What a run took. `waited_s`: for how long windows had the device."""

    wall_s: float
    waited_s: float
    windows: int
    units: int
    peak_mib: float  # of this process so far, or of a worker


def _run(
    folder: Path, index: Path, aoi: Path, name: str, wait_s: float = 0.0, at_once: int = 1, processes: int = 1
) -> _Run:
    """Run in this process, or in several. Each window waits for `wait_s`."""
    from pipeline.aoi.aoi import read_aoi
    from pipeline.config import RunConfig
    from pipeline.planning.planner import make_plan
    from pipeline.running.driver import prepare, run_plan
    from pipeline.store.receipts import Ledger

    store, device = folder / f"{name}.zarr", folder / f"{name}.device"
    device.touch()
    config = RunConfig(
        catalog=str(index),
        sr=waiting.SYSTEM.name,
        max_cloud=100.0,
        options=(f"milliseconds={1000 * wait_s}", f"device={device}"),
        **UNITS,
    )
    plan = make_plan(config, read_aoi(str(aoi)), workers=AT_ONCE, together=True)
    prepare(plan, store)
    started = time.perf_counter()
    cluster = "inline" if processes == 1 else "local"
    summary = run_plan(plan, store, cluster=cluster, workers=at_once * processes)
    wall_s = time.perf_counter() - started
    windows = sum(receipt.windows for receipt in Ledger(store, plan.digest).read_all())
    waited_s = sum(map(float, device.read_text().split()))
    return _Run(wall_s, waited_s, windows, summary.units, summary.peak_worker_mib)
