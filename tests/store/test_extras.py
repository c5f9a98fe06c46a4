"""Several images of every time step, and maps, in stores without a run."""

import numpy as np
import pytest
import xarray as xr

import pipeline
from pipeline.errors import UsageError
from pipeline.grid.grid import Grid
from pipeline.store import layout
from pipeline.store.extras import MapRaster, class_numbers
from pipeline.store.layout import RegionWriter
from pipeline.store.template import Template, create

BANDS = ("B02", "B03", "B04", "B08")
TIMES = ("2024-06-17T10:20:31Z", "2024-06-20T10:20:31Z")
NUMBERS = (5, 6, 7)


def dn(step, number):
    """DN of each time step and image, by band."""
    return (2000 + 100 * np.arange(4) + 1000 * step + 10 * number).astype(np.uint16)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Three images of each of two time steps."""
    path = tmp_path_factory.mktemp("several") / "several.zarr"
    periods = [{"label": f"{time[:10]}-look{number}", "scenes": []} for time in TIMES for number in NUMBERS]
    template = Template(
        Grid.covering(32632, (600000.0, 5099400.0, 600240.0, 5099640.0)),
        BANDS,
        tuple(time for time in TIMES for _ in NUMBERS),
        96,
        BANDS[:3],
        quality_meanings="nodata measured",
        finer_bands=((1.25, BANDS[:3]),),
        attributes={"plan_digest": "d", "groups": [""], "periods": periods, "generated_bands": list(BANDS[:3])},
        variant_name="look",
        variants=NUMBERS * len(TIMES),
        map_raster=MapRaster(1.25, ("building", "water"), "Town of Ex, CC BY 4.0"),
    )
    create(path, "", template)
    for at, (step, number) in enumerate((step, number) for step in range(2) for number in NUMBERS):
        pixels = np.broadcast_to(dn(step, number)[:, None, None], (4, 96, 96))
        RegionWriter(path, "", at).write(slice(0, 96), slice(0, 96), {"reflectance": pixels})
        classes = np.eye(96, dtype=np.uint8) * 2
        written = {"reflectance": pixels[:3], "map_class": classes}
        RegionWriter(path, "", at, "finer/1.25m").write(slice(0, 96), slice(0, 96), written)
        native = {"reflectance": np.broadcast_to(dn(step, 0)[:, None, None], (4, 24, 24))}
        RegionWriter(path, "", at, "measured/10m").write(slice(0, 24), slice(0, 24), native)
    layout.finish(path, [""], {})
    return path


def test_images_have_a_dimension_behind_time(store, tmp_path):
    opened = pipeline.open_store(store)
    assert opened.reflectance.dims == ("time", "look", "band", "y", "x")
    assert opened.quality.dims == ("time", "look", "y", "x")
    assert opened["look"].values.tolist() == [5, 6, 7]
    assert [str(when)[:19] for when in opened.time.values] == ["2024-06-17T10:20:31", "2024-06-20T10:20:31"]
    assert opened.reflectance.dtype == np.float32
    for step in range(2):
        for number in NUMBERS:
            found = opened.reflectance.isel(time=step).sel(look=number)[:, 3, 4].values
            np.testing.assert_allclose(found, dn(step, number) * 1e-4 - 0.1, atol=1e-6)
    assert pipeline.open_measured(store)[10].reflectance.dims == ("time", "band", "y", "x")
    fine = pipeline.open_store(store, gsd_m=1.25)
    assert fine["map_class"].dims == ("time", "y", "x")
    assert fine["map_class"].attrs["flag_meanings"] == "nothing building water"
    assert fine["map_class"].attrs["credit"] == "Town of Ex, CC BY 4.0"
    opened.to_netcdf(tmp_path / "saved.nc")
    xr.testing.assert_allclose(xr.open_dataset(tmp_path / "saved.nc").reflectance, opened.reflectance)
    plain = xr.open_zarr(store)  # without this package: a coordinate tells images of one time apart
    assert plain["look"].dims == ("time",)
    assert plain["look"].values.tolist() == [5, 6, 7, 5, 6, 7]


def test_products_take_the_dimension_or_refuse_it(store):
    opened = pipeline.open_store(store)
    ndvi = pipeline.indices(opened, "ndvi")
    assert ndvi.dims == ("time", "look", "y", "x")
    assert pipeline.true_color(opened).dims[:2] == ("time", "look")
    seen = pipeline.reobserve(opened.reflectance)[10]
    assert seen.sizes["look"] == 3
    np.testing.assert_allclose(seen.sel(look=6).isel(time=1)[:, 4, 4], dn(1, 6) * 1e-4 - 0.1, atol=1e-4)
    one = opened.sel(look=6)
    assert pipeline.indices(one, "ndvi").dims == ("time", "y", "x")
    assert set(pipeline.split_bands(opened)) >= {"B02", "B08"}
    with pytest.raises(UsageError, match=r"several images by look; expected one; cure: store\.sel\(look="):
        pipeline.mosaic([opened, opened])


def test_classes_are_numbered_from_one():
    channels = np.zeros((3, 2, 2), np.float32)
    channels[2, 0, 1] = channels[0, 1, 0] = 1
    assert class_numbers(channels).tolist() == [[0, 3], [1, 0]]
