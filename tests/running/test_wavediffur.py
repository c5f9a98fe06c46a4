"""Runs of the wavelet cascade with small scrambled weights: all bands, finer groups by passes, their means, resume."""

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine

import pipeline
from pipeline import check
from pipeline.bands import BAND_NAMES
from pipeline.models import difffusr
from pipeline.models.bundle import LatticeSpec, save_bundle
from pipeline.models.wavediffur import wavediffur_bundle
from pipeline.models.wavelet_network import WaveletNetwork
from pipeline.run import main
from tests.models.ldsr_small import write_latent
from tests.models.small import write_lite
from tests.models.test_difffusr import FOUR_STEPS, SMALL, ruled, shapes_of
from tests.models.test_wavediffur import TINY
from tests.running.conftest import LEFT, TOP, box, chunk_digests, values, write_aoi

BANDS = ("B04", "B03", "B02", "B08")
FUSED = ",".join((*BANDS, "B11"))  # those of 60 m, stored at x2, need three times as many windows around
FINEST_M = {2: 2.5, 4: 2.5, 16: 0.625}
SPOT_M2 = 60 * 30


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    _, fusion = write_lite(folder)
    network = WaveletNetwork(**TINY, bands=len(BANDS))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    bundle = replace(wavediffur_bundle(TINY, BANDS), lattice=LatticeSpec(192, 128, 32, 16))
    save_bundle(folder / "wavediffur.safetensors", bundle, network.state_dict())
    return ("--weights", str(folder / "wavediffur.safetensors"), "--weights", f"fusion={fusion}")


@pytest.fixture(params=[pytest.param(scale, marks=pytest.mark.slow) for scale in FINEST_M], scope="module")
def scale(request):
    return request.param


@pytest.fixture(scope="module")
def aoi(tmp_path_factory):
    corners = box(LEFT + 700, TOP - 1100, LEFT + 1000, TOP - 890)
    return str(write_aoi(tmp_path_factory.mktemp("aoi") / "region.geojson", corners))


@pytest.fixture(scope="module")
def area(aoi, archive):
    """Arguments of all runs here: where, when, in which pieces."""
    when = ("--start", "2024-01-01", "--end", "2024-12-31", "--max-cloud", "100")
    chunks = ("--chunk-px", "96", "--unit-chunks", "2", "--cluster", "inline")
    return ("--aoi", aoi, "--catalog", str(archive), "--sr", "wavediffur", *when, *chunks, "--bands", FUSED)


@pytest.fixture(scope="module")
def spot(tmp_path_factory):
    """Arguments of runs whose passes read much ground around: an area of 2 x 4 chunks at 0.625 m, two units."""
    corners = box(LEFT + 870, TOP - 950, LEFT + 930, TOP - 920)
    path = write_aoi(tmp_path_factory.mktemp("aoi") / "region.geojson", corners)
    return ("--aoi", str(path), "--chunk-px", "48", "--unit-chunks", "3", "--bands", ",".join(BANDS))


@pytest.fixture(scope="module")
def words(scale, weights, area, spot):
    """x2 with all bands, x4 with one that is fused, x16 in three passes."""
    own = {2: ("--bands", ",".join(BAND_NAMES)), 4: (), 16: spot}
    return (*area, *own[scale], *weights, "--option", f"scale={scale}")


@pytest.fixture(scope="module")
def finished(words, tmp_path_factory):
    store = tmp_path_factory.mktemp("finished") / "whole.zarr"
    assert main([*words, "--out", str(store)]) == 0
    return store


def test_all_bands_and_every_finer_group(scale, finished, capsys):
    assert check.main([str(finished), "--verify", "full"]) == 0
    above = pipeline.open_store(finished)
    assert len(above.band) == {2: 12, 4: 5, 16: 4}[scale]
    assert set(BANDS) <= set(json.loads((finished / "zarr.json").read_text())["attributes"]["generated_bands"])
    gsd_m = 2.5
    while gsd_m > FINEST_M[scale]:
        gsd_m /= 2
        fine = pipeline.open_store(finished, gsd_m=gsd_m)
        assert set(fine.band.values) == set(BANDS)
        means = fine.reflectance.coarsen(y=2, x=2).mean().values
        there = np.isfinite(means)  # the groups above also cover what finer levels read around the area
        assert there.sum() * (2 * gsd_m) ** 2 >= len(BANDS) * SPOT_M2
        assert np.abs(means - above.reflectance.sel(band=fine.band).values)[there].max() < 1e-6
        assert float(fine.reflectance.std()) > 0
        above = fine
    capsys.readouterr()


@pytest.mark.slow
def test_chunks_do_not_show(words, finished, tmp_path):
    other = tmp_path / "other.zarr"
    assert main([*words, "--unit-chunks", "5", "--out", str(other)]) == 0
    assert chunk_digests(other) == chunk_digests(finished)


@pytest.mark.slow
def test_parts_of_a_frozen_plan_make_the_same_store(scale, words, finished, tmp_path):
    store = str(tmp_path / "parts.zarr")
    assert main([*words, "--out", store, "--plan-only"]) == 0
    passes = len(pipeline.load_plan(store).passes)
    assert passes == {2: 1, 4: 1, 16: 3}[scale]
    for number in range(1, passes + 1):
        for part in ("1/2", "2/2"):
            of_pass = () if passes == 1 else ("--pass", str(number))
            assert main(["--plan", store, "--shard-of", part, "--cluster", "inline", *of_pass]) == 0
    assert main(["--plan", store, "--finalise"]) == 0
    assert chunk_digests(tmp_path / "parts.zarr") == chunk_digests(finished)


@pytest.mark.slow
def test_a_killed_cascade_goes_on_where_it_was(scale, words, finished, tmp_path):
    if FINEST_M[scale] == 2.5:
        return
    store = tmp_path / "killed.zarr"
    command = [sys.executable, "-m", "pipeline.run", *words, "--out", str(store)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as child:
        while child.poll() is None and not list(store.glob("_run/receipts/*.json")):
            time.sleep(0.01)
        child.send_signal(signal.SIGKILL)
        child.communicate()
    done = {path.name: path.stat().st_mtime_ns for path in store.glob("_run/receipts/*.json")}
    assert 0 < len(done) < len(list(pipeline.load_plan(finished).units()))
    assert main([*words, "--out", str(store)]) == 0
    assert all((store / "_run" / "receipts" / name).stat().st_mtime_ns == at for name, at in done.items())
    assert chunk_digests(store) == chunk_digests(finished)


BACKBONES = {"bicubic": 16, "lite": 16, "difffusr": 4, "ldsr": 16}


def write_difffusr(folder):
    bundle = replace(difffusr.difffusr_bundle(SMALL, sampler=FOUR_STEPS), lattice=LatticeSpec(96, 48, 24, 12))
    path = folder / "difffusr-sr.safetensors"
    save_bundle(path, bundle, ruled(shapes_of(difffusr.Networks(**bundle.architecture))))
    return path


@pytest.fixture(scope="module")
def backbone_weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("backbones")
    sr, fusion = write_lite(folder)
    of_fusion = ("--weights", f"fusion={fusion}")
    return {
        "bicubic": of_fusion,
        "lite": ("--weights", str(sr), *of_fusion),
        "difffusr": ("--weights", str(write_difffusr(folder)), *of_fusion),
        "ldsr": ("--weights", str(write_latent(folder / "ldsr.safetensors")), *of_fusion),
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", BACKBONES)
def test_other_systems_are_steps_of_a_cascade(name, area, spot, backbone_weights, tmp_path, capsys):
    store, scale = tmp_path / "steps.zarr", BACKBONES[name]
    own = {"lite": ("--bands", FUSED), "difffusr": ("--chunk-px", "24", "--unit-chunks", "1")}.get(name, ())
    options = ("--option", f"backbone={name}", "--option", f"scale={scale}", "--estimate", "sample")
    words = (*area, *spot, *own, *options, *backbone_weights[name])
    assert main([*words, "--out", str(store)]) == 0
    assert check.main([str(store), "--verify", "full"]) == 0
    plan = pipeline.load_plan(store)
    units = [len(list(plan.units_of(number))) for number in range(len(plan.passes))]
    assert min(units) > 1, "the other run is to cut every pass elsewhere"
    above = pipeline.open_store(store)
    assert len(above.band) == (5 if name == "lite" else 4)
    if scale > 4:
        fine = pipeline.open_store(store, gsd_m=0.625)
        means = fine.reflectance.coarsen(y=4, x=4).mean().values
        there = np.isfinite(means)
        assert there.sum() * 2.5**2 >= len(BANDS) * SPOT_M2
        assert np.abs(means - above.reflectance.sel(band=fine.band).values)[there].max() < 1e-6
    other = tmp_path / "chunks.zarr"
    assert main([*words, "--unit-chunks", "5", "--out", str(other)]) == 0
    assert chunk_digests(other) == chunk_digests(store)
    capsys.readouterr()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("scale=3",), "scale=3; expected one of 2, 4, 8"),
        (("scale=256",), "scale=256"),
        (("scale=1",), "scale=1"),
        (("scale=four",), "scale=four"),
        (("scale=8", "backbone=lite"), "goes x4 at once; expected one of 4, 16, 64"),
        (("backbone=wavediffur",), "backbone=wavediffur"),
        (("backbone=lightly",), "--sr lightly is not known"),
        (("tau=literal", "backbone=lite"), "tau=literal with backbone=lite; expected the backbone wavelet"),
        (("tau=letters",), "tau=letters; expected one of exact, literal"),
    ],
)
def test_options_that_do_not_fit_are_refused_in_one_line(
    options, said, area, weights, backbone_weights, tmp_path, capsys
):
    given = [word for option in options for word in ("--option", option)]
    files = backbone_weights["lite"] if "backbone=lite" in options else weights
    assert main([*area, *given, *files, "--out", str(tmp_path / "x.zarr")]) == 2
    message = capsys.readouterr().err.strip()
    assert said in message
    assert len(message.splitlines()) == 1
    assert not (tmp_path / "x.zarr").exists()


def test_weights_of_another_system_are_refused_by_name(area, backbone_weights, weights, tmp_path, capsys):
    assert main([*area, *backbone_weights["lite"], "--out", str(tmp_path / "x.zarr")]) == 2
    assert "are for 'lite-sr'; expected wavediffur-sr" in capsys.readouterr().err
    assert main([*area, *weights, "--option", "backbone=lite", "--out", str(tmp_path / "x.zarr")]) == 2
    assert "are for 'wavediffur-sr'; expected lite-sr" in capsys.readouterr().err
    assert not (tmp_path / "x.zarr").exists()


def write_reference(path, dataset, values, gsd_m=2.5, shift_m=0.0, bands=3):
    """Write values (3, y, x) on the grid of a store, or as one pixel each `gsd_m`."""
    x, y = float(dataset.x[0]) - 1.25 + shift_m, float(dataset.y[0]) + 1.25
    profile = {"driver": "GTiff", "crs": "EPSG:32632", "transform": Affine(gsd_m, 0, x, 0, -gsd_m, y), "nodata": 0}
    shape = {"count": bands, "height": values.shape[1], "width": values.shape[2], "dtype": values.dtype}
    with rasterio.open(path, "w", **profile, **shape) as file:
        file.write(values[:bands])
    return str(path)


@pytest.fixture(scope="module")
def of_four(weights, area, tmp_path_factory):
    words = (*area, *weights, "--bands", ",".join(BANDS), "--option", "scale=4")
    store = tmp_path_factory.mktemp("four") / "plain.zarr"
    assert main([*words, "--out", str(store)]) == 0
    return words, store


@pytest.fixture(scope="module")
def ground(of_four):
    """RGB of the store as an aerial image would show it: with detail of its own, in 8 bits."""
    dataset = pipeline.open_store(of_four[1]).load()
    seen = dataset.reflectance.sel(band=["B04", "B03", "B02"]).squeeze().values
    seen = np.nan_to_num(seen) * (1 + 0.1 * np.random.default_rng(0).standard_normal(seen.shape[1:]))
    return dataset, np.clip(20 + 300 * seen, 1, 255).astype(np.uint8)


@pytest.mark.slow
def test_a_reference_of_the_same_ground_brings_detail(of_four, ground, tmp_path):
    words, plain = of_four
    reference = write_reference(tmp_path / "ortho.tif", *ground)
    given = (*words, "--condition", f"reference={reference}")
    assert main([*given, "--out", str(tmp_path / "a.zarr")]) == 0
    assert main([*given, "--unit-chunks", "5", "--out", str(tmp_path / "b.zarr")]) == 0
    assert chunk_digests(tmp_path / "a.zarr") == chunk_digests(tmp_path / "b.zarr")
    assert check.main([str(tmp_path / "a.zarr"), "--verify", "full"]) == 0
    assert json.loads((tmp_path / "a.zarr" / "zarr.json").read_text())["attributes"]["conditions"]["reference"]
    changed = np.abs(values(tmp_path / "a.zarr").astype(int) - values(plain))
    assert (changed > 3).mean() > 0.05


@pytest.mark.slow
def test_a_reference_of_other_ground_changes_nothing(of_four, ground, tmp_path):
    words, plain = of_four
    noise = np.random.default_rng(1).integers(1, 255, ground[1].shape, dtype=np.uint8)
    reference = write_reference(tmp_path / "noise.tif", ground[0], noise)
    assert main([*words, "--condition", f"reference={reference}", "--out", str(tmp_path / "a.zarr")]) == 0
    assert np.array_equal(values(tmp_path / "a.zarr"), values(plain))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"gsd_m": 12.0}, "has pixels of 12 m; expected pixels smaller than 10 m"),
        ({"shift_m": 50_000.0}, "ground of region"),
        ({"bands": 2}, "has 2 bands; expected 3: B04, B03, B02"),
    ],
)
def test_references_without_use_are_refused_in_one_line(changes, said, of_four, ground, tmp_path, capsys):
    reference = write_reference(tmp_path / "ortho.tif", *ground, **changes)
    assert main([*of_four[0], "--condition", f"reference={reference}", "--out", str(tmp_path / "x.zarr")]) == 2
    message = capsys.readouterr().err.strip()
    assert said in message
    assert len(message.splitlines()) == 1
    assert not (tmp_path / "x.zarr").exists()


@pytest.mark.slow
def test_a_dry_run_says_how_much_and_a_run_has_a_limit(area, weights, tmp_path, capsys):
    words = (*area, *weights, "--option", "scale=16", "--out", str(tmp_path / "x.zarr"), "--max-output-gb", "0.001")
    assert main([*words, "--dry-run", "--json"]) == 0
    cost = json.loads(capsys.readouterr().out)["estimate"]
    assert list(cost["finer"]) == ["1.25", "0.625"]
    assert cost["finer"]["0.625"] >= 300 * 210 / 0.625**2
    assert main([*words, "--dry-run"]) == 0
    assert f"finer    {cost['finer']['0.625']:,} pixels per band at 0.625 m" in capsys.readouterr().out
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "GB at 0.625 m); expected at most 0.001 GB" in said
    assert "--max-output-gb 100" in said
    assert not (tmp_path / "x.zarr").exists()


@pytest.mark.slow
def test_a_reference_that_no_stage_reads_is_refused(area, backbone_weights, ground, tmp_path, capsys):
    given = (
        "--option",
        "backbone=lite",
        "--condition",
        f"reference={write_reference(tmp_path / 'ortho.tif', *ground)}",
    )
    assert main([*area, *backbone_weights["lite"], *given, "--out", str(tmp_path / "x.zarr")]) == 2
    assert "which no stage reads with these options" in capsys.readouterr().err
    assert not (tmp_path / "x.zarr").exists()
