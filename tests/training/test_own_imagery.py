"""What a group with its own orthophotos does: write one file, start one command."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from pipeline.models.bundle import load_bundle
from pipeline.models.lite import LiteSuperResolver
from tests.training.imagery import TOML, corner_in, own_imagery, placed, texture, write_raster
from training import train
from training.data.places import split_of


@pytest.fixture
def own(tmp_path, monkeypatch) -> Path:
    """The training file of a group with its own orthophotos and scenes."""
    return own_imagery(tmp_path, monkeypatch)


def run(file, out, *more, preset="lite-sr") -> int:
    return train.main(["--preset", preset, "--data", str(file), "--out", str(out), "--every", "1e9", *more])


def listed(capsys) -> list[str]:
    """What is said of the sources, but of their fine patches."""
    lines = capsys.readouterr().out.splitlines()[1:]
    return [line for line in lines if not re.match("watched: |runs on |.*: patches of about", line)]


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


@pytest.mark.slow
def test_the_same_file_trains_fusion(own, tmp_path, capsys):
    assert run(own, tmp_path / "run", "--images", "4", preset="lite-fusion") == 0, capsys.readouterr().err
    provenance = load_bundle(tmp_path / "run" / "lite-fusion.safetensors").provenance
    assert provenance["data"] == "our town"
    assert provenance["sources"] == {"scenes": {"train": 2, "held-out": 1}}
    assert "20 m x2" in provenance["held_out"]
    assert [path.suffix for path in (tmp_path / "run" / "samples").iterdir()] == [".png"]


def test_what_a_preset_uses_and_ignores_is_listed(own, tmp_path, capsys):
    assert run(own, tmp_path / "run", "--dry-run") == 0
    assert listed(capsys) == [
        "orthos: 2 images to train on, 1 held out",
        "scenes: 2 images to train on, 1 held out",
    ]
    assert run(own, tmp_path / "run", "--dry-run", preset="lite-fusion") == 0
    assert listed(capsys) == [
        "scenes: 2 tiles to train on, 1 held out",
        "left aside, of no use for fusion: orthos (role hr)",
    ]


def test_images_that_are_too_small_to_train_on_are_counted(own, tmp_path, capsys):
    for number in range(2):
        left, top = corner_in("train", 3 + number)
        write_raster(tmp_path / "orthos" / f"small_{number}.tif", texture(100, 100), **placed(left, top, 0.5))
    assert run(own, tmp_path / "run", "--dry-run") == 0
    assert capsys.readouterr().out.splitlines()[1] == (
        "orthos: 4 images to train on (2 too small for 64 px at target_gsd_m), 1 held out"
    )


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
        ("[1.0, 1.4]", '[1.0, 1.4]\nsplit = "train"', "no image is held out to judge by"),
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


def test_an_image_in_both_splits_is_refused(own, tmp_path, capsys):
    photo, ground = tmp_path / "orthos" / "0.tif", "target_gsd_m = [1.0, 1.4]"
    again = f'\n[[source]]\nname = "judge"\nrole = "hr"\npath = "orthos/0.tif"\n{ground}\nsplit = "held-out"\n'
    own.write_text(TOML + again)
    assert run(own, tmp_path / "run", "--images", "8") == 2
    assert capsys.readouterr().err == (
        f"{own}: {photo} is to train on in source 'orthos' and held out in 'judge'; expected each image in one split; "
        "cure: take it out of one source, or state the same split in both\n"
    )
    own.write_text(TOML + again.replace("held-out", "train"))
    assert run(own, tmp_path / "run", "--dry-run") == 0


def test_a_scene_in_both_splits_of_fusion_is_refused(own, tmp_path, capsys):
    again = '\n[[source]]\nname = "judge"\nrole = "sentinel2"\npath = "scenes"\nsplit = "{}"\n'
    first = 'name = "scenes"\n'
    for split, leaks in (("held-out", True), ("train", False)):  # without the leak, none is left to judge by
        own.write_text(TOML.replace(first, f'{first}split = "train"\n') + again.format(split))
        assert run(own, tmp_path / "run", "--dry-run", preset="lite-fusion") == 2
        said = capsys.readouterr().err
        assert ("is to train on in source 'scenes' and held out in 'judge'" in said) == leaks


@pytest.mark.parametrize("preset", ["lite-fusion", "difffusr-fusion-small"])
def test_fusion_says_what_a_scene_needs(own, tmp_path, capsys, preset):
    own.write_text(TOML[: TOML.index('[[source]]\nname = "scenes"')])
    assert run(own, tmp_path / "run", "--images", "8", preset=preset) == 2
    assert capsys.readouterr().err == (
        f'{own}: no Sentinel-2 scene to train on; expected a source of role "sentinel2" with RGB and bands of 20 m, '
        "960 m a side or more, not held out\n"
    )


def test_a_folder_of_many_wrong_files_is_described_briefly(own, tmp_path, capsys):
    own.write_text(TOML.replace('path = "scenes"', 'path = "orthos"'))
    for number in range(12):
        write_raster(tmp_path / "orthos" / f"more_{number}.tif", texture(64, 64), **placed(600_000, 5_000_000, 0.5))
    assert run(own, tmp_path / "run", "--images", "8", preset="lite-fusion") == 2
    said = capsys.readouterr().err
    assert "holds no usable scene" in said
    assert " ...; expected Sentinel-2 L2A scenes; cure: bands = { B02 = 1, ... } where one file stacks them" in said
    assert len(said) < len(str(own)) + 500


@pytest.mark.parametrize("workers", ["0", "1"])
def test_an_unreadable_image_ends_the_run_before_writing(own, tmp_path, capsys, workers):
    for name in ("0", "1"):  # those to train on: cut short, with a header that can be read
        whole = (tmp_path / "orthos" / f"{name}.tif").read_bytes()
        (tmp_path / "orthos" / f"{name}.tif").write_bytes(whole[: len(whole) // 2])
    own.write_text(TOML[: TOML.index('[[source]]\nname = "scenes"')])
    assert run(own, tmp_path / "run", "--images", "8", "--workers", workers) == 5
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "orthos/" in line
    assert "cannot be read" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("workers", ["0", "2"])
def test_an_unreadable_image_is_left_out_and_named(own, tmp_path, capsys, workers):
    cut = tmp_path / "orthos" / "0.tif"
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    own.write_text(TOML[: TOML.index('[[source]]\nname = "scenes"')])
    assert run(own, tmp_path / "run", "--images", "16", "--workers", workers) == 0
    said = capsys.readouterr().out
    assert said.count("left out: ") == 1
    assert f"left out: {cut} cannot be read (" in said
    weights = next((tmp_path / "run").glob("*.safetensors"))
    assert load_bundle(weights).provenance["unreadable"] == [str(cut)]
    assert run(own, tmp_path / "other", "--images", "16", "--workers", workers, "--skip", "0") == 5
    assert "1 file cannot be read, among them" in capsys.readouterr().err


def test_an_unwritable_folder_is_refused_before_reading(own, tmp_path, capsys):
    own.unlink()
    (tmp_path / "taken").write_text("a file")
    assert run(own, tmp_path / "taken" / "run", "--images", "8") == 6
    assert "cannot be written" in capsys.readouterr().err


def test_one_place_alone_cannot_be_split(own, tmp_path, capsys):
    for name in ("1", "2"):
        (tmp_path / "orthos" / f"{name}.tif").unlink()
    own.write_text(TOML[: TOML.index('[[source]]\nname = "scenes"')])
    assert run(own, tmp_path / "run", "--images", "8") == 2
    said = capsys.readouterr().err
    assert "no image is held out to judge by; expected at least one, to watch training by; cure: more places" in said


def test_provenance_survives_json(own):
    from training.data.sources import load_training_file

    said = load_training_file(own).describe()
    assert json.loads(json.dumps(said)) == said
