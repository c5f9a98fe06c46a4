"""What a group with its own orthophotos does: write one file, start one command."""

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.models.bundle import load_bundle
from pipeline.models.lite import LiteSuperResolver
from tests.archive.synthetic import make_scene
from tests.training.imagery import corner_in, placed, texture, write_raster, write_toml
from training import train
from training.places import split_of
from training.presets import PRESETS, Preset, Stage

TINY_SR = Preset(
    name="lite-sr",
    task="sr",
    architecture={"width": 8, "blocks": 1, "denoiser_width": 8, "denoiser_blocks": 1},
    stages=(Stage("mean", 0.5, ("encoder.", "mean_head.", "spread_head.")), Stage("detail", 0.5, ("denoiser.",))),
    minutes=1,
    batch=4,
    warmup_steps=2,
    sampler={"name": "ddim", "steps": 2},
)
TINY_FUSION = Preset(
    name="lite-fusion",
    task="fusion",
    architecture={"sharpen_width": 8, "sharpen_blocks": 1, "detail_width": 8, "detail_blocks": 1},
    stages=(Stage("wald", 1.0, ()),),
    minutes=1,
    batch=2,
)
TOML = """
name = "our town"
licence = "city of Example, CC BY 4.0"

[[source]]
name = "orthos"
role = "hr"
path = "orthos"
target_gsd_m = [1.0, 1.4]

[[source]]
name = "scenes"
role = "sentinel2"
path = "scenes"
"""


@pytest.fixture
def own(tmp_path, monkeypatch) -> Path:
    """Orthophotos of 0.5 m and scenes, in cells of both splits; the training file that names them."""
    monkeypatch.setitem(PRESETS, TINY_SR.name, TINY_SR)
    monkeypatch.setitem(PRESETS, TINY_FUSION.name, TINY_FUSION)
    for number, split in enumerate(("train", "train", "held-out")):
        left, top = corner_in(split, number)
        photo = texture(320, 320, number)
        write_raster(tmp_path / "orthos" / f"{number}.tif", photo, **placed(left + 1000, top - 1000, 0.5))
        left, top = (round(metres / 60) * 60 for metres in (left + 600, top - 600))
        make_scene(tmp_path / "scenes", scene_id=f"S2_{number}", left_m=left, top_m=top, size_m=1800, scl=False)
    return write_toml(tmp_path, TOML)


def run(file, out, *more, preset="lite-sr") -> int:
    return train.main(["--preset", preset, "--data", str(file), "--out", str(out), "--every", "1e9", *more])


def test_one_file_and_one_command_make_a_bundle(own, tmp_path, capsys):
    assert run(own, tmp_path / "run", "--images", "64") == 0, capsys.readouterr().err
    bundle = load_bundle(tmp_path / "run" / "lite-sr.safetensors")
    assert bundle.provenance["sources"] == {
        "orthos": {"train": 2, "held-out": 1},
        "scenes": {"train": 2, "held-out": 1},
    }
    assert bundle.provenance["credits"] == "city of Example, CC BY 4.0"
    assert "7.68 km" in bundle.provenance["split_rule"]
    assert [split_of(place) for place in bundle.provenance["held_out_places"]] == ["held-out"]
    assert LiteSuperResolver.from_bundle(bundle).network is not None


def test_the_same_file_trains_fusion(own, tmp_path, capsys):
    assert run(own, tmp_path / "run", "--images", "4", preset="lite-fusion") == 0, capsys.readouterr().err
    provenance = load_bundle(tmp_path / "run" / "lite-fusion.safetensors").provenance
    assert provenance["data"] == "our town"
    assert "20 m x2" in provenance["held_out"]


def test_worker_processes_draw_what_one_process_draws(own, tmp_path):
    states = []
    for workers in ("0", "2"):
        assert run(own, tmp_path / workers, "--images", "16", "--workers", workers) == 0
        resolver = LiteSuperResolver.from_bundle(load_bundle(tmp_path / workers / "lite-sr.safetensors"))
        states.append(resolver.network.state_dict())
    assert all(np.array_equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('path = "orthos"', 'path = "ortos"', "source 'orthos': path = 'ortos': {folder}/ortos does not exist"),
        ("[1.0, 1.4]", "[0.3, 0.4]", "orthos/0.tif has pixels of 0.5 m and target_gsd_m = [0.3, 0.4]"),
        ("[1.0, 1.4]", "[1.0, 1.4]\nbands = { B04 = 1, B03 = 2, B02 = 4 }", "band 4 of {folder}/orthos/0.tif"),
        ("[1.0, 1.4]", '[1.0, 1.4]\nsplit = "train"', "no held-out image shows anything"),
        ("[1.0, 1.4]", '[1.0, 1.4]\nsplit = "trian"', "split = 'trian'; expected one of by-place, train, held-out"),
        ("target_gsd_m = [1.0, 1.4]", "target_gsd = [1.0, 1.4]", "cure: did you mean 'target_gsd_m'?"),
        ('path = "scenes"', 'path = "orthos"', "mine.toml: source 'scenes': {folder}/orthos holds"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(own, tmp_path, capsys, old, new, says):
    own.write_text(TOML.replace(old, new))
    assert run(own, tmp_path / "run", "--images", "8") == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert says.format(folder=tmp_path) in line
    assert "expected" in line
    assert not (tmp_path / "run").exists()


def test_one_place_alone_cannot_be_split(own, tmp_path, capsys):
    for name in ("1", "2"):
        (tmp_path / "orthos" / f"{name}.tif").unlink()
    own.write_text(TOML[: TOML.index('[[source]]\nname = "scenes"')])
    assert run(own, tmp_path / "run", "--images", "8") == 2
    said = capsys.readouterr().err
    assert "no held-out image shows anything; expected at least one, to watch training by; cure: more places" in said


def test_provenance_survives_json(own):
    from training.sources import load_training_file

    said = load_training_file(own).describe()
    assert json.loads(json.dumps(said)) == said
