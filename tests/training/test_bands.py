"""A task of four bands: trained by the command, its weights run and judged in the pipeline."""

import re

import numpy as np
import pytest
import torch

from pipeline.bands import BAND_NAMES
from pipeline.errors import UsageError
from pipeline.models.bundle import Bundle, LatticeSpec, load_bundle, load_tensors
from pipeline.superres import registry as systems
from pipeline.superres.system import load
from pipeline.superres.systems import lite
from pipeline.superres.weights import choose
from tests.toys import trained_rgbn
from tests.training.imagery import corner_in, placed, write_raster, write_toml
from tests.training.tasks_for_tests import add_task
from training import evaluate, train
from training.loop.lineage import weights_digest

SOURCE = '[[source]]\nname = "{name}"\nrole = "hr"\npath = "{name}"\ntarget_gsd_m = [1.0, 1.2]\n'
RGBN = SOURCE.format(name="rgbn") + 'bands = ["B02", "B03", "B04", "B08"]\n'


@pytest.fixture(autouse=True)
def toys(monkeypatch):
    """The system and the tasks are known while a test runs."""
    monkeypatch.setitem(systems._REGISTERED, trained_rgbn.SYSTEM.name, trained_rgbn.SYSTEM)
    add_task(monkeypatch, trained_rgbn.TASK)
    add_task(monkeypatch, trained_rgbn.GOES_ON)


def photograph(seed, bands, side=320):
    """8-bit discs on a slope: edges in all bands, of another contrast in each."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side]
    pattern = 90 + 40 * x / side
    for _ in range(60):
        row, col, radius = rng.integers(side), rng.integers(side), rng.integers(4, 24)
        pattern[(y - row) ** 2 + (x - col) ** 2 < radius**2] += rng.integers(-60, 80)
    gains = np.linspace(0.7, 1.2, bands)[:, None, None]
    return np.clip(gains * pattern, 5, 250).astype(np.uint8)


@pytest.fixture
def imagery(tmp_path):
    """Photographs of 0.5 m in four bands, and some of three colours, in cells of both splits."""
    for number, split in enumerate(("train", "train", "held-out")):
        left, top = corner_in(split, number)
        for name, bands in (("rgbn", 4), ("colours", 3)):
            ground = placed(left + 1000, top - 1000, 0.5)
            write_raster(tmp_path / name / f"{number}.tif", photograph(number, bands), **ground)
    return tmp_path


def run(file, out, *more, task="toy-rgbn"):
    return train.main(["--task", task, "--data", str(file), "--out", str(out), "--every", "1e9", *more])


def gain(bundle):
    return float(re.match(r"([\d.]+) dB", bundle.provenance["held_out"])[1])


def listed(capsys) -> list[str]:
    """What is said of the sources, but of their fine patches."""
    lines = capsys.readouterr().out.splitlines()[1:]
    return [line for line in lines if not re.match("watched: |runs on |.*: patches of about", line)]


def test_four_bands_are_learned_and_judged_in_the_pipeline(imagery, tmp_path, capsys):
    file = write_toml(imagery, RGBN)
    assert run(file, tmp_path / "none", "--images", "1") == 0
    assert run(file, tmp_path / "run", "--images", "480") == 0, capsys.readouterr().err
    before, bundle = (load_bundle(tmp_path / run / "toy-rgbn.safetensors") for run in ("none", "run"))
    assert gain(bundle) > gain(before) + 0.3
    assert "B08=" in capsys.readouterr().out
    system = load(choose("toy-trained-rgbn", (bundle.path,)), "cpu")
    assert system.stages[0].gives == ("B02", "B03", "B04", "B08")

    out = tmp_path / "table.md"
    assert evaluate.main([bundle.path, "--on", str(file), "--only", "images", "--out", str(out)]) == 0
    report = out.read_text()
    assert "| stored toy-trained-rgbn: mean, sensor |" in report
    assert "| rgbn (1) |" in report
    assert "sample, sensor" not in report  # nothing is drawn
    assert "no sampler, seed 0" in report
    table = report[report.index("| method |") :].split("\n\n")[0]  # the first: PSNR
    scores = {row.split("|")[1].strip(): float(row.split("|")[2]) for row in table.splitlines()[2:]}
    assert scores["toy-trained-rgbn, network alone"] > scores["bicubic"] + 0.3


def test_a_resumed_run_of_four_bands_equals_an_unstopped_one(imagery, tmp_path, monkeypatch):
    from training.loop.run import Run

    file, go_on = write_toml(imagery, RGBN), Run.train
    assert run(file, tmp_path / "whole", "--images", "40") == 0
    with monkeypatch.context() as patch:
        patch.setattr(Run, "train", lambda self, **words: go_on(self, **words, until_images=16))
        patch.setattr(train, "write_bundle", lambda *given: "stopped early")
        assert run(file, tmp_path / "part", "--images", "40") == 0
    assert run(file, tmp_path / "part", "--images", "40", "--resume", str(tmp_path / "part"), "--workers", "1") == 0
    whole, part = (load_bundle(tmp_path / name / "toy-rgbn.safetensors") for name in ("whole", "part"))
    assert whole.provenance["trained"] == part.provenance["trained"]
    assert weights_digest(load_tensors(whole)) == weights_digest(load_tensors(part))


def test_sources_that_lack_a_band_are_left_aside_and_said(imagery, tmp_path, capsys):
    file = write_toml(imagery, RGBN + SOURCE.format(name="colours"))
    assert run(file, tmp_path / "run", "--dry-run") == 0
    assert listed(capsys) == [
        "rgbn: 2 images to train on, 1 held out",
        "left aside, of no use for super-resolution: colours (no image with B02, B03, B04, B08)",
    ]
    assert train.main(["--preset", "lite-sr", "--data", str(file), "--dry-run"]) == 0  # three of four bands will do
    assert listed(capsys) == [
        "rgbn: 2 images to train on, 1 held out",
        "colours: 2 images to train on, 1 held out",
    ]


def test_a_file_whose_sources_all_lack_a_band_is_refused(imagery, tmp_path, capsys):
    file = write_toml(imagery, SOURCE.format(name="colours"))
    assert run(file, tmp_path / "run") == 2
    assert capsys.readouterr().err == (
        f"{file}: no source has B02, B03, B04, B08: colours has B04, B03, B02; expected at least one that has them; "
        'cure: name all bands of its files in their order, such as bands = ["B02", "B03", "B04", "B08"]\n'
    )
    assert not (tmp_path / "run").exists()


def test_a_task_goes_on_from_weights_of_another_kind(imagery, tmp_path, capsys):
    file = write_toml(imagery, RGBN)
    assert run(file, tmp_path / "next", "--images", "8", task="toy-rgbn-on") == 2
    assert capsys.readouterr().err == (
        "toy-rgbn-on without --init; expected weights of toy-rgbn-sr to begin from; "
        "cure: train them first (--task toy-rgbn) and give them with --init\n"
    )
    assert run(file, tmp_path / "run", "--images", "8") == 0
    first = load_bundle(tmp_path / "run" / "toy-rgbn.safetensors")
    assert run(file, tmp_path / "next", "--images", "8", "--init", first.path, task="toy-rgbn-on") == 0
    second = load_bundle(tmp_path / "next" / "toy-rgbn-on.safetensors")
    assert second.system == trained_rgbn.NEXT
    earlier, later = second.provenance["trained"]
    assert [earlier] == first.provenance["trained"]
    assert (later["bundle"], later["began_with"]) == (first.digest, earlier["ended_with"])
    assert later["ended_with"] == weights_digest(load_tensors(second))
    assert not torch.equal(*(load_tensors(bundle)["correction.weight"] for bundle in (first, second)))


def test_patches_unlike_the_networks_use_are_said(imagery, tmp_path, capsys):
    file = write_toml(imagery, RGBN)
    assert run(file, tmp_path / "run", "--dry-run") == 0
    said = "rgbn: patches of about 1.1 m train a network whose output has 2.5 m; target_gsd_m = 2.5"
    assert said in capsys.readouterr().out


SHAPES = {"RGBN x4": ("B04,B03,B02,B08", 4), "RGB x2": ("B04,B03,B02", 2), "RGB x8": ("B02,B04,B03", 8)}
SMALL = ("width=8", "blocks=1", "denoiser_width=8", "denoiser_blocks=1", "crop=64", "batch=2", "warmup=2")
OWN = SOURCE.format(name="rgbn").replace("target_gsd_m = [1.0, 1.2]\n", "") + 'bands = ["B02", "B03", "B04", "B08"]\n'


@pytest.fixture
def wide(tmp_path):
    """Photographs of 1 m, wide enough for patches of 5 m, in cells of both splits."""
    for number, split in enumerate(("train", "train", "held-out")):
        left, top = corner_in(split, number)
        write_raster(tmp_path / "rgbn" / f"{number}.tif", photograph(number, 4, 480), **placed(left, top, 1.0))
    return tmp_path


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_bands_and_scale_are_settings_of_a_preset(shape, wide, tmp_path, capsys):
    """Trained, resumed, judged at its own scale, and run in the pipeline by its weights alone."""
    bands, scale = SHAPES[shape]
    file, out, weights = write_toml(wide, OWN), tmp_path / "run", tmp_path / "run" / "lite-sr.safetensors"
    settings = [f"--set={text}" for text in (*SMALL, f"bands={bands}", f"scale={scale}")]
    command = ["--preset", "lite-sr", "--data", str(file), "--every", "1e9", *settings]
    assert train.main([*command, "--out", str(out), "--images", "8"]) == 0, capsys.readouterr().err
    bundle = load_bundle(weights)
    assert (bundle.in_bands, bundle.scale) == (tuple(bands.split(",")), scale)
    assert train.main([*command, "--resume", str(out), "--images", "12"]) == 0, capsys.readouterr().err
    capsys.readouterr()
    plain = ["--preset", "lite-sr", "--data", str(file), "--out", str(tmp_path / "other"), "--dry-run"]
    assert train.main([*plain, "--init", str(weights)]) == 2
    assert f"--set scale={scale} --set bands={bands}" in capsys.readouterr().err
    assert train.main([*plain, *settings, "--init", str(weights)]) == 0

    stages = load(choose("lite", (str(weights),)), "cpu").stages
    assert set(stages[0].gives) == set(bundle.in_bands)
    assert stages[0].gsd_m == min(2.5, 10 / scale)
    assert not set(stages[0].gives) & set(stages[1].gives)
    assert {*stages[0].gives, *stages[1].gives} == {band for band in BAND_NAMES if band != "B10"}

    table = tmp_path / "table.md"
    few = ("--members", "2")
    assert evaluate.main([str(out), "--on", str(file), "--only", "images", *few, "--out", str(table)]) == 0
    report = table.read_text()
    assert f"x{scale} of {', '.join(bundle.in_bands)}; lite-sr" in report
    assert f"scale={scale})" in report


@pytest.mark.parametrize(
    ("bands", "scale", "said"),
    [
        (("B08",), 4, "which guide the other bands"),
        (("B04", "B03", "B02", "B05"), 4, "no band but those of 10 m"),
        (("B04", "B03", "B02"), 3, "x2, x4, x8"),
    ],
)
def test_weights_that_cannot_begin_the_chain_are_refused(bands, scale, said):
    bundle = Bundle("lite-sr", {}, bands, bands, scale, LatticeSpec(480, 384, 48, 24), path="mine.safetensors")
    with pytest.raises(UsageError) as caught:
        lite.stages({"sr": bundle, "fusion": bundle}, {})
    assert said in str(caught.value)
    assert "mine.safetensors" in str(caught.value)
