"""Indices and pictures by hand, against the field's catalogue, and on a store of two zones' shape."""

import re

import numpy as np
import pytest
import xarray as xr

import pipeline
from pipeline.bands import BAND_NAMES, BY_NAME
from pipeline.errors import UsageError
from pipeline.products.indices import INDICES

# One pixel of grass, one of nodata, one of water, one whose denominators are zero.
GRASS = {"B02": 0.04, "B03": 0.08, "B04": 0.05, "B05": 0.12, "B08": 0.45, "B11": 0.20, "B12": 0.10}
WATER = {"B02": 0.05, "B03": 0.04, "B04": 0.02, "B05": 0.02, "B08": 0.01, "B11": -0.005, "B12": -0.005}
# Worked by hand from the formulas as published.
BY_HAND = {
    "ndvi": (0.40 / 0.50, -0.01 / 0.03),
    "gndvi": (0.37 / 0.53, -0.03 / 0.05),
    "ndre": (0.33 / 0.57, -0.01 / 0.03),
    "ndwi": (-0.37 / 0.53, 0.03 / 0.05),
    "mndwi": (-0.12 / 0.28, 0.045 / 0.035),  # negative reflectance leaves -1 to 1, and stays
    "ndmi": (0.25 / 0.65, 0.015 / 0.005),
    "nbr": (0.35 / 0.55, 0.015 / 0.005),
    "ndbi": (-0.25 / 0.65, -0.015 / 0.005),
    "ndsi": (-0.12 / 0.28, 0.045 / 0.035),
    "cire": (2.75, -0.5),
    "evi": (2.5 * 0.40 / (0.45 + 0.30 - 0.30 + 1), 2.5 * -0.01 / (0.01 + 0.12 - 0.375 + 1)),
    "evi2": (1.0 / (0.45 + 0.12 + 1), -0.025 / (0.01 + 0.048 + 1)),
    "savi": (0.6 / 1.0, -0.015 / 0.53),
    "bsi": ((0.25 - 0.49) / (0.25 + 0.49), (0.015 - 0.06) / (0.015 + 0.06)),
}
AWESOME = {name: name.upper() for name in INDICES} | {"ndre": "NDREI", "bsi": "BI"}
STANDARD = {"B02": "B", "B03": "G", "B04": "R", "B05": "RE1", "B08": "N", "B11": "S1", "B12": "S2"}


def dataset(values, bands=tuple(GRASS), chunks=1):
    """As open_store gives it: reflectance (time, band, y, x), lazily. `values`: (band, x) of one row."""
    rho = np.asarray(values, np.float32)[None, :, None, :]
    of_band = {
        "wavelength_nm": ("band", [BY_NAME[b].wavelength_nm for b in bands]),
        "native_gsd_m": ("band", [BY_NAME[b].gsd_m for b in bands]),
        "generated": ("band", [True] * len(bands)),
    }
    ds = xr.Dataset(
        {"reflectance": (("time", "band", "y", "x"), rho), "quality": (("time", "y", "x"), np.ones_like(rho[:, 0]))},
        coords={"time": [np.datetime64("2024-06-17", "s")], "band": list(bands), "x": np.arange(rho.shape[-1]) * 2.5}
        | {"y": [0.0], "spatial_ref": 0, **of_band},
    )
    return ds.chunk({"x": chunks})


@pytest.fixture
def ds():
    nodata = dict.fromkeys(GRASS, np.nan)
    zero = dict.fromkeys(GRASS, 0.0)
    return dataset([[pixel[b] for pixel in (GRASS, WATER, nodata, zero)] for b in GRASS])


def test_table_is_tested_whole():
    assert set(BY_HAND) == set(INDICES) == set(AWESOME)


@pytest.mark.parametrize("name", INDICES)
def test_values_by_hand(ds, name):
    made = pipeline.indices(ds, name)
    assert made.dims == ("time", "y", "x")
    assert made.dtype == np.float32
    grass, water, nodata, _ = made.values[0, 0]
    assert (grass, water) == pytest.approx(BY_HAND[name], rel=2e-5)
    assert np.isnan(nodata)


@pytest.mark.parametrize("name", INDICES)
def test_zero_denominator_is_nan_not_infinite(ds, name):
    value = pipeline.indices(ds, name).values[0, 0, 3]
    assert value == 0 if name in ("evi", "evi2", "savi") else np.isnan(value), value


@pytest.mark.parametrize("name", INDICES)
def test_formula_told_is_formula_computed(ds, name):
    made = pipeline.indices(ds, name)
    told = eval(made.attrs["formula"], {}, GRASS)
    assert float(made[0, 0, 0]) == pytest.approx(told, rel=1e-5)
    assert set(made.attrs["bands"].split()) == set(re.findall(r"B\w\w", made.attrs["formula"]))
    assert re.search(r"doi:10\.\d+/|\d{4}, ", made.attrs["source"])
    assert made.attrs["native_gsd_m"] == max(BY_NAME[b].gsd_m for b in made.attrs["bands"].split())


@pytest.mark.parametrize("name", INDICES)
def test_catalogue_of_the_field_agrees(ds, name):
    import spyndex

    index = spyndex.indices[AWESOME[name]]
    bands = {short: GRASS[band] for band, short in STANDARD.items()}
    constants = {"g": 2.5, "C1": 6.0, "C2": 7.5, "L": 0.5 if name == "savi" else 1.0}
    given = {key: (bands | constants)[key] for key in index.bands}
    assert float(pipeline.indices(ds, name)[0, 0, 0]) == pytest.approx(spyndex.computeIndex(AWESOME[name], given))


def test_stays_lazy_and_keeps_what_maps_need(ds):
    made = pipeline.indices(ds, "NDVI")
    assert made.chunks == ((1,), (1,), (1, 1, 1, 1))
    assert made.name == "ndvi"
    assert set(made.coords) == {"time", "y", "x", "spatial_ref"}
    assert made.attrs["grid_mapping"] == "spatial_ref"


def test_several_make_a_dataset_and_zones_a_tree(ds):
    both = pipeline.indices(ds, ["ndvi", "ndmi"])
    assert list(both.data_vars) == ["ndvi", "ndmi"]
    xr.testing.assert_identical(both.ndvi, pipeline.indices(ds, "ndvi"))
    tree = xr.DataTree.from_dict({"/utm31n": ds, "/utm32n": ds.isel(x=[0])})
    made = pipeline.indices(tree, "ndvi")
    assert [node.path for node in made.leaves] == ["/utm31n", "/utm32n"]
    assert made["utm32n/ndvi"].values == pytest.approx(0.8)
    assert made["utm31n"].to_dataset()["ndvi"].sizes["x"] == 4
    assert pipeline.true_color(tree)["utm32n/true_color"].dtype == np.uint8


def test_unknown_index_names_those_there_are(ds):
    with pytest.raises(UsageError, match="no such index: nvdi; expected some of bsi, cire, evi, evi2, gndvi"):
        pipeline.indices(ds, "nvdi")
    with pytest.raises(UsageError, match="no index named"):
        pipeline.indices(ds, [])


def test_missing_band_is_named_with_those_there_are(ds):
    small = ds.sel(band=["B02", "B04", "B08"])
    with pytest.raises(UsageError, match="ndmi needs B08, B11, and B11 is not in the store; .* B02, B04, B08"):
        pipeline.indices(small, ["ndvi", "ndmi"])
    with pytest.raises(UsageError, match="false_color needs B08, B04, B03, and B03 is not"):
        pipeline.false_color(small)
    with pytest.raises(UsageError, match="without reflectance by band"):
        pipeline.indices(ds.drop_vars("reflectance"), "ndvi")


def colors(bands=BAND_NAMES):
    """Five pixels: black, middle, beyond white, negative, nodata in one band only."""
    values = np.tile(np.array([0, 0.15, 0.9, -0.05, 0.15], np.float32), (len(bands), 1))
    values[bands.index("B03"), 4] = np.nan
    values[bands.index("B08"), 1] = 0.25
    return dataset(values, bands)


def test_true_color_by_hand():
    picture = pipeline.true_color(colors())
    assert picture.dims == ("y", "x", "rgb")
    assert picture.dtype == np.uint8
    assert picture.chunks is not None
    # 0 to 0.3, gamma 1.5: 0.5 ** (1 / 1.5) = 0.62996; 1 + 254 * 0.62996 = 161.01; all that is measured is at least 1
    assert picture.values[0].tolist() == [[1, 1, 1], [161, 161, 161], [255, 255, 255], [1, 1, 1], [0, 0, 0]]
    assert picture.rgb.values.tolist() == ["red", "green", "blue"]


def test_false_color_by_hand_and_order_of_bands():
    picture = pipeline.false_color(colors())
    # B08 0 to 0.6: 1 + 254 * 0.25 / 0.6 = 106.8; B04 and B03 0 to 0.3: 0.15 is the middle of 1 to 255
    assert picture.values[0, 1].tolist() == [107, 128, 128]
    ds = colors()
    ds["reflectance"] = ds.reflectance.where(ds.band != "B04", 0.3)
    assert pipeline.true_color(ds).values[0, 0].tolist() == [255, 1, 1]


def test_stretch_gamma_and_alpha():
    picture = pipeline.true_color(colors(), low=0.05, high=0.25, gamma=2.0, alpha=True)
    # (0.15 - 0.05) / 0.2 = 0.5; 0.5 ** (1 / 2) = 0.7071; 1 + 254 * 0.7071 = 180.6
    assert picture.values[0, 1].tolist() == [181, 181, 181, 255]
    assert picture.values[0, 4].tolist() == [0, 0, 0, 0]
    assert picture.dtype == np.uint8
    assert picture.attrs["gamma"] == 2.0
    for wrong in ({"low": 0.3}, {"gamma": 0}, {"high": (0.3, 0.3)}, {"high": (0.3, 0.3, -0.1)}):
        with pytest.raises(UsageError, match="low < high, one or one per band, gamma > 0"):
            pipeline.true_color(colors(), **wrong)


def test_one_date_gives_an_image_and_several_give_several():
    assert pipeline.true_color(colors().isel(time=0)).shape == (1, 5, 3)
    one = colors()
    several = xr.concat([one, one.assign_coords(time=one.time + 1)], "time")
    assert pipeline.true_color(several).dims == ("time", "y", "x", "rgb")
    assert pipeline.true_color(several).sizes["time"] == 2


def test_neither_pictures_nor_indices_keep_coordinates_of_bands():
    ds = colors().assign_coords(generated=("band", np.ones(len(BAND_NAMES), bool)))
    for made in (pipeline.true_color(ds), pipeline.indices(ds, ["ndvi", "evi"]), pipeline.split_bands(ds)):
        assert not {"band", "generated"} & set(made.coords)


def test_bands_become_variables_with_what_is_known_of_them():
    known = {"generated": ("band", np.arange(len(BAND_NAMES)) % 2 == 0)}
    split = pipeline.split_bands(colors().assign_coords(known))
    assert list(split.data_vars) == list(BAND_NAMES)
    assert split.B03.values[0].tolist() == pytest.approx([0, 0.15, 0.9, -0.05, np.nan], nan_ok=True)
    assert split.B02.attrs["long_name"] == "B02 492.4 nm"
    assert (split.B01.attrs["generated"], split.B02.attrs["generated"]) == (1, 0)
    with pytest.raises(UsageError, match="split_bands of a dataset without reflectance"):
        pipeline.split_bands(colors().drop_vars("reflectance"))
