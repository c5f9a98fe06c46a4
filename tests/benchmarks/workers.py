"""One, two and four local workers on a few units: wall and CPU seconds, and how the time of workers divides."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

from tests.benchmarks.scene import area_geojson, repeated_scene
from tests.conftest import DATA

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SIDE_M = 5000
COUNTS = (1, 2, 4)


def rows(folder: Path, command: Callable[..., tuple[float, float, str]]) -> list[tuple[str, str, str]]:
    """Return one row for each number of workers. `command` runs a Python command and returns what it took."""
    index, _ = repeated_scene(folder, DATA, side_m=SIDE_M + 1000)
    aoi = area_geojson(folder / "aoi.geojson", 32632, 600_480, 5_100_000 - SIDE_M - 480, SIDE_M)
    case, found, first = f"{SIDE_M**2 / 1e6:.0f} km2, lite, {os.cpu_count()} processors", [], 0.0
    for workers in COUNTS:
        wall, cpu, out = command(
            *("-m", "pipeline.run", "--aoi", aoi, "--catalog", index, "--out", f"{workers}.zarr", "--max-cloud", 100),
            *("--workers", workers, "--json"), folder=folder,
        )  # fmt: skip
        report = json.loads(out)
        first = first or wall
        stages = ", ".join(f"{name} {seconds:.1f}" for name, seconds in report["stage_seconds"].items())
        found += [
            (case, f"{workers} workers: wall and CPU seconds, times one worker, units",
             f"{wall:.1f}, {cpu:.1f}, {first / wall:.2f}, {report['units']}"),
            (case, f"{workers} workers: seconds of computing, of workers by stage",
             f"{report['seconds']:.1f}; {stages}"),
        ]  # fmt: skip
    return found
