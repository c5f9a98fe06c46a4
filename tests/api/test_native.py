"""Values in memory become the DN of the files that they came from, to the last bit, or are refused."""

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from pipeline.api.images import Corner, Layer
from pipeline.api.native import Meaning, phase_of, to_native
from pipeline.errors import UsageError
from pipeline.grid.grid import Phase

OFFICIAL = Phase(0.0, 0.0)


def layer(values, band="B02", place=None, **attrs):
    values = np.asarray(values)
    place = place or Corner(600000, 5100000, 10, values.shape)
    return Layer(band, xr.DataArray(values, dims=("y", "x"), attrs=attrs), place, 32632)


def copies(native, factor):
    return native.repeat(factor, 0).repeat(factor, 1)


@given(
    native_m=st.sampled_from([20, 60]),
    cut=st.tuples(*[st.integers(0, 11)] * 4),
    phase=st.tuples(st.integers(0, 5), st.integers(0, 5)),
    seed=st.integers(0, 99),
)
def test_copies_are_turned_back_wherever_they_were_cut(native_m, cut, phase, seed):
    """Any rectangle out of the copies: whole pixels come back with their values, at their place."""
    factor = native_m // 10
    native = np.random.default_rng(seed).integers(1, 65536, (7, 7)).astype(np.uint16)
    top, left, bottom, right = (c % (2 * factor) for c in cut)
    fine = copies(native, factor)[top : 7 * factor - bottom, left : 7 * factor - right]
    at = Phase(10.0 * phase[0], 10.0 * phase[1])
    x0, y0 = 600000 + at.x_m, 5100000 + at.y_m
    found, corner, differ = to_native(fine, Corner(x0 + 10 * left, y0 - 10 * top, 10, fine.shape), native_m, at)
    row, col = round((y0 - corner.top_m) / native_m), round((corner.left_m - x0) / native_m)
    assert (row, col) == (top // factor, left // factor)
    assert np.array_equal(found, native[row : row + found.shape[0], col : col + found.shape[1]])
    assert found.shape == (7 - top // factor - bottom // factor, 7 - left // factor - right // factor)
    assert differ == 0


def test_pixels_without_data_do_not_count_and_others_do():
    fine = copies(np.array([[7, 8], [9, 0]], np.uint16), 2)
    fine[0, 0] = 0  # masked by the user
    place = Corner(600000, 5100000, 10, (4, 4))
    found, _, differ = to_native(fine, place, 20, OFFICIAL)
    assert (found.tolist(), differ) == ([[7, 8], [9, 0]], 0)
    fine[3, 0] = 10
    assert to_native(fine, place, 20, OFFICIAL)[2] == 1


def test_native_bands_are_left_alone():
    dn = np.arange(6, dtype=np.uint16).reshape(2, 3)
    found, corner, differ = to_native(dn, Corner(600010, 5099990, 10, (2, 3)), 10, OFFICIAL)
    assert np.array_equal(found, dn)
    assert (corner, differ) == (Corner(600010, 5099990, 10, (2, 3)), 0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_reflectance_comes_back_as_the_dn_it_was(dtype):
    """Every DN of the convention with offset -1000, in both precisions."""
    dn = np.arange(1, 65536, dtype=np.uint16).reshape(5, -1)
    reflectance = ((dn.astype(np.float64) - 1000) * 1e-4).astype(dtype)
    assert np.array_equal(Meaning().dn(layer(reflectance), 0), dn)
    reflectance[0, 0] = np.nan
    assert Meaning().dn(layer(reflectance), 0)[0, 0] == 0


@pytest.mark.parametrize("values", [np.array([[0, 1, 700]], np.uint16), np.array([[np.nan, 1, 700.0]], np.float32)])
def test_dn_stay_as_they_are(values):
    meaning = Meaning()
    assert meaning.dn(layer(values), 0).tolist() == [[0, 1, 700]]
    assert meaning.values == "dn"


def test_nodata_by_attribute():
    assert Meaning().dn(layer(np.array([[-9999, 5]], np.int16), nodata=-9999), 0).tolist() == [[0, 5]]
    assert Meaning().dn(layer(np.array([[65535, 5]], np.uint16), _FillValue=65535), 0).tolist() == [[0, 5]]


def test_an_empty_plane_tells_nothing():
    meaning = Meaning()
    assert not meaning.dn(layer(np.full((2, 2), np.nan)), 0).any()
    assert meaning.values == ""
    assert meaning.dn(layer(np.array([[0.05]])), 0).tolist() == [[1500]]


def test_classes_are_no_reflectance():
    meaning = Meaning()
    assert meaning.dn(layer(np.array([[4.0, np.nan, 11.0]], np.float32), "SCL"), 0).tolist() == [[4, 0, 11]]
    assert meaning.values == ""


@pytest.mark.parametrize(
    ("first", "then", "found"),
    [
        ([[0.1, 0.2]], [[100.0, 2000.0]], "looks like dn, and is said or was seen to be reflectance"),
        ([[100.0, 2000.0]], [[0.1, 0.2]], "looks like reflectance, and is said or was seen to be dn"),
        ([[100, 200]], [[-5, 20]], "holds values from -5 to 20"),
        ([[100.0, 200.0]], [[100.5, 200.0]], "holds values from 100.5 to 200"),
        ([[100.0, 200.0]], [[70000.0, 200.0]], "holds values from 200 to 70000"),
    ],
)
def test_values_that_are_neither_or_both(first, then, found):
    meaning = Meaning()
    meaning.dn(layer(first), 0)
    with pytest.raises(UsageError) as caught:
        meaning.dn(layer(then, "B03"), 0)
    assert caught.value.found == f"B03 {found}"


def test_what_the_caller_says_is_checked():
    with pytest.raises(UsageError, match="values = 'radiance'"):
        Meaning("radiance")
    with pytest.raises(UsageError, match="looks like dn"):
        Meaning("reflectance").dn(layer(np.array([[100]])), 0)


@pytest.mark.parametrize("shift", [(0, 0), (10, 0), (30, 50), (5, 5), (25, 15)])
def test_the_phase_is_found_by_the_copies(shift):
    """Copies of 20 and 60 m pixels that begin anywhere, on a 10 m grid that begins elsewhere."""
    rng = np.random.default_rng(1)
    planes = {
        "B02": rng.integers(1, 9000, (42, 42)).astype(np.uint16),
        "B05": copies(rng.integers(1, 9000, (24, 24)).astype(np.uint16), 2)[:42, :42],
        "B01": copies(rng.integers(1, 9000, (9, 9)).astype(np.uint16), 6)[:42, :42],
    }
    place = Corner(600000 + shift[0], 5100000 + shift[1], 10, (42, 42))
    layers = [layer(planes[band], band, place) for band in planes]
    assert phase_of(layers, planes) == Phase(float(shift[0]), float(shift[1]))


def test_interpolated_bands_are_refused_with_the_cure():
    rng = np.random.default_rng(1)
    planes = {"B05": rng.integers(1, 9000, (12, 12)).astype(np.uint16)}
    with pytest.raises(UsageError) as caught:
        phase_of([layer(planes["B05"], "B05")], planes)
    assert caught.value.found == "B05 was resampled: 36 of 36 measured pixels hold different values"
    assert "measured pixels of 20 m" in caught.value.expected
    assert "nearest neighbour" in caught.value.cure


def test_averages_are_refused():
    planes = {"B02": np.ones((3, 3), np.uint16)}
    with pytest.raises(UsageError, match="B02 has pixels of 20 m, which average"):
        phase_of([layer(planes["B02"], "B02", Corner(600000, 5100000, 20, (3, 3)))], planes)


def test_grids_that_do_not_nest_are_refused():
    planes = {band: np.ones((6, 6), np.uint16) for band in ("B02", "B03")}
    layers = [layer(planes["B02"], "B02"), layer(planes["B03"], "B03", Corner(600003, 5100000, 10, (6, 6)))]
    with pytest.raises(UsageError, match="B03 starts at 600003, 5.1e"):
        phase_of(layers, planes)
