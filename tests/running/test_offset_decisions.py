"""BOA offsets that items do not tell: the pixels decide, or nothing is used; and parts of one acquisition together."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import rasterio

from pipeline.aoi.aoi import read_aoi
from pipeline.archive.stac.index_file import to_item
from pipeline.errors import NoDataError, UsageError
from pipeline.planning.planner import make_plan
from tests.archive.synthetic import make_scene
from tests.running.conftest import LEFT, SIZE, TOP, box, config_for, run, values, write_aoi

BANDS = ("B02", "B03", "B04", "B12")
SILENT = {"s2:processing_baseline": None}


def items_file(folder, *scenes, collections=(), drop_scl=False, **properties):
    """An ItemCollection of `scenes` as a stranger would write it; a property of None is left out."""
    items = []
    for number, scene in enumerate(scenes):
        item = to_item(scene)
        for key in list(item["properties"]):
            if key.startswith("sen2fine:"):
                del item["properties"][key]
        item["properties"] |= properties
        item["properties"] = {key: value for key, value in item["properties"].items() if value is not None}
        if drop_scl:
            del item["assets"]["SCL"]
        items.append(item | ({"collection": collections[number]} if collections else {}))
    path = folder / "items.json"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": items}))
    return path


@pytest.fixture
def aoi(tmp_path):
    return write_aoi(tmp_path / "aoi.geojson", box(LEFT + 217, TOP - 1490, LEFT + 1533, TOP - 311))


def plan_of(archive, aoi, **changes):
    return make_plan(config_for(archive, bands=BANDS, **changes), read_aoi(str(aoi)))


def bright(scene):
    """The scene's files over bright ground, which tells nothing of the offset."""
    for band, href in scene.hrefs.items():
        if band != "SCL":
            with rasterio.open(href, "r+") as dataset:
                dataset.write(dataset.read(1) // 4 + 4000, 1)
    return scene


CONTRADICTION = {"s2:processing_baseline": "02.14", "s2:product_uri": "S2A_MSIL2A_20240617T101559_N0509_R065_x.SAFE"}


@pytest.mark.slow
@pytest.mark.parametrize("stored", [0, -1000])
@pytest.mark.parametrize(
    "said", [SILENT, CONTRADICTION, {"s2:processing_baseline": "99.99"}], ids=["none", "two", "foreign"]
)
def test_pixels_decide_what_items_do_not_tell(tmp_path, aoi, stored, said):
    scene = make_scene(tmp_path, scene_id="S2A_X", size_m=SIZE, offset_dn=stored)
    plan, _ = run(config_for(items_file(tmp_path, scene, **said), bands=BANDS), aoi, tmp_path / "open.zarr")
    (used,) = plan.scenes.values()
    assert (used.offset.offset_dn, used.offset.standing) == (stored, "stated")
    assert any("by its pixels alone" in note for note in plan.notes)
    told = config_for(items_file(tmp_path, scene), bands=BANDS)
    run(told, aoi, tmp_path / "told.zarr")
    assert np.array_equal(values(tmp_path / "open.zarr"), values(tmp_path / "told.zarr"))


@pytest.mark.parametrize("stored", [0, -1000])
@pytest.mark.parametrize("said", [SILENT, CONTRADICTION], ids=["none", "two"])
def test_pixels_that_cannot_tell_stop_the_run(tmp_path, aoi, stored, said):
    scene = bright(make_scene(tmp_path, scene_id="S2A_X", size_m=SIZE, offset_dn=stored))
    archive = items_file(tmp_path, scene, **said)
    with pytest.raises(UsageError, match="its BOA offset is unknown") as caught:
        plan_of(archive, aoi)
    assert "--offset 0 or --offset -1000" in str(caught.value)
    for word in ("02.14", "05.09") if said is CONTRADICTION else ("does not say",):
        assert word in str(caught.value)
    (used,) = plan_of(archive, aoi, offset=stored).scenes.values()
    assert (used.offset.offset_dn, used.offset.by_user) == (stored, True)


def test_an_unknown_offset_beside_a_known_one_is_left_out_aloud(tmp_path, aoi):
    unknown = bright(make_scene(tmp_path, scene_id="S2A_X", size_m=SIZE, date="2024-06-22T10:20:31Z"))
    known = make_scene(tmp_path, scene_id="S2B_Y", size_m=SIZE)
    document = json.loads(items_file(tmp_path, unknown, known).read_text())
    del document["features"][0]["properties"]["s2:processing_baseline"]
    (tmp_path / "items.json").write_text(json.dumps(document))
    plan = plan_of(tmp_path / "items.json", aoi)
    assert set(plan.scenes) == {"S2B_Y"}
    assert any("left out S2A_X: its BOA offset is unknown" in note for note in plan.notes)


def test_doubtful_metadata_without_confirmation_are_said(tmp_path, aoi):
    scene = bright(make_scene(tmp_path, scene_id="S2A_X", size_m=SIZE, offset_dn=-1000))
    archive = items_file(tmp_path, scene, **{"earthsearch:boa_offset_applied": False})
    plan = plan_of(archive, aoi)
    assert plan.scenes["S2A_X"].offset.offset_dn == -1000
    (note,) = [note for note in plan.notes if "is not confirmed by the pixels" in note]
    assert note.startswith("S2A_X: BOA offset -1000")
    dark = make_scene(tmp_path, scene_id="S2A_X", size_m=SIZE, offset_dn=-1000)
    archive = items_file(tmp_path, dark, **{"earthsearch:boa_offset_applied": False})
    assert not [note for note in plan_of(archive, aoi).notes if "not confirmed" in note]


def half(folder, name, west, baseline_dn=-1000):
    """A scene over the whole ground whose pixels are valid in its western or eastern half."""
    scene = make_scene(folder, scene_id=name, size_m=SIZE, seed=1, offset_dn=baseline_dn)
    for href in scene.hrefs.values():
        with rasterio.open(href, "r+") as dataset:
            stored = dataset.read(1)
            middle = dataset.width // 2
            stored[:, middle:] *= west
            stored[:, :middle] *= not west
            dataset.write(stored, 1)
    known = {"sensing_start": "20240617T101559", "relative_orbit": 65}
    return replace(scene, tile="32TMR", baseline="05.10" if west else "05.11", properties=known)


@pytest.mark.slow
@pytest.mark.parametrize("ids", [("WEST", "EAST"), ("SAME", "SAME")])
def test_halves_of_an_acquisition_leave_no_hole(tmp_path, aoi, ids):
    """Of baselines 05.10 and 05.11, with the tile's box for a footprint, and with one id."""
    scenes = [half(tmp_path / side, name, side == "a") for side, name in zip("ab", ids, strict=True)]
    archive = items_file(tmp_path, *scenes, **{"s2:datatake_id": "GS2B_20240617T101559_017394_N05.10"})
    plan, _ = run(config_for(archive, bands=BANDS), aoi, tmp_path / "halves.zarr")
    assert len(plan.scenes) == 2
    whole = make_scene(tmp_path / "whole", scene_id="WHOLE", size_m=SIZE, seed=1, offset_dn=-1000)
    run(config_for(items_file(tmp_path / "whole", whole), bands=BANDS), aoi, tmp_path / "whole.zarr")
    assert np.array_equal(values(tmp_path / "halves.zarr") > 0, values(tmp_path / "whole.zarr") > 0)
    assert (values(tmp_path / "halves.zarr", "quality") > 0).any()


def test_one_id_in_two_collections_makes_a_plan(tmp_path, aoi):
    one = make_scene(tmp_path / "a", scene_id="SAME", size_m=SIZE)
    other = make_scene(tmp_path / "b", scene_id="SAME", size_m=SIZE, date="2024-06-22T10:20:31Z")
    plan = plan_of(items_file(tmp_path, one, other, collections=("s2", "s2-c1")), aoi)
    assert set(plan.scenes) == {"SAME@s2", "SAME@s2-c1"}
    plan = plan_of(items_file(tmp_path, one, other, collections=("s2", "s2-c1")), aoi, exclude=("SAME@s2",))
    assert set(plan.scenes) == {"SAME"} or set(plan.scenes) == {"SAME@s2-c1"}


def test_an_area_of_two_metres(tmp_path):
    scene = make_scene(tmp_path, scene_id="S2A_X", size_m=SIZE)
    place = write_aoi(tmp_path / "aoi.geojson", box(LEFT + 700, TOP - 702, LEFT + 702, TOP - 700))
    plan = plan_of(items_file(tmp_path, scene), place)
    assert plan.zones[0].grid.shape == (24, 24)


def test_a_scene_without_classification_is_named(tmp_path, aoi):
    scene = make_scene(tmp_path, scene_id="S2A_X", size_m=SIZE)
    plan = plan_of(items_file(tmp_path, scene, drop_scl=True), aoi)
    assert any(
        "1 scene without scene classification (SCL), so that clouds are not removed: S2A_X" in note
        for note in plan.notes
    )


def test_products_are_pointed_to_the_index(tmp_path, aoi):
    folder = tmp_path / "S2A_MSIL2A_20240617T101559_N0509_R065_T32TMR_20240617T150000.SAFE"
    make_scene(folder, scene_id="S2A_X", size_m=SIZE)
    for catalog in (folder, tmp_path, folder / "S2A_X" / "S2A_X_B02.tif", tmp_path / "x.zip"):
        (tmp_path / "x.zip").write_bytes(b"PK")
        with pytest.raises(UsageError, match="python -m pipeline.index"):
            plan_of(catalog, aoi)


def test_an_empty_folder_is_no_product(tmp_path, aoi):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no catalog.json and no items"):
        plan_of(tmp_path / "empty", aoi)
    with pytest.raises(NoDataError):
        plan_of(items_file(tmp_path), aoi)
