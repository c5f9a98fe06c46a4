"""Areas of interest: read and validated, split at the antimeridian, with a digest."""

from __future__ import annotations

import hashlib
import json
import math
import re
import stat
import sys
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.aoi.geojson import CONVERT, MAX_BYTES, Position, Reading, Rings, read_rings
from pipeline.aoi.period import parse_period
from pipeline.aoi.utm_zones import MAX_LAT, MIN_LAT, SLIVER_DEG2, cut_by_zone, merged, to_utm
from pipeline.errors import UsageError

if TYPE_CHECKING:
    from shapely import Geometry

__all__ = ["Aoi", "aoi_from_bbox", "aoi_from_geojson", "parse_period", "read_aoi", "to_utm", "utm_parts"]

MAX_AREA_KM2 = 200_000.0  # about the size of Great Britain; larger runs need --max-area-km2
BLOCK_M2 = 3600.0  # one 60 m pixel
_OTHER_FORMATS = (".zip", ".shp", ".kml", ".kmz", ".gpkg", ".gml", ".fgb", ".dxf", ".tab", ".parquet", ".wkt", ".csv")


@dataclass(frozen=True)
class Aoi:
    """An area of interest.

    `geometry`: GeoJSON Polygon or MultiPolygon, EPSG:4326, longitudes -180..180, split at the antimeridian.
    `digest`: SHA-256 of the geometry, the same for any order of vertices, rings and features.
    """

    geometry: dict[str, Any] = field(hash=False)
    name: str
    digest: str
    warnings: tuple[str, ...] = ()

    @cached_property
    def shape(self) -> Geometry:
        """The geometry as shapely object, degrees."""
        import shapely.geometry

        return shapely.geometry.shape(self.geometry)

    @cached_property
    def area_km2(self) -> float:
        """Area on the WGS 84 ellipsoid in square kilometres."""
        return _area_km2(self.shape)

    def describe(self) -> str:
        """Name, area and centre on one line, so that swapped coordinates are noticed."""
        centre = self.shape.representative_point()
        ns, ew = "N" if centre.y >= 0 else "S", "E" if centre.x >= 0 else "W"
        return f"{self.name}: {self.area_km2:,.2f} km2 around {abs(centre.y):.3f} {ns} {abs(centre.x):.3f} {ew}"


def read_aoi(source: str, *, max_area_km2: float = MAX_AREA_KM2, repair: bool = False) -> Aoi:
    """AOI from a GeoJSON file, or from stdin when `source` is "-". UsageError names file, JSON path and cure."""
    label = "stdin" if source == "-" else source
    stem = "stdin" if source == "-" else Path(source).stem
    raw, name = _read_bytes(source), re.sub(r"[^\w.-]+", "_", stem)
    return aoi_from_geojson(raw, name, label=label, max_area_km2=max_area_km2, repair=repair)


def aoi_from_geojson(
    raw: bytes, name: str, *, label: str = "", max_area_km2: float = MAX_AREA_KM2, repair: bool = False
) -> Aoi:
    """AOI called `name` from a GeoJSON document. UsageError names `label`, JSON path and cure."""
    reading = read_rings(label or name, raw)
    shapes = [shape for polygon in reading.polygons for shape in _shapes(reading, polygon, repair)]
    return _finish(reading, shapes, name, max_area_km2)


def aoi_from_geometry(
    geometry: dict[str, Any], name: str, *, max_area_km2: float = MAX_AREA_KM2, repair: bool = False
) -> Aoi:
    """AOI from a GeoJSON object in EPSG:4326. UsageError as for a file."""
    reading = read_rings(name, json.dumps(geometry).encode())
    shapes = [shape for polygon in reading.polygons for shape in _shapes(reading, polygon, repair)]
    return _finish(reading, shapes, name, max_area_km2)


def aoi_from_bbox(west: float, south: float, east: float, north: float, *, max_area_km2: float = MAX_AREA_KM2) -> Aoi:
    """AOI from degrees; `west` > `east` crosses the antimeridian. UsageError when it is empty, swapped or outside."""
    numbers = (west, south, east, north)
    reading = Reading("bounding box")
    if not all(math.isfinite(number) for number in numbers):
        reading.fail("$", f"{numbers}", "four finite numbers: west south east north")
    if max(abs(south), abs(north)) > 90 and max(abs(west), abs(east)) <= 90:
        reading.fail("$", f"{numbers} looks swapped", "west south east north, in degrees")
    if not (-180 <= west <= 360 and -180 <= east <= 360 and east - west <= 360):
        reading.fail("$", f"longitudes {west} and {east}", "-180..180", "give degrees, not metres")
    if south >= north:
        reading.fail("$", f"south {south} is not below north {north}", "west south east north")
    if west > east and 360 + east - west > 180:
        reading.fail(
            "$",
            f"west {west:g} lies east of east {east:g}: {360 + east - west:g} degrees around the world",
            "west south east north",
            "swap west and east; only a box across the antimeridian has west > east",
        )
    if west >= 180:
        west, east = west - 360.0, east - 360.0
    if west > east:
        west -= 360.0
    if west == east:
        reading.fail("$", f"west and east are both {west}", "a box with a width")
    ring = [(west, south), (east, south), (east, north), (west, north), (west, south)]
    name = "bbox_" + "_".join(f"{number:g}" for number in numbers)
    shapes = _shapes(reading, Rings("$", [ring]), repair=False, unwrap=False)
    return _finish(reading, shapes, name, max_area_km2)


def aoi_from_shapes(shapes: list[Geometry], name: str, *, max_area_km2: float = MAX_AREA_KM2) -> Aoi:
    """AOI from valid shapely polygons in degrees, split at the antimeridian. UsageError when it is too large."""
    import shapely

    parts = [part for shape in shapes for part in shapely.get_parts(shape)]
    return _finish(Reading(name), parts, re.sub(r"[^\w.-]+", "_", name), max_area_km2)


def utm_parts(aoi: Aoi) -> dict[int, Geometry]:
    """The AOI cut by UTM zone and hemisphere: {EPSG code 326zz or 327zz: shapely geometry in EPSG:4326}, sorted."""
    return cut_by_zone(aoi.shape)


def _read_bytes(source: str) -> bytes:
    """At most MAX_BYTES + 1 bytes of a file or of stdin; UsageError for what is not a readable GeoJSON file."""
    if source == "-":
        return sys.stdin.buffer.read(MAX_BYTES + 1)
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", source) or source.startswith("/vsi"):
        raise UsageError(f"AOI {source!r} is an address", "a file or - for stdin", "download it first")
    path = Path(source)
    if path.suffix.lower() in _OTHER_FORMATS:
        raise UsageError(f"AOI {source}: a {path.suffix} file", "GeoJSON", f"convert it with: {CONVERT} {source}")
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise UsageError(f"AOI {source}: a folder", "a GeoJSON file", "name the file in it")
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except (OSError, RuntimeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"AOI {source}: cannot be read ({reason})", "a readable GeoJSON file") from None


def _shapes(reading: Reading, polygon: Rings, repair: bool, unwrap: bool = True) -> list[Geometry]:
    """Valid shapely polygons of one GeoJSON polygon, within -180..180. Ring edges take the short way round."""
    import shapely

    for index, ring in enumerate(polygon.rings):
        _check_range(reading, f"{polygon.path}[{index}]", ring)
    rings = [_unwrapped(reading, f"{polygon.path}[{index}]", ring) for index, ring in enumerate(polygon.rings)]
    if not unwrap:
        rings = polygon.rings
    middle = sum(lon for lon, _ in rings[0]) / len(rings[0])
    holes = [_beside(ring, middle) for ring in rings[1:]]
    shape = shapely.Polygon(rings[0], holes)
    if shape.convex_hull.area <= SLIVER_DEG2:  # not its own area, which is 0 for a symmetric bow-tie too
        reading.fail(polygon.path, "a polygon without area", "a ring that encloses something")
    if not shape.is_valid:
        shape = _repaired(reading, polygon.path, shape, repair)
    return _split_antimeridian(reading, polygon.path, shape)


def _check_range(reading: Reading, path: str, ring: list[Position]) -> None:
    lons, lats = [lon for lon, _ in ring], [lat for _, lat in ring]
    lon_reach, lat_reach = max(map(abs, lons)), max(map(abs, lats))
    if lat_reach > 90 and lon_reach <= 90 and lat_reach <= 180:
        reading.fail(path, f"latitude {max(lats, key=abs)}: looks swapped", "[longitude, latitude]", "swap the two")
    if lat_reach > 90 and lon_reach > 360:
        cure = f"{CONVERT} YOUR_FILE"
        reading.fail(path, f"coordinates like {list(ring[0])}: metres, not degrees", "longitude and latitude", cure)
    if lat_reach > 90 or lon_reach > 360:
        reading.fail(path, f"coordinates reach {lon_reach:g}, {lat_reach:g}", "longitude -180..180, latitude -90..90")
    if max(lats) > MAX_LAT or min(lats) < MIN_LAT:
        reading.fail(
            path, f"latitudes {min(lats)}..{max(lats)}", f"{MIN_LAT:g}..{MAX_LAT:g} (UTM)", "cut the poles off"
        )


def _unwrapped(reading: Reading, path: str, ring: list[Position]) -> list[Position]:
    """The ring with continuous longitudes (may leave -180..180). A step of exactly 360 degrees is the whole circle."""
    turns, out = 0.0, [ring[0]]
    for (before, _), (lon, lat) in pairwise(ring):
        step = lon - before
        if 180 < abs(step) < 360:
            turns -= math.copysign(360.0, step)
            reading.warn(f"{path}: an edge from {before:g} to {lon:g} taken the short way, across the antimeridian")
        out.append((lon + turns, lat))
    if turns:
        reading.fail(path, "a ring around a pole", "a polygon beside it", f"cut it at {MAX_LAT:g} N or {-MIN_LAT:g} S")
    return out


def _beside(ring: list[Position], middle: float) -> list[Position]:
    """The hole shifted by multiples of 360 degrees to its shell."""
    mean = sum(lon for lon, _ in ring) / len(ring)
    shift = 360.0 * round((middle - mean) / 360.0)
    return [(lon + shift, lat) for lon, lat in ring]


def _repaired(reading: Reading, path: str, shape: Geometry, repair: bool) -> Geometry:
    """Shape made valid when the user asked for it, else UsageError with the place of the fault."""
    import shapely

    reason = shapely.is_valid_reason(shape)
    if not repair:
        reading.fail(
            path, f"invalid polygon: {reason} (lon lat)", "rings that do not cross", "repair it, or --repair-aoi"
        )
    made = shapely.make_valid(shape)
    polygons = [part for part in shapely.get_parts(made) if part.geom_type in ("Polygon", "MultiPolygon")]
    if not polygons:
        reading.fail(path, f"invalid polygon: {reason}, nothing is left of it after repair", "an area")
    reading.warn(f"{path}: repaired ({reason})")
    return shapely.union_all(polygons)


def _split_antimeridian(reading: Reading, path: str, shape: Geometry) -> list[Geometry]:
    """Parts of the shape within -180..180; longitudes beyond are wrapped, with a warning."""
    import shapely
    from shapely.affinity import translate

    west, _, east, _ = shape.bounds
    if west >= -180 and east <= 180:
        return [shape]
    if east - west > 360:
        reading.fail(path, f"longitudes {west:g}..{east:g}", "at most one turn")
    reading.warn(f"longitudes {west:g}..{east:g} brought into -180..180 and split at the antimeridian where needed")
    parts: list[Geometry] = []
    for turn in (-360.0, 0.0, 360.0):
        window = shapely.box(-180.0 - turn, -90.0, 180.0 - turn, 90.0)
        cut = [part for part in shapely.get_parts(shape.intersection(window)) if part.geom_type == "Polygon"]
        parts.extend(translate(part, xoff=turn) for part in cut if part.area > 0)
    return parts


def _finish(reading: Reading, shapes: list[Geometry], name: str, max_area_km2: float) -> Aoi:
    """Union, size check, canonical geometry, digest, and the notes that a user should see."""
    import shapely
    import shapely.geometry

    union = merged(shapes)
    if sum(shape.area for shape in shapes) > union.area * (1 + 1e-9):
        reading.warn(f"{len(shapes)} polygons overlap; their union is used")
    rounded = shapely.set_precision(union, 1e-9, mode="pointwise")
    union = shapely.normalize(rounded if rounded.is_valid else shapely.set_precision(union, 1e-9))
    area_km2 = _area_km2(union)
    if area_km2 > max_area_km2:
        found = f"the area is {area_km2:,.0f} km2"
        reading.fail("$", found, f"at most {max_area_km2:,.0f} km2", "raise the limit if this is meant")
    if area_km2 * 1e6 < BLOCK_M2:
        reading.warn(f"the area is {area_km2 * 1e6:,.1f} m2, less than one 60 m block; whole blocks are delivered")
    text = json.dumps(shapely.geometry.mapping(union), separators=(",", ":"), sort_keys=True)
    geometry: dict[str, Any] = json.loads(text)
    return Aoi(geometry, name, hashlib.sha256(text.encode()).hexdigest(), tuple(reading.warnings))


def _area_km2(shape: Geometry) -> float:
    """Area on the WGS 84 ellipsoid. Edges are straight in degrees (RFC 7946 3.1.1), so long ones are divided first."""
    import pyproj
    import shapely

    geod = pyproj.Geod(ellps="WGS84")
    dense = shapely.segmentize(shape, 0.5)
    return float(sum(abs(geod.geometry_area_perimeter(part)[0]) for part in shapely.get_parts(dense))) / 1e6
