"""An area of which no pixel was measured: never a success, though footprints say that scenes cover it."""

import json

import pytest

from pipeline import check
from pipeline import run as command
from tests.archive.synthetic import make_archive, make_scene
from tests.running.conftest import LEFT, TOP, box, write_aoi

QUICK = ("--sr", "bicubic", "--cluster", "inline", "--workers", "1")


@pytest.fixture
def call(capsys):
    def run(*arguments, program=command):
        code = program.main([str(word) for word in arguments])
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return code, out, err

    return run


def archive_of(folder, *nodata_left_m):
    scenes = []
    for i, width_m in enumerate(nodata_left_m):
        date = f"2024-06-{17 + i}T10:00:00Z"
        scenes.append(make_scene(folder, scene_id=f"S2A_{i}", seed=i, nodata_left_m=width_m, date=date))
    return make_archive(folder, scenes)


def corner(tmp_path):
    """An AOI in the western half of the scenes."""
    return write_aoi(tmp_path / "corner.geojson", box(LEFT + 120, TOP - 600, LEFT + 600, TOP - 120))


def test_an_area_of_nodata_is_exit_3_and_never_complete(tmp_path, call):
    run = ("--catalog", archive_of(tmp_path, 1200), "--aoi", corner(tmp_path), "--out", tmp_path / "s.zarr", *QUICK)
    for _ in range(2):  # the same command again finds the same
        code, out, err = call(*run)
        assert (code, out) == (3, "")
        assert "no pixel over corner was measured: S2A_0 hold nodata there" in err
    code, out, _ = call(tmp_path / "s.zarr", program=check)
    assert code == 3
    assert "no pixel was measured" in out
    code, out, _ = call(tmp_path / "s.zarr", "--json", program=check)
    report = json.loads(out)
    assert (code, report["measured"], report["status"]) == (3, False, "incomplete")
    assert not (tmp_path / "s.zarr/_run/COMPLETE.json").exists()
    code, _, err = call(tmp_path / "s.zarr", "--repair", program=check)
    assert code == 3
    assert "no pixel over corner was measured" in err


def test_a_scene_whose_pixels_reach_the_area_supplies_it(tmp_path, call):
    """The better scene by its footprint and cloud holds nodata there."""
    run = ("--catalog", archive_of(tmp_path, 1200, 0), "--aoi", corner(tmp_path), "--out", tmp_path / "s.zarr",
           "--composite", "mosaic", "--json", *QUICK)  # fmt: skip
    code, out, _ = call(*run)
    said = json.loads(out)
    assert code == 0
    assert said["valid_fraction"] == 1
    code, _, _ = call(tmp_path / "s.zarr", program=check)
    assert code == 0
