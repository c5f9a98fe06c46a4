"""Strict GeoJSON reader (RFC 7946) for polygons; errors name the place in the file."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

from pipeline.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_BYTES = 10_000_000
MAX_DEPTH = 32  # GeoJSON itself needs eight
MAX_VERTICES = 1_000_000
CONVERT = "ogr2ogr -f GeoJSON -t_srs EPSG:4326 aoi.geojson"

_RECORD = "\x1e"  # begins each text of a sequence
_BRACKETS = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}]')
_GEOMETRIES = ("Polygon", "MultiPolygon", "GeometryCollection")
_NOT_AREAS = ("Point", "MultiPoint", "LineString", "MultiLineString")
_LONLAT_CRS = re.compile(
    r"(?:urn:(?:x-)?ogc:def:crs:|https?://www\.opengis\.net/def/crs/)?"
    r"(?:OGC[:/](?:[\d.]*[:/])?CRS84h?|EPSG[:/](?:[\d.]*[:/])?4326)/?",
    re.IGNORECASE,
)

Position = tuple[float, float]


@dataclass
class Rings:
    """One polygon: JSON path, shell and holes as closed rings of (lon, lat) degrees."""

    path: str
    rings: list[list[Position]]


@dataclass
class Reading:
    """What was read so far from one source; `fail` explains with its name."""

    source: str
    polygons: list[Rings] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    vertices: int = 0
    altitudes: bool = False
    skipped: list[tuple[str, ...]] = field(default_factory=list)  # arguments of `fail` for members without area

    def fail(self, path: str, found: str, expected: str = "", cure: str = "") -> NoReturn:
        """Raise UsageError naming source and JSON path."""
        raise UsageError(f"{self.source}: {path}: {found}", expected, cure)

    def warn(self, text: str) -> None:
        """Record a warning, once."""
        if text not in self.warnings:
            self.warnings.append(text)


def read_rings(source: str, raw: bytes) -> Reading:
    """All polygons of a GeoJSON document. UsageError for anything that is not one or more areas in lon/lat."""
    reading = Reading(source)
    document = _parse(reading, raw)
    if not isinstance(document, dict):
        reading.fail("$", f"a JSON {_kind(document)}", "a GeoJSON object")
    _check_dialect(reading, document)
    _collect(reading, "$", document)
    if not reading.polygons and reading.skipped:
        reading.fail(*reading.skipped[0])
    if reading.skipped:
        count = len(reading.skipped)
        places = ", ".join(path.removesuffix(".type") for path, *_ in reading.skipped[:3])
        shown = f"{places} ..." if count > 3 else places
        reading.warn(f"{count} member{'' if count == 1 else 's'} without area left out: {shown}")
    if not reading.polygons:
        reading.fail("$", "no polygon in it", "at least one Polygon or MultiPolygon")
    if reading.altitudes:
        reading.warn("positions carry a third number (altitude); it is ignored")
    return reading


def _parse(reading: Reading, raw: bytes) -> object:
    """JSON value of the bytes, or an error with line and column."""
    text = _decode(reading, raw)
    depth = deepest = 0
    for token in _BRACKETS.finditer(text):
        char = token[0]
        if char in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif char in "]}":
            depth -= 1
    if deepest > MAX_DEPTH:
        reading.fail("$", f"nested {deepest} levels deep", f"at most {MAX_DEPTH}")

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = dict(items)
        if len(keys) < len(items):
            names = [key for key, _ in items]
            twice = next(key for key in names if names.count(key) > 1)
            reading.fail("$", f"an object with the key {twice!r} twice", "every key once")
        return keys

    def loaded(part: str) -> object:  # NaN is not JSON, but many write it; among coordinates it is refused later
        return json.loads(part, parse_constant=float, object_pairs_hook=pairs)

    try:
        return loaded(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" or text.startswith(_RECORD):
            return _sequence(reading, text, loaded)
        cut = " (the file ends too early)" if error.pos >= len(text.rstrip()) - 1 else ""
        reading.fail("$", f"not JSON: {error.msg} at line {error.lineno} column {error.colno}{cut}", "GeoJSON text")
    except ValueError as error:  # an integer of thousands of digits
        reading.fail("$", f"not JSON: {error}", "GeoJSON text")


def _sequence(reading: Reading, text: str, loaded: Callable[[str], object]) -> dict[str, Any]:
    """GeoJSON text sequences (RFC 8142) and newline-delimited features, as one FeatureCollection."""
    members = []
    parts = text.split(_RECORD) if _RECORD in text else text.splitlines()
    for number, part in enumerate(parts, 1):
        if not part.strip():
            continue
        try:
            member = loaded(part)
        except ValueError as error:
            reading.fail("$", f"neither one JSON text nor one a line: {error} in text {number}", "GeoJSON text")
        if not isinstance(member, dict):
            reading.fail("$", f"text {number} is a JSON {_kind(member)}", "a GeoJSON object")
        members.append(member)
    return {"type": "FeatureCollection", "features": members}


def _decode(reading: Reading, raw: bytes) -> str:
    if len(raw) > MAX_BYTES:
        reading.fail("$", f"more than {MAX_BYTES // 10**6} MB", "a simpler outline", "simplify it to about 10 m")
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        reading.fail("$", "UTF-16 text", "UTF-8", "save the file as UTF-8")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        reading.fail("$", f"not UTF-8 text (byte {error.start})", "GeoJSON in UTF-8", f"{CONVERT} YOUR_FILE")
    if not text.strip():
        reading.fail("$", "empty", "a GeoJSON object")
    return text


def _check_dialect(reading: Reading, document: dict[str, Any]) -> None:
    """Refuse TopoJSON, Esri JSON and other dialects, and coordinates that are not longitude and latitude."""
    if document.get("type") == "Topology":
        reading.fail("$.type", "TopoJSON", "GeoJSON", "convert it with: topo2geo LAYER=aoi.geojson < YOUR_FILE")
    if "rings" in document or "geometryType" in document or _is_esri_feature(document):
        reading.fail("$", "Esri JSON", "GeoJSON", f"convert it with: {CONVERT} YOUR_FILE")
    crs = document.get("crs")
    if crs is None:
        return
    named = crs.get("properties") if isinstance(crs, dict) else None
    name = str(named.get("name", crs) if isinstance(named, dict) else crs)
    if not _LONLAT_CRS.fullmatch(name):
        reading.fail("$.crs", f"coordinates in {name[:80]!r}", "longitude and latitude (CRS84)", f"{CONVERT} YOUR_FILE")


def _is_esri_feature(document: dict[str, Any]) -> bool:
    features = document.get("features")
    first = features[0] if isinstance(features, list) and features else None
    return isinstance(first, dict) and "attributes" in first and "type" not in first


def _collect(reading: Reading, path: str, node: object) -> None:
    """Add every polygon below `node` (any GeoJSON object) to the reading."""
    if not isinstance(node, dict):
        reading.fail(path, f"a JSON {_kind(node)}", "a GeoJSON object")
    kind = node.get("type")
    if kind == "FeatureCollection":
        _collect_all(reading, f"{path}.features", node.get("features"), "features")
    elif kind == "Feature":
        if node.get("geometry") is None:
            reading.skipped.append((f"{path}.geometry", "null", "a Polygon or MultiPolygon", "remove this feature"))
        else:
            _collect(reading, f"{path}.geometry", node["geometry"])
    elif kind == "GeometryCollection":
        _collect_all(reading, f"{path}.geometries", node.get("geometries"), "geometries")
    elif kind == "Polygon":
        _add_polygon(reading, f"{path}.coordinates", node.get("coordinates"))
    elif kind == "MultiPolygon":
        parts = node.get("coordinates")
        if not isinstance(parts, list) or not parts:
            reading.fail(f"{path}.coordinates", _shown(parts), "an array of polygons")
        for index, part in enumerate(parts):
            _add_polygon(reading, f"{path}.coordinates[{index}]", part)
    elif kind in _NOT_AREAS:
        found = f"a {kind}, which has no area"
        reading.skipped.append((f"{path}.type", found, "polygons only", "buffer it, or remove it from the file"))
    else:
        _fail_kind(reading, f"{path}.type", kind)


def _collect_all(reading: Reading, path: str, members: object, what: str) -> None:
    if not isinstance(members, list):
        reading.fail(path, _shown(members), f"an array of {what}")
    if not members:
        reading.fail(path, f"no {what}", "at least one polygon")
    for index, member in enumerate(members):
        _collect(reading, f"{path}[{index}]", member)


def _fail_kind(reading: Reading, path: str, kind: object) -> NoReturn:
    known = ("FeatureCollection", "Feature", *_GEOMETRIES, *_NOT_AREAS)
    meant = next((name for name in known if isinstance(kind, str) and name.lower() == kind.lower()), None)
    cure = f"write {meant!r} (case counts)" if meant else ""
    reading.fail(path, f"type {kind!r}" if kind is not None else "no type", "a GeoJSON type", cure)


def _add_polygon(reading: Reading, path: str, rings: object) -> None:
    if not isinstance(rings, list) or not rings:
        reading.fail(path, _shown(rings), "an array of rings")
    polygon = Rings(path, [_ring(reading, f"{path}[{index}]", ring) for index, ring in enumerate(rings)])
    reading.polygons.append(polygon)


def _ring(reading: Reading, path: str, ring: object) -> list[Position]:
    """Closed ring of (lon, lat); an open one is closed with a warning."""
    if not isinstance(ring, list):
        reading.fail(path, _shown(ring), "an array of positions")
    positions = [_position(reading, path, index, value) for index, value in enumerate(ring)]
    reading.vertices += len(positions)
    if reading.vertices > MAX_VERTICES:
        reading.fail(path, f"more than {MAX_VERTICES:,} vertices", "a simpler outline", "simplify it to about 10 m")
    if len(positions) < 4:
        reading.fail(path, f"a ring of {len(positions)} positions", "at least 4, the last equal to the first")
    if positions[0] != positions[-1]:
        reading.warn(f"{path}: ring is not closed; closed it")
        positions.append(positions[0])
    return positions


def _position(reading: Reading, ring_path: str, index: int, value: object) -> Position:
    if not isinstance(value, list) or not 2 <= len(value) <= 3:
        found = f"{len(value)} numbers in a position" if isinstance(value, list) else _shown(value)
        reading.fail(f"{ring_path}[{index}]", found, "[longitude, latitude]")
    for number in value:
        if isinstance(number, bool) or not isinstance(number, int | float):
            reading.fail(f"{ring_path}[{index}]", f"{_shown(number)} as a coordinate", "a number without quotes")
        if not math.isfinite(number):
            found = f"the constant {json.dumps(number)}, not finite"
            reading.fail(f"{ring_path}[{index}]", found, "numbers", "fix these coordinates")
        if not abs(number) < 1e15:
            reading.fail(f"{ring_path}[{index}]", "a coordinate that is not finite", "degrees")
    reading.altitudes |= len(value) == 3
    return round(float(value[0]), 9), round(float(value[1]), 9)  # 1e-9 degrees are 0.1 mm


def _kind(value: object) -> str:
    names = {list: "array", str: "string", bool: "boolean", type(None): "null", dict: "object"}
    return names.get(type(value), "number")


def _shown(value: object) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."
