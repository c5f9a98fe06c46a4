"""What other programs see of stores and files: GDAL, xarray, NetCDF, stackstac, odc-stac, rio-stac."""

import json
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import numpy as np
import pystac
import pytest
import rasterio
import stackstac
import xarray as xr
from pyproj import Transformer

import pipeline
from pipeline.bands import BAND_NAMES, BY_NAME
from pipeline.errors import UsageError
from pipeline.products.cog import export_cogs
from pipeline.products.cog_item import footprint
from pipeline.store.place import place_of
from pipeline.store.selection import Request, root_attributes, select
from tests.products.stores import make_store
from tests.store.stac_validation import validate

GDAL = tuple(int(part) for part in rasterio.__gdal_version__.split(".")[:2])
OF_FILES = ("projection", "raster", "eo", "classification")  # of versions whose schema is not at hand


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def files(store, tmp_path_factory):
    out = tmp_path_factory.mktemp("tifs")
    request = Request(bands=("B04", "B8A"), variables=("reflectance", "quality", "scl"))
    return export_cogs(store, out, request)


def names_in(sidecar):
    """[band descriptions] of each view of an array that its sidecar describes."""
    views = ElementTree.parse(sidecar).getroot().findall("DerivedDataset")
    return {view.get("name"): [one.text for one in view.iter("Description")] for view in views}


@pytest.mark.parametrize("level", ["", "overviews/5m/", "overviews/10m/"])
def test_bands_of_a_store_have_names_for_gdal(store, level):
    expected = [f"{name} {BY_NAME[name].wavelength_nm:g} nm" for name in BAND_NAMES]
    found = names_in(store / level / "reflectance" / "zarr.json.aux.xml")
    assert found == {f"AsClassicDataset(3,2) view of /{level}reflectance": expected}


def test_classes_of_a_store_have_names_for_gdal(store):
    root = ElementTree.parse(store / "quality" / "zarr.json.aux.xml").getroot()
    assert [one.text for one in root.iter("Category")] == [
        "nodata", "no generated detail", "partly generated detail", "generated detail"
    ]  # fmt: skip
    assert len(list(root.iter("Row"))) == 4
    scl = ElementTree.parse(store / "scl" / "zarr.json.aux.xml").getroot()
    assert [one.text for one in scl.iter("Category")][4] == "vegetation"


@pytest.mark.skipif(GDAL < (3, 12), reason="reads these stores from GDAL 3.12 on")
def test_gdal_finds_the_names(store):
    with rasterio.open(f'ZARR:"{store}":/reflectance') as image:
        assert image.descriptions[3] == "B04 664.6 nm"
    with rasterio.open(f'ZARR:"{store}":/quality') as image:
        assert image.colormap(1)[3] == (60, 160, 90, 255)


def test_names_of_several_dates_tell_them_apart(tmp_path):
    path = make_store(tmp_path, composite="none", bands=("B02", "B03", "B04"))
    (names,) = names_in(path / "reflectance" / "zarr.json.aux.xml").values()
    assert names[:1] == ["2024-06-17 B02 492.4 nm"]
    assert names[3:] == ["2024-06-22 B02 492.4 nm", "2024-06-22 B03 559.8 nm", "2024-06-22 B04 664.6 nm"]


@pytest.mark.parametrize("folder", ["overviews", "measured"])
def test_levels_open_as_a_tree(store, folder):
    tree = xr.open_datatree(store, engine="zarr", group=folder)
    assert {node.name for node in tree.leaves} == {path.name for path in (store / folder).iterdir() if path.is_dir()}
    assert all(node.reflectance.dims == ("time", "band", "y", "x") for node in tree.leaves)


def test_all_groups_of_a_store_open_at_once(store):
    groups = xr.open_groups(store, engine="zarr")
    assert groups["/"].reflectance.sizes["x"] == 384
    assert groups["/measured/20m"].reflectance.sizes["x"] == 48


@pytest.mark.parametrize("engine", ["scipy", "netcdf4", "h5netcdf"])
def test_an_opened_store_goes_to_netcdf_with_its_provenance(store, tmp_path, engine):
    if engine != "scipy":
        pytest.importorskip({"netcdf4": "netCDF4"}.get(engine, engine))
    ds = pipeline.open_store(store)
    ds.to_netcdf(tmp_path / "field.nc", engine=engine)
    with xr.open_dataset(tmp_path / "field.nc", engine=engine, decode_coords="all") as again:
        assert np.array_equal(again.reflectance, ds.reflectance, equal_nan=True)
        assert np.array_equal(again.quality, ds.quality)
        assert again.reflectance.rio.crs.to_epsg() == 32632
        assert set(json.loads(again.attrs["scenes"])) == {"S2A_CLOUDY", "S2B_LATER"}
        assert again.attrs["plan_digest"] == ds.attrs["plan_digest"]
    for gsd_m, level in pipeline.open_measured(store).items():
        level.to_netcdf(tmp_path / f"{gsd_m}.nc", engine=engine)


def test_a_copy_of_an_opened_store_is_still_told_from_a_store(store, tmp_path):
    pipeline.open_store(store).to_zarr(tmp_path / "copy.zarr", consolidated=False)
    with pytest.raises(UsageError, match="a copy of a store"):
        pipeline.open_store(tmp_path / "copy.zarr")


def test_an_item_lies_beside_the_files(store, files):
    (path,) = files.items
    item = json.loads(path.read_text())
    assert path.stem == item["id"] == "lake_shore_utm32n_2024-06-17_2024-06-22"
    assert set(item["assets"]) == {"B04", "B8A", "quality", "scl"}
    assert all((path.parent / asset["href"]).is_file() for asset in item["assets"].values())
    assert item["properties"]["sen2fine:scenes"] == ["S2A_CLOUDY", "S2B_LATER"]
    span = [item["properties"][key] for key in ("start_datetime", "end_datetime")]
    assert span == ["2024-06-17T10:20:31Z", "2024-06-22T10:20:31Z"]
    classes = item["assets"]["quality"]["classification:classes"]
    assert [entry["name"] for entry in classes][-1] == "generated_detail"
    validate({**item, "stac_version": "1.1.0"}, without=OF_FILES)  # the core's schema that is at hand


def test_the_files_say_when_and_what_in_gdals_own_words(files):
    by_name = {path.stem.rsplit("_", 1)[1]: path for path in files.files}
    with rasterio.open(by_name["B04"]) as file:
        assert file.tags(ns="IMAGERY") == {"ACQUISITIONDATETIME": "2024-06-17T10:20:31Z"}
        assert file.tags(1)["native_gsd_m"] == "10"
        assert not [name for name in file.tags() if name.startswith("ACQUISITION")]
    sidecar = by_name["quality"].with_name(f"{by_name['quality'].name}.aux.xml")
    words = [one.text for one in ElementTree.parse(sidecar).getroot().iter("Category")]
    assert words[1] == "no generated detail"


def test_stackstac_loads_reflectance_from_the_item(store, files):
    (path,) = files.items
    item = json.loads(path.read_text())
    for asset in item["assets"].values():
        asset["href"] = str(path.parent / asset["href"])
    loaded = stackstac.stack([item], assets=["B04", "B8A"], xy_coords="center").compute()
    ds = pipeline.open_store(store)
    assert str(loaded.time.values[0]).startswith("2024-06-17T10:20:31")
    for name in ("B04", "B8A"):
        one, other = loaded.sel(band=name), ds.reflectance.sel(band=name)
        assert np.array_equal(one.x, other.x)
        assert np.array_equal(one.y, other.y)
        np.testing.assert_allclose(one.values, other.values, atol=1e-6)


def test_odc_stac_loads_the_files_from_the_item(store, files):
    odc_stac = pytest.importorskip("odc.stac")
    loaded = odc_stac.load([pystac.Item.from_file(str(files.items[0]))], bands=["B04", "quality"])
    ds = pipeline.open_store(store)
    assert np.array_equal(loaded.x, ds.x)
    rho = loaded.B04 * 1e-4 - 0.1
    np.testing.assert_allclose(rho.values, ds.reflectance.sel(band="B04").values, atol=1e-6)
    assert loaded.B04.attrs["nodata"] == 0
    assert np.array_equal(loaded.quality, ds.quality)


def test_rio_stac_dates_the_files(files):
    rio_stac = pytest.importorskip("rio_stac")
    assert rio_stac.create_stac_item(str(files.files[0])).datetime.isoformat()[:19] == "2024-06-17T10:20:31"


def test_a_later_export_adds_to_the_item_of_its_extent(store, tmp_path):
    out = tmp_path / "tifs"
    (path,) = export_cogs(store, out, Request(bands=("B02",))).items
    export_cogs(store, out, Request(bands=("B03",)))
    assert set(json.loads(path.read_text())["assets"]) == {"B02", "B03"}
    slab = select(place_of(store), root_attributes(place_of(store)), Request())[0]
    west, south, east, north = footprint(slab)[1]
    half = (west, south, (west + east) / 2, north)
    with pytest.raises(UsageError, match=r"\.json exists"):
        export_cogs(store, out, Request(bands=("B04",), bbox=half))
    export_cogs(store, out, Request(bands=("B04",), bbox=half), overwrite=True)
    assert set(json.loads(path.read_text())["assets"]) == {"B04"}


def test_an_antimeridian_footprint_is_two_parts_and_a_short_box(store):
    slab = select(place_of(store), root_attributes(place_of(store)), Request())[0]
    geometry, bbox = footprint(slab)
    assert geometry["type"] == "Polygon"
    assert bbox[0] < bbox[2] < bbox[0] + 0.02
    x, _ = Transformer.from_crs(4326, 32660, always_xy=True).transform(180, 46.03)
    moved = replace(slab, epsg=32660, transform=(2.5, 0.0, x - 480, 0.0, -2.5, 5099760.0))
    geometry, bbox = footprint(moved)
    assert geometry["type"] == "MultiPolygon"
    assert 179.9 < bbox[0] < 180
    assert -180 < bbox[2] < -179.9
