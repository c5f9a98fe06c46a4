"""Maps have to show the ground of a run."""

from dataclasses import replace

import numpy as np
import pyogrio.raw
import pytest
import shapely

from pipeline.aoi.aoi import aoi_from_bbox
from pipeline.conditions.frozen import freeze
from pipeline.conditions.settle import settle
from pipeline.errors import PipelineError, UsageError
from pipeline.grid.lattice import Lattice
from pipeline.planning.map_ground import require_ground
from pipeline.superres.declared import Condition, MapClass
from pipeline.superres.map_classes import map_classes
from pipeline.superres.spec import Input, Stage
from tests.conditions.made_up import osm_xml, turned_box, vector

MAP = Condition("map", "a map", classes=(MapClass("any"),))
READER = Stage(
    "reader",
    reads=(Input("image", ("B04",), 10), Input("map", ("any",), 2.5, MAP.source)),
    gives=("B04",),
    gsd_m=2.5,
    lattice=Lattice(96, 48, 24, 12),
)


def frozen(folder, *boxes):
    path = folder / "map.gpkg"
    geometries = shapely.to_wkb(np.array([shapely.box(*box) for box in boxes]))
    pyogrio.raw.write(path, geometries, [], fields=[], geometry_type="Unknown", crs="EPSG:4326", driver="GPKG")
    return freeze(MAP, str(path))


def test_a_map_beside_the_area_is_refused(tmp_path):
    map_ = frozen(tmp_path, (10.0, 46.0, 10.1, 46.1))
    require_ground((MAP,), (map_,), (READER,), aoi_from_bbox(10.05, 46.05, 10.2, 46.2))
    with pytest.raises(UsageError, match=r"lies at 10\.0000, 46\.0000, 10\.1000, 46\.1000; expected ground of"):
        require_ground((MAP,), (map_,), (READER,), aoi_from_bbox(10.15, 46.05, 10.2, 46.2))


def test_maps_at_the_antimeridian(tmp_path):
    map_ = frozen(tmp_path, (179.9, -17.0, 180.0, -16.9), (-180.0, -17.0, -179.9, -16.9))
    for west, east in ((179.92, 179.95), (-179.95, -179.92)):
        require_ground((MAP,), (map_,), (READER,), aoi_from_bbox(west, -16.98, east, -16.95))


CLASSES = Condition("map", "a map", classes=map_classes())
CLASSES_READER = replace(READER, reads=(READER.reads[0], Input("map", ("water",), 2.5, CLASSES.source)))
AREA = aoi_from_bbox(10.301, 46.016, 10.306, 46.021)  # about LEFT + 700, TOP - 2900


def ground_of(path, aoi=AREA, condition=CLASSES):
    frozen = settle((condition,), {"map": str(path)}, "toy")
    return require_ground((condition,), frozen, (CLASSES_READER,), aoi)


def lake(left=700):
    return turned_box(left, 2900, 200, 150, 20)


def test_a_map_without_any_class_there_says_what_it_has(tmp_path):
    far = lake(left=9000)
    path = vector(tmp_path / "town.gpkg", [(lake(), {"kind": "lake", "depth": "3"}), (far, {"kind": "lake"})][:1])
    with pytest.raises(UsageError) as caught:
        ground_of(path)
    assert "has no building, road-major" in caught.value.found
    assert "its attributes: town has kind, depth" in caught.value.found
    assert "class, building, fclass" in caught.value.expected
    # the class is there, but beside the AOI; what is there is of no class
    rows = [(lake(), {"natural": "cliff"}), (far, {"natural": "water"})]
    with pytest.raises(UsageError, match="town has natural"):
        ground_of(vector(tmp_path / "town.gpkg", rows))


def test_an_extract_of_other_ground_is_refused_without_its_bounds(tmp_path):
    """OSM files need not state their bounds."""
    path = osm_xml(tmp_path / "town.osm", [(lake(left=9000), {"natural": "water"})])
    with pytest.raises(UsageError, match="has no building, road-major"):
        ground_of(path)
    assert ground_of(osm_xml(tmp_path / "here.osm", [(lake(), {"natural": "water"})])) == ()


def test_a_map_without_the_attributes_of_an_expression_is_refused(tmp_path):
    declared = replace(CLASSES, classes=(MapClass("house", "kind = 'house'"),))
    path = vector(tmp_path / "town.gpkg", [(lake(), {"natural": "water"})])
    with pytest.raises(PipelineError) as caught:
        ground_of(path, condition=declared)
    assert "kind = 'house'" in caught.value.expected


def test_what_cannot_be_drawn_is_counted_and_the_licence_asked_for(tmp_path):
    bow = shapely.Polygon([(600700, 5097000), (600800, 5096900), (600800, 5097000), (600700, 5096900)])
    line = shapely.Polygon([(600700, 5097000), (600800, 5096900), (600700, 5097000)])
    path = vector(tmp_path / "town.gpkg", [(one, {"class": "water"}) for one in (bow, line, lake(), line.buffer(3))])
    drawn, licence = ground_of(path)
    assert drawn == "--condition map: 1 invalid polygon repaired, 1 broken feature left out"
    assert "nothing states the licence of town.gpkg" in licence
    (tmp_path / "town.gpkg.license").write_text("CC0-1.0")
    assert ground_of(path) == (drawn,)


def test_a_map_that_no_stage_reads_is_refused(tmp_path):
    with pytest.raises(UsageError, match="which no stage reads with these options"):
        require_ground(
            (MAP,), (frozen(tmp_path, (10.0, 46.0, 10.1, 46.1)),), (), aoi_from_bbox(10.05, 46.05, 10.2, 46.2)
        )
