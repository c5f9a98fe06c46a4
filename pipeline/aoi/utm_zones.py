"""UTM zones: cutting shapes by zone, and projecting them to metres."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray
    from shapely import Geometry

MIN_LAT, MAX_LAT = -80.0, 84.0  # UTM is defined between them
EDGE_DEG = 0.01  # longer edges are divided before projection; a straight 0.01 degree bows by about 1 cm
SLIVER_DEG2 = 1e-14  # about a square centimetre: what cutting along a shared edge leaves behind

# Latitude bands in which zones are not six degrees wide (MGRS, NGA.STND.0037: south-west Norway and Svalbard), as
# {zone: (west, east)}; zones missing from the table of their band do not exist there.
_NORWAY = {31: (0.0, 3.0), 32: (3.0, 12.0)}
_SVALBARD = {31: (0.0, 9.0), 33: (9.0, 21.0), 35: (21.0, 33.0), 37: (33.0, 42.0)}
_BANDS: tuple[tuple[float, float, dict[int, tuple[float, float]]], ...] = (
    (MIN_LAT, 0.0, {}),
    (0.0, 56.0, {}),
    (56.0, 64.0, _NORWAY),
    (64.0, 72.0, {}),
    (72.0, MAX_LAT, _SVALBARD),
)


def cut_by_zone(shape: Geometry) -> dict[int, Geometry]:
    """A polygonal shape by UTM zone and hemisphere: {EPSG code 326zz or 327zz: shape in EPSG:4326}, sorted."""
    import shapely

    west, south, east, north = shape.bounds
    shapely.prepare(shape)
    parts: dict[int, list[Geometry]] = {}
    for epsg, (left, bottom, right, top) in _cells():
        if left >= east or right <= west or bottom >= north or top <= south:
            continue
        cell = shapely.box(left, bottom, right, top)
        cut = shape if cell.contains(shape) else shape.intersection(cell)
        polygons = [part for part in shapely.get_parts(cut) if part.area > SLIVER_DEG2]
        parts.setdefault(epsg, []).extend(polygons)
    return {epsg: merged(parts[epsg]) for epsg in sorted(parts) if parts[epsg]}


def merged(polygons: list[Geometry]) -> Geometry:
    """Union of the polygons. Only those that touch are handed to GEOS, which is slow on many separate islands."""
    import shapely

    first, second = shapely.STRtree(polygons).query(polygons, predicate="intersects")
    root = list(range(len(polygons)))
    for one, other in zip(first.tolist(), second.tolist(), strict=True):
        if one < other:
            root[_find(root, one)] = _find(root, other)
    groups: dict[int, list[Geometry]] = {}
    for index, polygon in enumerate(polygons):
        groups.setdefault(_find(root, index), []).append(polygon)
    unions = [group[0] if len(group) == 1 else shapely.union_all(group) for group in groups.values()]
    parts = [part for union in unions for part in shapely.get_parts(union) if part.geom_type == "Polygon"]
    return parts[0] if len(parts) == 1 else shapely.MultiPolygon(parts)


def to_utm(geometry: Geometry, epsg: int) -> Geometry:
    """The shapely geometry (EPSG:4326) in metres of zone `epsg`, long edges divided first. ValueError outside it."""
    import numpy as np
    import pyproj
    import shapely

    transformer = pyproj.Transformer.from_crs(4326, epsg, always_xy=True)
    dense = shapely.segmentize(geometry, EDGE_DEG)
    metres = shapely.transform(dense, lambda lonlat: np.column_stack(transformer.transform(lonlat[:, 0], lonlat[:, 1])))
    if not np.isfinite(shapely.get_coordinates(metres)).all():
        msg = f"a shape at {geometry.bounds} cannot be expressed in EPSG:{epsg}"
        raise ValueError(msg)
    return metres


def grown(shape: Geometry, by_m: float) -> Geometry:
    """The shape (EPSG:4326) and everything within `by_m` metres of it, a little more, within -180..180."""
    import numpy as np
    import pyproj
    import shapely

    parts: list[Geometry] = []
    for epsg, part in cut_by_zone(shape).items():
        # the octagon used for a circle reaches 0.92 of its radius, and simplified lines lie up to 0.05 inside
        metres = to_utm(part, epsg).simplify(0.05 * by_m).buffer(1.2 * by_m, quad_segs=2)
        central_deg = 6 * (epsg % 100) - 183
        transformer = pyproj.Transformer.from_crs(epsg, 4326, always_xy=True)

        def to_degrees(xy: NDArray[np.float64], to: pyproj.Transformer = transformer, at: int = central_deg) -> object:
            lon, lat = to.transform(xy[:, 0], xy[:, 1])
            return np.column_stack([(lon - at + 180.0) % 360.0 - 180.0 + at, lat])

        parts += [within_180(one) for one in shapely.get_parts(shapely.transform(metres, to_degrees))]
    return shapely.union_all(parts)


def within_180(shape: Geometry) -> Geometry:
    """The shape with the parts beyond 180 or -180 degrees wrapped."""
    import shapely
    from shapely.affinity import translate

    west, _, east, _ = shape.bounds
    if west < -180:
        shape, east = translate(shape, xoff=360), east + 360
    if east <= 180:
        return shape
    inside = shape.intersection(shapely.box(-180, -90, 180, 90))
    beyond = translate(shape.intersection(shapely.box(180, -90, 540, 90)), xoff=-360)
    return shapely.union_all([inside, beyond])


def _find(root: list[int], index: int) -> int:
    """Representative of the group of `index` (union-find with path compression)."""
    while root[index] != index:
        root[index] = root[root[index]]
        index = root[index]
    return index


def _cells() -> Iterator[tuple[int, tuple[float, float, float, float]]]:
    """(EPSG code, (west, south, east, north)) of all rectangles in which one UTM zone applies."""
    for south, north, special in _BANDS:
        base = 32700 if north <= 0 else 32600
        for zone in range(1, 61):
            west = -186.0 + 6.0 * zone
            east = west + 6.0
            if special and zone in range(min(special), max(special) + 1):
                if zone not in special:
                    continue
                west, east = special[zone]
            yield base + zone, (west, south, east, north)
