"""Images as odc-stac, stackstac and cubo give them: bands, grids, zones and times are understood, or refused."""

import numpy as np
import pystac
import pytest
import xarray as xr

from pipeline.api.images import Corner, layers_of, stated, times_of
from pipeline.api.names import band_named
from pipeline.archive.stac.index_file import to_item
from pipeline.bands import BAND_NAMES, BANDS
from pipeline.errors import UsageError
from tests.api.conftest import at_10m, bands_of, dataset_of
from tests.archive.synthetic import make_scene

LEFT, TOP, SIZE = 600000, 5100000, 600


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    return make_scene(tmp_path_factory.mktemp("scene"), scene_id="S2A_X", size_m=SIZE, left_m=LEFT, top_m=TOP)


@pytest.fixture(scope="module")
def item(scene):
    made = pystac.Item.from_dict(to_item(scene))
    for asset in made.assets.values():
        asset.extra_fields.pop("eo:bands", None)
    return made


def cubo_like(array):
    """As cubo leaves what stackstac gives: without its attributes, with some of its own."""
    array = array.copy()
    left, top = float(array.x[0]), float(array.y[0])
    size = array.sizes["x"] * 10
    array.attrs = {
        "epsg": 32632, "resolution": 10, "edge_size": array.sizes["x"], "edge_size_m": size,
        "central_x": left + size / 2, "central_y": top - size / 2,
    }  # fmt: skip
    return array.drop_vars("epsg")


def only(image, **more):
    given = {"epsg": None, "xy_coords": None, **more}
    return {layer.band: layer for layer in layers_of(image, **given)}


@pytest.mark.parametrize("name", BAND_NAMES)
def test_esa_names_in_all_spellings(name):
    short = name.replace("B0", "B")
    for text in (name, name.lower(), short, f"{name}_20m", f"{name}_60m", f"{short.lower()}-10m"):
        assert band_named(text) == name, text


def test_common_names_of_the_tables():
    assert [band_named(band.common_name) for band in BANDS] == list(BAND_NAMES)
    earth_search = "coastal blue green red rededge1 rededge2 rededge3 nir nir08 nir09 swir16 swir22 scl"
    assert [band_named(name) for name in earth_search.split()] == [*BAND_NAMES, "SCL"]


@pytest.mark.parametrize("name", ["B10", "B13", "B00", "visual", "aot", "B02_30m", "", None, "cloud"])
def test_other_names_are_none(name):
    assert band_named(name) == ""


def test_odc_stac(scene, item):
    odc = pytest.importorskip("odc.stac")
    image = odc.load([item], bands=["B02", "B05", "B01", "SCL"], resolution=10, crs="EPSG:32632", chunks={})
    found = only(image)
    assert set(found) == {"B02", "B05", "B01", "SCL"}
    expected = at_10m(scene)
    for band, layer in found.items():
        assert layer.place == Corner(LEFT, TOP, 10, (60, 60))
        assert layer.epsg == 32632
        assert np.array_equal(layer.plane(0), expected[band])
    assert times_of(list(found.values()), None) == [scene.datetime_utc]


@pytest.mark.parametrize("xy_coords", ["topleft", "center"])
def test_stackstac_says_what_its_coordinates_are(scene, item, xy_coords):
    import stackstac

    image = stackstac.stack([item], assets=["B02", "B05"], resolution=10, epsg=32632, xy_coords=xy_coords)
    found = only(image)
    expected = at_10m(scene)
    for band, layer in found.items():
        place = layer.place
        row, col = round((place.top_m - TOP) / 10), round((LEFT - place.left_m) / 10)
        assert row == col >= 1  # it adds a margin
        assert (TOP + 10 * row, LEFT - 10 * col) == (place.top_m, place.left_m)
        assert np.array_equal(layer.plane(0)[row : row + 60, col : col + 60], expected[band])
    layers = list(found.values())
    assert stated(layers, "id", 0) == scene.id
    assert stated(layers, "s2:processing_baseline", 0) == "02.14"
    assert stated(layers, "nothing", 0) is None
    cut = only(image.isel(x=slice(7, None), y=slice(5, None)))  # its attributes then describe a larger image
    left, top = LEFT - 10 * col + 70, TOP + 10 * row - 50
    assert cut["B02"].place == Corner(left, top, 10, (image.sizes["y"] - 5, image.sizes["x"] - 7))


def test_cubo(item):
    import stackstac

    image = stackstac.stack(
        [item], assets=["B02"], resolution=10, epsg=32632, bounds=(LEFT, TOP - 400, LEFT + 400, TOP)
    )
    assert only(cubo_like(image))["B02"].place == Corner(LEFT, TOP, 10, (40, 40))
    bare = cubo_like(image)
    bare.attrs = {"epsg": 32632}
    with pytest.raises(UsageError, match="may be centres or corners") as caught:
        only(bare)
    assert "topleft" in caught.value.cure
    assert only(bare, xy_coords="topleft")["B02"].place == Corner(LEFT, TOP, 10, (40, 40))


def test_bands_along_a_dimension_and_by_themselves(scene):
    stacked = dataset_of(scene).to_dataarray("band")
    assert set(only(stacked)) == {*BAND_NAMES, "SCL"}
    assert np.array_equal(only(stacked)["B07"].plane(0), at_10m(scene)["B07"])
    assert set(only(stacked.sel(band="B03"))) == {"B03"}
    assert set(only(stacked.to_dataset(name="reflectance"))) == {*BAND_NAMES, "SCL"}


def test_native_grids_in_a_mapping(scene):
    parts = {
        gsd: dataset_of(scene, gsd, {b: dn for b, dn in bands_of(scene).items() if dn.shape[0] * gsd == SIZE})
        for gsd in (10, 20, 60)
    }
    for given in (parts, list(parts.values())):
        found = only(given)
        assert {layer.place.gsd_m for layer in found.values()} == {10, 20, 60}
        assert found["B01"].place == Corner(LEFT, TOP, 60, (10, 10))


def test_rows_from_south_to_north_are_turned(scene):
    upside = dataset_of(scene).isel(y=slice(None, None, -1))
    found = only(upside)["B04"]
    assert found.place == Corner(LEFT, TOP, 10, (60, 60))
    assert np.array_equal(found.plane(0), at_10m(scene)["B04"])


def test_other_variables_are_passed_over(scene, caplog):
    image = dataset_of(scene)
    image["visual"] = image.B04 * 0
    with caplog.at_level("INFO", logger="pipeline"):
        assert "visual" not in only(image)
    assert "not among the bands: visual" in caplog.text


def without_crs(image):
    return image.drop_vars("spatial_ref")


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda image: 3, "an image of type int"),
        (lambda image: [], "an image of type list"),
        (lambda image: [image, "x"], "an image of type str"),
        (lambda image: [image, image], "B01 is there twice"),
        (lambda image: image[["SCL"]], "no band is among the variables"),
        (without_crs, "B01 does not say its coordinate system"),
        (lambda image: image.rio.write_crs(4326), "B01 lies in EPSG:4326"),
        (lambda image: image.assign_coords(x=image.x * 1.5), "B01 has pixels of"),
        (lambda image: image.isel(x=slice(None, None, 3)), "B01 has pixels of"),
        (lambda image: image.drop_vars("x"), "B01 has the dimensions time, y, x"),
        (lambda image: image.rename(x="a"), "B01 has the dimensions time, y, a"),
        (lambda image: image.expand_dims(other=[1]), "B01 has the dimensions"),
    ],
)
def test_what_cannot_be_used_is_a_usage_error(scene, change, found):
    with pytest.raises(UsageError) as caught:
        only(change(dataset_of(scene)))
    assert caught.value.found.startswith(found)
    assert caught.value.expected


def test_two_zones_are_refused(scene):
    one, other = dataset_of(scene)[["B02"]], dataset_of(scene)[["B03"]].rio.write_crs(32631)
    with pytest.raises(UsageError, match="several UTM zones"):
        only([one, other])


def test_the_caller_may_say_the_zone(scene):
    assert only(without_crs(dataset_of(scene)), epsg=32632)["B02"].epsg == 32632
    with pytest.raises(UsageError, match="xy_coords = 'corner'"):
        only(dataset_of(scene), xy_coords="corner")


def test_times(scene):
    image = dataset_of(scene)
    layers = list(only(image).values())
    assert times_of(layers, None) == ["2024-06-17T10:20:31Z"]
    assert times_of(layers, "2024-06-18") == ["2024-06-18"]
    assert times_of(list(only(image.isel(time=0)).values()), None) == ["2024-06-17T10:20:31Z"]
    bare = list(only(image.isel(time=0).drop_vars("time")).values())
    assert times_of(bare, "2024-06-18") == ["2024-06-18"]
    with pytest.raises(UsageError, match="the image has no time"):
        times_of(bare, None)
    later = image[["B02"]].assign_coords(time=image.time + np.timedelta64(1, "D"))
    with pytest.raises(UsageError, match="different times"):
        times_of(list(only([image.drop_vars("B02"), later]).values()), None)
    two = xr.concat([image, image.assign_coords(time=image.time + np.timedelta64(5, "D"))], "time")
    assert times_of(list(only(two).values()), None) == ["2024-06-17T10:20:31Z", "2024-06-22T10:20:31Z"]
