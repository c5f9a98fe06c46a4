"""Neighbouring stores join into what one run over both areas gives."""

import json

import numpy as np
import pytest
import xarray as xr

import pipeline
from pipeline.errors import UsageError
from tests.archive.synthetic import make_archive, make_scene
from tests.running.conftest import LEFT, TOP, box, config_for, run, write_aoi

SCENES = (
    {"scene_id": "S2A_CLOUDY", "cloud_fraction": 0.2, "offset_dn": -1000},
    {"scene_id": "S2B_LATER", "date": "2024-06-22T10:20:31Z", "cloud_pct": 30.0},
)
LEFT_M, MIDDLE_M, RIGHT_M = LEFT + 301, LEFT + 761, LEFT + 1319  # no multiples of 60
TOP_M, BOTTOM_M = TOP - 301, TOP - 859


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    folder = tmp_path_factory.mktemp("archive")
    return make_archive(folder, [make_scene(folder, seed=1, size_m=1800, **scene) for scene in SCENES])


@pytest.fixture(scope="module")
def stores(tmp_path_factory, index):
    """Stores west and east of a line, and of both sides: {"west": path, ...}."""
    folder = tmp_path_factory.mktemp("stores")
    sides = {"west": (LEFT_M, MIDDLE_M), "east": (MIDDLE_M, RIGHT_M), "both": (LEFT_M, RIGHT_M)}
    for name, (left, right) in sides.items():
        aoi = write_aoi(folder / f"{name}.geojson", box(left, BOTTOM_M, right, TOP_M))
        run(config_for(index), aoi, folder / f"{name}.zarr")
    return {name: folder / f"{name}.zarr" for name in sides}


@pytest.fixture
def opened(stores):
    return {name: pipeline.open_store(path) for name, path in stores.items()}


def test_two_neighbours_are_one_run_over_both(stores, opened):
    west, east, both = opened["west"], opened["east"], opened["both"]
    assert len(np.intersect1d(west.x, east.x)) >= 24  # they overlap by 60 m at least
    with pytest.raises(ValueError):
        xr.combine_by_coords([west, east])
    joined = pipeline.mosaic([stores["west"], stores["east"]])
    assert not np.isnan(both.reflectance).any()
    xr.testing.assert_identical(joined.drop_attrs().compute(), both.drop_attrs().compute())
    assert joined.rio.bounds() == both.rio.bounds()
    for name in ("spatial:transform", "spatial:bbox", "spatial:shape", "software", "consistency"):
        assert joined.attrs[name] == both.attrs[name]
    assert json.loads(joined.attrs["mosaic_of"]) == sorted(
        opened[side].attrs["plan_digest"] for side in ("west", "east")
    )
    assert "plan_digest" not in joined.attrs
    assert set(json.loads(joined.attrs["scenes"])) == {"S2A_CLOUDY", "S2B_LATER"}


def test_it_is_lazy_and_the_order_does_not_matter(opened):
    pair = [opened["west"], opened["east"]]
    one, other = pipeline.mosaic(pair), pipeline.mosaic(pair[::-1])
    assert one.reflectance.chunks is not None
    xr.testing.assert_identical(one, other)


def test_what_we_make_of_it_works_as_of_a_store(opened, tmp_path):
    joined, both = pipeline.mosaic([opened["west"], opened["east"]]), opened["both"]
    assert np.array_equal(pipeline.indices(joined, "ndvi"), pipeline.indices(both, "ndvi"))
    assert pipeline.true_color(joined).dims == ("y", "x", "rgb")
    pytest.importorskip("netCDF4")
    joined.to_netcdf(tmp_path / "joined.nc", engine="netcdf4")
    with xr.open_dataset(tmp_path / "joined.nc", engine="netcdf4") as again:
        xr.testing.assert_identical(again.load(), joined.compute())


def test_measured_and_overviews_join_as_well(stores):
    pairs = [[pipeline.open_measured(stores[side])[20] for side in ("west", "east", "both")]]
    pairs.append([pipeline.open_store(stores[side], gsd_m=10) for side in ("west", "east", "both")])
    for west, east, both in pairs:
        joined = pipeline.mosaic([west, east])
        assert joined.rio.bounds() == both.rio.bounds()
        assert np.array_equal(joined.reflectance, both.reflectance)


def test_a_gap_is_nodata_and_each_pixel_is_of_the_store_that_measured_it(opened):
    both = opened["both"]
    corner, rest = both.isel(y=slice(0, 48), x=slice(0, 48)), both.isel(y=slice(96, 144), x=slice(120, 168))
    joined = pipeline.mosaic([rest, corner])
    assert joined.reflectance.shape == (1, 12, 144, 168)
    assert np.array_equal(joined.reflectance[:, :, :48, :48], corner.reflectance)
    assert np.array_equal(joined.reflectance[:, :, 96:, 120:], rest.reflectance)
    expected = np.ones((144, 168), bool)
    expected[:48, :48] = expected[96:, 120:] = False
    assert np.array_equal(np.isnan(joined.reflectance[0, 3]), expected)
    assert np.array_equal(joined.quality[0] == 0, expected)
    assert joined.quality.dtype == np.uint8
    assert joined.reflectance.dtype == np.float32


def test_pixels_that_one_store_lacks_come_from_the_other(opened):
    both = opened["both"]
    half = both.isel(x=slice(0, 240))
    measured = half.x < half.x[200]
    west = half.assign(
        reflectance=half.reflectance.where(measured),
        quality=half.quality.where(measured, 0),
        scl=half.scl.where(measured, 0),
    )
    joined = pipeline.mosaic([west, both.isel(x=slice(200, None))])
    for name in ("reflectance", "quality", "scl"):
        assert np.array_equal(joined[name], both[name])


def test_time_steps_are_united(opened):
    later = opened["east"].assign_coords(time=opened["east"].time + np.timedelta64(5, "D"))
    joined = pipeline.mosaic([later, opened["west"]])
    assert joined.sizes["time"] == 2
    assert np.array_equal(joined.time, [opened["west"].time.values[0], later.time.values[0]])
    measured = ~np.isnan(joined.reflectance.sel(band="B04"))
    assert int(measured[0].sum()) == opened["west"].sizes["x"] * opened["west"].sizes["y"]
    assert int(measured[1].sum()) == later.sizes["x"] * later.sizes["y"]


def test_different_settings_are_named_and_may_be_allowed(stores, opened, index, tmp_path):
    aoi = write_aoi(tmp_path / "east.geojson", box(MIDDLE_M, BOTTOM_M, RIGHT_M, TOP_M))
    run(config_for(index, consistency="box", composite="median"), aoi, tmp_path / "box.zarr")
    pair = [stores["west"], tmp_path / "box.zarr"]
    with pytest.raises(
        UsageError, match=r"different settings: consistency (sensor and box|box and sensor).*; composite"
    ):
        pipeline.mosaic(pair)
    joined = [pipeline.mosaic(order, allow_different_settings=True) for order in (pair, pair[::-1])]
    xr.testing.assert_identical(*joined)
    assert "consistency" not in joined[0].attrs


def test_different_scenes_of_an_overlap_are_said(stores, index, tmp_path):
    aoi = write_aoi(tmp_path / "east.geojson", box(MIDDLE_M, BOTTOM_M, RIGHT_M, TOP_M))
    run(config_for(index, exclude=("S2B_LATER",)), aoi, tmp_path / "one.zarr")
    with pytest.warns(UserWarning, match=r"overlap, and only one of them used S2B_LATER for 2024-06-17T10:20:31"):
        pipeline.mosaic([stores["west"], tmp_path / "one.zarr"])


def shifted(ds, x_m):
    return ds.assign_coords(x=ds.x + x_m)


def test_what_does_not_join_is_refused(opened):
    west, east = opened["west"], opened["east"]
    other_zone = east.assign_coords(spatial_ref=east.spatial_ref.copy())
    other_zone.spatial_ref.attrs = pipeline_crs(32633)
    cases = {
        r"lie in EPSG:326\d\d and EPSG:326\d\d": [west, other_zone],
        r"the x of .* are .* pixels apart": [west, shifted(east, 1.0)],
        r"have bands \[.*\] and \[.*\]": [west, east.sel(band=["B04", "B08"])],
        r"(10 and 2.5|2.5 and 10) m pixels; expected one GSD": [west, east.coarsen(x=4, y=4).mean()],
        "no stores": [],
        "expected a list of stores": "west.zarr",
        "is no dataset of reflectance": [west, east.drop_vars("reflectance")],
        "no dataset of reflectance by time": [west.isel(time=0)],
        "has several UTM zones": [xr.DataTree.from_dict({"/utm32n": west, "/utm33n": east})],
    }
    for words, stores in cases.items():
        with pytest.raises(UsageError, match=words):
            pipeline.mosaic(stores)


def pipeline_crs(epsg):
    from pyproj import CRS

    return {"spatial_ref": CRS.from_epsg(epsg).to_wkt()}


@pytest.mark.slow
def test_neighbours_with_generated_detail_join_exactly(tmp_path, index):
    halves = {"west": (LEFT_M, MIDDLE_M), "east": (MIDDLE_M, RIGHT_M), "both": (LEFT_M, RIGHT_M)}
    config = config_for(index, sr="lite", bands=("B02", "B03", "B04", "B08", "B11"))  # bands of 60 m are joined above
    for name, (left, right) in halves.items():
        aoi = write_aoi(tmp_path / f"{name}.geojson", box(left, BOTTOM_M, right, TOP_M))
        run(config, aoi, tmp_path / f"{name}.zarr")
    joined = pipeline.mosaic([tmp_path / "east.zarr", tmp_path / "west.zarr"])
    both = pipeline.open_store(tmp_path / "both.zarr")
    assert int((both.quality == 3).sum()) > 10_000
    xr.testing.assert_identical(joined.drop_attrs().compute(), both.drop_attrs().compute())
