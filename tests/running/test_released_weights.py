"""From a released checkpoint to a store: converter, weights by path and by address of the hub, and what is refused."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import pipeline
from pipeline.bands import BAND_NAMES, BY_NAME
from pipeline.models import difffusr, difffusr_fusion
from pipeline.models.bundle import save_bundle
from pipeline.run import main
from tests.models.test_difffusr import SMALL, SMALL_FUSION, ruled, shapes_of
from tests.running.conftest import LEFT, TOP, box, sensor_errors, values, write_aoi
from tests.superres.hub_server import COMMIT, connected, hub_server
from tests.training.test_convert import released
from training import convert

ROOT = Path(__file__).resolve().parents[2]
REPO = "some-people/difffusr"
SIZES = {**SMALL, "mults": [1, 1, 1, 1, 2], "attention_strides": [16]}  # as deep as published: windows are 480 px
ADDRESSES = {"--weights": f"hf://{REPO}/sr.safetensors", "--fusion-weights": f"hf://{REPO}@v1/fusion.safetensors"}


def networks(part):
    if part == "sr":
        return ruled(shapes_of(difffusr.Networks(**{**difffusr.ARCHITECTURE, **SIZES})))
    return ruled(shapes_of(difffusr_fusion.FusionNetworks(**{**difffusr_fusion.ARCHITECTURE, **SMALL_FUSION})))


@pytest.fixture(scope="module")
def aoi(tmp_path_factory):
    corners = box(LEFT + 370, TOP - 1070, LEFT + 590, TOP - 850)  # with all that it depends on in one window of 1.2 km
    return write_aoi(tmp_path_factory.mktemp("aoi") / "region.geojson", corners)


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """Bundles made by the converter from checkpoints of scaled-down networks."""
    folder = tmp_path_factory.mktemp("converted")
    for part, kind, words in (
        ("sr", "difffusr", ["--groups", str(SMALL["groups"])]),
        ("fusion", "difffusr-fusion", []),
    ):
        torch.save(released(networks(part)), folder / f"{part}.ckpt")
        out = folder / f"{part}.safetensors"
        licence = ["--licence", f"licence of {part}"]
        assert convert.main(["--from", kind, str(folder / f"{part}.ckpt"), "--out", str(out), *licence, *words]) == 0
    return folder


@pytest.fixture
def command(archive, aoi, tmp_path, capsys):
    """Run the pipeline on the small archive: (exit code, stdout, stderr, store)."""

    def call(*words, out="region.zarr"):
        store = tmp_path / out
        capsys.readouterr()
        code = main([*arguments(archive, aoi, store), *(str(word) for word in words)])
        said, complaint = capsys.readouterr()
        assert "Traceback" not in said + complaint
        return code, said, complaint, store

    return call


def arguments(archive, aoi, store):
    words = ["--aoi", aoi, "--catalog", archive, "--sr", "difffusr", "--max-cloud", "100", "--out", store]
    words += ["--exclude", "S2A_CLOUDY", "--estimate", "sample"]  # one draw: a quarter of the time of the mean of four
    words += ["--bands", ",".join(name for name in BAND_NAMES if BY_NAME[name].gsd_m < 60)]  # the others reach further
    return [str(word) for word in (*words, "--cluster", "inline", "--workers", "1", "--quiet")]


def by_path(folder):
    return "--weights", folder / "sr.safetensors", "--fusion-weights", folder / "fusion.safetensors"


def by_address():
    return [word for pair in ADDRESSES.items() for word in pair]


@pytest.fixture(scope="module")
def finished(archive, aoi, converted, tmp_path_factory):
    """The store that converted weights make."""
    store = tmp_path_factory.mktemp("finished") / "region.zarr"
    assert main([*arguments(archive, aoi, store), *(str(word) for word in by_path(converted))]) == 0
    return store


@pytest.mark.slow
def test_converted_weights_give_their_networks_pixels(command, finished, tmp_path):
    save_bundle(tmp_path / "sr.safetensors", difffusr.difffusr_bundle(SIZES), networks("sr"))
    fusion = difffusr_fusion.difffusr_fusion_bundle(SMALL_FUSION)
    save_bundle(tmp_path / "fusion.safetensors", fusion, networks("fusion"))
    code, *_, store = command(*by_path(tmp_path))
    assert code == 0
    assert np.array_equal(values(store), values(finished))
    assert values(store).any()


@pytest.mark.slow
def test_a_store_of_converted_weights_keeps_the_promises(finished):
    assert max(abs(bias) for _, bias in sensor_errors(finished).values()) < 10
    attributes = json.loads((finished / "zarr.json").read_text())["attributes"]
    assert attributes["weights_license"] == "licence of sr; licence of fusion"


@pytest.fixture
def server(converted, tmp_path, monkeypatch):
    """The hub with the converted weights."""
    pytest.importorskip("huggingface_hub")
    files = {name: (converted / name).read_bytes() for name in ("sr.safetensors", "fusion.safetensors")}
    with hub_server(REPO, files) as running, connected(running.url, tmp_path, monkeypatch):
        yield running


@pytest.mark.slow
def test_weights_by_address_give_the_same_pixels(command, server, finished, tmp_path):
    code, _, complaint, store = command(*by_address())
    assert (code, complaint) == (0, "")
    assert np.array_equal(values(store), values(finished))
    system, other = pipeline.load_plan(store).system, pipeline.load_plan(finished).system
    sr, fusion = system.weights
    assert sr.where == f"hf://{REPO}@{COMMIT}/sr.safetensors"
    assert fusion.where == f"hf://{REPO}@{COMMIT}/fusion.safetensors"
    assert [file.sha256 for file in system.weights] == [file.sha256 for file in other.weights]
    attributes = json.loads((store / "zarr.json").read_text())["attributes"]
    assert (attributes["sr_weights"], attributes["fusion_weights"]) == (sr.where, fusion.where)
    assert attributes["sr_weights_sha256"] == sr.sha256

    server.fault = "down"  # a finished plan asks nobody
    server.requests.clear()
    assert command(*by_address())[0] == 0
    assert server.requests == []


@pytest.mark.slow
def test_the_store_names_a_local_file_without_its_folder(finished):
    attributes = json.loads((finished / "zarr.json").read_text())["attributes"]
    assert attributes["sr_weights"] == "sr.safetensors"


@pytest.mark.parametrize(
    ("fault", "code", "text"),
    [
        ("down", 75, "status 503"),
        ("unauthorised", 5, "HF_TOKEN"),
        ("hidden", 2, "no repository"),
        ("damaged", 7, "delete"),
    ],
)
def test_failures_of_the_hub_are_one_line_and_write_nothing(command, server, fault, code, text):
    server.fault = fault
    found, said, complaint, store = command(*by_address())
    assert (found, said) == (code, "")
    assert text in complaint
    assert len(complaint.splitlines()) == 1
    assert not store.exists()


def test_the_environment_of_the_hub_is_honoured(tmp_path):
    """As for users: HF_ENDPOINT and HF_HOME in the environment of a new process."""
    pytest.importorskip("huggingface_hub")
    code = f"from pipeline.superres import hub; print(*hub.settle({ADDRESSES['--weights']!r}))"
    with hub_server(REPO, {"sr.safetensors": b"content"}) as running:
        settings = {"HF_ENDPOINT": running.url, "HF_HOME": str(tmp_path), "NO_PROXY": "127.0.0.1"}
        settings |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "0"}
        words = [sys.executable, "-W", "error", "-c", code]
        done = subprocess.run(words, env=os.environ | settings, capture_output=True, text=True, cwd=ROOT)
        assert (done.returncode, done.stderr) == (0, "")
        pinned, path = done.stdout.split()
        assert pinned == f"hf://{REPO}@{COMMIT}/sr.safetensors"
        assert Path(path).is_relative_to(tmp_path)
        assert [request[:2] for request in running.requests] == [("hub", "HEAD"), ("storage", "GET")]


def saved_by_torch(path):
    torch.save(released(networks("sr")), path)


def old_format(path):
    torch.save(networks("sr"), path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize("save", [saved_by_torch, old_format, lambda path: path.write_bytes(pickle.dumps({"a": 1}))])
@pytest.mark.parametrize("flag", ["--weights", "--fusion-weights"])
def test_a_checkpoint_as_weights_names_the_converter(command, converted, tmp_path, save, flag):
    save(tmp_path / "last.ckpt")
    names = by_path(converted)
    files = {**dict(zip(names[::2], names[1::2], strict=True)), flag: tmp_path / "last.ckpt"}
    code, _, complaint, store = command(*(word for pair in files.items() for word in pair))
    assert code == 2
    assert len(complaint.splitlines()) == 1
    assert "cure: convert other formats" in complaint
    assert "python -m training.convert --from difffusr FILE --out" in complaint
    assert not store.exists()


def test_a_truncated_bundle_is_to_be_copied_again(command, converted, tmp_path):
    (tmp_path / "cut.safetensors").write_bytes((converted / "sr.safetensors").read_bytes()[:-5])
    code, _, complaint, _ = command("--weights", tmp_path / "cut.safetensors")
    assert code == 2
    assert "cure: copy or download it again" in complaint
    assert len(complaint.splitlines()) == 1


def test_an_address_of_another_format_names_the_converter(command):
    code, _, complaint, _ = command("--weights", f"hf://{REPO}/last.ckpt")
    assert code == 2
    assert "training.convert" in complaint
    assert len(complaint.splitlines()) == 1
