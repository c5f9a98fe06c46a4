"""Whether the maps of a run show its ground, and finely enough for a stage."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.aoi.aoi import utm_parts
from pipeline.conditions import raster_map, vector_layers
from pipeline.conditions.credit import BESIDE
from pipeline.conditions.maps import too_coarse
from pipeline.errors import UsageError
from pipeline.planning.map_survey import survey

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pipeline.aoi.aoi import Aoi
    from pipeline.conditions.frozen import Frozen
    from pipeline.superres.declared import Condition
    from pipeline.superres.spec import Stage

_SHOWN = 14  # attributes of a layer in a message
_SHOWN_LAYERS = 3


def require_ground(
    conditions: Sequence[Condition], maps: Sequence[Frozen], stages: Sequence[Stage], aoi: Aoi
) -> tuple[str, ...]:
    """Return remarks on the maps, such as on features that cannot be drawn.

    Raises UsageError for a map that no stage reads, that does not touch the AOI, that has no feature of any class
    there, or that is too coarse for all its stages. A map that is taken whole may show any ground.
    """
    declared = {one.name: one for one in conditions}
    remarks: list[str] = []
    for frozen in maps:
        _require_reader(declared[frozen.name], frozen, stages)
        if declared[frozen.name].whole:
            continue
        _require_over(frozen, aoi)
        for epsg in utm_parts(aoi):
            _require_detail(declared[frozen.name], frozen, stages, epsg)
        if frozen.kind == "vector":
            remarks += _drawable(declared[frozen.name], frozen, aoi)
        if not frozen.credit:
            remarks.append(
                f"--condition {frozen.name}: nothing states the licence of {Path(frozen.where).name}; a file "
                f"{Path(frozen.where).name}{BESIDE} beside it would be quoted in the store"
            )
    return tuple(remarks)


def _drawable(condition: Condition, frozen: Frozen, aoi: Aoi) -> list[str]:
    """Return remarks on features of the AOI that cannot be drawn. Raises UsageError if none can."""
    seen = survey(condition, frozen, aoi)
    where = f"--condition {frozen.name}={frozen.where}"
    if not any(seen.features.values()):
        names = ", ".join(one.name for one in condition.classes)
        raise UsageError(
            f"{where} has no {names} on the ground of {aoi.name}; its attributes: {_listed(seen.fields)}",
            _expected(condition),
            "give another map, rename its attributes, or leave it out",
        )
    told = [
        f"{seen.repaired} invalid polygon{'s' * (seen.repaired != 1)} repaired" if seen.repaired else "",
        f"{seen.lost} broken feature{'s' * (seen.lost != 1)} left out" if seen.lost else "",
    ]
    text = ", ".join(filter(None, told))
    return [f"--condition {frozen.name}: {text}"] if text else []


def _listed(fields: Mapping[str, tuple[str, ...]]) -> str:
    """Return layers with their attributes, shortened."""
    texts = []
    for layer, names in fields.items():
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        texts.append(f"{layer} has {', '.join(names[:_SHOWN]) or 'none'}{more}")
    more = f"; and {len(texts) - _SHOWN_LAYERS} more layers" if len(texts) > _SHOWN_LAYERS else ""
    return "; ".join(texts[:_SHOWN_LAYERS]) + more


def _expected(condition: Condition) -> str:
    """Return what features are selected by."""
    wheres = [one.where for one in condition.classes if one.where and not one.rules]
    if wheres:
        return f"features with {' or '.join(wheres)}"
    names = dict.fromkeys(name for one in condition.classes for name in one.attributes)
    return f"features with one of the attributes {', '.join(names)}" if names else "features"


def _require_reader(condition: Condition, frozen: Frozen, stages: Sequence[Stage]) -> None:
    if condition.whole:
        read = any(condition.name in stage.whole for stage in stages)
    else:
        read = any(given.condition == frozen.name for stage in stages for given in stage.reads)
    if not read:
        raise UsageError(
            f"--condition {frozen.name}={frozen.where}, which no stage reads with these options",
            "options with which it is read",
            "leave it out, or change the options",
        )


def _require_over(frozen: Frozen, aoi: Aoi) -> None:
    import shapely

    room = raster_map if frozen.kind == "raster" else vector_layers
    bounds = room.bounds_lonlat(Path(frozen.where))
    if bounds is None:
        return
    west, south, east, north = bounds
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
