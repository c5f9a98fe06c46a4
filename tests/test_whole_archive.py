"""The bounds and footprint that `pipeline.index` gives, and runs without an area: all of a local archive."""

import io
import json
import sys

import numpy as np
import pytest
import shapely
from pyproj import Transformer

import pipeline
from pipeline import index, run, whole_archive
from pipeline.aoi.aoi import read_aoi
from pipeline.archive.local.scan import footprint_of
from pipeline.errors import UsageError
from tests.archive.synthetic import make_archive, make_scene
from tests.running.conftest import LEFT, TOP

QUICK = ("--sr", "bicubic", "--bands", "B04,B08", "--quiet")


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """Two scenes side by side, 1.2 km each, with a gap of 0.6 km."""
    folder = tmp_path_factory.mktemp("archive")
    scenes = [make_scene(folder, scene_id=f"S2A_{name}", left_m=LEFT + shift, top_m=TOP, size_m=1200)
              for name, shift in (("WEST", 0), ("EAST", 1800))]  # fmt: skip
    return make_archive(folder, scenes)


@pytest.fixture
def call(capsys):
    def called(*words):
        code = run.main(["--catalog", *map(str, words)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return called


def in_degrees(x, y):
    return Transformer.from_crs(32632, 4326, always_xy=True).transform(x, y)


class TestIndex:
    @pytest.fixture
    def folder(self, archive, tmp_path):
        """Files of a scene that names and tags describe, as `index` finds them."""
        products = tmp_path / "products"
        products.mkdir()
        for item in json.loads(archive.read_text())["features"]:
            if item["id"] == "S2A_WEST":
                for band, asset in item["assets"].items():
                    path = products / f"S2A_MSIL2A_20240617T102031_N0214_R065_T32TPS_20240617T102031_{band}.tif"
                    path.symlink_to(asset["href"])
        return products

    def test_it_says_bounds_and_writes_an_area_for_runs(self, folder, tmp_path, capsys):
        out = tmp_path / "mine.json"
        assert index.main([str(folder), "--offset", "0", "--out", str(out)]) == 0
        said = capsys.readouterr().out
        area = read_aoi(str(tmp_path / "mine_footprint.geojson"))
        assert area.area_km2 == pytest.approx(1.44, rel=0.002)  # UTM is not to scale
        line = next(line for line in said.splitlines() if line.startswith("bounds --bbox="))
        west, south, east, north = (float(word) for word in line.split("=")[1].split(", ")[0].split(","))
        assert shapely.box(west, south, east, north).contains(area.shape)
        assert shapely.box(west, south, east, north).area < 1.2 * area.shape.area
        assert f"footprint in {tmp_path / 'mine_footprint.geojson'}" in line
        assert f"--catalog {out} --aoi {tmp_path / 'mine_footprint.geojson'}" in said

    def test_in_json_and_again_over_its_own_file_but_over_no_other(self, folder, tmp_path, capsys):
        out = tmp_path / "mine.json"
        words = [str(folder), "--offset", "0", "--out", str(out), "--json"]
        assert index.main(words) == 0
        capsys.readouterr()
        assert index.main(words) == 0
        said = json.loads(capsys.readouterr().out)
        assert said["footprint"] == str(tmp_path / "mine_footprint.geojson")
        assert np.allclose(
            said["bbox"][:2], np.min([in_degrees(LEFT, TOP - 1200), in_degrees(LEFT, TOP)], 0), atol=1e-3
        )
        (tmp_path / "mine_footprint.geojson").write_text("{}")
        assert index.main(words) == 2
        assert "mine_footprint.geojson exists and was not written by" in capsys.readouterr().err


def test_a_small_archive_is_computed_whole(archive, call, tmp_path):
    code, _, err = call(archive, *QUICK, "--out", tmp_path / "whole.zarr")
    assert (code, "no area" in err) == (0, False)
    ds = pipeline.open_store(tmp_path / "whole.zarr")
    measured = ds.reflectance.sel(band="B04")[0].notnull()
    x = ds.x.values
    assert float(measured.sel(x=(x > LEFT) & (x < LEFT + 1200)).mean()) > 0.9
    assert float(measured.sel(x=(x > LEFT + 1800) & (x < LEFT + 3000)).mean()) > 0.9
    assert not measured.sel(x=(x > LEFT + 1300) & (x < LEFT + 1700)).any()


@pytest.fixture
def small_limit(monkeypatch):
    monkeypatch.setattr(whole_archive, "UNASKED_KM2", 2.0)


def test_a_large_one_is_refused_where_nobody_can_answer(archive, call, small_limit, tmp_path):
    code, _, err = call(archive, *QUICK, "--out", tmp_path / "whole.zarr")
    assert code == 2
    assert f"all of {archive}, 2 scenes over 3 km2, 0.0 GB a time step before compression" in err
    assert "at most 2 km2 without them; cure: --whole-archive computes all of it" in err
    assert not (tmp_path / "whole.zarr").exists()


def test_a_flag_and_a_dry_run_are_not_asked(archive, call, small_limit, tmp_path):
    code, out, _ = call(archive, *QUICK, "--dry-run", "--out", tmp_path / "whole.zarr")
    assert (code, (tmp_path / "whole.zarr").exists()) == (0, False)
    assert "km2 per time step" in out
    assert call(archive, *QUICK, "--whole-archive", "--dry-run", "--out", tmp_path / "whole.zarr")[0] == 0
    assert call(archive, *QUICK, "--whole-archive", "--plan-only", "--out", tmp_path / "whole.zarr")[0] == 0


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(("answer", "code"), [("y\n", 0), ("Yes\n", 0), ("n\n", 2), ("\n", 2), ("", 2)])
def test_in_a_terminal_the_question_is_asked(archive, small_limit, tmp_path, monkeypatch, answer, code):
    monkeypatch.setattr(sys, "stdin", Terminal(answer))
    monkeypatch.setattr(sys, "stderr", Terminal())
    words = ["--catalog", str(archive), *QUICK, "--plan-only", "--out", str(tmp_path / "whole.zarr")]
    assert run.main(words) == code
    assert (
        "2 scenes over 3 km2, 0.0 GB a time step before compression. Compute all of it? [y/N]" in sys.stderr.getvalue()
    )


def test_scenes_that_the_run_would_not_use_do_not_count(archive, call, tmp_path):
    code, out, _ = call(archive, *QUICK, "--exclude", "S2A_EAST", "--dry-run", "--out", tmp_path / "a.zarr")
    assert code == 0
    both = call(archive, *QUICK, "--dry-run", "--out", tmp_path / "a.zarr")[1]
    area = [float(text.split("area")[1].split("km2")[0]) for text in (out, both)]
    assert area[0] < 0.6 * area[1]
    code, _, err = call(archive, *QUICK, "--start", "2025-01", "--dry-run", "--out", tmp_path / "a.zarr")
    assert code == 3
    assert "no scene of this period and cloud cover" in err


def test_remote_archives_and_two_areas_are_refused_as_before(call, archive, tmp_path):
    code, _, err = call("earth-search", *QUICK, "--out", tmp_path / "a.zarr")
    assert code == 2
    assert "no area given; expected either --aoi FILE or --bbox W,S,E,N; cure: only an archive on this machine" in err


def test_bounds_across_the_antimeridian():
    x, y = Transformer.from_crs(4326, 32660, always_xy=True).transform(180, 46.03)
    scene = make_scene_record(footprint_of(32660, (x - 600, y - 600, x + 600, y + 600)))
    west, south, east, north = whole_archive.bounds(whole_archive.footprint([scene]))
    assert 179.98 < west < 180
    assert -180 < east < -179.98
    assert south < 46.03 < north


def make_scene_record(footprint):
    from types import SimpleNamespace

    return SimpleNamespace(footprint=footprint)


def test_the_cap_of_areas_holds(archive):
    from pipeline.config import RunConfig

    with pytest.raises(UsageError, match="at most 1 km2"):
        whole_archive.whole_archive(RunConfig(catalog=str(archive), max_cloud=100.0), max_area_km2=1.0)
