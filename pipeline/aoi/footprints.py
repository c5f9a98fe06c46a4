"""Footprints of scenes as valid shapely geometry, including those that cross the antimeridian."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.aoi.utm_zones import within_180

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from shapely import Geometry


def footprint_shape(geometry: dict[str, Any]) -> Geometry:
    """Footprint in degrees; one wider than 180 degrees is taken to cross the antimeridian (granules are 1 to 10)."""
    import shapely
    from shapely.geometry import shape

    found = shape(geometry)
    if not found.is_valid:
        found = shapely.make_valid(found)
    west, _, east, _ = found.bounds
    if east - west > 180:
        found = shapely.make_valid(shapely.transform(shape(geometry), _eastward))
    return within_180(found)


def _eastward(lonlat: NDArray[np.float64]) -> NDArray[np.float64]:
    """Coordinates (n, 2) with longitudes wrapped to 0..360."""
    lonlat[:, 0] %= 360.0
    return lonlat


def overlap(one: dict[str, Any], other: dict[str, Any]) -> float:
    """Intersection over union of two footprints, 0 to 1."""
    first, second = footprint_shape(one), footprint_shape(other)
    union = first.union(second).area
    return float(first.intersection(second).area / union) if union > 0 else 0.0
