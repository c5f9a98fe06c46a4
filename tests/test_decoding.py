"""Records decoded from JSON: what fits comes back as it was written, and faults are named by their place."""

import dataclasses
import json

import pytest

from pipeline.archive.scene import OffsetDecision, Raster, Scene
from pipeline.decoding import DecodingError, decode
from pipeline.planning.units import PassLayout


@pytest.fixture
def scene():
    footprint = {"type": "Point", "coordinates": [7.5, 46.0]}
    rasters = (Raster(10, 399960, 5100000.0, 10980, 10980),)
    return Scene("S2A", "2024-06-17T10:30:31Z", 32632, footprint, {"B02": "a.tif"}, rasters, cloud_pct=3)


def written(record):
    return json.loads(json.dumps(dataclasses.asdict(record)))


def test_records_encode_to_what_they_were_decoded_from(scene):
    again = decode(Scene, written(scene), "scene")
    assert again == scene
    assert json.dumps(written(again)) == json.dumps(written(scene))
    assert type(again.rasters[0].left_m) is int, "a whole number would be written with a decimal point"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"epsg": "32632"}, "expected int, found '32632' @ scene.epsg"),
        ({"epsg": 32632.0}, "expected int, found 32632.0 @ scene.epsg"),
        ({"epsg": True}, "expected int, found True @ scene.epsg"),
        ({"id": None}, "expected str, found None @ scene.id"),
        ({"cloud_pct": "3"}, "expected float or null, found '3' @ scene.cloud_pct"),
        ({"rasters": "none"}, "expected a list, found 'none' @ scene.rasters"),
        ({"rasters": [{"gsd_m": 10}]}, "missing @ scene.rasters.left_m"),
        ({"hrefs": ["a.tif"]}, "expected an object @ scene.hrefs"),
        ({"hrefs": {"B02": 1}}, "expected str, found 1 @ scene.hrefs['B02']"),
        ({"offset": {"offset_dn": 0, "evidence": "", "sure": True}}, "unknown: sure @ scene.offset"),
        ({"colour": 1}, "unknown: colour @ scene"),
    ],
)
def test_what_does_not_fit_is_named_by_its_place(scene, change, says):
    with pytest.raises(DecodingError) as caught:
        decode(Scene, {**written(scene), **change}, "scene")
    assert says in str(caught.value)


def test_many_faults_are_counted():
    with pytest.raises(DecodingError, match=r"missing @ scene\.id; .*, and 2 more$"):
        decode(Scene, {}, "scene")


def test_tuples_of_several_types_have_their_length():
    assert decode(PassLayout, {"finer": [[1.25, ["B04"]]]}, "pass").finer == ((1.25, ("B04",)),)
    with pytest.raises(DecodingError, match=r"expected 2 values, found 1 @ pass\.finer"):
        decode(PassLayout, {"finer": [[1.25]]}, "pass")


def test_what_is_decoded_already_is_taken_as_it_is(scene):
    offset = OffsetDecision(-1000, "set by the user", by_user=True)
    assert decode(Scene, {**written(scene), "offset": offset}, "scene", (OffsetDecision,)).offset is offset
    with pytest.raises(DecodingError, match="expected OffsetDecision"):
        decode(Scene, written(scene), "scene", (OffsetDecision,))
