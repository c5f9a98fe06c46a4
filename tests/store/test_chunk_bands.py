"""Chunks of one band: the same pixels, one object per band, seen by check, page, export and readers."""

import json
import shutil

import numpy as np
import pytest
import zarr

import pipeline
from pipeline.bands import BAND_NAMES
from pipeline.check import examine, repair
from pipeline.errors import IntegrityError, UsageError
from pipeline.planning.plan import Plan, load_plan
from pipeline.products.cog import export_cogs
from pipeline.products.page.document import make_page
from pipeline.store.layout import band_parts
from pipeline.store.selection import Request
from tests.products.stores import copied, make_store


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("together"), chunk_px=192)


@pytest.fixture(scope="module")
def apart(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("apart"), chunk_px=192, chunk_bands="1")


def chunk_files(store, name="reflectance"):
    return sorted(
        path.relative_to(store / name).as_posix() for path in (store / name / "c").rglob("*") if path.is_file()
    )


def test_pixels_are_those_of_chunks_of_all_bands(together, apart):
    one, other = pipeline.open_store(together), pipeline.open_store(apart)
    assert np.array_equal(one.reflectance, other.reflectance, equal_nan=True)
    for gsd_m in (5, 10):
        pair = (pipeline.open_store(store, gsd_m=gsd_m).reflectance for store in (together, apart))
        assert np.array_equal(*pair, equal_nan=True)
    for gsd_m, measured in pipeline.open_measured(apart).items():
        assert np.array_equal(measured.reflectance, pipeline.open_measured(together)[gsd_m].reflectance)


def test_each_band_has_its_own_objects(together, apart):
    places = [name.split("/", 3)[3] for name in chunk_files(together)]
    assert len(places) == 4
    assert chunk_files(apart) == sorted(f"c/0/{band}/{place}" for band in range(12) for place in places)
    assert len(chunk_files(apart, "measured/60m/reflectance")) == 2 * 4
    assert chunk_files(apart, "quality") == chunk_files(together, "quality")
    assert pipeline.open_store(apart).reflectance.chunks[1] == (1,) * 12


def test_one_band_is_read_without_the_others(apart, tmp_path):
    store = copied(apart, tmp_path)
    for path in (store / "reflectance" / "c" / "0").iterdir():
        if path.name != "3":
            shutil.rmtree(path)
    red, whole = (pipeline.open_store(at).reflectance.sel(band="B04") for at in (store, apart))
    assert np.array_equal(red, whole)
    assert not np.isnan(red).any()


def test_the_plan_says_so_and_its_digest_differs(together, apart):
    one, other = load_plan(together), load_plan(apart)
    assert (one.config.chunk_bands, other.config.chunk_bands) == ("all", "1")
    assert one.digest != other.digest
    older = json.loads(json.dumps(one.to_json()))
    older["format_version"] = 4
    del older["config"]["chunk_bands"]
    assert json.loads(json.dumps(Plan.from_json(older).to_json())) == older


def test_unknown_chunk_bands_are_refused():
    from pipeline.config import RunConfig

    with pytest.raises(UsageError, match="chunk_bands = '3'"):
        RunConfig(chunk_bands="3")


def test_check_counts_finds_and_mends_the_chunk_of_a_band(apart, tmp_path):
    store = copied(apart, tmp_path)
    assert examine(store, "full").exit_code == 0
    lost = store / "reflectance" / "c" / "0" / "7" / "1" / "0"
    kept = lost.read_bytes()
    lost.unlink()
    report = examine(store, "size")
    assert report.exit_code == 7
    assert "reflectance/c/0/7/1/0 is missing" in report.text()
    with pytest.raises(IntegrityError, match="reflectance/c/0/7/1/0 is missing"):
        make_page(store, None, None, None)
    with pytest.raises(IntegrityError, match="reflectance/c/0/7/1/0 is missing"):
        export_cogs(store, tmp_path / "tifs", Request(bands=("B08",)))
    repair(store, "size", 1)
    assert lost.read_bytes() == kept


def test_a_chunk_that_no_receipt_names_is_found(apart, tmp_path):
    store = copied(apart, tmp_path)
    path = min((store / "_run" / "receipts").iterdir())
    from pipeline.store import sealed

    content = sealed.load(path.read_bytes())
    del content["chunks"]["reflectance/c/0/5/0/0"]
    path.write_bytes(sealed.dump(content))
    with pytest.raises(IntegrityError, match="reflectance/c/0/5/0/0 is named by no receipt"):
        make_page(store, None, None, None)
    with pytest.raises(IntegrityError, match="no receipt names reflectance/c/0/5/0/0"):
        export_cogs(store, tmp_path / "tifs", Request(bands=("B02",)))


def test_export_writes_the_same_pixels(together, apart, tmp_path):
    import rasterio

    pair = [
        export_cogs(store, tmp_path / store.parent.name, Request(bands=("B08",))).files[0]
        for store in (together, apart)
    ]
    values = []
    for path in pair:
        with rasterio.open(path) as file:
            values.append(file.read())
    assert values[0].any()
    assert np.array_equal(*values)


@pytest.mark.slow
def test_a_shard_holds_all_bands_in_chunks_of_one(tmp_path, together):
    store = make_store(tmp_path, chunk_bands="1", shard=True, unit_chunks=2)
    array = zarr.open_array(store / "reflectance", mode="r")
    assert array.shards == (1, len(BAND_NAMES), 240, 240)
    assert array.chunks == (1, 1, 120, 120)
    assert band_parts(array) == ["0/"]
    assert chunk_files(store) == [f"c/0/0/{row}/{col}" for row in range(2) for col in range(2)]
    assert np.array_equal(pipeline.open_store(store).reflectance, pipeline.open_store(together).reflectance)
    assert examine(store, "full").exit_code == 0
