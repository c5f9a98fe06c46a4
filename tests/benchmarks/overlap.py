"""Wall time of a run whose networks only wait, as for a GPU, against the longer of its two halves.

The rest is what the same units take one by one if no window waits: reading, masks, blending, consistency, quantisation,
writing, overviews and publication. The waits are chosen as shares of it. If the rest goes on while windows wait, a run
takes as long as the longer of the two, but for its ends: reading before the first window, writing after the last.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from pipeline.superres.system import AT_ONCE
from tests.benchmarks.scene import area_geojson, repeated_scene
from tests.conftest import DATA
from tests.toys import waiting

if TYPE_CHECKING:
    from pathlib import Path

SHARES = (0.3, 1.0, 3.0)
SIDE_M = 5000
UNITS = {"chunk_px": 240, "unit_chunks": 4}  # nine units of up to 2.4 km: three times as many as are computed at once


def measure(folder: Path, side_m: int = SIDE_M, shares: tuple[float, ...] = SHARES) -> list[tuple[str, str]]:
    """Return (figure, value) for an area of `side_m`."""
    from pipeline.superres.registry import register

    register(waiting.SYSTEM)
    index, _ = repeated_scene(folder, DATA, side_m=side_m + 1000)
    aoi = area_geojson(folder / "aoi.geojson", 32632, 600_480, 5_100_000 - side_m - 480, side_m)
    _run(folder / "warm.zarr", index, area_geojson(folder / "few.geojson", 32632, 600_480, 5_098_000, 1200), 0.0, 1)
    rest, windows, units, _ = _run(folder / "rest.zarr", index, aoi, 0.0, 1)
    beside, _, _, _ = _run(folder / "beside.zarr", index, aoi, 0.0, AT_ONCE)
    rows = [
        (f"{side_m**2 / 1e6:.0f} km2 in {units} units, {windows} windows, {os.cpu_count()} processors", ""),
        ("the rest alone: seconds, units one by one", f"{rest:.1f}"),
        (f"the rest alone: seconds, {AT_ONCE} units at once", f"{beside:.1f}"),
    ]
    for share in shares:
        waits = share * rest
        wall, _, _, mib = _run(folder / f"{share}.zarr", index, aoi, 1000 * waits / windows, AT_ONCE)
        rows.append(
            (
                f"waits of {share:g} times the rest: seconds waited, wall, times the longer, peak MiB",
                f"{waits:.1f}, {wall:.1f}, {wall / max(waits, rest):.2f}, {mib:.0f}",
            )
        )
    return rows


def _run(store: Path, index: Path, aoi: Path, milliseconds: float, at_once: int) -> tuple[float, int, int, float]:
    """Return wall seconds, windows, units and the peak memory so far in MiB of a run in this process."""
    from pipeline.aoi.aoi import read_aoi
    from pipeline.config import RunConfig
    from pipeline.planning.planner import make_plan
    from pipeline.running.driver import prepare, run_plan
    from pipeline.store.receipts import Ledger

    config = RunConfig(
        catalog=str(index),
        sr=waiting.SYSTEM.name,
        max_cloud=100.0,
        options=(f"milliseconds={milliseconds}",),
        **UNITS,
    )
    plan = make_plan(config, read_aoi(str(aoi)), workers=AT_ONCE, together=True)
    prepare(plan, store)
    started = time.perf_counter()
    summary = run_plan(plan, store, cluster="inline", workers=at_once)
    wall = time.perf_counter() - started
    windows = sum(receipt.windows for receipt in Ledger(store, plan.digest).read_all())
    return wall, windows, summary.units, summary.peak_worker_mib
