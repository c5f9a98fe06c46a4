"""Overviews and measured input of real runs: right, the same however the work was cut, and mended when damaged."""

import importlib
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import zarr

import pipeline
from pipeline.archive.read.cube import read_period
from pipeline.check import examine
from pipeline.errors import IntegrityError, UsageError
from pipeline.planning.plan import load_plan
from pipeline.planning.units import PassLayout
from pipeline.running import build_overviews
from pipeline.running.driver import run_plan
from pipeline.store import overviews
from tests.running.conftest import chunk_digests, config_for, run

IMAGES = ("reflectance", "quality", "scl", "uncertainty")


@pytest.fixture(scope="module")
def finished(archive, aoi, tmp_path_factory):
    """A store of several blocks: chunks of 24 px make the levels from 10 m on late ones."""
    store = tmp_path_factory.mktemp("pyramid") / "a.zarr"
    plan, _ = run(config_for(archive, chunk_px=24, unit_chunks=6, consistency="box"), aoi, store)
    return plan, store


def test_every_level_is_the_mean_of_the_one_below(finished):
    _, store = finished
    root = zarr.open_group(store, mode="r")
    before, factor = {name: np.asarray(root[name][0]) for name in ("reflectance", "quality", "scl")}, 1
    for gsd in ("5", "10"):
        factor *= 2
        before = {name: overviews.halve(name, values, factor) for name, values in before.items()}
        for name, values in before.items():
            np.testing.assert_array_equal(np.asarray(root[f"overviews/{gsd}m/{name}"][0]), values)


def test_the_10_m_overview_is_what_was_measured_there(finished):
    """Block means are kept, so the overview of a 10 m band at 10 m is the input, up to roundings at 5 and 10 m."""
    _, store = finished
    measured = zarr.open_group(store, mode="r")["measured/10m"]
    bands = list(np.asarray(measured["band"][:]))
    overview = zarr.open_group(store, mode="r")["overviews/10m"]
    index = [list(np.asarray(overview["band"][:])).index(name) for name in bands]
    difference = overview["reflectance"][0].astype(int)[index] - measured["reflectance"][0].astype(int)
    assert np.abs(difference).max() <= 1


def test_measured_is_the_input_on_its_native_grids(finished):
    plan, store = finished
    zone, names = plan.zones[0], plan.config.band_names
    pixels = read_period(plan.period_scenes(zone.epsg, 0), "mosaic", zone.grid, names, plan.access)
    active = zone.cut(PassLayout(), 24).active
    for gsd, factor in ((10, 4), (20, 8), (60, 24)):
        found = zarr.open_group(store, mode="r")[f"measured/{gsd}m"]
        assert tuple(np.asarray(found["band"][:])) == pixels.bands[gsd]
        inside = active.repeat(24 // factor, 0).repeat(24 // factor, 1)[: pixels.dn[gsd].shape[1]]
        np.testing.assert_array_equal(found["reflectance"][0], np.where(inside, pixels.dn[gsd], 0))


def test_the_size_of_a_run_is_that_of_all_its_chunks(finished):
    """Overviews of blocks and those beyond them, and the input; a run that finds all done says the same."""
    plan, store = finished
    there = {str(path.relative_to(store)): path.stat().st_size for path in store.rglob("c/**/*") if path.is_file()}
    images = {key: size for key, size in there.items() if key.split("/c/")[0].split("/")[-1] in IMAGES}
    assert any(key.startswith("overviews/10m/") for key in images)
    assert any(key.startswith("measured/60m/") for key in images)
    again = run_plan(plan, store, cluster="inline", workers=1)
    assert again.computed == 0
    assert again.stored_bytes == sum(images.values())


@pytest.mark.slow
def test_bands_of_two_gsds_make_two_measured_groups(archive, aoi, tmp_path):
    run(config_for(archive, bands=("B02", "B03", "B04", "B11")), aoi, tmp_path / "a.zarr")
    found = pipeline.open_measured(tmp_path / "a.zarr")
    assert {gsd: list(ds.band.values) for gsd, ds in found.items()} == {10: ["B02", "B03", "B04"], 20: ["B11"]}
    assert not found[20].generated.any()


@pytest.mark.slow
def test_overviews_do_not_depend_on_how_the_work_was_cut(archive, aoi, tmp_path, finished):
    _, store = finished
    """Units of five chunks: their borders lie within chunks of overviews."""
    run(config_for(archive, chunk_px=24, unit_chunks=5, consistency="box"), aoi, tmp_path / "small.zarr")
    assert chunk_digests(tmp_path / "small.zarr") == chunk_digests(store)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [{"shard": True, "unit_chunks": 2}, {"unit_chunks": 1}])
def test_other_chunks_and_shards_give_the_same_overviews(archive, aoi, tmp_path, finished, shape):
    run(config_for(archive, consistency="box", **shape), aoi, tmp_path / "a.zarr")
    ours, theirs = (zarr.open_group(path, mode="r")["overviews"] for path in (tmp_path / "a.zarr", finished[1]))
    for gsd in ("5m", "10m"):  # grids start at the same corner; larger chunks cover more ground
        ny, nx = theirs[f"{gsd}/quality"].shape[1:]
        np.testing.assert_array_equal(
            ours[f"{gsd}/reflectance"][0, :, : ny // 2, : nx // 2],
            theirs[f"{gsd}/reflectance"][0, :, : ny // 2, : nx // 2],
        )


def test_open_store_knows_the_levels_and_names_them(finished):
    _, store = finished
    importlib.import_module("rioxarray")
    ds = pipeline.open_store(store, gsd_m=10)
    assert ds.rio.crs.to_epsg() == 32632
    assert ds.rio.resolution() == (10.0, -10.0)
    assert ds.reflectance.dtype == np.float32
    whole = pipeline.open_store(store)
    assert ds.rio.bounds()[0] == whole.rio.bounds()[0]
    assert float(ds.reflectance.mean()) == pytest.approx(float(whole.reflectance.mean()), abs=2e-3)
    with pytest.raises(UsageError, match=r"holds nothing at 7 m; expected one of 2\.5, 5, 10 m"):
        pipeline.open_store(store, gsd_m=7)


def test_the_layout_follows_the_multiscales_convention(finished):
    _, store = finished
    content = json.loads((store / "zarr.json").read_text())["attributes"]
    assert {one["name"] for one in content["zarr_conventions"]} == {"proj", "spatial", "multiscales"}
    layout = content["multiscales"]["layout"]
    assert [entry["asset"] for entry in layout] == [
        "reflectance", "overviews/5m/reflectance", "overviews/10m/reflectance"
    ]  # fmt: skip
    assert [entry.get("derived_from") for entry in layout] == [None, "reflectance", "overviews/5m/reflectance"]
    for entry in layout:
        array = zarr.open_array(store, path=entry["asset"], mode="r")
        assert entry["spatial:shape"] == list(array.shape[-2:])


@pytest.fixture(scope="module")
def small_once(archive, aoi, tmp_path_factory):
    store = tmp_path_factory.mktemp("small") / "small.zarr"
    plan, _ = run(config_for(archive), aoi, store)
    return plan, store


@pytest.fixture
def small(small_once, tmp_path):
    """A copy, so that it may be changed."""
    plan, store = small_once
    return plan, shutil.copytree(store, tmp_path / "small.zarr")


@pytest.mark.slow
def test_a_block_that_no_unit_built_is_built_by_publication(small):
    plan, store = small
    before = chunk_digests(store)
    record = sorted((store / "_run" / "overviews").glob("*.json"))[0]
    chunks = json.loads(record.read_text())["chunks"]
    assert chunks
    for key in chunks:
        (store / key).unlink()
    record.unlink()
    assert [block.id for block in build_overviews.missing_blocks(plan, store)] == [record.stem]
    run_plan(plan, store, cluster="inline", workers=1)
    assert chunk_digests(store) == before
    assert examine(store, "full").found.damaged == {}


@pytest.mark.slow
def test_damaged_overviews_and_input_are_found_and_mended(small):
    _, store = small
    before = chunk_digests(store)
    for folder in ("overviews/5m", "measured/20m"):
        path = sorted(path for path in (store / folder / "reflectance" / "c").rglob("*") if path.is_file())[0]
        path.write_bytes(path.read_bytes()[:-3] + b"xyz")
    found = examine(store, "full").found.damaged
    assert len(found) == 2
    assert any(name.startswith("overviews of z32632") for name in found)
    mend = [sys.executable, "-m", "pipeline.check", str(store), "--verify", "full", "--repair"]
    done = subprocess.run(mend, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert chunk_digests(store) == before


@pytest.mark.slow
@pytest.mark.parametrize("hit", ["zarr.json", "overviews/5m/x/zarr.json", "x/c/0"])
def test_damaged_metadata_is_written_anew_from_the_plan(small, hit):
    plan, store = small
    before, facts = chunk_digests(store), dict(zarr.open_group(store, mode="r").attrs)
    (store / hit).write_bytes(b"{")
    if hit == "zarr.json":
        with pytest.raises(IntegrityError, match="--repair writes it anew"):
            run_plan(plan, store, cluster="inline", workers=1)
    mend = [sys.executable, "-m", "pipeline.check", str(store), "--verify", "full", "--repair"]
    done = subprocess.run(mend, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert chunk_digests(store) == before
    assert dict(zarr.open_group(store, mode="r").attrs) == facts
    assert pipeline.open_store(store).sizes["band"] == 12


@pytest.mark.slow
def test_a_run_that_verifies_mends_overviews(finished, tmp_path):
    plan, made = finished
    store = shutil.copytree(made, tmp_path / "a.zarr")
    before = chunk_digests(store)
    for level in ("5m", "10m"):  # of blocks, and beyond them
        path = sorted(path for path in (store / f"overviews/{level}/reflectance/c").rglob("*") if path.is_file())[0]
        path.write_bytes(path.read_bytes()[:-3] + b"xyz")
    run_plan(plan, store, cluster="inline", workers=1)
    assert chunk_digests(store) != before  # sizes are those of before
    run_plan(plan, store, cluster="inline", workers=1, verify="full")
    assert chunk_digests(store) == before


@pytest.mark.slow
def test_damage_below_a_missing_overview_is_said_with_the_cure(small):
    plan, store = small
    for path in (store / "reflectance" / "c").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:-3] + b"xyz")
    for path in (store / "_run" / "overviews").glob("*.json"):
        path.unlink()
    with pytest.raises(IntegrityError, match="--verify full --repair"):
        build_overviews.complete(plan, store)


@pytest.mark.slow
def test_a_unit_set_aside_leaves_a_hole_until_mended(small):
    """What a quarantined unit would have given is nodata in the overviews; repair fills it."""
    plan, store = small
    before = chunk_digests(store)
    unit = next(iter(plan.units()))
    receipt = store / "_run" / "receipts" / f"{unit.id}.json"
    receipt.unlink()
    for path in (store / "_run" / "overviews").glob("*.json"):
        path.unlink()
    build_overviews.complete(plan, store, without=(unit.id,))
    assert build_overviews.missing_blocks(plan, store, (unit.id,)) == []
    lacking = [block.id for block in build_overviews.missing_blocks(plan, store)]
    assert lacking
    run_plan(load_plan(store), store, cluster="inline", workers=1)
    assert build_overviews.missing_blocks(plan, store) == []
    assert chunk_digests(store) == before
