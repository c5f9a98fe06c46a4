"""STAC items of finished stores, written by runs or later, and lists of stores; all of them readable by others."""

import json
import shutil
import warnings
from pathlib import Path

import pystac
import pytest
import shapely
import xarray as xr
from shapely.geometry import shape

import pipeline
from pipeline import check, index
from pipeline.errors import StorageError, UsageError
from pipeline.run import main as run_main
from pipeline.running import stac_publish
from pipeline.running.stac_publish import list_stores
from pipeline.store import layout
from pipeline.store.collection import covering
from pipeline.store.place import place_of
from pipeline.store.stac_item import ITEM_KEY
from tests.archive.synthetic import make_archive, make_scene
from tests.conftest import without_log
from tests.running.conftest import LEFT, TOP, box, config_for, run, write_aoi
from tests.store.s3_server import s3_server
from tests.store.stac_validation import validate


@pytest.fixture(scope="module")
def finished(archive, aoi, tmp_path_factory):
    """A finished store with its item, and the plan."""
    store = tmp_path_factory.mktemp("finished") / "region.zarr"
    plan, _ = run(config_for(archive, bands=("B02", "B03", "B04", "B11")), aoi, store)
    return plan, store


@pytest.fixture
def store(finished, tmp_path):
    """A copy to spoil, without its item."""
    path = tmp_path / "out" / "region.zarr"
    shutil.copytree(finished[1], path)
    (path / ITEM_KEY).unlink()
    return path


@pytest.fixture
def call(capsys):
    """Run a command; returns (exit code, stdout, stderr)."""

    def call(*words, program=index.main):
        code = program([str(word) for word in words])
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


def item_in(store):
    return json.loads((Path(store) / ITEM_KEY).read_bytes())


def test_the_item_of_a_run_is_valid_and_names_its_scenes(finished):
    plan, store = finished
    item = item_in(store)
    validate(item, without=("datacube",))
    derived = {link["title"]: link["href"] for link in item["links"] if link["rel"] == "derived_from"}
    attributes = json.loads((store / "zarr.json").read_bytes())["attributes"]
    assert list(derived) == attributes["scenes_used"] != []
    properties = item["properties"]
    assert properties["sen2fine:plan_digest"] == plan.digest
    assert properties["sen2fine:status"] == "complete"
    assert properties["sen2fine:valid_fraction"] == attributes["valid_fraction"]
    assert properties["sen2fine:native_gsd_m"] == {"B02": 10, "B03": 10, "B04": 10, "B11": 20}
    assert properties["created"] == plan.created_utc
    said = {name: properties[f"sen2fine:{name}"] for name in ("estimate", "members", "consistency", "mtf", "detail")}
    assert said == {
        "estimate": "mean", "members": 0, "consistency": "sensor", "mtf": plan.mtf,
        "detail": {"generated": 0.0, "partial": 0.0, "none": 1.0},
    }  # fmt: skip
    assert set(plan.mtf) == {"B02", "B03", "B04", "B11"}


def test_the_item_lies_where_the_area_lies(finished, aoi):
    item = item_in(finished[1])
    asked, found = shape(json.loads(aoi.read_text())), shape(item["geometry"])
    assert found.symmetric_difference(asked).area < 1e-4 * asked.area
    assert len(item["geometry"]["coordinates"][0]) == 5
    assert item["bbox"] == pytest.approx(asked.bounds, abs=1e-6)
    grid = finished[0].zones[0].grid
    assert item["properties"]["proj:shape"] == list(grid.shape)
    assert item["properties"]["proj:bbox"] == list(grid.bounds_m)


def test_the_item_disturbs_neither_readers_nor_the_check(finished):
    store = finished[1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plain, ours = xr.open_zarr(store), pipeline.open_store(store)
    assert ITEM_KEY not in (*plain.variables, *ours.variables)
    report = check.examine(store, "full")
    assert report.exit_code == 0, report
    layout.consolidate(store)
    assert ITEM_KEY not in (store / "zarr.json").read_text()


def test_its_assets_open(finished):
    item = pystac.Item.from_file(str(finished[1] / ITEM_KEY))
    for name, asset in item.assets.items():
        if "data" not in asset.roles:
            continue
        # the root's metadata are consolidated, for all groups; a group's own are not
        opened = xr.open_zarr(asset.get_absolute_href(), consolidated=asset.href == "./")
        described = asset.extra_fields
        assert [opened.sizes["y"], opened.sizes["x"]] == described["proj:shape"]
        assert list(opened.band.values) == [band["name"] for band in described["bands"]], name
        dims = {key: list(opened[key].dims) for key in described["cube:variables"]}
        assert dims == {key: value["dimensions"] for key, value in described["cube:variables"].items()}
    assert json.loads(Path(item.assets["plan"].get_absolute_href()).read_bytes())["aoi_name"] == "region"


def test_two_zones_have_two_assets_and_one_shape(tmp_path):
    edge_m = 500000 + 232000  # zone 32 near 12 degrees east at 46 north
    scenes = [
        make_scene(tmp_path, scene_id="S2A_WEST", epsg=32632, left_m=edge_m - 600, top_m=TOP, size_m=1800),
        make_scene(tmp_path, scene_id="S2A_EAST", epsg=32633, left_m=267000, top_m=TOP, size_m=2400),
    ]
    archive = make_archive(tmp_path, scenes)
    aoi = tmp_path / "both.geojson"
    ring = [[11.997, 46.005], [12.003, 46.005], [12.003, 46.009], [11.997, 46.009], [11.997, 46.005]]
    aoi.write_text(json.dumps({"type": "Polygon", "coordinates": [ring]}))
    store = tmp_path / "both.zarr"
    plan, _ = run(config_for(archive, bands=("B02", "B03", "B04")), aoi, store)
    assert len(plan.zones) == 2
    item = item_in(store)
    validate(item, without=("datacube",))
    codes = {key: asset.get("proj:code") for key, asset in item["assets"].items() if asset["roles"][0] == "data"}
    assert codes["utm32n"] == "EPSG:32632"
    assert codes["utm33n"] == "EPSG:32633"
    area, asked = shape(item["geometry"]), shape(json.loads(aoi.read_text()))
    assert area.symmetric_difference(asked).area < 1e-3 * asked.area
    href = pystac.Item.from_file(str(store / ITEM_KEY)).assets["utm33n"].get_absolute_href()
    opened = xr.open_zarr(href, consolidated=False)
    assert opened.spatial_ref.attrs["crs_wkt"].startswith('PROJCRS["WGS 84 / UTM zone 33N"')


def test_an_area_across_the_antimeridian_has_a_short_box():
    parts = [shapely.box(179.5, -17, 180, -16), shapely.box(-180, -17, -179.25, -16.5)]
    geometry, bbox = stac_publish._geojson(shapely.MultiPolygon(parts))
    assert bbox == (179.5, -17, -179.25, -16)
    assert geometry["type"] == "MultiPolygon"


def test_sources_are_linked_by_what_is_known_of_them(archive, aoi):
    from pipeline.archive.catalog import load_catalog

    known = load_catalog("earth-search-c1")
    assert stac_publish._href(known, "S2A_1", {"item": "https://a.test/S2A_1"}) == "https://a.test/S2A_1"
    expected = "https://earth-search.aws.element84.com/v1/collections/sentinel-2-c1-l2a/items/S2A_1"
    assert stac_publish._href(known, "S2A_1", {}) == expected
    assert stac_publish._href(load_catalog(str(archive)), "S2A_1", {}) == ""
    assert stac_publish._href(None, "S2A_1", {}) == ""


def test_a_store_from_before_gets_its_item_by_the_index_command(store, finished, call):
    code, out, err = call(store)
    assert (code, err) == (0, "")
    assert out.splitlines()[-1].startswith("1 STAC item")
    assert (store / ITEM_KEY).read_bytes() == (finished[1] / ITEM_KEY).read_bytes()
    before = (store / ITEM_KEY).stat().st_mtime_ns
    assert call(store)[0] == 0
    assert (store / ITEM_KEY).stat().st_mtime_ns == before, "written although nothing had changed"
    (store / ITEM_KEY).write_text('{"torn')
    assert call(store)[0] == 0
    assert (store / ITEM_KEY).read_bytes() == (finished[1] / ITEM_KEY).read_bytes()


def test_stores_become_a_collection_that_pystac_opens(store, tmp_path, call):
    other = tmp_path / "out" / "other.zarr"
    shutil.copytree(store, other)
    out = tmp_path / "stores.json"
    assert call(store, other, "--out", out)[0] == 0
    collection = pystac.ItemCollection.from_file(str(out))
    assert [item.assets["data"].href for item in collection] == [str(store), str(other)]
    for item in json.loads(out.read_bytes())["features"]:
        validate(item, without=("datacube",))
        xr.open_zarr(item["assets"]["data"]["href"])
        canonical = next(link["href"] for link in item["links"] if link["rel"] == "canonical")
        assert json.loads(Path(canonical).read_bytes())["id"] == item["id"]
    by_folder = tmp_path / "again.json"
    assert call(tmp_path / "out", "--out", by_folder)[0] == 0
    assert sorted(i.assets["data"].href for i in pystac.ItemCollection.from_file(str(by_folder))) == sorted(
        [str(store), str(other)]
    )


def test_a_relative_collection_can_move_with_its_stores(store, tmp_path, call):
    assert call(store, "--relative", "--out", tmp_path / "stores.json")[0] == 0
    item = json.loads((tmp_path / "stores.json").read_bytes())["features"][0]
    assert item["assets"]["data"]["href"] == "out/region.zarr"
    assert item["assets"]["plan"]["href"] == "out/region.zarr/_run/plan.json"


def test_json_says_the_same(store, tmp_path, call):
    code, out, _ = call(store, "--json", "--out", tmp_path / "stores.json")
    said = json.loads(out)
    assert code == 0
    assert said["index"] == str(tmp_path / "stores.json")
    assert said["items"][0]["store"] == str(store)


def test_stores_that_cannot_be_listed_are_left_out_and_named(store, tmp_path, call):
    unfinished = tmp_path / "out" / "unfinished.zarr"
    shutil.copytree(store, unfinished)
    meta = json.loads((unfinished / "zarr.json").read_bytes())
    meta["attributes"]["status"] = layout.STATUS_INCOMPLETE
    (unfinished / "zarr.json").write_text(json.dumps(meta))
    foreign = tmp_path / "out" / "foreign.zarr"
    xr.Dataset({"a": ("x", [1, 2])}).to_zarr(foreign, zarr_format=3, consolidated=False)
    damaged = tmp_path / "out" / "damaged.zarr"
    shutil.copytree(store, damaged)
    (damaged / "_run" / "plan.json").write_text("{")
    code, out, err = call(tmp_path / "out", "--out", tmp_path / "stores.json")
    assert code == 0
    notes = err.splitlines()
    assert len(notes) == 3
    assert "was not written by this pipeline" in err
    assert "unfinished.zarr is incomplete" in err
    assert "plan.json cannot be read" in err
    assert len(pystac.ItemCollection.from_file(str(tmp_path / "stores.json"))) == 1
    assert not (unfinished / ITEM_KEY).exists()

    code, out, err = call(unfinished, foreign, "--out", tmp_path / "none.json")
    assert (code, out) == (2, "")
    assert err.startswith("error: no finished store.")
    assert not (tmp_path / "none.json").exists()


def test_bad_words_are_one_line(store, tmp_path, call):
    scenes = tmp_path / "scenes"
    scenes.mkdir()
    for words in ((store, scenes), (scenes, tmp_path), (scenes,), (tmp_path / "nothing",), (store, "--offset", "0")):
        code, out, err = call(*words)
        assert (code, out) == (2, ""), words
        assert err.count("\n") == 1
        assert err.startswith("error: ")


def test_a_folder_of_scenes_and_stores_lists_both(store, tmp_path, call):
    make_scene(tmp_path / "out", scene_id="S2A_ONE", size_m=600)
    code, out, _ = call(tmp_path / "out", "--datetime", "2024-06-17", "--out", tmp_path / "archive.json")
    assert code == 0
    assert "1 scene in" in out
    assert f"1 STAC item in {tmp_path / 'archive_stores.json'}" in out
    scenes, stores = (json.loads((tmp_path / name).read_bytes()) for name in ("archive.json", "archive_stores.json"))
    assert [item["id"] for item in scenes["features"]] == ["S2A_ONE"]
    assert [item["id"] for item in stores["features"]] == [item_in(store)["id"]]


def test_a_collection_is_written_and_named_by_its_items(store, tmp_path, call):
    code, out, err = call(store, "--out", tmp_path / "stores.json", "--collection", "fields")
    assert (code, err) == (0, "")
    path = tmp_path / "stores_collection.json"
    assert f"collection fields in {path}" in out
    collection = pystac.Collection.from_file(str(path))
    collection.validate()
    assert (collection.id, collection.license) == ("fields", item_in(store)["properties"]["license"])
    assert "generated by a network or interpolated, as each item says" in collection.description
    (item,) = pystac.ItemCollection.from_file(str(tmp_path / "stores.json"))
    assert item.collection_id == "fields"
    assert item.get_single_link("collection").target == str(path)
    assert collection.extent.spatial.bboxes == [item.bbox]
    validate(item.to_dict(transform_hrefs=False), without=("datacube",))
    assert "collection" not in item_in(store), "a store may be in any collection"


def test_a_collection_without_place_or_stores_is_refused(store, tmp_path, call):
    make_scene(tmp_path / "scenes", scene_id="S2A_ONE", size_m=600)
    for words in ((store,), (tmp_path / "scenes", "--datetime", "2024-06-17", "--out", tmp_path / "a.json")):
        code, out, err = call(*words, "--collection", "fields")
        assert (code, out, err.count("\n")) == (2, "", 1), words


def test_the_box_of_a_collection_is_the_short_way_round():
    boxes = [[170, -5, 175, 0], [-178, -9, -176, -1]]
    assert covering(boxes) == [170, -9, -176, 0]
    assert covering(boxes[::-1]) == [170, -9, -176, 0]
    assert covering([[1, 2, 3, 4], [2, 2, 5, 6]]) == [1, 2, 5, 6]
    assert covering([[179, 0, -179, 1]]) == [179, 0, -179, 1]


def test_a_store_that_may_not_be_written_is_listed_all_the_same(store, tmp_path, monkeypatch):
    real = type(place_of(store)).write

    def refuse(self, key, content):
        if key == ITEM_KEY:
            raise StorageError(f"may not write to {key}")
        real(self, key, content)

    monkeypatch.setattr(type(place_of(store)), "write", refuse)
    listed = list_stores([store], tmp_path / "stores.json")
    assert len(listed.items) == 1
    assert "was not written" in listed.notes[0]
    with pytest.raises(StorageError):
        list_stores([store], None)


def test_nothing_to_list_is_said(tmp_path):
    with pytest.raises(UsageError, match="no finished store"):
        list_stores([tmp_path / "gone.zarr"], tmp_path / "stores.json")


def test_products_are_no_scenes_to_a_run(store, tmp_path, aoi, call):
    assert call(store, "--out", tmp_path / "stores.json")[0] == 0
    said = "a product of this pipeline at 2.5 m; expected a Level-2A scene"
    for catalog, expected, words in (
        (tmp_path / "stores.json", 3, said), (store / ITEM_KEY, 3, said), (store, 2, "is a Zarr store; expected"),
    ):  # fmt: skip
        code, out, err = call("--catalog", catalog, "--aoi", aoi, "--start", "2024-06-01", "--end", "2024-07-01",
                              "--out", tmp_path / "again.zarr", program=run_main)  # fmt: skip
        err = without_log(err)
        assert (code, out, err.count("\n")) == (expected, "", 1), err
        assert words in err
        assert not (tmp_path / "again.zarr").exists()


@pytest.mark.slow
def test_a_store_in_an_object_store_holds_and_lists_its_item(archive, tmp_path, call):
    aoi = write_aoi(tmp_path / "small.geojson", box(LEFT + 310, TOP - 890, LEFT + 590, TOP - 610))
    with s3_server() as server:
        url = "s3://bucket/items/run.zarr"
        run(config_for(archive, bands=("B02", "B03", "B04")), aoi, place_of(url))
        item = json.loads(server.objects("items")[f"items/run.zarr/{ITEM_KEY}"])
        validate(item, without=("datacube",))
        code, _, err = call(url, "--out", tmp_path / "stores.json")
        assert (code, err) == (0, "")
    listed = json.loads((tmp_path / "stores.json").read_bytes())["features"][0]
    assert listed["assets"]["data"]["href"] == url
    assert listed["assets"]["plan"]["href"] == f"{url}/_run/plan.json"
