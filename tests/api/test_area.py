"""Areas as Python users hold them give the same AOI as a file."""

import json

import numpy as np
import pytest
import shapely

from pipeline.aoi.aoi import read_aoi
from pipeline.api.area import aoi_of
from pipeline.errors import UsageError

RING = [[4.8, 45.7], [4.9, 45.7], [4.9, 45.8], [4.8, 45.8], [4.8, 45.7]]
POLYGON = {"type": "Polygon", "coordinates": [RING]}


class Frame:
    """As a GeoDataFrame: in another system, with values that JSON lacks."""

    crs = "EPSG:32631"

    def to_crs(self, code):
        assert code == 4326
        made = Frame()
        made.crs = "EPSG:4326"
        made.__geo_interface__ = {
            "type": "FeatureCollection",
            "bbox": (4.8, 45.7, 4.9, 45.8),
            "features": [{"type": "Feature", "properties": {"n": np.int64(3)}, "geometry": POLYGON}],
        }
        return made


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "area.geojson"
    path.write_text(json.dumps(POLYGON))
    return path


@pytest.mark.parametrize(
    "given",
    [
        POLYGON,
        {"type": "Feature", "properties": {}, "geometry": POLYGON},
        shapely.Polygon(RING),
        shapely.MultiPolygon([shapely.Polygon(RING)]),
        Frame(),
    ],
)
def test_all_forms_are_the_area_of_the_file(given, file):
    assert aoi_of(given).digest == read_aoi(str(file)).digest


def test_paths_keep_their_names(file):
    assert aoi_of(file).name == aoi_of(str(file)).name == "area"
    assert aoi_of(POLYGON).name == "aoi"


def test_a_box(file):
    assert aoi_of(None, (4.8, 45.7, 4.9, 45.8)).digest == read_aoi(str(file)).digest
    assert aoi_of(None, np.array([4.8, 45.7, 4.9, 45.8])).name == "bbox_4.8_45.7_4.9_45.8"


@pytest.mark.parametrize(
    ("aoi", "bbox", "found"),
    [
        (None, None, "no area given"),
        (POLYGON, (4, 45, 5, 46), "two areas given"),
        (None, (4, 45, 5), "bbox=(4, 45, 5)"),
        ((4, 45, 5, 46), None, "aoi is of type tuple"),
        (3, None, "aoi is of type int"),
        (shapely.Point(4, 45), None, "aoi: $.type: a Point"),
        ({"type": "Polygon"}, None, "aoi: "),
    ],
)
def test_what_is_no_area_is_a_usage_error(aoi, bbox, found):
    with pytest.raises(UsageError) as caught:
        aoi_of(aoi, bbox)
    assert caught.value.found.startswith(found)


def test_a_tuple_is_told_about_bbox():
    with pytest.raises(UsageError) as caught:
        aoi_of((4, 45, 5, 46))
    assert caught.value.cure == "bbox=(...) for a box"


def test_too_large_is_refused():
    with pytest.raises(UsageError, match="at most 10 km2"):
        aoi_of(POLYGON, max_area_km2=10)
