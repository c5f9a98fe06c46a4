"""Areas of interest as Python users hold them: files, GeoJSON, shapely geometries, GeoDataFrames, boxes."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from pipeline.aoi.aoi import MAX_AREA_KM2, aoi_from_bbox, aoi_from_geojson, read_aoi
from pipeline.errors import UsageError

if TYPE_CHECKING:
    from pipeline.aoi.aoi import Aoi

# A path, a GeoJSON mapping, or anything with `__geo_interface__`: shapely geometries, GeoSeries, GeoDataFrames.
Area: TypeAlias = "str | os.PathLike[str] | Mapping[str, Any] | Any"
_SIDES = 4


def aoi_of(
    aoi: Area | None,
    bbox: Sequence[float] | None = None,
    *,
    max_area_km2: float = MAX_AREA_KM2,
    repair: bool = False,
) -> Aoi:
    """Return the area of a file, a GeoJSON mapping, an object with `__geo_interface__`, or (w, s, e, n) degrees.

    Geometries are in degrees, unless the object has a `crs` and `to_crs`, as GeoDataFrames do. Raises UsageError unless
    exactly one of the two is given and is an area.
    """
    if (aoi is None) == (bbox is None):
        found = "no area" if aoi is None else "two areas"
        raise UsageError(f"{found} given", "either aoi=... or bbox=(west, south, east, north)")
    if bbox is not None:
        return aoi_from_bbox(*_degrees(bbox), max_area_km2=max_area_km2)
    if isinstance(aoi, str | os.PathLike):
        return read_aoi(os.fspath(aoi), max_area_km2=max_area_km2, repair=repair)
    document = json.dumps(_geojson(aoi), default=str).encode()
    return aoi_from_geojson(document, "aoi", max_area_km2=max_area_km2, repair=repair)


def _degrees(bbox: Sequence[float]) -> tuple[float, float, float, float]:
    try:
        west, south, east, north = (float(side) for side in bbox)
    except (TypeError, ValueError) as error:
        raise UsageError(f"bbox={bbox!r}", "four degrees, (west, south, east, north)") from error
    return west, south, east, north


def _geojson(aoi: Area) -> object:
    """Return the GeoJSON mapping of an object. Raises UsageError."""
    if isinstance(aoi, Mapping):
        return dict(aoi)
    if getattr(aoi, "crs", None) is not None and hasattr(aoi, "to_crs"):
        aoi = aoi.to_crs(4326)
    found: object = getattr(aoi, "__geo_interface__", None)
    if found is None:
        cure = "bbox=(...) for a box" if isinstance(aoi, Sequence) and len(aoi) == _SIDES else ""
        raise UsageError(
            f"aoi is of type {type(aoi).__name__}", "a path, GeoJSON, a shapely geometry or a GeoDataFrame", cure
        )
    return found
