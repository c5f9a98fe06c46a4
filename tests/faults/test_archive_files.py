"""Files of an archive that answer wrongly, for a while or for good: the undisturbed store, or none."""

import numpy as np
import pytest

from pipeline.archive.read import retry
from pipeline.archive.read.access import Access
from pipeline.store import layout
from tests.archive.synthetic import make_archive, make_scene
from tests.conftest import without_log
from tests.faults.conftest import call, online
from tests.faults.files import always, chaos, once
from tests.running.conftest import chunk_digests, config_for, run, values

B11, B04 = "S2A_MSIL2A_ONE_B11", "S2A_MSIL2A_ONE_B04"


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Our retry policy and GDAL's with their waits cut short."""
    asked = Access.gdal_env
    monkeypatch.setattr(Access, "gdal_env", lambda self: {**asked(self), "GDAL_HTTP_RETRY_DELAY": "0.05"})
    monkeypatch.setattr(retry, "MAX_WAIT_S", 0.05)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["429", "503", "500", "reset", "404", "truncated"])
def test_a_fault_that_passes_leaves_no_trace(scenes, aoi, golden, tmp_path, capsys, mode):
    with online(scenes, once(mode, B11)) as (toml, faults):
        assert call(toml, aoi, tmp_path / "run.zarr") == 0, capsys.readouterr().err
    assert faults.counts[f"{B11}.tif"] > 1
    assert chunk_digests(tmp_path / "run.zarr") == golden


@pytest.mark.slow
def test_bytes_that_were_damaged_once_are_not_used(scenes, aoi, golden, tmp_path, capsys):
    """Those of blocks, which follow the first bytes; what was fetched is forgotten, not read again."""
    damaged = []

    def rule(name, count, request):
        later = name.startswith(B04) and not request.headers["Range"].startswith("bytes=0-")
        if later and not damaged:
            damaged.append(count)
            return "corrupt"
        return None

    with online(scenes, rule) as (toml, faults):
        assert call(toml, aoi, tmp_path / "run.zarr") == 0, capsys.readouterr().err
    assert len(damaged) == 1
    assert faults.counts[f"{B04}.tif"] > damaged[0] + 1
    assert chunk_digests(tmp_path / "run.zarr") == golden


@pytest.mark.parametrize("mode", ["404", "truncated", "410"])
def test_a_fault_that_stays_is_never_nodata(scenes, aoi, tmp_path, capsys, mode):
    store = tmp_path / "run.zarr"
    with online(scenes, always(mode, B11)) as (toml, _):
        code = call(toml, aoi, store)
    said = capsys.readouterr()
    if code == 0:  # noticed while planning: the scene is left out, and that is said
        assert "S2A_MSIL2A_ONE" in said.out
        assert "left out" in said.out
        return
    assert code == 5
    assert "B11" in said.err
    assert len(without_log(said.err).splitlines()) == 1
    assert layout.status(store) == layout.STATUS_INCOMPLETE
    assert not list(store.rglob("reflectance/c/**/*"))


@pytest.mark.slow
def test_latency_and_scattered_faults_leave_no_trace(scenes, aoi, golden, tmp_path, capsys):
    with online(scenes, chaos(seed=5)) as (toml, faults):
        assert call(toml, aoi, tmp_path / "run.zarr") == 0, capsys.readouterr().err
    assert len(faults.requests) > 30
    assert chunk_digests(tmp_path / "run.zarr") == golden


@pytest.mark.slow
def test_zeros_that_the_classification_contradicts_are_told(aoi, tmp_path, capsys):
    """GDAL reads a zeroed range of an uncompressed file without complaint; the summary names band and pixels."""
    scene = make_scene(tmp_path, scene_id="S2A_RAW", seed=1, size_m=1800, compress=None)
    import rasterio

    with rasterio.open(scene.hrefs["B04"], "r+") as dataset:
        stored = dataset.read(1)
        stored[60:100] = 0
        dataset.write(stored, 1)
    plan, summary = run(config_for(make_archive(tmp_path, [scene])), aoi, tmp_path / "run.zarr")
    assert summary.holes.keys() == {"B04"}
    assert summary.holes["B04"] >= 40 * 130
    rows = values(tmp_path / "run.zarr")[0, plan.config.band_names.index("B04")]
    assert (rows == 0).any()
    assert not (values(tmp_path / "run.zarr")[0, plan.config.band_names.index("B03")] == 0).any()
    from pipeline.report import RunReport

    assert "B04 " in RunReport(plan, summary, tmp_path / "run.zarr", None).text()


@pytest.mark.slow
def test_sound_files_have_no_holes(scenes, aoi, tmp_path):
    _, summary = run(config_for(make_archive(tmp_path, scenes[1])), aoi, tmp_path / "run.zarr")
    assert summary.holes == {}
    assert np.all(values(tmp_path / "run.zarr") > 0)
