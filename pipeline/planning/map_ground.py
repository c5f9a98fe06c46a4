"""Whether the maps of a run show its ground, and finely enough for a stage."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.aoi.aoi import utm_parts
from pipeline.conditions import raster_map, vector_map
from pipeline.conditions.maps import too_coarse
from pipeline.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.aoi.aoi import Aoi
    from pipeline.conditions.frozen import Frozen
    from pipeline.superres.declared import Condition
    from pipeline.superres.spec import Stage


def require_ground(conditions: Sequence[Condition], maps: Sequence[Frozen], stages: Sequence[Stage], aoi: Aoi) -> None:
    """Raise UsageError for a map that no stage reads, does not touch the AOI, or is too coarse for all its stages."""
    declared = {one.name: one for one in conditions}
    for frozen in maps:
        _require_reader(frozen, stages)
        _require_over(frozen, aoi)
        for epsg in utm_parts(aoi):
            _require_detail(declared[frozen.name], frozen, stages, epsg)


def _require_reader(frozen: Frozen, stages: Sequence[Stage]) -> None:
    if not any(given.condition == frozen.name for stage in stages for given in stage.reads):
        raise UsageError(
            f"--condition {frozen.name}={frozen.where}, which no stage reads with these options",
            "options with which it is read",
            "leave it out, or change the options",
        )


def _require_over(frozen: Frozen, aoi: Aoi) -> None:
    import shapely

    room = raster_map if frozen.kind == "raster" else vector_map
    west, south, east, north = room.bounds_lonlat(Path(frozen.where))
    # A box across the antimeridian is west of its east.
    parts = [(west, east)] if west <= east else [(west, 180.0), (-180.0, east)]
    if not any(shapely.box(left, south, right, north).intersects(aoi.shape) for left, right in parts):
        raise UsageError(
            f"--condition {frozen.name}={frozen.where} lies at {_edges((west, south, east, north))}",
            f"ground of {aoi.name}, {_edges(aoi.shape.bounds)} (west, south, east, north)",
            "give a map of this ground, or leave it out",
        )


def _require_detail(condition: Condition, frozen: Frozen, stages: Sequence[Stage], epsg: int) -> None:
    reading = [given.gsd_m for stage in stages for given in stage.reads if given.condition == condition.name]
    if all(too_coarse(condition, frozen, epsg, gsd_m) for gsd_m in reading):
        raise UsageError(
            f"--condition {condition.name}={frozen.where} has pixels of {raster_map.pixel_m(frozen, epsg):.3g} m",
            f"pixels smaller than {condition.coarsest_px * max(reading):g} m",
            "give a finer one, or leave it out",
        )


def _edges(box: Sequence[float]) -> str:
    return ", ".join(f"{edge:.4f}" for edge in box)
