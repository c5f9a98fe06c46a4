"""Formats and schemas of vector maps: all give the same pixels, and what cannot be read is refused in one line."""

import json
import struct

import numpy as np
import pytest
import shapely

from pipeline.conditions import indexed_copy, vector_map
from pipeline.conditions.settle import settle
from pipeline.conditions.vector_layers import layers_of
from pipeline.errors import ReadError, UsageError
from tests.conditions.made_up import CLASSES, LEFT, TOP, osm_xml, to_degrees, turned_box, vector, window, zone_maps

GSD_M, SIZE_M = 1.25, 600
HOUSE, WOOD, YARD = turned_box(40, 50, 60, 35, 12), turned_box(150, 60, 170, 240, -8), turned_box(330, 60, 120, 90, 3)
LANE = shapely.LineString([(LEFT + 10, TOP - 400), (LEFT + 500, TOP - 520)])
TUNNEL = shapely.LineString([(LEFT + 10, TOP - 560), (LEFT + 500, TOP - 570)])
OSM = [
    (HOUSE, {"building": "yes"}),
    (WOOD, {"landuse": "forest"}),
    (YARD, {"landuse": "farmyard"}),
    (LANE, {"highway": "residential"}),
    (TUNNEL, {"highway": "residential", "tunnel": "yes"}),
]
AREAS_M2 = {"building": HOUSE.area, "wood": WOOD.area, "farmland": YARD.area, "road-minor": LANE.buffer(3).area}
SCHEMAS = {
    "plain": [
        (HOUSE, {"class": "building"}), (WOOD, {"class": "wood"}), (YARD, {"class": "farmland"}),
        (LANE.buffer(3), {"class": "road-minor"}), (TUNNEL, {"class": "tunnel"}),
    ],
    "osm columns": [
        (shape, {"osm_id": "7"} | {key: tags.get(key) for key in ("building", "landuse", "highway", "tunnel")})
        for shape, tags in OSM
    ],
    "geofabrik": [
        (HOUSE, {"osm_id": "1", "fclass": "building", "tunnel": None}), (WOOD, {"fclass": "forest"}),
        (YARD, {"fclass": "farmyard"}), (LANE, {"fclass": "residential", "tunnel": "F"}),
        (TUNNEL, {"fclass": "residential", "tunnel": "T"}),
    ],
    "overture": [
        (WOOD, {"subtype": "forest", "class": "wood", "num_floors": None}), (YARD, {"subtype": "agriculture"}),
        (LANE, {"subtype": "road", "class": "residential"}),
    ],
}  # fmt: skip


@pytest.fixture(autouse=True)
def released():
    yield
    indexed_copy.release()
    indexed_copy._layers.cache_clear()
    vector_map.channels.cache_clear()


def complete(rows):
    names = list(dict.fromkeys(name for _, tags in rows for name in tags))
    return [(shape, {name: tags.get(name) for name in names}) for shape, tags in rows]


def areas(path):
    burnt = zone_maps(path).over("map", CLASSES.channels, window(GSD_M, SIZE_M), GSD_M)
    found = dict(zip(CLASSES.channels, (burnt.sum((1, 2)) * GSD_M**2).tolist(), strict=True))
    return {name: area for name, area in found.items() if area}


def check(path, expected=AREAS_M2):
    assert areas(path) == pytest.approx(expected, rel=0.02)


def pbf(folder):
    """The XML as a PBF file."""
    osmium = pytest.importorskip("osmium")
    source, path = osm_xml(folder / "source.osm", OSM), folder / "town.osm.pbf"
    with osmium.SimpleWriter(str(path)) as writer:
        for one in osmium.FileProcessor(str(source)):
            writer.add(one)
    return path


def parquet(path, rows, crs="default", encoding="WKB", group=2):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet as pq

    shapes = [to_degrees(shape) for shape, _ in rows]
    names = list(rows[0][1])
    limits = [dict(zip(("xmin", "ymin", "xmax", "ymax"), shape.bounds, strict=True)) for shape in shapes]
    table = pa.table(
        {name: [tags[name] for _, tags in rows] for name in names}
        | {"bbox": limits, "names": [["a"]] * len(rows), "shape": shapely.to_wkb(np.array(shapes)).tolist()}
    )
    covering = {"bbox": {side: ["bbox", side] for side in limits[0]}}
    column = {"encoding": encoding, "geometry_types": [], "covering": covering, "bbox": [10.0, 46.0, 10.5, 46.1]}
    column |= {} if crs == "default" else {"crs": crs}
    geo = {"version": "1.1.0", "primary_column": "shape", "columns": {"shape": column}}
    pq.write_table(table.replace_schema_metadata({"geo": json.dumps(geo)}), path, row_group_size=group)
    return path


def test_openstreetmap_as_xml(tmp_path):
    check(osm_xml(tmp_path / "town.osm", OSM))


def test_openstreetmap_as_pbf(tmp_path):
    path = pbf(tmp_path)
    check(path)
    assert {layer.name for layer in layers_of(path)} == {"lines", "multipolygons"}
    assert settle((CLASSES,), {"map": str(path)}, "toy")[0].credit == "© OpenStreetMap contributors, ODbL 1.0"


@pytest.mark.parametrize("schema", ["plain", "osm columns", "geofabrik"])
@pytest.mark.parametrize("suffix", [".gpkg", ".fgb", ".geojson"])
def test_schemas(schema, suffix, tmp_path):
    driver = {".gpkg": "GPKG", ".fgb": "FlatGeobuf", ".geojson": "GeoJSON"}[suffix]
    check(vector(tmp_path / f"town{suffix}", complete(SCHEMAS[schema]), driver=driver, degrees=suffix == ".geojson"))


def test_overture_in_geoparquet(tmp_path):
    path = parquet(tmp_path / "town.parquet", complete(SCHEMAS["overture"]))
    check(path, {name: AREAS_M2[name] for name in ("wood", "farmland", "road-minor")})
    buildings = [(HOUSE, {"subtype": "residential", "class": "house", "num_floors": 2, "has_parts": False})]
    check(parquet(tmp_path / "buildings.parquet", buildings), {"building": HOUSE.area})
    hidden = [(shape, tags | {"is_underground": True}) for shape, tags in buildings]
    assert areas(parquet(tmp_path / "cellars.parquet", hidden)) == {}


def test_geoparquet_reads_only_the_rows_near(tmp_path, monkeypatch):
    pytest.importorskip("pyarrow")
    from pyarrow.parquet import ParquetFile

    read, whole = [], ParquetFile.read_row_group
    monkeypatch.setattr(ParquetFile, "read_row_group", lambda file, group, **more: read.append(group) or whole(
        file, group, **more))  # fmt: skip
    far = shapely.transform(WOOD, lambda xy: xy + np.array([0, 300_000]))
    rows = [(far, {"class": "wood"}), (HOUSE, {"class": "building"}), (far, {"class": "wood"})]
    check(parquet(tmp_path / "town.parquet", rows, group=1), {"building": HOUSE.area})
    assert read == [1]


def test_several_layers_with_attributes_of_their_own(tmp_path):
    path = tmp_path / "town.gpkg"
    vector(path, [(HOUSE, {"building": "yes"})], layer="houses")
    vector(path, complete([(WOOD, {"landuse": "forest"}), (YARD, {"landuse": "farmyard"})]), layer="land")
    vector(path, [(LANE, {"highway": "residential"})], crs="EPSG:3035", layer="elsewhere")  # thousands of km off
    vector(path, [(LANE, {"highway": "residential"})], layer="roads")
    check(path)


def test_tags_among_others_count(tmp_path):
    """As in GDAL's OSM driver, which has no column for many of them."""
    tags = '"name"=>"a \\"highway\\"=>x, b","highway"=>"residential","surface"=>"asphalt"'
    rows = [(LANE, {"other_tags": tags}), (TUNNEL, {"other_tags": tags + ',"tunnel"=>"yes"'})]
    check(vector(tmp_path / "town.gpkg", rows), {"road-minor": AREAS_M2["road-minor"]})


def test_invalid_polygons_keep_what_they_enclose(tmp_path):
    """Crossing rings, parts that overlap, and a ring without area."""
    bow = shapely.Polygon([(0, 0), (100, 80), (100, 0), (0, 80)])
    twice = shapely.MultiPolygon([shapely.box(200, 0, 260, 60), shapely.box(230, 30, 290, 90)])
    line = shapely.Polygon([(400, 0), (450, 0), (400, 0)])
    at = [shapely.transform(one, lambda xy: xy + np.array([LEFT, TOP - 500])) for one in (bow, twice, line)]
    path = vector(tmp_path / "town.gpkg", [(shape, {"class": "wood"}) for shape in at])
    check(path, {"wood": 100 * 80 / 2 + 2 * 60 * 60 - 30 * 30})
    declared, frozen = zone_maps(path).maps["map"]
    drawn = vector_map.draw(declared, frozen, 32632, (LEFT, TOP - 600, LEFT + 600, TOP), (10, 46, 10.5, 46.1))
    assert (len(drawn.repaired), len(drawn.lost)) == (1, 1)


def refused(path, kind=UsageError):
    with pytest.raises(kind) as caught:
        settle((CLASSES,), {"map": str(path)}, "toy")
    assert "\n" not in str(caught.value)
    return caught.value


def test_content_that_does_not_fit_the_suffix(tmp_path):
    for suffix in (".gpkg", ".fgb", ".geojson", ".shp", ".parquet", ".osm.pbf", ".osm"):
        path = tmp_path / f"town{suffix}"
        path.write_bytes(b"")
        assert "is empty" in refused(path).found
        path.write_text("<?xml version='1.0'?>\n<OGRVRTDataSource><SrcDataSource>/etc/passwd</SrcDataSource>")
        assert f"{path} is no " in refused(path).found
    (tmp_path / "town.kml").write_text("<kml/>")
    assert ".parquet, .geoparquet, .pbf, .osm" in refused(tmp_path / "town.kml").expected


def test_truncated_files(tmp_path):
    path = pbf(tmp_path)
    whole = path.read_bytes()
    for size in (30, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        assert "ends within a block of data" in refused(path).found
    path.write_bytes(whole + b"\0")
    assert "ends within a block of data" in refused(path).found
    path = parquet(tmp_path / "town.parquet", complete(SCHEMAS["plain"]))
    path.write_bytes(path.read_bytes()[:-3])
    assert "ends without the footer" in refused(path).found
    path = osm_xml(tmp_path / "cut.osm", OSM)
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(ReadError, match="cannot be read"):
        areas(path)


def test_damaged_blobs_are_not_read_as_an_empty_map(tmp_path):
    """The frame of a PBF is whole, and what it holds is not."""
    path = pbf(tmp_path)
    content = bytearray(path.read_bytes())
    first = 4 + struct.unpack(">I", content[:4])[0]
    content[-20:] = b"\xff" * 20
    assert len(content) > first + 20
    path.write_bytes(content)
    with pytest.raises(ReadError, match="cannot be read"):
        areas(path)


def test_geoparquet_that_is_none(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet as pq

    rows = complete(SCHEMAS["plain"])
    assert "has no CRS" in refused(parquet(tmp_path / "a.parquet", rows, crs=None)).found
    assert "encodes geometry as polygon" in refused(parquet(tmp_path / "b.parquet", rows, encoding="polygon")).found
    pq.write_table(pa.table({"a": [1]}), tmp_path / "c.parquet")
    assert "does not say where its geometry is" in refused(tmp_path / "c.parquet").found


def test_geoparquet_without_its_library(tmp_path, monkeypatch):
    import sys

    path = tmp_path / "town.parquet"
    path.write_bytes(b"PAR1....PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    assert "pip install sen2fine[maps]" in refused(path).cure


def test_a_table_without_geometry(tmp_path):
    import pyogrio.raw

    path = tmp_path / "table.gpkg"
    pyogrio.raw.write(path, None, [np.array([1])], fields=["id"], driver="GPKG", geometry_type=None)
    assert "no layer with geometry" in refused(path).found
