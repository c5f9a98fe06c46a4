"""DiffFuSR through the whole pipeline, scaled down: its window-wide norms and per-scene state must not show either."""

import json
from dataclasses import replace

import numpy as np
import pytest

import pipeline
from pipeline.bands import BAND_NAMES
from pipeline.models import difffusr, difffusr_fusion
from pipeline.models.bundle import LatticeSpec, save_bundle
from pipeline.run import main
from tests.models.test_difffusr import FOUR_STEPS, SMALL, SMALL_FUSION, ruled, shapes_of
from tests.running.conftest import LEFT, TOP, box, config_for, run, sensor_errors, values, write_aoi

LATTICE = LatticeSpec(192, 144, 24, 12)


@pytest.fixture(scope="module")
def aoi(tmp_path_factory):
    corners = box(LEFT + 700, TOP - 1300, LEFT + 1090, TOP - 890)
    return write_aoi(tmp_path_factory.mktemp("aoi") / "region.geojson", corners)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    sr = replace(difffusr.difffusr_bundle(SMALL, sampler=FOUR_STEPS, licence="test"), lattice=LATTICE)
    fusion = difffusr_fusion.difffusr_fusion_bundle(SMALL_FUSION)
    save_bundle(folder / "sr.safetensors", sr, ruled(shapes_of(difffusr.Networks(**sr.architecture))))
    networks = difffusr_fusion.FusionNetworks(**fusion.architecture)
    save_bundle(folder / "fusion.safetensors", fusion, ruled(shapes_of(networks)))
    return {"weights": (str(folder / "sr.safetensors"), f"fusion={folder / 'fusion.safetensors'}")}


@pytest.fixture(scope="module")
def finished(tmp_path_factory, archive, aoi, weights):
    store = tmp_path_factory.mktemp("difffusr") / "region.zarr"
    plan, summary = run(config_for(archive, sr="difffusr", estimate="sample", **weights), aoi, store)
    assert summary.units == 1
    return plan, store


@pytest.mark.slow
def test_scene_states_are_in_the_plan_and_belong_to_the_scene(finished, archive, weights, tmp_path):
    from pipeline.aoi.aoi import read_aoi
    from pipeline.planning.planner import make_plan

    plan, store = finished
    assert set(plan.states) == {"S2A_CLOUDY", "S2B_LATER"}
    assert len(plan.states["S2A_CLOUDY"]["degradation"]) > 8
    assert pipeline.load_plan(store).states == plan.states
    small = write_aoi(tmp_path / "small.geojson", box(LEFT + 800, TOP - 1200, LEFT + 890, TOP - 1030))
    other = make_plan(config_for(archive, sr="difffusr", **weights), read_aoi(str(small)))
    assert other.states == plan.states


@pytest.mark.slow
def test_chunks_never_show(finished, archive, weights, tmp_path):
    """The single unit of all bands beside two of a part of it, and of some bands: of 60 m they need more windows.

    Windows meet at (1080 m, 1080 m) from the corner of the scenes, off the border of the two units.
    """
    whole, store = finished
    part = write_aoi(tmp_path / "part.geojson", box(LEFT + 905, TOP - 1135, LEFT + 1135, TOP - 1025))
    bands = ("B04", "B08", "B11")
    config = config_for(archive, sr="difffusr", estimate="sample", chunk_px=48, unit_chunks=1, bands=bands, **weights)
    plan, summary = run(config, part, tmp_path / "part.zarr")
    assert summary.units == 2
    rows, cols = plan.zones[0].grid.window.slices(whole.zones[0].grid.window)
    expected = values(store)[:, [BAND_NAMES.index(band) for band in bands], rows, cols]
    assert np.array_equal(expected, values(tmp_path / "part.zarr"))


@pytest.mark.slow
def test_the_sensor_would_measure_the_input_of_any_network(finished):
    """Without bias. The area has 64 pixels of 60 m, too few to tell; `test_contract` looks at those."""
    bias = [bias for _, bias in sensor_errors(finished[1], below_m=60).values()]
    assert len(bias) == 10
    assert max(map(abs, bias)) < 2


def test_without_weights_one_line_says_how_to_give_them(archive, aoi, tmp_path, capsys):
    words = ["--aoi", str(aoi), "--catalog", str(archive), "--sr", "difffusr", "--out", str(tmp_path / "x.zarr")]
    assert main(words) == 2
    said = capsys.readouterr().err.strip()
    assert "--weights FILE" in said
    assert len(said.splitlines()) == 1


@pytest.mark.slow
def test_provenance_names_both_weights(finished):
    plan, store = finished
    attributes = json.loads((store / "zarr.json").read_text())["attributes"]
    assert attributes["sr_weights_sha256"] == plan.system.of("sr").sha256
    assert attributes["fusion_weights_sha256"] == plan.system.of("fusion").sha256
    assert set(attributes["generated_bands"]) == set(BAND_NAMES)


@pytest.mark.slow
def test_open_cube_gives_the_lazy_input(finished):
    plan, _ = finished
    cube = pipeline.open_cube(plan)
    assert set(cube.rasters) == {10, 20, 60}
    assert cube.rasters[20].dims == ("time", "band", "y", "x")
    assert cube.rasters[20].chunks is not None
    assert list(cube.rasters[10].scene.values) == [scene.id for scene in plan.period_scenes(plan.zones[0].epsg, 0)]
    assert int(cube.rasters[60].isel(time=0).sel(band="B09").max()) > 1000
