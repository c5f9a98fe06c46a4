"""Cost of a country and of the world's land, estimated as `--dry-run` does: plan the area, read no pixels.

The plan uses one small scene whose footprint covers the whole area, so it counts one date.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

from pipeline.bands import GSDS_M, TARGET_GSD_M, bands_at
from pipeline.config import RunConfig
from pipeline.planning.estimate import estimate
from pipeline.process import peak_rss_mib
from tests.benchmarks.scene import timed_plan

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.planning.plan import Plan

GERMANY_KM2, LAND_KM2 = 357_000, 135_000_000  # land without Antarctica
UTM_ZONES = 60
COG_BLOCK_PX = 1024  # block size in the open archives; at most one request per block


@dataclasses.dataclass(frozen=True)
class Cost:
    """Cost of one plan."""

    area_km2: float
    units: int
    stored_tib: float
    chunks: int  # of reflectance at 2.5 m; a chunk holds all bands and is one object without --shard
    reads: int  # COG blocks, one date
    core_hours: float  # `lite`, one member
    planning_s: float  # CPU seconds
    planning_mib: float  # peak memory of the process so far


def cost(folder: Path, area_km2: float, seconds_per_window: float | None = None) -> tuple[Cost, float]:
    """Return the cost of a square of `area_km2` and the seconds per window (measured if not given)."""
    plan, units, planning_s = timed_plan(folder, math.sqrt(area_km2) * 1000, RunConfig(), workers=64)
    counted = estimate(plan, 1, timed=seconds_per_window is None)
    per_window = counted.seconds_per_window if seconds_per_window is None else seconds_per_window
    return Cost(
        area_km2=counted.area_km2,
        units=units,
        stored_tib=counted.stored_mib / 2**20,
        chunks=sum(len(plan.chunks(unit)) for unit in plan.units()),
        reads=_block_reads(plan),
        core_hours=counted.windows * per_window / 3600,
        planning_s=planning_s,
        planning_mib=peak_rss_mib(),
    ), per_window


def _block_reads(plan: Plan) -> int:
    """Return the number of COG blocks that all units read, averaged over window positions within blocks."""
    first, reads = plan.model_passes()[0], 0.0
    for unit in plan.units_of(0):
        reach = first.read_window(plan.window(unit))
        for gsd in GSDS_M:
            px = (side * TARGET_GSD_M / gsd for side in (reach.ny, reach.nx))
            reads += len(bands_at(gsd, plan.config.band_names)) * math.prod(n / COG_BLOCK_PX + 1 for n in px)
    return round(reads)
