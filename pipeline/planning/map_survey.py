"""What a vector map shows of an AOI: features by class, and those that cannot be drawn."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from pipeline.aoi.aoi import utm_parts
from pipeline.aoi.utm_zones import to_utm
from pipeline.conditions.vector_map import draw

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from shapely import Geometry

    from pipeline.aoi.aoi import Aoi
    from pipeline.conditions.frozen import Frozen
    from pipeline.conditions.vector_layers import Box
    from pipeline.superres.declared import Condition

_BLOCK_M = 10_000.0  # the map is read in blocks, to bound memory


@dataclass
class Survey:
    """Polygons by class that touch the AOI (lines are polygons of their width; those of two blocks count twice).

    `repaired` and `lost` count features near the AOI; `fields` are the attributes by layer.
    """

    features: dict[str, int]
    repaired: int = 0
    lost: int = 0
    fields: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def survey(condition: Condition, frozen: Frozen, aoi: Aoi) -> Survey:
    """Read a vector map over the AOI. Raises UsageError and ReadError if it is unsuitable or cannot be read."""
    import shapely

    found = Survey({one.name: 0 for one in condition.classes})
    repaired: set[tuple[str, int]] = set()
    lost: set[tuple[str, int]] = set()
    for epsg, part in utm_parts(aoi).items():
        ground, around = to_utm(part, epsg), part.bounds
        shapely.prepare(ground)
        for box in _blocks(ground):
            drawn = draw(condition, frozen, epsg, box, around)
            for one, polygons in zip(condition.classes, drawn.polygons, strict=True):
                found.features[one.name] += int(shapely.intersects(ground, np.array(polygons, dtype=object)).sum())
            repaired |= drawn.repaired
            lost |= drawn.lost
            found.fields = drawn.fields
    found.repaired, found.lost = len(repaired), len(lost)
    return found


def _blocks(ground: Geometry) -> Iterator[Box]:
    """Yield boxes in metres that cover the bounds of a shape and touch it."""
    import shapely

    left, bottom, right, top = ground.bounds
    for low in np.arange(bottom, top, _BLOCK_M).tolist():
        for west in np.arange(left, right, _BLOCK_M).tolist():
            box = (west, low, min(west + _BLOCK_M, right), min(low + _BLOCK_M, top))
            if ground.intersects(shapely.box(*box)):
                yield box
