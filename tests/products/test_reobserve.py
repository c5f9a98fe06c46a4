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


def measured_of(fine, gsd):
    """The input of a store whose output is `fine`: what the sensor sees, and 0.01 less."""
    seen = pipeline.reobserve(fine)[gsd]
    return xr.Dataset({"reflectance": seen - 0.01})


def test_difference_is_taken_on_the_native_grids():
    fine = reflectance()
    measured = {gsd: measured_of(fine, gsd) for gsd in (10, 20, 60)}
    off = pipeline.difference(fine.to_dataset(), measured)
    assert set(off) == {10, 20, 60}
    for gsd, one in off.items():
        assert one.shape == measured[gsd].reflectance.shape
        np.testing.assert_allclose(one.values[..., 1:-1, 1:-1], 0.01, atol=1e-6)
    assert (fine - measured[10].reflectance).size == 0


def test_difference_of_a_cut_and_of_a_dataset_whose_positions_are_rounded():
    fine = reflectance()
    measured = {20: measured_of(fine, 20)}
    cut = fine.isel(x=slice(48, 240), y=slice(24, 480))
    moved = cut.assign_coords(x=cut.x + 1e-6)
    off = pipeline.difference(moved.to_dataset(), measured)[20]
    assert off.shape == (1, 1, 57, 24)
    assert np.array_equal(off.x, measured[20].x[6:30])
    np.testing.assert_allclose(off.values[..., 1:-1, 1:-1], 0.01, atol=1e-6)


@pytest.mark.parametrize(
    ("cut", "words"),
    [
        ({"x": slice(4, 244)}, "x begins 10 m from the measured 20 m pixels; expected pixels that coincide"),
        ({"y": slice(0, 100)}, "sides that are multiples of 8 px"),
    ],
)
def test_difference_says_where_a_cut_does_not_fit(cut, words):
    fine = reflectance()
    with pytest.raises(UsageError, match=words):
        pipeline.difference(fine.isel(cut).to_dataset(), {20: measured_of(fine, 20)})


def test_difference_refuses_what_cannot_be_compared():
    fine = reflectance()
    measured = {20: measured_of(fine, 20)}
    elsewhere = fine.assign_coords(x=fine.x + 6000)
    june, july = ([np.datetime64(day, "ns")] for day in ("2024-06-17", "2024-07-17"))
    dated, earlier = fine.assign_coords(time=july), {20: measured[20].assign_coords(time=june)}
    cases = [
        (elsewhere.to_dataset(), measured, "expected the measured input of the same store"),
        (dated.to_dataset(), earlier, "no time is in both"),
        (fine.to_dataset(), measured[20], "a Dataset as measured; expected what pipeline.open_measured gave"),
        (fine.sel(band=["B02"]).to_dataset(), measured, "none of the bands B02 in measured"),
    ]
    for ds, other, words in cases:
        with pytest.raises(UsageError, match=words):
            pipeline.difference(ds, other)
