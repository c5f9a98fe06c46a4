"""`run`, `plan`, `check` and `view` on a small archive, in the process of the user."""

import logging
import os

import numpy as np
import pytest
import sen2fine
import torch
import xarray as xr

from pipeline.errors import NoDataError, UsageError
from pipeline.process import guest
from tests.archive.synthetic import make_archive, make_scene
from tests.running.conftest import box, write_aoi

LEFT, TOP, SIZE = 600000, 5100000, 1200
QUICK = {"sr": "bicubic", "cluster": "inline", "chunk_px": 120, "bands": "B02,B03,B04,B08"}


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    folder = tmp_path_factory.mktemp("archive")
    return make_archive(folder, [make_scene(folder, scene_id="S2A_X", size_m=SIZE, left_m=LEFT, top_m=TOP)])


@pytest.fixture(scope="module")
def aoi(tmp_path_factory):
    path = tmp_path_factory.mktemp("aoi") / "field.geojson"
    return write_aoi(path, box(LEFT + 310, TOP - 790, LEFT + 890, TOP - 310))


@pytest.fixture(scope="module")
def store(archive, aoi, tmp_path_factory):
    out = tmp_path_factory.mktemp("store") / "field.zarr"
    sen2fine.run(aoi, out, catalog=archive, **QUICK)
    return out


def test_a_run_returns_the_opened_store(archive, aoi, store):
    again = sen2fine.run(aoi, store, catalog=archive, **QUICK)  # continues, with nothing left to do
    assert isinstance(again, xr.Dataset)
    assert again.band.values.tolist() == ["B02", "B03", "B04", "B08"]
    assert again.attrs["status"] == "complete"
    assert np.isfinite(again.reflectance.values).any()
    assert store.with_suffix(".png").exists()


def test_other_settings_do_not_continue_it(archive, aoi, store):
    with pytest.raises(UsageError, match="begun with other settings"):
        sen2fine.run(aoi, store, catalog=archive, **{**QUICK, "consistency": "box"})


def test_errors_are_those_of_the_pipeline(archive, tmp_path):
    elsewhere = (2.0, 48.0, 2.01, 48.01)
    assert issubclass(NoDataError, sen2fine.PipelineError)
    with pytest.raises(NoDataError):
        sen2fine.run(bbox=elsewhere, out=tmp_path / "a.zarr", catalog=archive, **QUICK)
    assert list(tmp_path.iterdir()) == []


def test_what_is_noted_of_the_area_is_a_warning(archive, tmp_path):
    tiny = (10.3, 46.03, 10.30001, 46.03001)
    with pytest.warns(UserWarning, match="less than one 60 m block"), pytest.raises(UsageError, match="no folder"):
        sen2fine.run(bbox=tiny, out=tmp_path / "no" / "a.zarr", catalog=archive, **QUICK)


def test_a_plan_is_shown_and_writes_nothing(archive, aoi, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    preview = sen2fine.plan(aoi, catalog=archive, workers=2, **QUICK)
    assert "S2A_X" in repr(preview)
    assert "field.zarr (not written)" in repr(preview)
    assert preview.cost.workers == 2
    assert [*preview.plan.scenes] == ["S2A_X"]
    assert sen2fine.open_cube(preview.plan)
    assert list(tmp_path.iterdir()) == []


def test_check_and_view(store, tmp_path):
    found = sen2fine.check(store, verify="full")
    assert found.ok
    assert repr(found) == found.text()
    assert "complete" in repr(found)
    page = sen2fine.view(store, tmp_path / "page.html", at=(10.3, 46.041))
    assert page.read_bytes().startswith(b"<!DOCTYPE html>")
    with pytest.raises(UsageError, match=r"--at 200 46"):
        sen2fine.view(store, at=(200, 46))
    with pytest.raises(UsageError, match="verify = 'closely'"):
        sen2fine.check(store, verify="closely")
    with pytest.raises(UsageError):
        sen2fine.check(tmp_path)


@pytest.mark.slow
def test_damage_is_found_and_repaired(archive, aoi, tmp_path):
    out = tmp_path / "a.zarr"
    sen2fine.run(aoi, out, catalog=archive, **QUICK)
    chunk = next(path for path in sorted((out / "reflectance" / "c").rglob("*")) if path.is_file())
    chunk.write_bytes(chunk.read_bytes()[:-7])
    assert not sen2fine.check(out).ok
    assert sen2fine.check(out, repair=True).ok


@pytest.mark.slow
def test_the_process_of_the_user_stays_as_it_was(archive, aoi, tmp_path, monkeypatch):
    """Its torch threads, and GDAL's drivers for its own files."""
    import rasterio

    monkeypatch.setenv("GDAL_SKIP", "PDF")
    torch.set_num_threads(2)
    try:
        sen2fine.run(aoi, tmp_path / "a.zarr", catalog=archive, **QUICK)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert os.environ["GDAL_SKIP"] == "PDF"
    monkeypatch.delenv("GDAL_SKIP")
    with guest():
        os.environ["GDAL_SKIP"] = "VRT"
    assert "GDAL_SKIP" not in os.environ
    with rasterio.Env() as env:
        assert "GTiff" in env.drivers()


@pytest.mark.slow
def test_progress_is_logged(archive, aoi, tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="pipeline"):
        sen2fine.run(aoi, tmp_path / "a.zarr", catalog=archive, **QUICK)
    said = [record.getMessage() for record in caplog.records]
    assert said[0].startswith("searching ")
    assert any(text.startswith("unit ") and " done in " in text for text in said)
