"""Each step that a user takes with a store after the quick start, as they would write it: no warning, no workaround."""

import json

import numpy as np
import pytest
import rasterio
import shapely
import xarray as xr

import pipeline
from pipeline.bands import BAND_NAMES
from pipeline.store.tree import StoreEngine
from tests.first_hour.conftest import STRICT, python, sample

pytestmark = pytest.mark.slow  # the sample takes about ten seconds
ENGINES = {"netcdf4": "netCDF4", "h5netcdf": "h5netcdf"}


def square(ds, inset_m=200.0):
    """A square well inside a dataset, in its CRS."""
    west, south, east, north = ds.rio.bounds()
    return shapely.box(west + inset_m, south + inset_m, east - inset_m, north - inset_m)


def made_of(store):
    """All that our functions give of a store, by name."""
    ds = pipeline.open_store(store)
    made = {
        "store": ds,
        "reflectance": ds.reflectance,
        "quality": ds.quality,
        "overview": pipeline.open_store(store, gsd_m=10),
        "ndvi": pipeline.indices(ds, "ndvi"),
        "indices": pipeline.indices(ds, ["ndvi", "bsi"]),
        "bands": pipeline.split_bands(ds),
        "true color": pipeline.true_color(ds),
        "false color": pipeline.false_color(ds, alpha=True),
        "mosaic": pipeline.mosaic([ds]),
    }
    made |= {f"measured {gsd}": one for gsd, one in pipeline.open_measured(store).items()}
    made |= {f"seen {gsd}": one for gsd, one in pipeline.reobserve(ds.reflectance).items()}
    return made | {f"difference {gsd}": v for gsd, v in pipeline.difference(ds, pipeline.open_measured(store)).items()}


@pytest.mark.parametrize("engine", ENGINES)
def test_everything_goes_to_netcdf_and_comes_back_equal(store, tmp_path, engine):
    pytest.importorskip(ENGINES[engine])
    for name, made in made_of(store).items():
        path = tmp_path / f"{name}.nc"
        made.to_netcdf(path, engine=engine)
        opener = xr.open_dataarray if isinstance(made, xr.DataArray) else xr.open_dataset
        with opener(path, engine=engine) as again:
            xr.testing.assert_identical(again.load(), made.compute())
            assert again.rio.crs.to_epsg() == 32629, name
    scenes = json.loads(made_of(store)["store"].attrs["scenes"])
    assert list(scenes) == ["S2A_MSIL2A_20170617T113321_36_85"]


def test_a_picture_is_plotted_as_it_is(ds, tmp_path):
    plt = pytest.importorskip("matplotlib.pyplot")
    plt.switch_backend("agg")
    for draw in (pipeline.true_color(ds).plot.imshow, pipeline.indices(ds, "ndvi").plot, ds.quality.plot,
                 ds.reflectance.sel(band="B11").plot, pipeline.split_bands(ds).B08.plot):  # fmt: skip
        figure = plt.figure()
        drawn = draw()
        figure.savefig(tmp_path / "a.png")
        assert drawn.get_array().size >= 480 * 480
        plt.close(figure)
    axes = plt.figure().gca()
    pipeline.true_color(ds).plot.imshow(ax=axes)
    assert axes.get_xlabel() == "easting of pixel centre [m]"
    plt.close("all")


def test_hvplot_draws_the_same(ds):
    pytest.importorskip("hvplot.xarray")
    import holoviews

    picture = pipeline.true_color(ds)
    for drawn in (picture.hvplot.rgb(), picture.hvplot.rgb(x="x", y="y", bands="rgb", data_aspect=1)):
        holoviews.render(drawn)
        red = np.flipud(drawn.dimension_values(2, flat=False))
        assert np.array_equal(red, picture.sel(rgb="red")) or np.array_equal(np.flipud(red), picture.sel(rgb="red"))
    holoviews.render(pipeline.indices(ds, "ndvi").hvplot.image(x="x", y="y"))


def test_the_whole_store_is_a_tree(store, ds):
    levels = ["2.5m", "5m", "10m", "measured/10m", "measured/20m", "measured/60m"]
    for tree in (pipeline.open_tree(store), xr.open_datatree(store, engine=StoreEngine)):
        assert [leaf.path.strip("/") for leaf in tree.leaves] == levels
        assert tree.attrs["plan_digest"] == ds.attrs["plan_digest"]
        xr.testing.assert_identical(tree["2.5m"].to_dataset().compute(), ds.compute())
        xr.testing.assert_identical(tree["measured/20m"].to_dataset(), pipeline.open_measured(store)[20])
        assert tree["10m"].to_dataset().rio.bounds() == ds.rio.bounds()
    assert set(xr.open_groups(store, engine=StoreEngine)) == {"/", *(f"/{name}" for name in levels)}
    xr.testing.assert_identical(xr.open_dataset(store, engine=StoreEngine, chunks={}), ds)
    only = xr.open_dataset(store, engine=StoreEngine, group="10m", drop_variables="quality")
    assert list(only.data_vars) == ["reflectance"]


def test_an_installed_engine_is_found_by_xarray(store):
    if "sen2fine" not in xr.backends.list_engines():
        pytest.skip("sen2fine runs from its folder and is not installed")
    assert xr.open_datatree(store)["measured/20m"].reflectance.sizes["y"] == 60
    assert xr.open_dataset(store).reflectance.dtype == np.float32


def test_plain_xarray_opens_store_and_levels(store):
    assert xr.open_zarr(store).rio.crs.to_epsg() == 32629
    assert len(xr.open_groups(store, engine="zarr")) == 8
    assert [node.name for node in xr.open_datatree(store, engine="zarr", group="measured").leaves] == [
        "10m",
        "20m",
        "60m",
    ]


def test_bands_pictures_and_indices_go_to_geotiffs_with_names_and_nodata(ds, tmp_path):
    cases = {
        "bands": (pipeline.split_bands(ds), [f"{name} " for name in BAND_NAMES], "float32"),
        "picture": (pipeline.true_color(ds).to_dataset("rgb"), ["red", "green", "blue"], "uint8"),
        "indices": (pipeline.indices(ds, ["ndvi", "evi"]).squeeze(), ["normalized diff", "enhanced veg"], "float32"),
        "ndvi": (pipeline.indices(ds, "ndvi"), ["normalized diff"], "float32"),
        "quality": (ds.quality, ["what the RGB"], "uint8"),
    }
    for name, (made, titles, kind) in cases.items():
        path = tmp_path / f"{name}.tif"
        made.rio.to_raster(path)
        with rasterio.open(path) as file:
            assert file.count == len(titles)
            assert all(one.startswith(title) for one, title in zip(file.descriptions, titles, strict=True))
            assert file.dtypes[0] == kind
            assert file.nodata == 0 if kind == "uint8" else np.isnan(file.nodata)
            assert set(file.scales) == {1.0}
            assert set(file.offsets) == {0.0}
            assert file.crs.to_epsg() == 32629
            assert tuple(file.bounds) == ds.rio.bounds()
            first = made.to_dataarray()[0] if isinstance(made, xr.Dataset) else made
            assert np.array_equal(file.read(1), np.squeeze(first.values), equal_nan=True)


def test_one_date_of_reflectance_goes_to_a_geotiff(ds, tmp_path):
    ds.reflectance.isel(time=0).rio.to_raster(tmp_path / "a.tif")
    with rasterio.open(tmp_path / "a.tif") as file:
        assert file.count == 12
        assert np.isnan(file.nodata)
        assert np.array_equal(file.read(4), ds.reflectance[0, 3], equal_nan=True)


def test_a_level_and_what_the_sensor_sees_lie_where_they_are(ds):
    west, south, east, north = ds.rio.bounds()
    assert (east - west, north - south) == (1200, 1200)
    assert ds.coarsen(x=4, y=4).mean().rio.bounds() == ds.rio.bounds()
    for seen in pipeline.reobserve(ds.reflectance).values():
        assert seen.rio.bounds() == ds.rio.bounds()


def test_the_output_is_compared_with_the_measurement(store, ds):
    measured = pipeline.open_measured(store)
    assert (ds.reflectance - measured[20].reflectance).size == 0  # which is why `difference` is there
    off = pipeline.difference(ds, measured)
    assert {gsd: one.sizes["band"] for gsd, one in off.items()} == {10: 4, 20: 6, 60: 2}
    for one in off.values():
        assert float(abs(one / 1e-4).mean()) < 5  # DN
        assert one.rio.bounds() == ds.rio.bounds()
    cut = pipeline.difference(ds.isel(x=slice(120, 360), y=slice(240, 480)), measured)
    inside = off[20].isel(x=slice(16, 44), y=slice(31, 59))  # a pixel inside the cut's edge
    assert np.array_equal(cut[20].isel(x=slice(1, 29), y=slice(1, 29)), inside)


def test_it_is_clipped_to_a_field(ds, tmp_path):
    field = square(ds)
    clipped = ds.rio.clip([field])
    assert clipped.rio.bounds() == field.bounds
    assert not np.isnan(clipped.reflectance).any()
    triangle = shapely.Polygon(
        [(field.bounds[0], field.bounds[1]), (field.bounds[2], field.bounds[1]), field.centroid.coords[0]]
    )
    part = ds.rio.clip([triangle])
    outside = np.isnan(part.reflectance[0, 0])
    assert 0.4 < float(outside.mean()) < 0.6
    assert np.array_equal(part.quality[0] == 0, outside)
    pytest.importorskip("netCDF4")
    part.to_netcdf(tmp_path / "field.nc")


def test_zonal_statistics_of_fields(ds):
    exactextract = pytest.importorskip("exactextract")
    geopandas = pytest.importorskip("geopandas")
    west, _, _, north = ds.rio.bounds()
    corner = shapely.box(west, north - 10, west + 10, north)  # 4 x 4 px
    fields = geopandas.GeoDataFrame({"field": [1, 2]}, geometry=[square(ds), corner], crs=ds.rio.crs)
    ndvi = pipeline.indices(ds, ["ndvi"])
    table = exactextract.exact_extract(ndvi, fields, ["mean", "count"], include_cols=["field"], output="pandas")
    assert table["count"].tolist() == [320 * 320, 16]
    assert table["mean"][1] == pytest.approx(float(ndvi.ndvi[0, :4, :4].mean()), rel=1e-5)
    by_band = exactextract.exact_extract(pipeline.split_bands(ds), fields, "mean", output="pandas")
    assert list(by_band.columns) == [f"{name}_mean" for name in BAND_NAMES]
    assert by_band.B11_mean[1] == pytest.approx(float(ds.reflectance.sel(band="B11")[0, :4, :4].mean()), rel=1e-5)


def test_a_series_of_ndvi(ds):
    later = ds.assign_coords(time=ds.time + np.timedelta64(5, "D"))
    series = pipeline.indices(xr.concat([ds, later], "time"), "ndvi").mean(["x", "y"]).to_series()
    assert len(series) == 2
    assert series.iloc[0] == pytest.approx(series.iloc[1])
    assert 0.2 < series.iloc[0] < 0.9


REPROJECTED = """
import sys
import numpy as np
import pipeline

ds = pipeline.open_store(sys.argv[1])
ndvi = pipeline.indices(ds, "ndvi").rio.reproject("EPSG:4326")
assert ndvi.rio.crs.to_epsg() == 4326
assert np.isnan(ndvi.rio.nodata)
assert 0.3 < float(ndvi.mean()) < 0.9
quality = ds.quality.rio.reproject("EPSG:4326")
assert set(np.unique(quality)) <= {0, 1, 2, 3}
assert ds.isel(time=0).rio.reproject("EPSG:3035").reflectance.sizes["band"] == 12
ndvi.rio.to_raster(sys.argv[2])
"""


def test_it_is_reprojected_by_rioxarray(store, tmp_path):
    python(*STRICT, "-c", REPROJECTED, store, tmp_path / "ndvi.tif")
    with rasterio.open(tmp_path / "ndvi.tif") as file:
        assert file.crs.to_epsg() == 4326
        assert np.isnan(file.nodata)


def test_it_is_reprojected_by_odc_geo(ds):
    pytest.importorskip("odc.geo.xr")
    assert ds.odc.geobox.shape == (480, 480)
    assert ds.odc.geobox.affine[:6] == (2.5, 0.0, ds.rio.bounds()[0], 0.0, -2.5, ds.rio.bounds()[3])
    away = ds.odc.reproject("EPSG:3035", resolution=10).compute()
    assert away.reflectance.sizes["band"] == 12
    assert abs(float(away.reflectance.mean()) - float(ds.reflectance.mean())) < 0.005


def test_neighbouring_runs_join(tmp_path):
    def stored(name, west, east):
        box = (f"{west},52.3045,{east},52.3130", "--sr", "bicubic", "--bands", "B04,B08")
        return sample(tmp_path / f"{name}.zarr", "--bbox", *box)

    joined = pipeline.mosaic([stored("east", -6.8910, -6.8830), stored("west", -6.8985, -6.8910)])
    whole = pipeline.open_store(stored("both", -6.8985, -6.8830))
    west, south, east, north = joined.rio.bounds()
    assert whole.rio.bounds()[0::2] == (west, east)
    shared = whole.sel(y=slice(north, south))
    assert shared.sizes["y"] > 0.9 * whole.sizes["y"]
    assert np.array_equal(joined.sel(y=shared.y).reflectance, shared.reflectance, equal_nan=True)


def test_a_copy_goes_to_zarr(ds, tmp_path):
    ds.to_zarr(tmp_path / "copy.zarr", consolidated=False)
    xr.testing.assert_equal(xr.open_zarr(tmp_path / "copy.zarr", consolidated=False).compute(), ds.compute())
