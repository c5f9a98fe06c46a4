"""The main job as users run it: a STAC API, files over HTTP by ranges, one command. All on loopback."""

import numpy as np
import pytest

from pipeline.archive.read import retry
from pipeline.store import layout
from tests.archive.synthetic import make_archive, make_scene
from tests.conftest import without_log
from tests.faults.conftest import call, online
from tests.faults.files import always
from tests.running.conftest import SIZE, config_for, run, values


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("online")
    return folder, [
        make_scene(folder, scene_id="S2A_MSIL2A_ONE", seed=1, size_m=SIZE, offset_dn=-1000, cloud_fraction=0.1),
        make_scene(folder, scene_id="S2B_MSIL2A_TWO", seed=1, size_m=SIZE, date="2024-06-22T10:20:31Z", cloud_pct=40.0),
    ]


@pytest.mark.slow
def test_one_command_from_api_to_store_equals_the_local_run(scenes, aoi, tmp_path, capsys):
    folder, records = scenes
    run(config_for(make_archive(tmp_path, records), chunk_px=240), aoi, tmp_path / "local.zarr")
    with online((folder, records), lambda *_: None) as (toml, _):
        assert call(toml, aoi, tmp_path / "online.zarr") == 0, capsys.readouterr().err
    assert "2 used" in capsys.readouterr().out
    for name in ("reflectance", "scl", "quality"):
        assert np.array_equal(values(tmp_path / "local.zarr", name), values(tmp_path / "online.zarr", name)), name


def test_a_file_that_answers_404_ends_the_run_with_5(scenes, aoi, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(retry, "MAX_WAIT_S", 0.05)
    folder, records = scenes
    store = tmp_path / "gone.zarr"
    with online((folder, records[1:]), always("404", "S2B_MSIL2A_TWO_B11")) as (toml, _):
        assert call(toml, aoi, store) == 5
        said = capsys.readouterr().err
        assert "B11" in said
        assert "S2B_MSIL2A_TWO" in said
        assert len(without_log(said).splitlines()) == 1
    assert layout.status(store) == layout.STATUS_INCOMPLETE
    assert not list(store.rglob("reflectance/c/**/*"))
