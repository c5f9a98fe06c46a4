"""Runs of latent diffusion with small scrambled weights, by each route of the 20 m bands."""

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest

import pipeline
from pipeline import check
from pipeline.bands import BAND_NAMES, BY_NAME
from pipeline.models.bundle import load_bundle
from pipeline.run import main
from pipeline.superres.systems.ldsr import SYSTEM
from tests.models.ldsr_small import write_all
from tests.models.small import write_lite
from tests.running.conftest import LEFT, TOP, box, chunk_digests, write_aoi

ROLES = {"fusion": ("x2", "x4"), "ldm6": ("sr6", "x2"), "pipeline": ()}
LATENT = {"fusion": 4, "ldm6": 10, "pipeline": 4}  # bands that latent diffusion gives
TEN = ",".join(band for band in BAND_NAMES if BY_NAME[band].gsd_m < 60)  # the others need much ground around


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    return {**write_all(folder), "fusion": write_lite(folder)[1]}


@pytest.fixture(params=ROLES, scope="module")
def route(request):
    return request.param


@pytest.fixture(scope="module")
def area(archive, tmp_path_factory):
    corners = box(LEFT + 700, TOP - 1100, LEFT + 1000, TOP - 890)
    aoi = str(write_aoi(tmp_path_factory.mktemp("aoi") / "region.geojson", corners))
    when = ("--start", "2024-01-01", "--end", "2024-12-31", "--max-cloud", "100")
    chunks = ("--chunk-px", "96", "--unit-chunks", "2", "--cluster", "inline")
    return ("--aoi", aoi, "--catalog", str(archive), "--sr", "ldsr", *when, *chunks)


def weights(files, route):
    roles = ("sr", "fusion", *ROLES[route])
    return [word for role in roles for word in ("--weights", f"{role}={files[role]}")]


@pytest.fixture(scope="module")
def words(area, files, route):
    return (*area, *weights(files, route), "--option", f"bands20={route}")


@pytest.fixture(scope="module")
def finished(words, tmp_path_factory):
    store = tmp_path_factory.mktemp("finished") / "whole.zarr"
    assert main([*words, "--out", str(store)]) == 0
    return store


@pytest.mark.slow
def test_all_bands_are_stored_and_sound(finished, route, capsys):
    assert check.main([str(finished), "--verify", "full"]) == 0
    dataset = pipeline.open_store(finished)
    assert len(dataset.band) == 12
    generated = json.loads((finished / "zarr.json").read_text())["attributes"]["generated_bands"]
    assert len(generated) == 12
    assert float(dataset.reflectance.std(("y", "x")).min()) > 0
    capsys.readouterr()


@pytest.mark.slow
def test_chunks_do_not_show(words, finished, tmp_path):
    other = tmp_path / "other.zarr"
    assert main([*words, "--unit-chunks", "5", "--out", str(other)]) == 0
    assert chunk_digests(other) == chunk_digests(finished)


@pytest.mark.slow
def test_a_smaller_area_is_cut_out_of_the_larger_one(words, finished, tmp_path):
    """A draw, whose noise must not move with the area either."""
    corners = box(LEFT + 800, TOP - 1000, LEFT + 850, TOP - 950)
    small = write_aoi(tmp_path / "small.geojson", corners)
    drawn = ("--estimate", "sample", "--seed", "5", "--bands", TEN)
    inner, outer = tmp_path / "inner.zarr", tmp_path / "outer.zarr"
    assert main([*words, *drawn, "--aoi", str(small), "--out", str(inner)]) == 0
    assert main([*words, *drawn, "--out", str(outer)]) == 0
    part, whole = (pipeline.open_store(store).reflectance for store in (inner, outer))
    assert part.sizes["x"] < whole.sizes["x"]
    assert part.sizes["y"] < whole.sizes["y"]
    assert part.notnull().all()
    np.testing.assert_array_equal(part.values, whole.sel(x=part.x, y=part.y).values)
    mean = pipeline.open_store(finished).reflectance.sel(band=whole.band)
    assert np.abs(whole.values - mean.values).max() > 1e-3


@pytest.mark.slow
def test_draws_follow_the_seed_and_members_have_a_spread(words, route, tmp_path):
    words, drawn = [*words, "--unit-chunks", "4", "--bands", TEN], []
    for seed in ("1", "2"):
        store = tmp_path / f"{seed}.zarr"
        assert main([*words, "--estimate", "sample", "--seed", seed, "--out", str(store)]) == 0
        drawn.append(pipeline.open_store(store).reflectance.values)
    differs = np.nanmean(np.abs(drawn[0] - drawn[1]), axis=(0, 2, 3)) > 1e-5
    assert differs.sum() >= LATENT[route]
    store = tmp_path / "members.zarr"
    assert main([*words, "--members", "2", "--out", str(store)]) == 0
    spread = pipeline.open_store(store).uncertainty.values
    assert (np.nanmean(spread, axis=(0, 2, 3)) > 0).sum() >= LATENT[route]


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was(words, finished, tmp_path):
    store = tmp_path / "killed.zarr"
    command = [sys.executable, "-m", "pipeline.run", *words, "--out", str(store)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as child:
        while child.poll() is None and not list(store.glob("_run/receipts/*.json")):
            time.sleep(0.01)
        child.send_signal(signal.SIGKILL)
        child.communicate()
    assert main([*words, "--out", str(store)]) == 0
    assert chunk_digests(store) == chunk_digests(finished)


@pytest.mark.slow
def test_options_change_draws(area, files, tmp_path):
    of_pipeline = (*area, *weights(files, "pipeline"), "--option", "bands20=pipeline", "--estimate", "sample",
                   "--bands", "B02,B03,B04,B08")  # fmt: skip
    found = {}
    for option in ("steps=0", "steps=2", "eta=0.95", "start_from_lr=0.5", "match=histogram"):
        store = tmp_path / f"{option.replace('=', '_')}.zarr"
        assert main([*of_pipeline, "--unit-chunks", "5", "--option", option, "--out", str(store)]) == 0
        found[option] = pipeline.open_store(store).reflectance.sel(band="B04").values
    plain = found.pop("steps=0")
    assert all(np.nanmax(np.abs(values - plain)) > 1e-3 for values in found.values())


@pytest.mark.parametrize(
    ("drawn", "told"), [((), True), (("--estimate", "sample"), False), (("--members", "2"), False)]
)
def test_options_of_draws_say_that_the_mean_does_not_depend_on_them(drawn, told, area, files, capsys):
    given = ("--option", "bands20=pipeline", "--option", "match=histogram", "--option", "steps=20")
    assert main([*area, *weights(files, "pipeline"), *given, *drawn, "--dry-run"]) == 0
    said = capsys.readouterr()
    remark = "no effect on the mean, which is stored: --option steps=20, --option match=histogram (--estimate sample"
    assert (remark in said.out + said.err) == told
    assert "--option bands20" not in said.out + said.err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("steps=30",), "30 sampling steps do not divide 1000"),
        (("eta=-0.5",), "eta=-0.5; expected 0 to 1, or -1"),
        (("temperature=0.5",), "temperature=0.5 with eta 0, where steps draw no noise; expected an eta above 0"),
        (("normalisation=sound",), "expected weights of a release before 1.0"),
        (("eta=2",), "eta=2; expected a number from -1 to 1"),
        (("start_from_lr=0",), "start_from_lr=0"),
        (("bands20=wavelet",), "bands20=wavelet; expected one of fusion, ldm6, pipeline"),
        (("bands20=ldm6",), "--sr ldsr needs weights"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(options, said, area, files, tmp_path, capsys):
    given = [word for option in options for word in ("--option", option)]
    assert main([*area, *weights(files, "pipeline"), *given, "--out", str(tmp_path / "x.zarr")]) == 2
    message = capsys.readouterr().err.strip()
    assert said in message
    assert len(message.splitlines()) == 1
    assert not (tmp_path / "x.zarr").exists()


def test_networks_of_every_role_are_counted_in_memory(files):
    """The six bands may have published networks while those of 10 m are small."""
    bundles = {"sr": load_bundle(files["sr"]), "sr6": load_bundle(files["sr6"])}
    small = SYSTEM.memory_for(bundles)
    sizes = {**bundles["sr6"].architecture, "networks": "published"}
    large = SYSTEM.memory_for({**bundles, "sr6": replace(bundles["sr6"], architecture=sizes)})
    assert large.weights_mib > 10 * small.weights_mib


def test_weights_of_other_bands_are_refused(area, files, tmp_path, capsys):
    given = ("--weights", f"sr={files['sr6']}", "--weights", f"fusion={files['fusion']}")
    assert main([*area, *given, "--option", "bands20=pipeline", "--out", str(tmp_path / "x.zarr")]) == 2
    said = capsys.readouterr().err
    assert "are for B05, B06, B07, B8A, B11, B12; expected B02, B03, B04, B08" in said


@pytest.mark.parametrize(("role", "route"), [("x3", "fusion"), ("x4", "pipeline")])
def test_weights_that_a_route_does_not_read_are_refused(role, route, area, files, tmp_path, capsys):
    given = ("--weights", f"{role}={files['x4']}", "--option", f"bands20={route}")
    assert main([*area, *weights(files, "pipeline"), *given, "--out", str(tmp_path / "x.zarr")]) == 2
    said = capsys.readouterr().err
    assert f"with these options --sr ldsr has no weights {role}; expected one of sr=FILE, fusion=FILE" in said
