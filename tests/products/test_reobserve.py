"""`pipeline.reobserve`: the output as the sensor would measure it, against the stored input."""

import dask.array as da
import numpy as np
import pytest
import xarray as xr

import pipeline
from pipeline.bands import BAND_NAMES, BY_NAME
from pipeline.errors import UsageError
from pipeline.grid.sensor import observed, sensor


def reflectance(bands=("B02", "B05", "B09"), n=480, mtf=None):
    values = np.random.default_rng(0).uniform(0, 0.4, (1, len(bands), n, n)).astype(np.float32)
    coords = {"band": list(bands), "y": 5e6 - 2.5 * (np.arange(n) + 0.5), "x": 4e5 + 2.5 * (np.arange(n) + 0.5)}
    if mtf:
        coords["mtf"] = ("band", np.array([mtf[name] for name in bands]))
    return xr.DataArray(values, dims=("time", "band", "y", "x"), coords=coords, name="reflectance")


def test_it_lies_on_the_native_grids_and_is_what_the_sensor_sees():
    fine = reflectance()
    seen = pipeline.reobserve(fine)
    assert {gsd: list(part.band.values) for gsd, part in seen.items()} == {10: ["B02"], 20: ["B05"], 60: ["B09"]}
    for gsd, part in seen.items():
        k = gsd * 2 // 5
        assert part.shape == (1, 1, 480 // k, 480 // k)
        assert np.array_equal(part.x.values, fine.x.values.reshape(-1, k).mean(1))
        name = str(part.band.values[0])
        expected = observed(fine.sel(band=name).values[0], sensor(BY_NAME[name].product_mtf, k))
        np.testing.assert_array_equal(part.values[0, 0, 1:-1, 1:-1], expected)
        assert np.isnan(part.values[0, 0, [0, -1]]).all()


def test_chunks_show_nowhere_and_nothing_is_computed_early():
    fine = reflectance(n=4320, bands=("B02", "B09"))
    lazy = fine.copy(data=da.from_array(fine.values, chunks=(1, 2, 480, 480)))
    for gsd, part in pipeline.reobserve(lazy).items():
        assert part.chunks is not None
        np.testing.assert_array_equal(part.values, pipeline.reobserve(fine)[gsd].values)


def test_the_stores_own_mtf_is_taken_and_a_given_one_wins():
    mtf = dict.fromkeys(BAND_NAMES, 0.4)
    plain, own = reflectance(), reflectance(mtf=mtf)
    given = pipeline.reobserve(plain, mtf)[10]
    assert np.array_equal(pipeline.reobserve(own)[10].values, given.values, equal_nan=True)
    assert not np.array_equal(pipeline.reobserve(plain)[10].values, given.values, equal_nan=True)


def test_nodata_is_seen_by_its_neighbours_and_by_nobody_else():
    fine = reflectance(bands=("B02",))
    fine[0, 0, 200:204, 200:204] = np.nan
    hidden = np.isnan(pipeline.reobserve(fine)[10].values[0, 0])
    assert hidden[49:52, 49:52].all()
    hidden[49:52, 49:52] = hidden[[0, -1]] = hidden[:, [0, -1]] = False
    assert not hidden.any()


def test_other_grids_are_refused():
    with pytest.raises(UsageError, match=r"reflectance at 5 m; expected 2.5 m"):
        pipeline.reobserve(reflectance().coarsen(y=2, x=2).mean())
    with pytest.raises(UsageError, match=r"477 x 480 px.*multiples of 4 px"):
        pipeline.reobserve(reflectance(bands=("B02",))[:, :, 3:])
