"""The commands: a tiny run from files to a bundle that predicts, its resumption, and the report on shipped weights."""

import hashlib
import json
import os
import re
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.models.bundle import load_bundle, load_tensors
from pipeline.models.lite import LiteSuperResolver
from tests.training.tasks_for_tests import add_preset
from training import evaluate, registry, train
from training.data import tiles
from training.data.places import split_of
from training.data.sources import TrainingData, load_training_file, shipped_data
from training.data.training_file import TrainingFile
from training.degradation.degrade import Degradation
from training.loop.run import Budget, Run
from training.presets import Preset, Stage
from training.quality import cost, judge, pairs
from training.tasks.super_resolution import SENSOR, SuperResolution, sampler

WEIGHTS = Path(__file__).resolve().parents[2] / "pipeline" / "models" / "weights"
TINY = Preset(
    name="tiny-sr",
    task="lite-sr",
    architecture={"width": 8, "blocks": 1, "denoiser_width": 8, "denoiser_blocks": 1},
    stages=(Stage("mean", 0.5, ("encoder.", "mean_head.", "spread_head.")), Stage("detail", 0.5, ("denoiser.",))),
    minutes=1,
    batch=2,
    warmup_steps=2,
    sampler={"name": "ddim", "steps": 2},
    recipe=dict(SENSOR),
)

TOML = r"""
name = "towns"
licence = "the town"

[[source]]
name = "dubai_1m"
role = "hr"
path = "dubai_1m/*.jpg"
gsd_m = 1.0
place = '(tile\d+)'
"""


@pytest.fixture
def imagery(tmp_path, monkeypatch) -> Path:
    """A training file of two places, one in each split, and the tiny preset."""
    add_preset(monkeypatch, TINY)
    rng = np.random.default_rng(0)
    folder = tmp_path / "dubai_1m"
    folder.mkdir(parents=True)
    for tile in (1, 2):
        blocks = rng.integers(40, 200, (26, 26, 3)).astype(np.uint8)
        Image.fromarray(np.kron(blocks, np.ones((10, 10, 1), np.uint8))).save(folder / f"tile{tile}_part_001.jpg")
    assert {split_of("dubai_1m/tile1"), split_of("dubai_1m/tile2")} == {"train", "held-out"}
    file = tmp_path / "mine.toml"
    file.write_text(TOML)
    return file


def arguments(imagery, out, *more):
    return ["--preset", "tiny-sr", "--data", str(imagery), "--out", str(out), "--every", "1e9", *more]


def test_a_run_ends_with_a_bundle_that_says_where_it_comes_from(imagery, tmp_path, capsys):
    assert train.main(arguments(imagery, tmp_path / "run", "--images", "24", "--seed", "7")) == 0
    bundle = load_bundle(tmp_path / "run" / "tiny-sr.safetensors")
    said = capsys.readouterr().out
    assert bundle.digest in said
    assert f"held out: {bundle.provenance['held_out']}\n" in said
    assert (tmp_path / "run" / "samples").is_dir()
    assert bundle.provenance["images"] >= 24
    assert bundle.provenance["seed"] == 7
    assert bundle.provenance["data"] == "towns"
    assert bundle.provenance["sources"] == {"dubai_1m": {"train": 1, "held-out": 1}}
    assert bundle.provenance["data_digest"] == hashlib.sha256(imagery.read_bytes()).hexdigest()
    assert bundle.provenance["credits"] == "the town"
    system = LiteSuperResolver.from_bundle(bundle)
    assert bool((system.network.spread_head.weight != 0).any())
    assert torch.isfinite(system.sample(torch.full((1, 3, 12, 12), 0.1), torch.zeros(1, 3, 48, 48))).all()


def test_resuming_gives_the_same_weights(imagery, tmp_path):
    train.main(arguments(imagery, tmp_path / "whole", "--images", "24"))
    torch.manual_seed(0)
    task = train.make_task(TINY, load_training_file(imagery))
    Run(task, TINY, Budget(images=24), tmp_path / "part", seed=0).train(until_images=14, every_s=1e9)
    train.main(arguments(imagery, tmp_path / "part", "--images", "24", "--resume", str(tmp_path / "part")))
    bundles = [load_bundle(tmp_path / run / "tiny-sr.safetensors") for run in ("whole", "part")]
    systems = [LiteSuperResolver.from_bundle(bundle).network.state_dict() for bundle in bundles]
    assert all(torch.equal(systems[0][name], systems[1][name]) for name in systems[0])


def test_the_size_of_the_cache_changes_nothing_that_is_learned(imagery, tmp_path, monkeypatch):
    monkeypatch.setattr(tiles.CACHE, "limit_bytes", 1)
    made = []
    monkeypatch.setattr(train, "make_task", lambda preset, data: made.append(data) or SuperResolution(preset, data))
    weights = []
    for size in ("1", "0"):
        train.main(arguments(imagery, tmp_path / size, "--images", "16", "--cache-gb", size))
        weights.append(load_tensors(load_bundle(tmp_path / size / "tiny-sr.safetensors")))
        assert made[-1].hr_sampler().cache.limit_bytes == tiles.CACHE.limit_bytes == int(size) * 10**9
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_the_first_lines_say_how_it_computes(imagery, tmp_path, capsys):
    train.main(arguments(imagery, tmp_path / "run", "--dry-run"))
    assert "\nruns on cpu, batches made by the training process (--workers 0)\n" in capsys.readouterr().out
    train.main(arguments(imagery, tmp_path / "run", "--dry-run", "--workers", "2", "--channels-last"))
    said = "\nruns on cpu, batches made by 2 workers (--workers, started by fork), channels last\n"
    assert said in capsys.readouterr().out


def test_worker_processes_change_nothing(imagery, tmp_path):
    bundles = []
    for workers in "02":
        train.main(arguments(imagery, tmp_path / workers, "--images", "16", "--workers", workers))
        bundles.append(load_bundle(tmp_path / workers / "tiny-sr.safetensors"))
    systems = [LiteSuperResolver.from_bundle(bundle).network.state_dict() for bundle in bundles]
    assert all(torch.equal(systems[0][name], systems[1][name]) for name in systems[0])


def test_resume_keeps_the_seed_and_refuses_a_foreign_checkpoint(imagery, tmp_path, capsys):
    run = tmp_path / "run"
    train.main(arguments(imagery, run, "--images", "8", "--seed", "7"))
    assert train.main(arguments(imagery, run, "--images", "16", "--resume", str(run))) == 0
    assert load_bundle(run / "tiny-sr.safetensors").provenance["seed"] == 7
    (run / "checkpoint.pt").write_bytes(b"no checkpoint")
    capsys.readouterr()
    assert train.main(arguments(imagery, run, "--images", "16", "--resume", str(run))) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "is no readable checkpoint" in said


@pytest.mark.parametrize("wrong", ["none", "towns"])
def test_resuming_a_wrong_folder_is_refused_before_reading(imagery, tmp_path, capsys, monkeypatch, wrong):
    train.main(arguments(imagery, tmp_path / "towns", "--images", "8"))
    add_preset(monkeypatch, replace(TINY, name="other-sr"))
    capsys.readouterr()
    for more in ((), ("--dry-run",)):
        command = ["--preset", "other-sr", "--data", str(tmp_path / "none.toml"), "--resume", str(tmp_path / wrong)]
        assert train.main([*command, *more]) == 2
        said = capsys.readouterr()
        assert not said.out
        assert {"none": "no checkpoint.pt in", "towns": "is of preset tiny-sr"}[wrong] in said.err
        assert "cure" in said.err
    assert not (tmp_path / "none").exists()
    file = tmp_path / "towns" / "checkpoint.pt"
    assert train.main(["--preset", "tiny-sr", "--data", str(imagery), "--resume", str(file)]) == 2
    assert f"expected the folder of a run; cure: --resume {file.parent}" in capsys.readouterr().err


def test_the_list_shows_every_preset_and_needs_nothing_else(capsys):
    with pytest.raises(SystemExit) as ended:
        train.main(["--list"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out.splitlines()
    assert {line for line in shown if not line.startswith(" ")} == set(registry.presets())
    assert any(line.startswith("  batch = ") for line in shown)


@pytest.mark.parametrize("command", [train, evaluate])
def test_every_option_is_explained(command):
    assert all(action.help for action in command.parser()._actions)


def test_a_negative_seed_is_refused(imagery, tmp_path, capsys):
    with pytest.raises(SystemExit):
        train.main(arguments(imagery, tmp_path / "run", "--seed", "-1"))
    assert "-1 is negative" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options",
    [
        ("--images", "0"),
        ("--images", "-5"),
        ("--minutes", "0"),
        ("--minutes", "nan"),
        ("--minutes", "inf"),
        ("--threads", "0"),
        ("--every", "-1"),
        ("--every", "nan"),
    ],
)
def test_budgets_that_are_none_are_refused(imagery, tmp_path, capsys, options):
    with pytest.raises(SystemExit) as ended:
        train.main(["--preset", "tiny-sr", "--data", str(imagery), "--out", str(tmp_path / "run"), *options])
    assert ended.value.code == 2
    assert f"argument {options[0]}: {options[1]} is " in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_run_is_not_replaced_by_another(imagery, tmp_path, capsys):
    run = tmp_path / "run"
    assert train.main(arguments(imagery, run, "--images", "8")) == 0
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    capsys.readouterr()
    train.main(arguments(imagery, tmp_path / "other", "--images", "8"))
    for more in ((), ("--resume", str(tmp_path / "other"))):
        assert train.main(arguments(imagery, run, "--images", "16", *more)) == 2
        assert f"{run} holds a run already" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()} == before


def test_resume_stays_in_its_folder_and_a_dry_run_needs_none(imagery, tmp_path, capsys):
    run = tmp_path / "run"
    train.main(arguments(imagery, run, "--images", "8"))
    command = ["--preset", "tiny-sr", "--data", str(imagery)]
    assert train.main([*command, "--images", "16", "--resume", str(run)]) == 0
    assert load_bundle(run / "tiny-sr.safetensors").provenance["images"] >= 16
    assert train.main([*command, "--dry-run"]) == 0
    assert train.main([*command, "--images", "8"]) == 2
    assert "no --out; expected a folder" in capsys.readouterr().err


def test_a_resumed_run_says_what_one_may_not_expect(imagery, tmp_path, capsys):
    run = tmp_path / "run"
    train.main(arguments(imagery, run, "--images", "8"))
    first = hashlib.sha256(imagery.read_bytes()).hexdigest()
    assert load_bundle(run / "tiny-sr.safetensors").provenance["data_before"] == []
    images = load_bundle(run / "tiny-sr.safetensors").provenance["images"]
    capsys.readouterr()
    assert train.main(arguments(imagery, run, "--images", "8", "--resume", str(run))) == 0
    said = capsys.readouterr().out
    assert re.search(rf"goes on from {re.escape(str(run))}: {images} images in \d+\.\d minutes\n", said)
    assert "the budget is already spent: 8 images in all" in said
    assert "has changed since" not in said
    imagery.write_text(TOML.replace("towns", "other towns"))
    for more, before in (("24", [first]), ("40", [first])):
        assert train.main(arguments(imagery, run, "--images", more, "--resume", str(run))) == 0
        said = capsys.readouterr().out
        assert "already spent" not in said
        changed = f"{imagery} has changed since the run began: it may have been trained on places that are now held out"
        assert changed in said
        assert load_bundle(run / "tiny-sr.safetensors").provenance["data_before"] == before


def test_a_resumed_run_keeps_its_budget(imagery, tmp_path, capsys):
    torch.manual_seed(0)
    task = train.make_task(TINY, load_training_file(imagery))
    Run(task, TINY, Budget(images=24), tmp_path / "run", seed=0).train(until_images=14, every_s=1e9)
    capsys.readouterr()
    assert train.main(arguments(imagery, tmp_path / "run", "--resume", str(tmp_path / "run"))) == 0
    assert "its budget was" not in capsys.readouterr().out
    assert load_bundle(tmp_path / "run" / "tiny-sr.safetensors").provenance["images"] == 24


@pytest.mark.parametrize(
    "spelled",
    ["training/shipped_weights.toml", "training/../training/shipped_weights.toml", "training/shipped_sgdm.toml"],
)
def test_only_weights_of_our_own_data_have_our_licence(imagery, monkeypatch, spelled):
    monkeypatch.chdir(WEIGHTS.parents[2])
    ours = TrainingData(TrainingFile(Path(spelled), "shipped weights", "", "", ()))
    assert train.licence_of("", ours) == "MIT"
    assert train.licence_of("CC-BY-4.0", ours) == "CC-BY-4.0"
    assert train.licence_of("", load_training_file(imagery)) == ""
    # which weights of before have provenance without places is known of the file of 2.5 m alone
    assert ours.is_shipped == (Path(spelled).name == "shipped_weights.toml")


def test_a_finished_run_is_extended_stage_by_stage(imagery, tmp_path, capsys):
    run = tmp_path / "run"
    train.main(arguments(imagery, run, "--images", "8"))
    capsys.readouterr()
    assert train.main(arguments(imagery, run, "--images", "20", "--resume", str(run))) == 0
    assert (
        "its budget was 8 images and is 20 images now: all stages begin anew from the averaged weights, with warm-up "
        "and the preset's rates (mean from 8 to 14, detail from 14 to 20 images)"
    ) in capsys.readouterr().out
    provenance = load_bundle(run / "tiny-sr.safetensors").provenance
    assert [one["stage"] for one in provenance["trained"]] == ["mean", "detail"] * 2
    assert "untrained" not in provenance


def test_unfinished_weights_say_so_in_name_and_metadata(imagery, tmp_path, capsys):
    run = tmp_path / "run"
    assert train.main(arguments(imagery, run, "--images", "2")) == 0
    assert not (run / "tiny-sr.safetensors").exists()
    assert load_bundle(run / "tiny-sr.unfinished.safetensors").provenance["untrained"] == ["detail"]
    assert (
        f"these weights are unfinished: the budget ended before detail; give more with --resume {run}"
        in capsys.readouterr().out
    )
    assert train.main(arguments(imagery, run, "--images", "8", "--resume", str(run))) == 0
    assert [path.name for path in run.glob("*.safetensors")] == ["tiny-sr.safetensors"]


@pytest.mark.slow
def test_evaluation_labels_places_that_were_trained_on(imagery, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(judge, "WINDOW_PX", 64)
    train.main(arguments(imagery, tmp_path / "run", "--images", "8"))
    other = tmp_path / "other.toml"
    other.write_text(TOML.replace("gsd_m = 1.0", 'gsd_m = 1.0\nsplit = "held-out"'))
    for on, leaks in ((imagery, False), (other, True)):
        capsys.readouterr()
        assert evaluate.main([str(tmp_path / "run"), "--on", str(on), "--only", "images"]) == 0
        said = capsys.readouterr().out
        assert ("**Not held out: 1 of these 2 images show places that the weights were trained on**" in said) == leaks
        assert ("PSNR on places, some trained on" in said) == leaks
        assert ("PSNR on held-out places" in said) != leaks


def test_another_number_of_processes_is_said(imagery, tmp_path, capsys):
    run = tmp_path / "run"
    train.main(arguments(imagery, run, "--images", "8"))
    content = torch.load(run / "checkpoint.pt", weights_only=True)
    torch.save({**content, "processes": 4}, run / "checkpoint.pt")
    assert train.main(arguments(imagery, run, "--resume", str(run))) == 0
    assert "every step takes 2 images, before it took 8: another number of processes" in capsys.readouterr().out


@pytest.mark.parametrize("signalled", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_writes_a_checkpoint_and_says_how_to_go_on(imagery, tmp_path, capsys, monkeypatch, signalled):
    def loss(task, stage, batch, draw):
        os.kill(os.getpid(), signalled)
        return learn(task, stage, batch, draw)

    learn, run, before = SuperResolution.loss, tmp_path / "run", signal.getsignal(signalled)
    with monkeypatch.context() as patch:
        patch.setattr(SuperResolution, "loss", loss)
        assert train.main(arguments(imagery, run, "--images", "64")) == 75
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("stopped after step 1, ")
    assert line.endswith(f"cure: the same command with --resume {run} goes on there")
    assert {path.name for path in run.iterdir()} == {"checkpoint.pt", "log.csv"}
    assert train.main(arguments(imagery, run, "--images", "64", "--resume", str(run))) == 0
    assert signal.getsignal(signalled) == before


def test_ctrl_c_before_the_first_step_leaves_nothing(imagery, tmp_path, capsys, monkeypatch):
    def interrupted(*given):
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "make_task", interrupted)
    assert train.main(arguments(imagery, tmp_path / "run", "--images", "8")) == 130
    assert capsys.readouterr().err == "stopped at once; what a checkpoint holds is kept\n"
    assert not (tmp_path / "run").exists()


def test_a_device_that_is_not_there_is_said_in_one_line(imagery, tmp_path, capsys):
    assert train.main(arguments(imagery, tmp_path / "run", "--device", "banana")) == 2
    assert capsys.readouterr().err == "--device banana; expected cpu, cuda, cuda:1 ...\n"


def test_dry_run_trains_nothing(imagery, tmp_path, capsys):
    assert train.main(arguments(imagery, tmp_path / "run", "--dry-run")) == 0
    assert "M parameters" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


def test_a_run_can_start_from_a_bundle(imagery, tmp_path):
    train.main(arguments(imagery, tmp_path / "a", "--images", "8"))
    first = tmp_path / "a" / "tiny-sr.safetensors"
    train.main(arguments(imagery, tmp_path / "b", "--images", "8", "--init", str(first)))
    second = load_bundle(tmp_path / "b" / "tiny-sr.safetensors")
    assert second.provenance["started_from"] == load_bundle(first).digest


def test_trained_weights_are_trained_on_gently_unless_told_otherwise(imagery, tmp_path, capsys):
    """At 0.3 of the rates by default; a resumed run keeps what it had, and equals one that was not stopped."""
    assert train.main(arguments(imagery, tmp_path / "a", "--images", "8")) == 0
    init = ("--init", str(tmp_path / "a" / "tiny-sr.safetensors"))
    factors = {}
    for name, more in (("default", ()), ("own", ("--rate", "1")), ("exact", ("--rate", "0.3"))):
        capsys.readouterr()
        assert train.main(arguments(imagery, tmp_path / name, "--images", "16", *init, *more)) == 0
        factors[name] = "learning rates are 0.3 of the preset's" in capsys.readouterr().out
    assert factors == {"default": True, "own": False, "exact": True}
    digests = {name: load_bundle(tmp_path / name / "tiny-sr.safetensors").digest for name in factors}
    weights = {name: load_tensors(load_bundle(tmp_path / name / "tiny-sr.safetensors")) for name in factors}
    assert digests["default"] != digests["own"]
    assert all(torch.equal(tensor, weights["exact"][name]) for name, tensor in weights["default"].items())
    part = ("--images", "8", *init)
    assert train.main(arguments(imagery, tmp_path / "part", *part)) == 0
    again = arguments(imagery, tmp_path / "part", "--images", "16", "--resume", str(tmp_path / "part"))
    assert train.main([*again]) == 0, capsys.readouterr().err
    assert "learning rates are 0.3 of the preset's" in capsys.readouterr().out


def test_resume_keeps_the_provenance_of_initial_weights(imagery, tmp_path, capsys, monkeypatch):
    def loss(task, stage, batch, draw):
        os.kill(os.getpid(), signal.SIGTERM)
        return learn(task, stage, batch, draw)

    train.main(arguments(imagery, tmp_path / "first", "--images", "8"))
    first, run, learn = tmp_path / "first" / "tiny-sr.safetensors", tmp_path / "second", SuperResolution.loss
    with monkeypatch.context() as patch:
        patch.setattr(SuperResolution, "loss", loss)
        assert train.main(arguments(imagery, run, "--images", "8", "--init", str(first))) == 75
    assert f"with --resume {run} instead of --init goes on there" in capsys.readouterr().err
    assert train.main(arguments(imagery, run, "--images", "8", "--resume", str(run))) == 0
    assert load_bundle(run / "tiny-sr.safetensors").provenance["started_from"] == load_bundle(first).digest


def test_a_checkpoint_without_recipe_settings_is_resumed(imagery, tmp_path, monkeypatch):
    """Those settings were constants then, of the same values; other values are another run."""
    run = tmp_path / "run"
    train.main(arguments(imagery, run, "--images", "8"))
    content = torch.load(run / "checkpoint.pt", weights_only=True)
    config = json.loads(content["config"])
    assert config.pop("recipe") == SENSOR
    torch.save({**content, "config": json.dumps({**config, "recipe": {}})}, run / "checkpoint.pt")
    again = ("--images", "16", "--resume", str(run))
    assert train.main(arguments(imagery, run, "--recipe", "bicubic=0.5", *again)) == 2
    assert train.main(arguments(imagery, run, *again)) == 0


def test_initial_weights_that_do_not_fit_are_refused_first(imagery, tmp_path, capsys, monkeypatch):
    train.main(arguments(imagery, tmp_path / "run", "--images", "8"))
    tiny, fusion = tmp_path / "run" / "tiny-sr.safetensors", WEIGHTS / "lite-fusion.safetensors"
    wide = replace(TINY, name="wide-sr", architecture={**TINY.architecture, "width": 16})
    add_preset(monkeypatch, wide)
    for preset, init, said in (
        (
            "tiny-sr",
            fusion,
            f"--init {fusion} holds lite-fusion; expected lite-sr, as tiny-sr trains; "
            "cure: --preset lite-fusion, or other weights",
        ),
        (
            "wide-sr",
            tiny,
            f"--init {tiny} has width = 8; expected 16, as wide-sr has; cure: --preset tiny-sr, or other weights",
        ),
        (
            "tiny-sr",
            tiny.parent,
            f"--init {tiny.parent} is a folder; expected weights of lite-sr (.safetensors); cure: --init {tiny}",
        ),
        (
            "tiny-sr",
            imagery / "x",
            f"--init {imagery / 'x'} does not exist; expected weights of lite-sr (.safetensors)",
        ),
    ):
        capsys.readouterr()
        command = ["--preset", preset, "--data", str(tmp_path / "none.toml"), "--out", str(tmp_path / "new")]
        assert train.main([*command, "--init", str(init)]) == 2
        assert capsys.readouterr().err == said + "\n"
    assert not (tmp_path / "new").exists()


def test_every_preset_knows_what_its_bundles_call_themselves(imagery):
    for preset in registry.presets().values():
        assert registry.task_of(preset).kind in {
            "lite-sr", "lite-fusion", "difffusr-sr", "difffusr-fusion", "wavediffur-sr", "ldsr-autoencoder", "ldsr",
            "fusion-x2", "fusion-x4", "sgdm-prior", "sgdm", "sgdm-style",
        }  # fmt: skip
        assert ("fusion" in registry.task_of(preset).kind) == (registry.task_of(preset).use == "fusion")


def test_a_folder_of_images_is_no_training_file(imagery, tmp_path, capsys):
    folder = imagery.parent / "dubai_1m"
    assert train.main(["--preset", "tiny-sr", "--data", str(folder), "--out", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err == (
        f"{folder} is a folder without hr, hr_more, s2_l2a; expected a training file, or the root of the imagery of "
        f'the shipped weights; cure: write a training file whose source has path = "{folder}", as in '
        "training/example.toml\n"
    )


def test_missing_imagery_is_said_in_one_line(tmp_path, capsys):
    assert train.main(["--preset", "lite-sr", "--data", str(tmp_path / "none"), "--out", str(tmp_path / "run")]) == 2
    assert "cure" in capsys.readouterr().err


def test_presets_spend_their_whole_budget():
    for preset in registry.presets().values():
        assert sum(stage.share for stage in preset.stages) == pytest.approx(1.0)


@pytest.mark.slow
def test_the_report_puts_all_methods_on_the_same_pixels(imagery, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cost, "SIDE_60M_PX", 16)  # ground on which whole systems are timed
    train.main(arguments(imagery, tmp_path / "run", "--images", "8"))
    capsys.readouterr()
    out = tmp_path / "report.md"
    assert evaluate.main([str(tmp_path / "run"), "--on", str(imagery), "--out", str(out)]) == 0
    report = out.read_text()
    assert report.strip() == capsys.readouterr().out.strip()
    assert "| dubai_1m (1) |" in report
    assert "mean of 8" in report


@pytest.mark.slow
@pytest.mark.shared_data
def test_shipped_weights_beat_back_projection_on_held_out_places(shared_data):
    """A few places of every kind; the model card has them all."""
    system = LiteSuperResolver.from_bundle(load_bundle(WEIGHTS / "lite-sr.safetensors"))
    chosen = ("naip_2m", "naip_midwest_1m", "naip_iowa_1m")
    chips = [chip for chip in shipped_data(shared_data).held_out_chips() if chip.source in chosen]
    held_out = pairs.held_out_pairs(chips, Degradation(), per_set=2)
    gains = [
        pairs.score(pairs.members_mean(sampler(system), pair, 8), pair) - ibp
        for pair, ibp in zip(held_out, pairs.ibp_scores(held_out), strict=True)
    ]
    per_set = pairs.per_set_mean(held_out, gains)
    assert min(per_set.values()) > 0
    assert pairs.average(per_set) > 0.8


def test_shipped_weights_are_small():
    files = list(WEIGHTS.glob("*.safetensors"))
    fusions = {"lite-fusion", "fusion-x2", "fusion-x4"}
    guided = {"sgdm", "sgdm-prior", "sgdm-style"}
    assert {path.stem for path in files} == {"lite-sr", "wavediffur-sr", "ldsr", *fusions, *guided}
    assert sum(path.stat().st_size for path in files) < 48e6
    assert sum(path.stat().st_size for path in files if path.stem in guided) < 20e6
    for path in files:
        bundle = load_bundle(path)
        assert bundle.licence
        windows = {"fusion-x2": 120, "sgdm": 256, "sgdm-prior": 256, "sgdm-style": 256}
        assert bundle.lattice.window_px in (480, windows.get(bundle.system, 512))
