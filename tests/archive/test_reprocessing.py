"""Which processings of one acquisition are kept: those that show ground of their own, whatever they are called."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from pipeline.aoi.aoi import aoi_from_bbox
from pipeline.archive.catalog import Catalog, load_catalog
from pipeline.archive.read.access import Access
from pipeline.archive.read.ground import grounds
from pipeline.archive.reprocessing import drop_superseded, with_distinct_ids
from pipeline.archive.search import search
from pipeline.archive.stac.item import scene_from_item
from tests.archive.stac_server import footprint, make_item
from tests.archive.synthetic import make_scene

ANYWHERE = Catalog("test", "api", "https://stac.example.org", "sentinel-2-l2a", hosts=("*",))
AOI = aoi_from_bbox(7.8, 45.6, 9.0, 45.7)


def parse(item):
    return scene_from_item(item, ANYWHERE, ANYWHERE.access())


def part(west, east, **kwargs):
    """An item of the tile's ground from `west` to `east`, shares of its width."""
    item = make_item(**kwargs)
    left_m = 399_960 + west * 109_800
    return {**item, "geometry": footprint(32632, left_m, 5_100_000, width=east - west), "bbox": None}


def kept(*items):
    return sorted(scene.id for scene in drop_superseded(map(parse, items))[0])


def test_halves_of_different_baselines_are_both_kept():
    west, east = part(0, 0.5, baseline="05.10", made="20240617T150000"), part(0.5, 1, baseline="05.11")
    assert kept(west, east) == sorted([west["id"], east["id"]])


def test_parts_that_overlap_a_little_are_kept_and_copies_are_not():
    west, east = part(0, 0.6, baseline="05.10"), part(0.4, 1, baseline="05.11", made="20240618T150000")
    again = part(0.002, 0.601, baseline="02.14", offset=None, made="20240617T140000")
    assert kept(west, east, again) == sorted([west["id"], east["id"]])


def test_a_newer_version_that_lost_ground_replaces_nothing():
    whole, cut = part(0, 1, baseline="05.10"), part(0, 0.93, baseline="05.11", made="20240618T150000")
    assert kept(whole, cut) == sorted([whole["id"], cut["id"]])


def test_order_does_not_matter():
    items = [part(0, 1, baseline=b, made=m) for b in ("05.10", "05.11") for m in ("20240618T150000", "20240619T150000")]
    assert kept(*items) == kept(*items[::-1]) == [items[3]["id"]]


def found(tmp_path, *items):
    path = tmp_path / "items.json"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": items}))
    return search(load_catalog(str(path)), AOI, None, None, None)


def test_halves_that_share_an_id_are_both_kept(tmp_path):
    west = part(0, 0.52, name="same", base="https://data.example.org/a/")
    east = part(0.48, 1, name="same", base="https://data.example.org/b/")
    names = {scene.hrefs["B02"]: scene.id for scene in found(tmp_path, west, east, west).scenes}
    assert len(names) == len(set(names.values())) == 2
    assert all(name.startswith("same~") for name in names.values())
    assert names == {scene.hrefs["B02"]: scene.id for scene in found(tmp_path, east, west).scenes}
    (alone,) = found(tmp_path, west).scenes
    assert alone.id == "same"


def test_one_id_in_two_collections_is_two_scenes_or_one(tmp_path):
    one = {**part(0, 0.6, name="same", base="https://data.example.org/a/"), "collection": "sentinel-2-l2a"}
    other = {**part(0.4, 1, name="same", base="https://data.example.org/b/"), "collection": "sentinel-2-c1-l2a"}
    result = found(tmp_path, one, other)
    assert {scene.id for scene in result.scenes} == {"same@sentinel-2-l2a", "same@sentinel-2-c1-l2a"}
    copy = {**other, "geometry": one["geometry"]}
    result = found(tmp_path, one, copy)
    assert [scene.id for scene in result.scenes] == ["same"]
    assert "superseded by same of collection" in result.rejected[0][1]
    twice = found(tmp_path, one, {**one, "collection": "mirror"})
    assert [scene.id for scene in twice.scenes] == ["same"]
    assert twice.rejected == ()


def test_other_acquisitions_are_never_compared(tmp_path):
    items = [part(0, 1, day=day, made=f"{day}T150000") for day in ("20240617", "20240622")]
    items.append(part(0, 1, tile="32TLR", left_m=299_940))
    assert len(kept(*items)) == 3


# -- by pixels: footprints that are the tile's box, as many archives give them


def version(folder, name, valid_from_m, valid_to_m, baseline):
    """A scene over the whole tile whose pixels are valid from one column to another, metres from the left."""
    scene = make_scene(folder, scene_id=name, size_m=2400, seed=1, bands=("B02", "B03", "B04", "B09"))
    import rasterio

    for band, href in scene.hrefs.items():
        with rasterio.open(href, "r+") as dataset:
            values = dataset.read(1)
            first, last = (round(at / dataset.transform.a) for at in (valid_from_m, valid_to_m))
            values[:, :first], values[:, last:] = 0, 0
            dataset.write(values, 1)
        assert band
    known = {"sensing_start": "20240617T101559", "relative_orbit": 65}
    return replace(scene, tile="32TMR", baseline=baseline, properties=known)


@pytest.mark.parametrize(
    ("first", "second", "left"),
    [
        ((0, 1200), (1200, 2400), {"old", "new"}),  # halves
        ((0, 2400), (0, 2400), {"new"}),
        ((0, 1200), (0, 1200), {"new"}),
        ((0, 1200), (0, 2400), {"new"}),
        ((0, 2400), (0, 1800), {"old", "new"}),  # the newer lost a strip
        ((0, 2400), (0, 0), {"old", "new"}),  # the newer is empty
    ],
)
def test_valid_pixels_decide_where_footprints_are_boxes(tmp_path, first, second, left):
    scenes = [version(tmp_path, "old", *first, "05.10"), version(tmp_path, "new", *second, "05.11")]
    look = partial(grounds, access=Access(roots=(str(tmp_path),)))
    assert {scene.id for scene in drop_superseded(scenes, look)[0]} == left
    assert {scene.id for scene in drop_superseded(scenes[::-1], look)[0]} == left


def test_a_version_that_cannot_be_read_replaces_nothing(tmp_path):
    scenes = [version(tmp_path, "old", 0, 2400, "05.10"), version(tmp_path, "new", 0, 2400, "05.11")]
    (tmp_path / "new" / "new_B09.tif").unlink()
    look = partial(grounds, access=Access(roots=(str(tmp_path),)))
    assert {scene.id for scene in drop_superseded(scenes, look)[0]} == {"old", "new"}


def test_only_rivals_are_looked_at(tmp_path):
    asked = []
    scenes = [parse(part(0, 0.5, baseline="05.10")), parse(part(0.5, 1, baseline="05.11"))]
    drop_superseded(scenes, lambda few: asked.extend(few) or [])
    assert asked == []


def test_distinct_ids_leave_others_alone():
    scenes = [parse(make_item(name=name, base=f"https://data.example.org/{n}/")) for n, name in enumerate("aab")]
    names = [scene.id for scene in with_distinct_ids(scenes)]
    assert names[2] == "b"
    assert len(set(names)) == 3
    assert names == [scene.id for scene in with_distinct_ids(scenes[::-1])][::-1]
    odd = [replace(scene, properties={"collection": f"a/b{n}"}) for n, scene in enumerate(scenes)]
    assert with_distinct_ids(odd)[0].id == "a@a_b0"


def test_ground_of_a_scene(tmp_path):
    scene = version(tmp_path, "half", 600, 2400, "05.10")
    (ground,) = grounds([scene], Access(roots=(str(tmp_path),)))
    assert ground.valid.shape == (40, 40)
    assert np.array_equal(ground.valid[0], np.arange(40) >= 10)
    assert ground.unseen_by(ground) == 0
    assert ground.unseen_by(replace(ground, epsg=32633)) == 1
    assert replace(ground, left_m=ground.left_m + 1200).unseen_by(ground) == pytest.approx(2 / 3)
