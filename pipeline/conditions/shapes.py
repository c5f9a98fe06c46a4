"""Features of a map as valid polygons in metres of a UTM zone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.conditions.vector_layers import transformer

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Shapes:
    """Polygons, and which of the features (n,) had to be repaired, and of which nothing could be drawn."""

    polygons: list[Any]
    repaired: NDArray[np.bool_]
    lost: NDArray[np.bool_]


def drawn(
    wkb: NDArray[np.object_],
    widths_m: NDArray[np.float64],
    crs: str,
    epsg: int,
    box_m: tuple[float, float, float, float],
) -> Shapes:
    """Return the polygons of features (n,), of lines and points in their width.

    Invalid polygons, such as those that cross themselves, are made valid with all the area that their rings enclose.
    Features are lost if they are broken, have no finite coordinates, or are polygons without an area. Lines are cut to
    the box (metres), which must be larger than what is needed by half of their width.
    """
    import shapely

    shapes = shapely.from_wkb(wkb, on_invalid="ignore")
    broken = shapely.is_missing(shapes) & np.array([one is not None for one in wkb], bool)
    parts, owners = _parts(shapes)
    parts, finite = _turned(parts, crs, epsg)
    flat = shapely.get_dimensions(parts) < 2
    areas, whose, mended = _repaired(parts[finite & ~flat], owners[finite & ~flat])
    empty = shapely.is_empty(areas)
    wide = finite & flat & (widths_m[owners] > 0)
    lines = shapely.buffer(shapely.clip_by_rect(parts[wide], *box_m), widths_m[owners[wide]] / 2)

    def of(*numbers: NDArray[np.int64]) -> NDArray[np.bool_]:
        return np.isin(np.arange(len(shapes)), np.concatenate(numbers))

    lost = (broken | of(owners[~finite], whose[empty])) & ~of(whose[~empty], owners[wide])
    return Shapes([*areas[~empty], *lines[~shapely.is_empty(lines)]], of(whose[mended]) & ~lost, lost)


def _turned(parts: NDArray[Any], crs: str, epsg: int) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Return geometries (n,) in the coordinates of a UTM zone, and which of them are finite there."""
    import shapely

    turn = transformer(crs, epsg).transform
    turned = shapely.transform(parts, lambda xy: np.column_stack(turn(xy[:, 0], xy[:, 1])))
    return turned, np.isfinite(shapely.bounds(turned)).all(1)


def _parts(shapes: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return all simple geometries that are not empty, also those within collections, with their feature's number."""
    import shapely

    parts, owners = shapely.get_parts(shapes, return_index=True)
    while (shapely.get_type_id(parts) > 3).any():  # collections of multipolygons
        parts, within = shapely.get_parts(parts, return_index=True)
        owners = owners[within]
    there = ~shapely.is_empty(parts)
    return parts[there], owners[there]


def _repaired(
    polygons: NDArray[Any], owners: NDArray[np.int64]
) -> tuple[NDArray[Any], NDArray[np.int64], NDArray[np.bool_]]:
    """Return valid polygons, their features' numbers, and which had to be repaired. Some may be empty then."""
    import shapely

    broken = ~shapely.is_valid(polygons)
    if broken.any():
        polygons = polygons.copy()
        polygons[broken] = shapely.make_valid(polygons[broken], method="structure", keep_collapsed=False)
    return polygons, owners, broken
