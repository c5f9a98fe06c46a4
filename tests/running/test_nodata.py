"""Nodata of every stored variable, at every level, as each client sees it."""

from dataclasses import replace

import numpy as np
import pytest
import rasterio
import xarray as xr
import zarr

import pipeline
from pipeline.aoi.aoi import read_aoi
from pipeline.planning.planner import make_plan
from pipeline.products.cog import export_cogs
from pipeline.products.page.source import open_zone, read_part
from pipeline.running.driver import prepare, run_plan
from pipeline.store.selection import Request
from tests.archive.synthetic import make_archive, make_scene
from tests.running.conftest import LEFT, TOP, config_for, write_aoi

LEVELS = ("", "overviews/5m", "overviews/10m")


@pytest.fixture(scope="module")
def plan(tmp_path_factory, small_lite):
    """Two members over a triangle, clipped, whose left part was not measured."""
    folder = tmp_path_factory.mktemp("scene")
    scene = make_scene(folder, scene_id="S2A_HALF", seed=1, size_m=900, nodata_left_m=420)
    corners = [(LEFT + 361, TOP - 301), (LEFT + 659, TOP - 301), (LEFT + 659, TOP - 599)]
    aoi = write_aoi(folder / "triangle.geojson", corners)
    config = config_for(make_archive(folder, [scene]), members=2, clip=True, **small_lite)
    return make_plan(config, read_aoi(str(aoi)))


@pytest.fixture(scope="module")
def stores(plan, tmp_path_factory):
    """{format version: store}"""
    found = {}
    for version in (1, 2):
        found[version] = tmp_path_factory.mktemp("stores") / f"format{version}.zarr"
        frozen = replace(plan, format_version=version)
        prepare(frozen, found[version])
        run_plan(frozen, found[version], cluster="inline", workers=1)
    return found


def test_no_array_holds_a_value_that_is_also_its_nodata(stores):
    root = zarr.open_group(stores[2], mode="r")
    fills = {path: array.fill_value for path, array in root.members(max_depth=None) if getattr(array, "ndim", 0) >= 3}
    names = {path: path.rsplit("/", 1)[-1] for path in fills}
    assert {names[path] for path in fills} == {"reflectance", "uncertainty", "quality", "scl"}
    assert len(fills) >= 3 * 4 + 3
    for path, fill in fills.items():
        assert fill == (65535 if names[path] == "uncertainty" else 0), path
    spread, dn = np.asarray(root["uncertainty"][:]), np.asarray(root["reflectance"][:])
    assert (dn == 0).any()
    assert (spread[dn > 0] == 0).any(), "some ground with no generated detail"
    assert np.array_equal(spread == 65535, dn == 0)


@pytest.mark.parametrize("level", LEVELS)
def test_plain_xarray_masks_uncertainty_like_reflectance(stores, level):
    ds = xr.open_zarr(stores[2], group=level or None)
    assert np.array_equal(np.isnan(ds.uncertainty), np.isnan(ds.reflectance))
    assert 0 <= float(ds.uncertainty.min()) <= float(ds.uncertainty.max()) < 1
    assert ds.reflectance.dtype == np.float64, "as the documentation of open_store says"


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("gsd_m", [None, 5, 10])
def test_open_store_gives_nan_in_both_whatever_the_format(stores, gsd_m, version):
    ds = pipeline.open_store(stores[version], gsd_m=gsd_m)
    assert np.isnan(ds.reflectance).any()
    assert np.array_equal(np.isnan(ds.uncertainty), np.isnan(ds.reflectance))
    assert ds.uncertainty.dtype == np.float32
    xr.testing.assert_equal(ds, pipeline.open_store(stores[2], gsd_m=gsd_m))


@pytest.mark.parametrize("version", [1, 2])
def test_every_reader_gives_the_same_pixels_of_both_formats(stores, tmp_path, version):
    expected = np.asarray(zarr.open_group(stores[2], mode="r")["uncertainty"][0])
    files = export_cogs(
        stores[version], tmp_path, Request(variables=("uncertainty",)), single_file=True, overwrite=True
    ).files
    with rasterio.open(files[0]) as file:
        assert np.array_equal(file.read(), expected)
        assert file.nodata == 65535
    zone = open_zone(stores[version])
    assert np.array_equal(read_part(zone, zone.whole).uncertainty, expected)


def test_overviews_of_uncertainty_are_means_of_ground_alone(stores):
    """With the zeros of nodata in them, pixels along the edge came out too certain."""
    root = zarr.open_group(stores[2], mode="r")
    spread, dn = np.asarray(root["uncertainty"][0]), np.asarray(root["reflectance"][0])
    blocks = (dn.shape[0], dn.shape[1] // 2, 2, dn.shape[2] // 2, 2)
    valid = (dn > 0).reshape(blocks)
    count = valid.sum((2, 4))
    mean = np.where(valid, spread.reshape(blocks), 0).sum((2, 4)) / np.maximum(count, 1)
    edge = (count > 0) & (count < 4)
    assert edge.any()
    found = np.asarray(root["overviews/5m/uncertainty"][0])
    assert np.abs(found - mean)[count > 0].max() <= 0.5
    assert (found[count == 0] == 65535).all()


def test_a_plan_of_format_1_keeps_its_digest_and_its_layout(stores, plan):
    old = replace(plan, format_version=1)
    assert type(plan).from_json(old.to_json()).digest == old.digest != plan.digest
    assert zarr.open_group(stores[1], mode="r")["uncertainty"].fill_value == 0
