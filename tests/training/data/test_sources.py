"""Sources of every kind as users have them: files, Zarr stores, archives; and the project's own, which stays."""

import hashlib
import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
import rasterio.warp
import xarray as xr

from pipeline.errors import ReadError, UsageError
from pipeline.grid.grid import Grid
from pipeline.store import layout
from pipeline.store.layout import RegionWriter
from pipeline.store.template import Template, create
from tests.archive.stac_server import stac_server
from tests.faults.files import Faults, file_server
from tests.training.imagery import placed, texture, write_raster, write_toml
from training.data.headers import ground_gsd_m, read_header
from training.data.places import split_of
from training.data.sources import load_training_file, shipped_data

WHERE = (600_000.0, 5_099_880.0)  # left, top of images that say where they are
# What weights are judged on: SHA-256 over (source, place, GSD, shape) of all held-out images, and how many of each set.
EVALUATION_ONLY = Path(__file__).resolve().parents[3] / "training" / "evaluation_only.toml"
FLAT = 0.02  # spread below which an image shows nothing to sharpen
HELD_OUT_DIGEST = "10552e5317fa9db7e0881631dd42bb3f9773050f9be206077c6ffe386553a417"
HELD_OUT = {
    "naip_ca_0p6m": 68,
    "naip_ca_1p2m": 132,
    "naip_midwest_1m": 5,
    "naip_2m": 1,
    "dubai_1m": 9,
    "naip_iowa_1m": 13,
    "naip_southwest_1m": 3,
}


def data_of(folder, **keys):
    source = {"name": '"a"', "role": '"hr"', "path": '"images"', **keys}
    lines = [f"{key} = {value}" for key, value in source.items() if value is not None]
    return load_training_file(write_toml(folder, "\n".join(["[[source]]", *lines])))


def refusal(folder, **keys) -> str:
    """What is said of a file, without the words that name file and source."""
    with pytest.raises(UsageError) as error:
        data_of(folder, **keys)
    text = str(error.value)
    assert "\n" not in text
    lead = f"{folder / 'mine.toml'}: source 'a': "
    assert text.startswith(lead)
    return text.removeprefix(lead)


# -- the project's own


@pytest.mark.slow
@pytest.mark.shared_data
def test_what_the_shipped_weights_are_judged_on_has_not_changed(shared_data):
    chips = shipped_data(shared_data).held_out_chips()
    usable = [chip for chip in chips if float(chip.pixels.std()) > FLAT]
    assert {name: sum(chip.source == name for chip in usable) for name in HELD_OUT} == HELD_OUT
    assert len(usable) == len(chips) == 231
    record = [[chip.source, chip.place, chip.gsd_m, list(chip.pixels.shape)] for chip in chips]
    assert hashlib.sha256(json.dumps(record).encode()).hexdigest() == HELD_OUT_DIGEST
    assert all(split_of(chip.place) == "held-out" for chip in chips)


@pytest.mark.shared_data
def test_shipped_training_places_are_never_held_out(shared_data):
    data = shipped_data(shared_data)
    train = {image.place for image in data.images if image.split == "train"}
    held_out = {image.place for image in data.images if image.split == "held-out"}
    assert len(train) > 30
    assert not train & held_out
    assert {image.target_gsd_m for image in data.images if image.source == "dubai_1m"} == {(2.5, 3.4)}
    assert sum(image.source == "naip_ca_0p6m" and image.split == "train" for image in data.images) == 104


@pytest.mark.shared_data
def test_sets_that_show_the_same_cities_share_their_split(shared_data):
    """Both Californian sets come from the same flights: a city held out of one must not be trained on in the other."""
    splits: dict[str, set[str]] = {}
    for image in shipped_data(shared_data).images:
        if image.source.startswith("naip_ca_"):
            splits.setdefault(image.place, set()).add(str(image.split))
    assert len(splits) == 6
    assert all(len(found) == 1 for found in splits.values())


@pytest.mark.slow
@pytest.mark.shared_data
def test_shipped_scenes_are_those_of_before(shared_data):
    data = shipped_data(shared_data)
    assert (len(data.tiles("train")), len(data.bracket)) == (18, 22)
    held_out = {tile.place: tile for tile in data.tiles("held-out")}
    assert list(held_out) == ["majortom_native/433D_629L_3_1", "T33UUB/T33UUB"]
    assert [tile.place for tile in data.watched_tiles()] == ["majortom_native/282D_485L_3_3"]
    assert 0 < float(held_out["majortom_native/433D_629L_3_1"].rho[10].min()) < 0.02
    batch = data.hr_sampler("train", 96).batch(np.random.default_rng(0), 4)
    assert batch.shape[1] == 3
    assert 0.02 < batch.mean() < 0.5


# -- files


@pytest.mark.slow
@pytest.mark.shared_data
def test_what_judges_alone_never_trains(shared_data):
    data = load_training_file(EVALUATION_ONLY, shared_data)
    assert {source.split for source in data.sources} == {"held-out"}
    for image in (*data.images, *data.bracket):
        assert image.share("train") == 0
    with pytest.raises(UsageError, match="no train image"):
        data.hr_sampler()
    assert data.tiles("train") == []
    chips = data.held_out_chips()
    assert {(chip.source, chip.gsd_m) for chip in chips} == {("spot_world", 3.6), ("airports", 3.0)}
    assert len({chip.place for chip in chips}) == len(chips) == 97
    ours = {image.label for image in shipped_data(shared_data).images}
    assert not ours & {image.label for image in data.images}


def test_no_sampler_draws_from_a_held_out_source(tmp_path):
    for name, split in (("a", "train"), ("b", "held-out")):
        write_raster(tmp_path / name / "town.png", texture(300, 300, len(split)), driver="PNG")
    keys = 'role = "hr"\ngsd_m = 2.0\n'
    tables = [
        f'[[source]]\nname = "{n}"\npath = "{n}"\nsplit = "{s}"\n{keys}' for n, s in (("a", "train"), ("b", "held-out"))
    ]
    data = load_training_file(write_toml(tmp_path, "\n".join(tables)))
    sampler = data.hr_sampler(crop_px=64)
    drawn = {sampler.images[index].source for pool in sampler.pools.values() for index in pool}
    assert drawn == {"a"}
    assert {chip.source for chip in data.held_out_chips()} == {"b"}
    (chip,) = data.training_chips()
    assert (chip.source, chip.gsd_m, chip.pixels.shape) == ("a", 2.5, (3, 240, 240))
    assert len(list(data.training_chips(least_px=240))) == 1
    assert not list(data.training_chips(least_px=241))


def test_at_most_so_many_images_of_a_place_are_judged(tmp_path):
    for name in ("a_0", "a_1", "b_3", "c_0", "c_7"):
        write_raster(tmp_path / "images" / f"{name}.png", texture(100, 100), driver="PNG")
    keys = {"place": r"'([^_]+)_'", "gsd_m": "2.0", "split": '"held-out"'}
    assert [chip.place for chip in data_of(tmp_path, **keys).held_out_chips()] == ["a/a", "a/a", "a/b", "a/c", "a/c"]
    one = data_of(tmp_path, **keys, images_per_place="1")
    assert [chip.place for chip in one.held_out_chips()] == ["a/a", "a/b", "a/c"]
    assert "images_per_place" in refusal(tmp_path, images_per_place="0")


def test_files_without_georeferencing_are_places_of_their_own(tmp_path):
    for number in range(12):
        write_raster(tmp_path / "images" / "b" / f"{number}.png", texture(40, 40, number), driver="PNG")
    data = data_of(tmp_path, gsd_m="1.0")
    assert [image.place for image in data.images] == sorted(f"a/b/{number}" for number in range(12))
    assert {image.split for image in data.images} == {"train", "held-out"}
    assert all(image.split == split_of(image.place) for image in data.images)


def test_georeferenced_files_are_split_by_ground_and_tell_gsd(tmp_path):
    write_raster(tmp_path / "images" / "a.tif", texture(900, 900), **placed(*WHERE, 10.0))
    (image,) = data_of(tmp_path, target_gsd_m="[10.0, 12.0]").images
    assert image.gsd_m == (10.0, 10.0)
    assert image.ground is not None
    assert image.share("train") > 0.3
    assert len(image.ground.places) == 6


def test_a_source_may_be_one_split_throughout(tmp_path):
    write_raster(tmp_path / "images" / "a.tif", texture(60, 60), **placed(*WHERE, 2.0))
    for split in ("train", "held-out"):
        (image,) = data_of(tmp_path, split=f'"{split}"').images
        assert image.share(split) == 1


def test_places_are_named_by_file_or_path_and_shared_by_family(tmp_path):
    write_raster(tmp_path / "images" / "town" / "x_2020.tif", texture(40, 40))
    by_name = data_of(tmp_path, gsd_m="1.0", place=r"'(\w+)_2020'", family='"all"')
    assert by_name.images[0].place == "all/x"
    by_path = data_of(tmp_path, gsd_m="1.0", place=r"'images/(\w+)/'")
    assert by_path.images[0].place == "a/town"


def test_ground_gsd_of_geographic_mercator_and_feet(tmp_path):
    pixels = texture(10, 10)
    degrees = write_raster(tmp_path / "d.tif", pixels, **placed(-110, 60, 1e-5, "EPSG:4326"))
    assert ground_gsd_m(read_header(str(degrees))) == pytest.approx((1.1132, 1.1132 / 2), rel=1e-3)
    northing_60 = 8_399_737.9  # Web Mercator northing of 60 degrees north
    mercator = write_raster(tmp_path / "m.tif", pixels, **placed(0, northing_60, 1, "EPSG:3857"))
    assert ground_gsd_m(read_header(str(mercator))) == pytest.approx((0.5, 0.5), rel=1e-3)
    feet = write_raster(tmp_path / "f.tif", pixels, **placed(6_000_000, 2_000_000, 2, "EPSG:2227"))
    assert ground_gsd_m(read_header(str(feet))) == pytest.approx((0.6096, 0.6096), rel=1e-3)


def test_reflectance_is_scaled(tmp_path):
    write_raster(tmp_path / "images" / "hr.tif", texture(60, 60).astype(np.uint16) * 10, **placed(*WHERE, 2.5))
    data = data_of(tmp_path, values='"reflectance"', scale="1e-4", target_gsd_m="2.5", split='"held-out"')
    (chip,) = data.held_out_chips()
    assert not chip.encoded
    np.testing.assert_allclose(chip.pixels, texture(60, 60) * 1e-3, rtol=1e-5)


def test_what_images_are_is_checked_before_anything_runs(tmp_path):
    path = tmp_path / "images" / "a.tif"
    write_raster(path, texture(40, 40, bands=3), **placed(*WHERE, 2.6))
    bands = "{ B04 = 1, B03 = 2, B02 = 4 }"
    assert refusal(tmp_path, bands=bands) == (
        f"band 4 of {path}, which holds 3 bands; expected 1 to 3; cure: correct bands"
    )
    assert refusal(tmp_path, bands='{ B04 = "red", B03 = "green", B02 = "blue" }') == (
        f"bands by name for {path}; expected 1-based numbers of its bands"
    )
    assert refusal(tmp_path, target_gsd_m="[2.0, 2.5]") == (
        f"{path} has pixels of 2.6 m and target_gsd_m = [2, 2.5]; expected images at least as fine as 2 m; "
        "cure: target_gsd_m = [2.6, 2.6], or leave it out"
    )
    assert (
        refusal(tmp_path, place="'(town)'") == "a.tif names no place; expected a match of '(town)'; cure: correct place"
    )
    assert refusal(tmp_path, dates="2") == (f"{path} holds 3 bands and dates = 2; expected as many bands for each date")
    write_raster(path, texture(40, 40, bands=3), **placed(*WHERE, 10))
    assert refusal(tmp_path) == (
        f"{path} has pixels of 10 m; expected at most 3.2 m, for a network of that GSD; "
        "cure: leave it out, or state target_gsd_m = 10 to learn from that scale too"
    )
    assert data_of(tmp_path, target_gsd_m="10").images[0].target_gsd_m == (10, 10)
    write_raster(path, texture(40, 40, bands=3), **placed(*WHERE, 2.6))
    image = data_of(tmp_path).images[0]
    assert (image.target_gsd_m, image.evaluate_gsd_m) == ((2.6, 3.2), 2.6)  # the default gives way
    assert data_of(tmp_path, evaluate_gsd_m="4.0").images[0].evaluate_gsd_m == 4.0


@pytest.mark.parametrize("ground", [placed(*WHERE, 0.5), placed(12.0, 60.0, 5e-6, "EPSG:4326")])
def test_a_gsd_that_georeferencing_contradicts_is_refused(tmp_path, ground):
    path = write_raster(tmp_path / "images" / "a.tif", texture(400, 400), **ground)
    for wrong in ("0.2", "2.0"):
        said = refusal(tmp_path, gsd_m=wrong, values='"8-bit"')
        assert said.startswith(f"{path} has pixels of 0.5")
        assert said.endswith(
            f" m by its georeferencing and gsd_m = {wrong.removesuffix('.0')}; expected one size of pixels; "
            "cure: leave gsd_m out, or take wrong georeferencing off the file: gdal_edit -a_srs None -unsetgt"
        )
    assert data_of(tmp_path, gsd_m="0.5").images[0].gsd_m == (0.5, 0.5)
    assert data_of(tmp_path, gsd_m="0.55").images[0].gsd_m == (0.55, 0.55)


def test_a_grey_image_needs_its_band_named_three_times(tmp_path):
    path = write_raster(tmp_path / "images" / "a.tif", texture(400, 400, bands=1), **placed(*WHERE, 2.0))
    assert refusal(tmp_path) == (
        f"{path} holds 1 band; expected red, green and blue; cure: leave it out; or, to learn edges from one band, "
        "bands = { B04 = 1, B03 = 1, B02 = 1 }"
    )
    (image,) = data_of(tmp_path, bands="{ B04 = 1, B03 = 1, B02 = 1 }").images
    np.testing.assert_array_equal(image.reader.read(0, 0, 9, 9), texture(400, 400, bands=1)[[0, 0, 0], :9, :9])


def test_files_that_do_not_say_what_is_needed_are_refused(tmp_path):
    path = write_raster(tmp_path / "images" / "a.tif", texture(40, 40).astype(np.uint16))
    assert refusal(tmp_path, gsd_m="1.0") == (
        f"{path} holds uint16 and values = '8-bit'; expected uint8; cure: values = \"reflectance\" with its scale"
    )
    assert refusal(tmp_path, values='"reflectance"') == (
        f"{path} is not georeferenced and gsd_m is not given; expected gsd_m = metres per pixel"
    )
    path.write_bytes(b"no image")
    assert refusal(tmp_path, gsd_m="1.0").startswith(f"{path} cannot be opened (")
    path.unlink()
    assert refusal(tmp_path) == (
        f"{path.parent} holds no image; expected files such as .tif, .tiff, .jp2, .png, .jpg, .jpeg"
    )


def test_provenance_names_sources_counts_and_the_rule(tmp_path):
    for number in range(12):
        write_raster(tmp_path / "images" / f"{number}.png", texture(40, 40, number), driver="PNG")
    data = data_of(tmp_path, gsd_m="1.0")
    said = data.describe()
    counts = said["sources"]["a"]
    assert counts["train"] + counts["held-out"] == 12
    assert said["data_digest"] == hashlib.sha256((tmp_path / "mine.toml").read_bytes()).hexdigest()
    assert "place-1" in said["split_rule"]
    assert said["held_out_places"] == [image.place for image in data.images if image.split == "held-out"]
    assert data.summary() == [f"a: {counts['train']} images to train on, {counts['held-out']} held out"]
    assert json.loads(json.dumps(said)) == said


# -- Zarr


def zarr_store(path, *, names=("red", "green", "blue"), crs=True, step=1.0, **variables):
    pixels = texture(80, 90, bands=len(names))
    y = WHERE[1] - step * (np.arange(80) + 0.5)
    x = WHERE[0] + step * (np.arange(90) + 0.5)
    coords = {"band": np.array(names, dtype=object), "y": y, "x": x}
    array = xr.DataArray(pixels, dims=("band", "y", "x"), coords=coords)
    importlib.import_module("rioxarray")
    dataset = xr.Dataset({"photo": array, **variables})
    (dataset.rio.write_crs("EPSG:32632") if crs else dataset).to_zarr(path, zarr_format=3, consolidated=False)
    return pixels


BY_NAME = '{ B04 = "red", B03 = "green", B02 = "blue" }'


@pytest.mark.parametrize("crs", [True, False])
def test_a_zarr_store_is_read_by_names_of_bands(tmp_path, crs):
    pixels = zarr_store(tmp_path / "a.zarr", names=("nir", "blue", "green", "red"), crs=crs)
    keys = {"path": None, "zarr": '"a.zarr"', "variable": '"photo"', "bands": BY_NAME, "target_gsd_m": "1.0"}
    (image,) = data_of(tmp_path, **keys).images
    assert image.gsd_m == pytest.approx((1.0, 1.0))
    assert (image.place.startswith("EPSG:32632/") or image.ground is not None) == crs
    np.testing.assert_array_equal(image.reader.read(10, 20, 30, 40), pixels[[3, 2, 1], 10:40, 20:60])


def test_what_a_zarr_store_lacks_is_named(tmp_path):
    zarr_store(tmp_path / "a.zarr")
    store = tmp_path / "a.zarr"
    keys = {"path": None, "zarr": '"a.zarr"', "variable": '"photo"', "bands": BY_NAME}
    assert refusal(tmp_path, **{**keys, "variable": '"foto"'}) == (
        f"{store} has no variable 'foto'; expected one of photo; cure: did you mean 'photo'?"
    )
    assert refusal(tmp_path, **{**keys, "bands": '{ B04 = "rot", B03 = "green", B02 = "blue" }'}) == (
        f"{store} has no band 'rot'; expected one of red, green, blue"
    )
    assert refusal(tmp_path, **{**keys, "bands": "{ B04 = 1, B03 = 2, B02 = 9 }"}) == (
        f"{store} has no band 9; expected one of red, green, blue"
    )
    assert refusal(tmp_path, **{**keys, "zarr": '"images"'}) == (
        f"zarr = 'images': {tmp_path / 'images'} does not exist; expected an existing folder, file or glob"
    )
    (tmp_path / "images").mkdir()
    assert refusal(tmp_path, **{**keys, "zarr": '"images"'}).startswith(
        f"{tmp_path / 'images'} cannot be opened as a Zarr store ("
    )


def test_a_store_of_this_pipeline_is_a_source(tmp_path):
    """Decoded as `open_store` decodes it, every date an image, nodata black."""
    store, bands = tmp_path / "run.zarr", ("B02", "B03", "B04", "B11")
    grid = Grid.covering(32632, (600_000.0, 5_099_400.0, 600_600.0, 5_099_880.0))
    dates = ("2024-06-17T10:20:31Z", "2024-06-20T10:20:31Z")
    create(store, "", Template(grid, bands, dates, 96, bands[:3], attributes={"plan_digest": "d", "groups": [""]}))
    dn = 1000 + 100 * np.arange(1, 5, dtype=np.uint16)[:, None, None] + np.arange(96, dtype=np.uint16)
    RegionWriter(store, "", 1).write(
        slice(0, 96), slice(0, 96), {"reflectance": np.broadcast_to(dn, (4, 96, 96)).copy()}
    )
    layout.finish(store, [""], {})
    keys = {"path": None, "zarr": '"run.zarr"', "variable": '"reflectance"', "values": '"reflectance"'}
    first, second = data_of(tmp_path, **keys, target_gsd_m="2.5").images
    assert first.gsd_m == second.gsd_m == (2.5, 2.5)
    stored = second.reader.read(0, 90, 4, 12)
    seen = second.values.decode(stored)
    np.testing.assert_allclose(seen[:, 0, 0], (np.array([300, 200, 100]) + 90) * 1e-4, atol=1e-6)  # red, green, blue
    assert not second.values.valid(stored)[:, 6:].any(), "beyond what was written"
    assert second.values.valid(stored)[:, :6].all()
    assert not first.values.valid(first.reader.read(0, 0, 8, 8)).any()


# -- archives

AREA = {
    "type": "Polygon",
    "coordinates": [[[10.28, 46.03], [10.34, 46.03], [10.34, 46.05], [10.28, 46.05], [10.28, 46.03]]],
}


def photographs(folder, href="{name}.tif", count=2):
    """COGs of aerial photographs as four bands, and their STAC items."""
    items = []
    (folder / "area.geojson").write_text(json.dumps(AREA))
    for number in range(count):
        name = f"m_{number}"
        left, top = WHERE[0] + 100 * number, WHERE[1]
        path = write_raster(folder / f"{name}.tif", texture(256, 256, number, 4), tiled=True, **placed(left, top, 1.0))
        with rasterio.open(path) as file:
            west, south, east, north = rasterio.warp.transform_bounds(file.crs, "EPSG:4326", *file.bounds)
        ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
        items.append(
            {
                "type": "Feature",
                "stac_version": "1.0.0",
                "id": name,
                "collection": "naip",
                "geometry": {"type": "Polygon", "coordinates": [ring]},
                "properties": {"datetime": f"2020-0{number + 1}-01T00:00:00Z"},
                "links": [],
                "assets": {"image": {"href": href.format(name=name)}},
            }
        )
    return items


REMOTE = {
    "path": None,
    "catalog": '"items.json"',
    "collection": '"naip"',
    "aoi": '"area.geojson"',
    "period": '"2019/2021"',
    "split": '"train"',
    "target_gsd_m": "[1.9, 2.1]",
}


def test_photographs_of_a_stac_file_are_a_source(tmp_path):
    (tmp_path / "items.json").write_text(json.dumps({"type": "FeatureCollection", "features": photographs(tmp_path)}))
    data = data_of(tmp_path, **REMOTE, bands="{ B04 = 1, B03 = 2, B02 = 3 }")
    assert [image.label for image in data.images] == ["m_0", "m_1"]
    np.testing.assert_array_equal(data.images[1].reader.read(5, 6, 7, 8), texture(256, 256, 1, 4)[:3, 5:12, 6:14])
    assert data.hr_sampler("train", 64).batch(np.random.default_rng(0), 3).shape == (3, 3, 64, 64)


def test_photographs_of_an_api_are_read_over_http_by_range(tmp_path):
    """Search, host rules and reading are the archive room's: the server sees ranges, and a foreign host is refused."""
    with file_server(tmp_path, Faults()) as files:
        items = photographs(tmp_path, href=files + "/{name}.tif")
        foreign = {**items[0], "id": "foreign", "assets": {"image": {"href": "https://evil.example.org/a.tif"}}}
        with stac_server([*items, foreign]) as api:
            bands = "\n".join(f'{name} = ["{name}"]' for name in ("B02", "B03", "B04"))
            (tmp_path / "mine_catalog.toml").write_text(
                f'name = "mine"\nurl = "{api.url}"\ncollection = "other"\noffset_rule = "none"\n'
                f'hosts = ["{files.removeprefix("http://")}"]\n[bands]\n{bands}\n'
            )
            data = data_of(tmp_path, **{**REMOTE, "catalog": '"mine_catalog.toml"'})
            assert api.searches[0][3]["collections"] == ["naip"]
        assert [image.label for image in data.images] == ["m_0", "m_1"]
        np.testing.assert_array_equal(data.images[0].reader.read(5, 6, 7, 8), texture(256, 256, 0, 4)[:3, 5:12, 6:14])


def test_photographs_that_are_gone_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.archive.read.retry.MAX_WAIT_S", 0.01)
    items = photographs(tmp_path)
    (tmp_path / "items.json").write_text(json.dumps({"type": "FeatureCollection", "features": items}))
    (tmp_path / "m_1.tif").unlink()
    with pytest.raises(ReadError, match=r"m_1 at .*m_1\.tif"):
        data_of(tmp_path, **REMOTE)


def test_an_area_without_photographs_says_so(tmp_path):
    (tmp_path / "items.json").write_text(json.dumps({"type": "FeatureCollection", "features": photographs(tmp_path)}))
    assert refusal(tmp_path, **{**REMOTE, "period": '"2010/2011"'}) == (
        f"no item of {tmp_path / 'items.json'} naip with 'image' in {tmp_path / 'area.geojson'}; "
        "expected at least one; cure: widen aoi or period"
    )
    assert "no asset 'photo'; it has image" in refusal(tmp_path, **REMOTE, asset='"photo"')
    assert refusal(tmp_path, **{**REMOTE, "catalog": '"planetary"'}).startswith(
        "catalogue 'planetary' is neither known"
    )
    assert refusal(tmp_path, **{**REMOTE, "period": '"2021/2019"'}) == (
        "end 2019 is before start 2021; expected start <= end; cure: swap the two"
    )


def cut_short(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_a_damaged_image_is_named_in_one_line_when_it_is_read(tmp_path):
    path = write_raster(tmp_path / "images" / "a.tif", texture(400, 400), **placed(*WHERE, 2.5))
    cut_short(path)
    data = data_of(tmp_path, split='"train"')
    with pytest.raises(ReadError) as error:
        data.hr_sampler("train", 64).batch(np.random.default_rng(0), 1)
    assert str(error.value).startswith(f"{path} cannot be read (")
    assert "\n" not in str(error.value)
    with pytest.raises(ReadError, match=r"a\.tif cannot be read"):
        data_of(tmp_path, split='"held-out"').held_out_chips()


def test_damaged_stacks_and_stores_are_named_in_one_line(tmp_path):
    path = write_raster(tmp_path / "stack.tif", texture(400, 400, bands=10), **placed(*WHERE, 10))
    cut_short(path)
    bands = "{ B02 = 1, B03 = 2, B04 = 3, B08 = 4, B05 = 5, B06 = 6, B07 = 7, B8A = 8, B11 = 9, B12 = 10 }"
    stack = {"role": '"sentinel2"', "path": '"stack.tif"', "split": '"train"', "scale": "1e-4", "bands": bands}
    with pytest.raises(ReadError, match=r"stack\.tif cannot be read"):
        _ = data_of(tmp_path, **stack).tiles("train")[0].rho
    values = xr.DataArray(texture(64, 64).astype(np.uint8), dims=("band", "y", "x"))
    values.to_dataset(name="image").to_zarr(tmp_path / "store.zarr", consolidated=False)
    chunk = next(p for p in sorted((tmp_path / "store.zarr" / "image").rglob("c/0/0/0")))
    chunk.write_bytes(b"no chunk")
    store = data_of(tmp_path, path=None, zarr='"store.zarr"', variable='"image"', gsd_m="2.5", split='"held-out"')
    with pytest.raises(ReadError, match=r"store\.zarr cannot be read"):
        store.held_out_chips()
