"""Fewer bands asked for: the same pixels in those that are."""

import numpy as np
import pytest
import rasterio
import zarr

from pipeline.bands import BAND_NAMES
from tests.archive.synthetic import make_archive, make_scene
from tests.running.conftest import LEFT, TOP, box, config_for, run, sensor_errors, values, write_aoi


@pytest.fixture(scope="module")
def small_aoi(tmp_path_factory):
    path = tmp_path_factory.mktemp("aoi") / "field.geojson"
    return write_aoi(path, box(LEFT + 301, TOP - 599, LEFT + 599, TOP - 301))


@pytest.fixture(scope="module")
def one_scene(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    return make_archive(folder, [make_scene(folder, scene_id="S2A_ONE", seed=3, size_m=900)])


@pytest.fixture(scope="module")
def two_scenes(tmp_path_factory):
    """The better scene has no B05 in a strip: as along the edge of a swath, where bands end at different places."""
    folder = tmp_path_factory.mktemp("two")
    best = make_scene(folder, scene_id="S2A_BEST", seed=3, size_m=900)
    with rasterio.open(best.hrefs["B05"], "r+") as file:
        dn = file.read(1)
        dn[:, 20:22] = 0
        file.write(dn, 1)
    other = make_scene(folder, scene_id="S2B_OTHER", seed=4, size_m=900, cloud_pct=30.0)
    return make_archive(folder, [best, other])


def stored(archive, aoi, path, **changes):
    """{band: DN} of a run."""
    plan, _ = run(config_for(archive, **changes), aoi, path)
    return dict(zip(plan.config.band_names, values(path)[0], strict=True)), plan


@pytest.mark.slow
def test_fused_bands_do_not_depend_on_the_bands_that_are_stored(one_scene, small_aoi, tmp_path):
    every, _ = stored(one_scene, small_aoi, tmp_path / "all.zarr", sr="lite")
    asked = ("B01", "B02", "B03", "B04", "B05", "B08")
    few, _ = stored(one_scene, small_aoi, tmp_path / "few.zarr", sr="lite", bands=asked)
    assert tuple(few) == asked
    for name in asked:
        assert np.array_equal(few[name], every[name]), name
    assert max(largest for largest, _ in sensor_errors(tmp_path / "few.zarr").values()) < 25
    kept = zarr.open_group(tmp_path / "few.zarr", mode="r")["measured"]
    assert {str(name) for _, group in kept.groups() for name in group["band"][:]} == set(asked)
    alone, _ = stored(one_scene, small_aoi, tmp_path / "alone.zarr", sr="lite", bands=("B11",))
    assert np.array_equal(alone["B11"], every["B11"])  # its guide is read, and not stored


@pytest.mark.slow
def test_the_scene_taken_does_not_depend_on_stored_bands(two_scenes, small_aoi, tmp_path):
    """Where B05 ends the other scene is taken in all 20 m bands, or in none, whichever of them are stored."""
    every, _ = stored(two_scenes, small_aoi, tmp_path / "all.zarr")
    for asked in (("B05",), ("B05", "B11"), ("B02", "B03"), ("B01",)):
        few, _ = stored(two_scenes, small_aoi, tmp_path / f"{'_'.join(asked)}.zarr", bands=asked)
        for name in asked:
            assert np.array_equal(few[name], every[name]), (asked, name)


def test_rgb_of_one_scene_reads_no_other_band(one_scene, small_aoi, small_lite, tmp_path, monkeypatch):
    """Nothing of the others enters, so nobody pays for them."""
    from pipeline.archive.read import cube

    asked = []
    real = cube.read_period
    monkeypatch.setattr(cube, "read_period", lambda *given, **more: asked.append(given[3]) or real(*given, **more))
    few, _ = stored(one_scene, small_aoi, tmp_path / "rgb.zarr", bands=("B02", "B03", "B04"), **small_lite)
    assert set(asked) == {("B02", "B03", "B04")}
    assert set(few) == {"B02", "B03", "B04"}


def test_bands_that_some_scene_lacks_are_no_input(tmp_path, small_aoi):
    """Of products without B07 a store without it can be made, from the other eleven."""
    names = tuple(name for name in BAND_NAMES if name != "B07")
    scenes = [
        make_scene(tmp_path, scene_id="S2A_LACKS", size_m=900, bands=names),
        make_scene(tmp_path, scene_id="S2B_WHOLE", size_m=900, cloud_pct=20.0),
    ]
    index = make_archive(tmp_path, scenes)
    _, plan = stored(index, small_aoi, tmp_path / "five.zarr", bands=("B02", "B05"))
    assert plan.inputs == names
