"""Requests to the archive and stored objects of a plan, which clouds bill beside hours. Estimated from areas alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.bands import GSDS_M, TARGET_GSD_M, bands_at
from pipeline.grid.native_rasters import SCL_GSD_M
from pipeline.planning.store_template import plan_has_scl, template_of

if TYPE_CHECKING:
    from pipeline.planning.plan import Plan
    from pipeline.planning.units import Zone
    from pipeline.store.levels import Level

COG_BLOCK_PX = 1024  # of the open archives' files; a request gets one block
_BLOCK_MIB = 2 * COG_BLOCK_PX**2 / 1.4 / 2**20  # uint16, deflated to about 0.7 (tiles of Earth Search)


@dataclass(frozen=True)
class Reads:
    """Requests to an archive of COGs, and what they bring."""

    requests: int
    mib: float


def reads_of(plan: Plan) -> Reads:
    """Estimate the reads of a plan, averaged over the places of units within blocks.

    A median reads every scene. A mosaic reads the first scene; further ones, where that has gaps, are not counted.
    """
    first = plan.model_passes()[0]
    files = {gsd: len(bands_at(gsd, plan.inputs)) for gsd in GSDS_M}
    files[SCL_GSD_M] += plan_has_scl(plan)
    requests = blocks = 0.0
    for unit in plan.units_of(0):
        period = plan.zone(unit.epsg).periods[unit.period]
        scenes = len(period.scene_ids) if period.composite == "median" else 1
        reach = first.read_window(plan.window(unit).pad(first.reach_px(plan.options())))
        for gsd, count in files.items():
            sides = (side * TARGET_GSD_M / gsd for side in (reach.ny, reach.nx))
            there = scenes * count * math.prod(side / COG_BLOCK_PX + 1 for side in sides)
            blocks += there
            requests += there + scenes * count  # and the header of each file
    return Reads(round(requests), round(blocks * _BLOCK_MIB, 1))


def objects_of(plan: Plan) -> int:
    """Estimate the number of objects with data, chunks or shards, of a finished store."""
    return sum(_of_zone(plan, zone) for zone in plan.zones)


def _of_zone(plan: Plan, zone: Zone) -> int:
    shape = template_of(plan, zone)
    units = [unit for unit in plan.units() if unit.epsg == zone.epsg]
    count = 0
    for unit in units:
        parts = len(plan.chunks(unit))
        levels = [shape.level(gsd_m) for gsd_m, _ in plan.passes[unit.number].finer]
        if not unit.number:
            levels.append(shape.base)
            count += parts * len(shape.measured)
        gsd_m = plan.passes[unit.number].gsd_m
        count += sum(parts * round(gsd_m / level.raster.gsd_m) ** 2 * len(level.arrays) for level in levels)
    area_px = sum(window.ny * window.nx for unit in units if not unit.number for window in plan.chunks(unit))
    ny, nx = zone.grid.shape
    share = area_px / max(1, ny * nx)  # over all time steps
    return count + math.ceil(share * sum(_objects(level) for level in shape.overviews))


def _objects(level: Level) -> int:
    return math.prod(-(-side // level.step_px) for side in level.raster.shape) * len(level.arrays)
