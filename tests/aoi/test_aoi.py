"""Areas of interest: every kind of bad file gets its one line, every odd but usable one a warning."""

from __future__ import annotations

import io
import json
import math
import os
import pickle
import sys
import time
from datetime import UTC, datetime

import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.aoi.aoi import aoi_from_bbox, parse_period, read_aoi, to_utm, utm_parts
from pipeline.errors import UsageError

SQUARE = [[7.6, 45.0], [7.7, 45.0], [7.7, 45.1], [7.6, 45.1], [7.6, 45.0]]
BOW_TIE = [[7.6, 45.0], [7.7, 45.1], [7.7, 45.0], [7.6, 45.1], [7.6, 45.0]]


def poly(*rings):
    return {"type": "Polygon", "coordinates": list(rings) or [SQUARE]}


def moved(ring, dlon=0.0, dlat=0.0):
    return [[lon + dlon, lat + dlat] for lon, lat in ring]


def box(west, south, east, north):
    return [[west, south], [east, south], [east, north], [west, north], [west, south]]


def features(*geometries, **extra):
    members = [{"type": "Feature", "properties": {}, "geometry": geometry} for geometry in geometries]
    return {"type": "FeatureCollection", "features": members, **extra}


def feature(geometry):
    return {"type": "Feature", "properties": {}, "geometry": geometry}


OGC = "http://www.opengis.net/def/crs/"


def text_of(value):
    return value if isinstance(value, bytes) else (value if isinstance(value, str) else json.dumps(value)).encode()


REFUSED = {
    "1 empty": (b"", "$: empty"),
    "1 blank": (b"  \n", "$: empty"),
    "2 not JSON": (b"hello", "not JSON"),
    "3 array": (b"[1, 2]", "a JSON array"),
    "3 number": (b"42", "a JSON number"),
    "3 null": (b"null", "a JSON null"),
    "4 UTF-16": (json.dumps(poly()).encode("utf-16"), "UTF-16"),
    "4 latin-1": (b'{"type": "Feature", "id": "\xe9"}', "not UTF-8"),
    "5 truncated": (json.dumps(poly()).encode()[:-9], "line 1 column"),
    "6 depth bomb": (b"[" * 100_000, "nested 100000 levels deep"),
    "6 depth in quotes": (b'{"type": "Polygon", "x": "' + b"[" * 50 + b'"}', "$.coordinates"),
    "7 11 MB": (b" " * 10_000_001, "more than 10 MB"),
    "8 duplicate key": (b'{"type": "Polygon", "type": "Point"}', "the key 'type' twice"),
    "9 NaN": (b'{"type": "Polygon", "coordinates": [[[NaN, 1]]]}', "the constant NaN"),
    "9 Infinity": (b'{"type": "Polygon", "coordinates": [[[-Infinity, 1]]]}', "the constant -Infinity"),
    "9 overflow": (b'{"type": "Polygon", "coordinates": [[[1e999, 1]]]}', "not finite"),
    "9 digit bomb": (b'{"type": "Polygon", "coordinates": [[[1' + b"0" * 5000 + b", 1]]]}", "$"),
    "10 strings": (poly([["7.6", "45.0"], *SQUARE[1:]]), '$.coordinates[0][0]: "7.6" as a coordinate'),
    "10 boolean": (poly([[True, 45.0], *SQUARE[1:]]), "$.coordinates[0][0]: true as a coordinate"),
    "11 no features": (features(), "$.features: no features"),
    "11 features null": ({"type": "FeatureCollection", "features": None}, "$.features: null"),
    "12 geometry null": (features(None), "$.features[0].geometry: null"),
    "13 empty collection": ({"type": "GeometryCollection", "geometries": []}, "$.geometries: no geometries"),
    "14 point": (features({"type": "Point", "coordinates": [7, 45]}), "$.features[0].geometry.type: a Point"),
    "14 multipoint": ({"type": "MultiPoint", "coordinates": [[7, 45]]}, "$.type: a MultiPoint"),
    "15 line": ({"type": "LineString", "coordinates": [[7, 45], [8, 46]]}, "$.type: a LineString"),
    "17 case": ({"type": "polygon", "coordinates": [SQUARE]}, "write 'Polygon' (case counts)"),
    "17 no type": ({"coordinates": [SQUARE]}, "$.type: no type"),
    "18 TopoJSON": ({"type": "Topology", "objects": {}, "arcs": []}, "TopoJSON"),
    "19 Esri geometry": ({"rings": [SQUARE], "spatialReference": {"wkid": 4326}}, "Esri JSON"),
    "19 Esri features": ({"features": [{"attributes": {}, "geometry": {"rings": [SQUARE]}}]}, "Esri JSON"),
    "21 three positions": (poly(SQUARE[:3]), "$.coordinates[0]: a ring of 3 positions"),
    "21 empty ring": (poly([]), "$.coordinates[0]: a ring of 0 positions"),
    "21 no rings": ({"type": "Polygon", "coordinates": []}, "$.coordinates: []"),
    "21 flat ring": (poly([7.6, 45.0, 7.7, 45.0]), "$.coordinates[0][0]: 7.6"),
    "22 bow-tie": (poly(BOW_TIE), "Self-intersection[7.65 45.05]"),
    "23 collinear": (poly([[7, 45], [8, 45], [9, 45], [7, 45]]), "without area"),
    "23 one point": (poly([[7, 45]] * 4), "without area"),
    "24 hole outside": (poly(SQUARE, moved(SQUARE, 1.0)), "Hole lies outside shell"),
    "27 four numbers": (poly([[7.6, 45.0, 0, 0], *SQUARE[1:]]), "$.coordinates[0][0]: 4 numbers"),
    "27 one number": (poly([[7.6], *SQUARE[1:]]), "$.coordinates[0][0]: 1 numbers"),
    "28 swapped": (poly([[45.0, 107.6], [45.0, 107.7], [45.1, 107.7], [45.0, 107.6]]), "looks swapped"),
    "29 metres": (poly(box(399960, 5000000, 409960, 5010000)), "metres, not degrees"),
    "30 crs": (features(poly(), crs={"type": "name", "properties": {"name": "EPSG:32633"}}), "EPSG:32633"),
    "30 crs text": (features(poly(), crs="EPSG:3857"), "EPSG:3857"),
    "31 beyond 360": (poly(moved(SQUARE, 400.0)), "longitude -180..180"),
    "32 pole cap": (poly(box(-10, 80, 10, 85)), "-80..84"),
    "32 pole inside": (poly([[0, 80], [120, 80], [-120, 80], [0, 80]]), "around a pole"),
    "32 south": (poly(box(-10, -85, 10, -75)), "-80..84"),
    "34 world": (poly(box(-180, -79, 180, 83)), "raise the limit"),
    "34 country": (poly(box(5, 45, 15, 55)), "the area is 79"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_files_are_refused_in_one_line_with_file_and_place(case, tmp_path):
    content, expected = REFUSED[case]
    path = tmp_path / "region.geojson"
    path.write_bytes(text_of(content))
    with pytest.raises(UsageError) as error:
        read_aoi(str(path))
    message = str(error.value)
    assert error.value.exit_code == 2
    assert message.startswith(f"{path}: $")
    assert expected in message
    assert "\n" not in message
    assert len(message) < 500 + len(str(path))


ISLANDS = {"type": "MultiPolygon", "coordinates": [[moved(SQUARE, k * 0.2)] for k in range(3)]}
ACCEPTED = {
    # case: (content, expected area in km2 to 2 %, a warning or None)
    "plain": (poly(), 87.5, None),
    "4 BOM": (b"\xef\xbb\xbf" + json.dumps(poly()).encode(), 87.5, None),
    "13 collection of polygons": ({"type": "GeometryCollection", "geometries": [poly(), ISLANDS]}, 262.5, "overlap"),
    "20 open ring": (poly(SQUARE[:-1]), 87.5, "$.coordinates[0]: ring is not closed"),
    "25 clockwise": (poly(SQUARE[::-1]), 87.5, None),
    "26 altitude": (poly([[*p, 120.0] for p in SQUARE]), 87.5, "third number"),
    "hole": (poly(SQUARE, box(7.62, 45.02, 7.68, 45.08)), 87.5 * 0.64, None),
    "28 swapped but possible": (poly([p[::-1] for p in SQUARE]), 122.3, None),
    "30 CRS84": (features(poly(), crs={"properties": {"name": "urn:ogc:def:crs:OGC:1.3:CRS84"}}), 87.5, None),
    "30 EPSG 4326": (features(poly(), crs={"properties": {"name": "urn:ogc:def:crs:EPSG::4326"}}), 87.5, None),
    "30 CRS84 address": (features(poly(), crs={"properties": {"name": OGC + "OGC/1.3/CRS84"}}), 87.5, None),
    "30 EPSG address": (features(poly(), crs={"properties": {"name": OGC + "EPSG/0/4326"}}), 87.5, None),
    "9 NaN in properties": (
        json.dumps({"type": "Feature", "properties": {"a": float("nan")}, "geometry": poly()}).encode(),
        87.5,
        None,
    ),
    "41 one feature a line": (
        b"\n".join(json.dumps(one).encode() for one in (feature(poly()), feature(poly(moved(SQUARE, 0.1))))),
        175.1,
        None,
    ),
    "41 RFC 8142": (
        b"".join(b"\x1e" + json.dumps(one, indent=1).encode() for one in (feature(poly()), feature(None))),
        87.5,
        "$.features[1].geometry",
    ),
    "12 geometry null beside": (features(poly(), None), 87.5, "1 member without area left out: $.features[1].geometry"),
    "16 points beside": (
        features(poly(), {"type": "Point", "coordinates": [7, 45]}, {"type": "LineString", "coordinates": []}),
        87.5,
        "2 members without area left out",
    ),
    "13 collection with a point": (
        {"type": "GeometryCollection", "geometries": [{"type": "Point", "coordinates": [7, 45]}, poly()]},
        87.5,
        "$.geometries[0]",
    ),
    "30 crs null": (features(poly(), crs=None), 87.5, None),
    "31 lon 0..360": (poly(moved(SQUARE, 345.0)), 87.5, "brought into -180..180"),
    "33 170 to -170": (
        poly([[179.9, 45], [-179.9, 45], [-179.9, 45.1], [179.9, 45.1], [179.9, 45]]),
        175.1,
        "short way",
    ),
    "33 split already": (
        {"type": "MultiPolygon", "coordinates": [[box(179.9, 45, 180, 45.1)], [box(-180, 45, -179.9, 45.1)]]},
        175.1,
        None,
    ),
    "33 170 to 190": (poly(box(179.9, 45, 180.1, 45.1)), 175.1, "split at the antimeridian"),
    "35 tiny": (poly(box(7.6, 45.0, 7.60001, 45.00001)), 8.7e-7, "less than one 60 m block"),
    "36 overlapping": (features(poly(), poly(moved(SQUARE, 0.05))), 131.2, "overlap"),
    "36 duplicate": (features(poly(), poly()), 87.5, "overlap"),
    "36 neighbours": (features(poly(), poly(moved(SQUARE, 0.1))), 175.1, None),
    "38 two continents": (features(poly(), poly(moved(SQUARE, -80.0))), 175.1, None),
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_usable_files_are_accepted_with_a_warning(case, tmp_path):
    content, area_km2, warning = ACCEPTED[case]
    path = tmp_path / "region.geojson"
    path.write_bytes(text_of(content))
    aoi = read_aoi(str(path))
    assert aoi.area_km2 == pytest.approx(area_km2, rel=0.02)
    west, _, east, _ = aoi.shape.bounds
    assert -180 <= west < east <= 180
    assert aoi.shape.is_valid
    if warning is None:
        assert aoi.warnings == ()
    else:
        assert any(warning in line for line in aoi.warnings), aoi.warnings
    assert aoi.name == "region"


def test_bow_tie_is_repaired_on_request(tmp_path):
    path = tmp_path / "bow.geojson"
    path.write_text(json.dumps(poly(BOW_TIE)))
    aoi = read_aoi(str(path), repair=True)
    assert aoi.area_km2 == pytest.approx(87.5 / 2, rel=0.02)
    assert any("repaired (Self-intersection" in line for line in aoi.warnings)


def test_7_too_many_vertices(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.aoi.geojson.MAX_VERTICES", 1_000)
    path = tmp_path / "dense.geojson"
    ring = ",".join(["[1,2]"] * 1_001)
    path.write_text('{"type":"Polygon","coordinates":[[' + ring + "]]}")
    with pytest.raises(UsageError, match="more than 1,000 vertices"):
        read_aoi(str(path))


def test_37_many_islands_stay_apart(tmp_path):
    path = tmp_path / "islands.geojson"
    rings = [[box(x * 0.001, y * 0.001, x * 0.001 + 0.0005, y * 0.001 + 0.0005)] for x in range(50) for y in range(100)]
    path.write_text(json.dumps({"type": "MultiPolygon", "coordinates": rings}))
    aoi = read_aoi(str(path))
    assert len(aoi.shape.geoms) == 5_000
    assert list(utm_parts(aoi)) == [32631]


def test_34_a_raised_limit_lets_a_large_area_through(tmp_path):
    path = tmp_path / "large.geojson"
    path.write_text(json.dumps(poly(box(5, 45, 15, 55))))
    with pytest.raises(UsageError, match=r"the area is 79\d,\d{3} km2; expected at most 200,000 km2"):
        read_aoi(str(path))
    assert read_aoi(str(path), max_area_km2=1e6).area_km2 == pytest.approx(8.0e5, rel=0.05)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("aoi.zip", "ogr2ogr"),
        ("aoi.shp", "ogr2ogr"),
        ("aoi.KML", "ogr2ogr"),
        ("https://example.org/aoi.geojson", "download it first"),
        ("s3://bucket/aoi.geojson", "download it first"),
        ("/vsicurl/https://example.org/aoi.geojson", "download it first"),
        ("nothing.geojson", "No such file"),
        ("nul\0.geojson", "cannot be read"),
    ],
)
def test_40_sources_that_are_not_geojson_files(name, expected):
    with pytest.raises(UsageError, match=expected) as error:
        read_aoi(name)
    assert "\n" not in str(error.value)


def test_40_folder_loop_and_unreadable(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="a folder"):
        read_aoi(str(tmp_path))
    loop = tmp_path / "loop.geojson"
    loop.symlink_to(loop)
    with pytest.raises(UsageError, match=r"cannot be read \(Too many levels"):
        read_aoi(str(loop))
    locked = tmp_path / "locked.geojson"
    locked.write_text("{}")

    def denied(*_args, **_kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.open", denied)
    with pytest.raises(UsageError, match=r"cannot be read \(Permission denied\)"):
        read_aoi(str(locked))


def test_40_stdin_is_read_and_named(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(json.dumps(poly()).encode())))
    assert read_aoi("-").name == "stdin"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    with pytest.raises(UsageError, match=r"^stdin: \$: empty"):
        read_aoi("-")


def test_39_ocean_is_a_fine_area_of_interest():
    assert aoi_from_bbox(-30.1, 0.05, -30.0, 0.1).warnings == ()


@pytest.mark.parametrize(
    ("bbox", "expected"),
    [
        ((7.7, 45.1, 7.8, 45.0), "south 45.1 is not below north 45.0"),
        ((7.7, 45.0, 7.7, 45.1), "a box with a width"),
        ((7.6, 45.0, math.nan, 45.1), "finite"),
        ((45.0, 107.6, 45.1, 107.7), "looks swapped"),
        ((399960, 5000000, 409960, 5010000), "degrees, not metres"),
        ((-10, 83, 10, 85), "-80..84"),
        ((10, 45, 5, 46), "west 10 lies east of east 5: 355 degrees around the world; .* swap west and east"),
        ((4.9, 45.7, 4.8, 45.8), "swap west and east"),
    ],
)
def test_41_bad_boxes(bbox, expected):
    with pytest.raises(UsageError, match=expected):
        aoi_from_bbox(*bbox)


def test_41_boxes_that_cross_the_antimeridian_in_any_spelling():
    boxes = [(179.9, 45, -179.9, 45.1), (179.9, 45, 180.1, 45.1), (-180.0, 45, -179.9, 45.1)]
    first, second, half = (aoi_from_bbox(*numbers) for numbers in boxes)
    assert first.digest == second.digest
    assert first.geometry["type"] == "MultiPolygon"
    assert first.shape.bounds == (-180.0, 45.0, 180.0, 45.1)
    assert first.area_km2 == pytest.approx(2 * half.area_km2)
    assert sorted(utm_parts(first)) == [32601, 32660]


NOW = datetime(2025, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        ("2024-06-01", "2024-06-30", ("2024-06-01T00:00:00Z", "2024-06-30T23:59:59Z")),
        ("2024-02", "2024-02", ("2024-02-01T00:00:00Z", "2024-02-29T23:59:59Z")),
        ("2023", "2024", ("2023-01-01T00:00:00Z", "2024-12-31T23:59:59Z")),
        ("2024-06-01T12:00:00+02:00", None, ("2024-06-01T10:00:00Z", None)),
        ("2024-06-01T12:00:00", "2024-06-01T12:00:00Z", ("2024-06-01T12:00:00Z", "2024-06-01T12:00:00Z")),
        (None, None, (None, None)),
        ("2010-01-01", "2016-01-01", ("2010-01-01T00:00:00Z", "2016-01-01T23:59:59Z")),
        ("2024-12-01", "2030-01-01", ("2024-12-01T00:00:00Z", "2030-01-01T23:59:59Z")),
    ],
)
def test_42_periods(start, end, expected):
    assert parse_period(start, end, now=NOW) == expected


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        ("2024-06-02", "2024-06-01", "is before start"),
        ("2025-01-02", None, "in the future"),
        ("2010-01-01", "2015-06-22", "before Sentinel-2 flew"),
        ("2024-06-01T00:00:00+99:00", None, "not a date"),
        ("", None, "start is empty"),
        (None, " ", "end is empty"),
        ("June", None, "not a date"),
        ("2024-13-01", None, "not a date"),
        ("2024-02-30", None, "not a date"),
        ("20240601", None, "not a date"),
        ("2024-06-01T25:00:00Z", None, "not a date"),
    ],
)
def test_42_bad_periods(start, end, expected):
    with pytest.raises(UsageError, match=expected):
        parse_period(start, end, now=NOW)


def test_period_does_not_depend_on_the_machines_time_zone(monkeypatch):
    monkeypatch.setenv("TZ", "Pacific/Kiritimati")
    time.tzset()
    try:
        assert parse_period("2024-06-01", "2024-06-01") == ("2024-06-01T00:00:00Z", "2024-06-01T23:59:59Z")
    finally:
        os.environ.pop("TZ", None)
        time.tzset()


def test_digest_ignores_order_and_winding_but_not_ground(tmp_path):
    def digest(name, value):
        (tmp_path / name).write_text(json.dumps(value))
        return read_aoi(str(tmp_path / name)).digest

    turned = [*SQUARE[2:-1], *SQUARE[:3]]
    a, b = poly(), poly(moved(SQUARE, 0.5))
    assert digest("a", features(a, b)) == digest("b", features(b, a)) == digest("c", features(poly(turned), b))
    assert digest("a", a) == digest("d", poly(SQUARE[::-1]))
    assert digest("a", a) != digest("b", b)


def test_aoi_pickles_and_describes_itself():
    aoi = aoi_from_bbox(7.6, 45.0, 7.7, 45.1)
    assert pickle.loads(pickle.dumps(aoi)) == aoi
    assert aoi.describe() == "bbox_7.6_45_7.7_45.1: 87.55 km2 around 45.050 N 7.650 E"


# -- UTM zones

ZONES = {
    "Turin": ((7.6, 45.0, 7.7, 45.1), [32632]),
    "zone border": ((11.9, 45.0, 12.1, 45.1), [32632, 32633]),
    "Bergen lies in 32 although east of 3": ((3.5, 60.0, 5.5, 60.2), [32632]),
    "zone 31V ends at 3": ((2.9, 60.0, 3.1, 60.1), [32631, 32632]),
    "below Norway's band": ((3.5, 55.9, 5.5, 56.1), [32631, 32632]),
    "Svalbard has no 32, 34, 36": ((7.0, 78.0, 12.0, 78.1), [32631, 32633]),
    "Svalbard east": ((20.0, 78.0, 34.0, 78.1), [32633, 32635, 32637]),
    "Svalbard ends at 42": ((41.9, 78.0, 42.1, 78.1), [32637, 32638]),
    "equator": ((9.0, -0.1, 9.2, 0.1), [32632, 32732]),
    "south": ((-60.2, -60.5, -59.8, -60.4), [32720, 32721]),
    "first and last zone": ((179.5, 10.0, -179.5, 10.1), [32601, 32660]),
}


@pytest.mark.parametrize("case", ZONES)
def test_zones_follow_the_tiling_with_its_exceptions(case):
    bbox, expected = ZONES[case]
    aoi = aoi_from_bbox(*bbox)
    parts = utm_parts(aoi)
    assert list(parts) == sorted(expected)
    assert sum(part.area for part in parts.values()) == pytest.approx(aoi.shape.area)
    assert shapely.union_all(list(parts.values())).symmetric_difference(aoi.shape).area < 1e-12


@settings(max_examples=60, deadline=None)
@given(st.floats(-179.5, 179.0), st.floats(-79.0, 83.0), st.floats(0.01, 4.0), st.floats(0.01, 0.9))
def test_every_place_belongs_to_exactly_one_zone(west, south, width, height):
    aoi = aoi_from_bbox(west, south, min(west + width, 180.0), south + height, max_area_km2=1e9)
    parts = utm_parts(aoi)
    assert sum(part.area for part in parts.values()) == pytest.approx(aoi.shape.area, rel=1e-9)
    for epsg in parts:
        assert (epsg // 100 == 326) == (parts[epsg].bounds[3] > 0)


def test_to_utm_is_exact_at_known_points_and_bends_long_edges():
    tile = shapely.Polygon(box(9.0, 46.0, 9.5, 46.2))
    metres = to_utm(tile, 32632)
    assert metres.bounds[0] == pytest.approx(500_000.0, abs=1e-3)  # 9 E is the central meridian of zone 32
    assert len(metres.exterior.coords) > 100
    # The middle of the southern edge lies on the parallel, not on the chord between its ends.
    chord = to_utm(shapely.LineString([(9.0, 46.0), (9.0001, 46.0)]), 32632)
    middle = to_utm(shapely.Point(9.25, 46.0), 32632)
    ends = [to_utm(shapely.Point(lon, 46.0), 32632) for lon in (9.0, 9.5)]
    assert chord.length == pytest.approx(7.73, abs=0.02)
    assert (ends[0].y + ends[1].y) / 2 - middle.y > 20.0
    assert metres.exterior.distance(middle) < 0.1


def test_to_utm_refuses_the_other_side_of_the_earth():
    with pytest.raises(ValueError, match="cannot be expressed"):
        to_utm(shapely.Point(99.0, 0.0), 32632)
