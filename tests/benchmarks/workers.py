"""One, two and four local workers on a few units: wall and CPU seconds, and how the time of workers divides.

Short runs have one unit, whose windows the processors share."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

from tests.benchmarks.scene import area_geojson, repeated_scene
from tests.conftest import DATA

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SIDES_M = (5000, 10_000)
COUNTS = (1, 2, 4)


def rows(folder: Path, command: Callable[..., tuple[float, float, str]]) -> list[tuple[str, str, str]]:
    """Return two rows for each area and number of workers. `command` runs a Python command, returns what it took."""
    return [row for side_m in SIDES_M for row in _rows_of(folder, command, side_m)]


def _rows_of(folder: Path, command: Callable[..., tuple[float, float, str]], side_m: int) -> list[tuple[str, str, str]]:
    own = folder / str(side_m)
    own.mkdir()
    index, _ = repeated_scene(own, DATA, side_m=side_m + 1000)
    aoi = area_geojson(own / "aoi.geojson", 32632, 600_480, 5_100_000 - side_m - 480, side_m)
    case, found, first = f"{side_m**2 / 1e6:.0f} km2, lite, {os.cpu_count()} processors", [], {}
    for workers in COUNTS:
        wall, cpu, out = command(
            *("-m", "pipeline.run", "--aoi", aoi, "--catalog", index, "--out", f"{workers}.zarr", "--max-cloud", 100),
            *("--workers", workers, "--json"), folder=own,
        )  # fmt: skip
        report = json.loads(out)
        first = first or {"wall": wall, "computing": report["seconds"]}
        stages = ", ".join(f"{name} {seconds:.1f}" for name, seconds in report["stage_seconds"].items())
        found += [
            (case, f"{workers} workers: wall and CPU seconds of the command, times one worker, units",
             f"{wall:.1f}, {cpu:.1f}, {first['wall'] / wall:.2f}, {report['units']}"),
            (case, f"{workers} workers: seconds of computing, times one worker, of workers by stage",
             f"{report['seconds']:.1f}, {first['computing'] / report['seconds']:.2f}; {stages}"),
        ]  # fmt: skip
    return found
