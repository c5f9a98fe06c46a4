"""Training in stages: in order, resumed exactly, recorded, and refused where files or settings have changed."""

import json
import os
import signal
from dataclasses import replace

import pytest

from pipeline.bands import RGB, bands_at
from pipeline.models.bundle import load_bundle, load_tensors
from tests.training.latent_for_tests import AUTOENCODER, UNET, write_images
from tests.training.tasks_for_tests import add_preset
from training import staged
from training.loop.lineage import weights_digest
from training.loop.run import Run
from training.stage_record import RECORD, digest_of

NAMES = ["natural", "degraded", "aerial"]
PRESET = replace(AUTOENCODER, ema=0.9)


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Training files of the three stages: natural images have colours only."""
    add_preset(monkeypatch, PRESET)
    add_preset(monkeypatch, UNET)
    return {
        "natural": write_images(tmp_path, "photos", RGB, seed=1),
        "degraded": write_images(tmp_path, "sentinel", seed=2),
        "aerial": write_images(tmp_path, "naip", seed=3),
    }


def command(files, out, *more, images="16", preset="ldsr-autoencoder"):
    stages = [word for name, file in files.items() for word in ("--stage", f"{name}={file}")]
    return ["--preset", preset, *stages, "--images", images, "--out", str(out), "--every", "1e9", *more]


def refused(capsys, words):
    capsys.readouterr()
    assert staged.main(words) == 2
    return capsys.readouterr().err


def test_three_stages_run_in_order_and_the_last_weights_tell_it(files, tmp_path, capsys):
    out = tmp_path / "run"
    assert staged.main(command(files, out, images="16,12,8")) == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    assert [line for line in said.splitlines() if line.startswith("stage ")] == [
        f"stage {number} of 3, {name}: {out / f'{number}-{name}'}" for number, name in enumerate(NAMES, 1)
    ]
    last = load_bundle(out / "ldsr-autoencoder.safetensors")
    chain = last.provenance["trained"]
    assert [stage["data_stage"] for stage in chain] == NAMES
    assert [stage["data"] for stage in chain] == [digest_of(file) for file in files.values()]
    assert [stage["end_image"] for stage in chain] == [16, 12, 8]
    assert [later["began_with"] for later in chain[1:]] == [earlier["ended_with"] for earlier in chain[:-1]]
    assert chain[-1]["ended_with"] == weights_digest(load_tensors(last))
    assert last.provenance["recipe"]["other_bands"] == 0.0

    recorded = json.loads((out / RECORD).read_text())["stages"]
    bundles = [load_bundle(out / f"{n}-{name}" / "ldsr-autoencoder.safetensors") for n, name in enumerate(NAMES, 1)]
    assert [stage["weights"] for stage in recorded] == [bundle.digest for bundle in bundles]
    assert [stage["bundle"] for stage in chain] == ["", bundles[0].digest, bundles[1].digest]
    assert last.digest == bundles[2].digest
    assert [stage["settings"]["recipe"]["other_bands"] for stage in recorded] == [1.0, 0.0, 0.0]
    assert [stage["rate"] for stage in recorded] == [1.0, 1.0, 1.0]
    assert [stage["settings"]["stages"][0]["learning_rate"] for stage in recorded] == [1.5e-3] * 3


def interrupting(monkeypatch, stage, after):
    """Send SIGTERM after so many images of a stage."""
    enter = Run._step

    def step(self, feed):
        enter(self, feed)
        if self.data_stage == stage and self.at.images == after:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Run, "_step", step)


def test_an_interrupted_stage_is_resumed_to_the_same_weights(files, tmp_path, capsys, monkeypatch):
    assert staged.main(command(files, tmp_path / "whole")) == 0
    words = command(files, tmp_path / "part")
    with monkeypatch.context() as patch:
        interrupting(patch, "degraded", 6)
        assert staged.main(words) == 75
    error = capsys.readouterr().err
    assert error.startswith("stage degraded stopped after step 4, 8 images")
    assert error.endswith("cure: the same command goes on there\n")
    assert not (tmp_path / "part" / "3-aerial").exists()
    assert not (tmp_path / "part" / "ldsr-autoencoder.safetensors").exists()
    first = (tmp_path / "part" / "1-natural" / "ldsr-autoencoder.safetensors").stat().st_mtime_ns
    assert staged.main(words) == 0
    assert "stage 1 of 3, natural: finished before\n" in capsys.readouterr().out
    assert (tmp_path / "part" / "1-natural" / "ldsr-autoencoder.safetensors").stat().st_mtime_ns == first
    whole, part = (load_bundle(tmp_path / name / "ldsr-autoencoder.safetensors") for name in ("whole", "part"))
    assert weights_digest(load_tensors(whole)) == weights_digest(load_tensors(part))
    ends = [[stage["ended_with"] for stage in bundle.provenance["trained"]] for bundle in (whole, part)]
    assert ends[0] == ends[1]
    assert staged.main(words) == 0  # all have finished
    assert capsys.readouterr().out.count("finished before\n") == 3


def test_what_a_task_keeps_beside_its_network_goes_on(files, tmp_path, monkeypatch):
    begun, ended, enter = {}, {}, Run.train

    def observed(self, **words):
        weight = self.task.companion.divergence.get_buffer("weight")
        begun[self.data_stage] = weight.item()
        enter(self, **words)
        ended[self.data_stage] = weight.item()

    monkeypatch.setattr(Run, "train", observed)
    assert staged.main(command(files, tmp_path / "run")) == 0
    assert begun["natural"] == pytest.approx(1e-6)
    assert [begun[name] for name in NAMES[1:]] == [ended[name] for name in NAMES[:-1]]
    assert ended["natural"] != begun["natural"]


@pytest.fixture
def begun(files, tmp_path, monkeypatch):
    """A training that has ended its first stage: its folder."""
    with monkeypatch.context() as patch:
        interrupting(patch, "degraded", 4)
        assert staged.main(command(files, tmp_path / "run", images="4,8,4")) == 75
    return tmp_path / "run"


def test_changes_are_refused(files, begun, capsys):
    words = command(files, begun, images="4,8,4")
    record = begun / RECORD
    cure = "cure: the files, settings and order of before, or another --out\n"
    assert refused(capsys, [*words, "--set", "aerial:kl=1e-5"]) == (
        f"{record}: stage aerial began with settings.recipe.kl = 1e-06; expected 1e-05 as now; {cure}"
    )
    assert refused(capsys, command(files, begun, images="4,8,12")) == (
        f"{record}: stage aerial began with budget.images = 4; expected 12 as now; {cure}"
    )
    swapped = {name: files[name] for name in ("natural", "aerial", "degraded")}
    assert refused(capsys, command(swapped, begun, images="4,8,4")) == (
        f"{record} has the stages natural, degraded, aerial; expected natural, aerial, degraded as now, or fewer of "
        f"them; {cure}"
    )
    before = digest_of(files["natural"])
    files["natural"].write_text(files["natural"].read_text() + "# changed\n")
    assert refused(capsys, words) == (
        f"{record}: stage natural began with data = {before}; expected {digest_of(files['natural'])} as now; {cure}"
    )
    record.write_text("{}")
    assert refused(capsys, words).startswith(f"{record} is no readable record ('format_version')")


def test_files_that_settings_name_are_recorded(files, tmp_path):
    path = tmp_path / "harmoniser.json"
    path.write_text("{}")
    words = command(files, tmp_path / "run", "--set", f"aerial:harmoniser={path}")
    stages = [staged.described(stage) for stage in staged.stages_of(staged.parser().parse_args(words))]
    assert [stage.files for stage in stages] == [{}, {}, {"harmoniser": digest_of(path)}]


def test_weights_of_a_finished_stage_that_have_changed_are_refused(files, begun, capsys):
    weights = begun / "1-natural" / "ldsr-autoencoder.safetensors"
    weights.write_bytes(weights.read_bytes() + b"x")
    capsys.readouterr()
    assert staged.main(command(files, begun, images="4,8,4")) == 7
    assert f"{weights} of stage natural is {digest_of(weights)}" in capsys.readouterr().err


def test_further_stages_can_follow(files, begun):
    assert staged.main(command(files, begun, images="4,8,4")) == 0
    more = {**files, "fine": files["aerial"]}
    assert staged.main(command(more, begun, images="4,8,4,4")) == 0
    last = load_bundle(begun / "ldsr-autoencoder.safetensors")
    assert [stage["data_stage"] for stage in last.provenance["trained"]] == [*NAMES, "fine"]


def test_built_in_settings_give_way(files, tmp_path):
    def shares(*words):
        args = staged.parser().parse_args(command(files, tmp_path / "x", *words))
        return [staged.described(stage).settings["recipe"]["other_bands"] for stage in staged.stages_of(args)]

    assert shares() == [1.0, 0.0, 0.0]
    assert shares("--set", "aerial:other_bands=0.3") == [1.0, 0.0, 0.3]
    assert shares("--recipe", "other_bands=0.2") == [0.2, 0.2, 0.2]
    assert shares("--bands", "6") == [1.0, 0.0, 1.0]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--minutes", "1,2"], "--minutes 1,2 for 3 stages; expected one number, or as many as stages"),
        (["--minutes", "1,x,2"], "--minutes 1,x,2 (could not convert string to float: 'x'); expected numbers above 0"),
        (["--stage", "natural=a.toml"], "--stage natural twice; expected a name of its own for every stage"),
        (["--stage", "fine"], "--stage fine; expected NAME=FILE"),
        (["--stage", "fine=none.toml"], "--stage fine: none.toml does not exist; expected a training file"),
        (["--set", "fine:kl=1"], "--set fine:kl=1: there is no stage fine; expected one of natural, degraded, aerial"),
    ],
)
def test_mistakes_are_said_before_anything_is_written(files, tmp_path, capsys, more, said):
    words = command(files, tmp_path / "run", *more)
    if "--minutes" in more:
        place = words.index("--images")
        words = words[:place] + words[place + 2 :]
    assert refused(capsys, words).startswith(said)
    assert not (tmp_path / "run").exists()


def test_six_bands_and_a_task_that_follows_another(files, tmp_path):
    red_edge = write_images(tmp_path, "red_edge", bands_at(20), gsd_m=5.0, seed=4)
    coarse = write_images(tmp_path, "coarse", RGB, gsd_m=5.0, seed=5)
    stages = {"natural": coarse, "degraded": red_edge}
    assert staged.main(command(stages, tmp_path / "a", "--bands", "6", images="8")) == 0
    first = tmp_path / "a" / "ldsr-autoencoder.safetensors"
    words = command(stages, tmp_path / "b", "--bands", "6", "--init", str(first), images="8", preset="ldsr-unet")
    assert staged.main(words) == 0
    last = load_bundle(tmp_path / "b" / "ldsr-unet.safetensors")
    assert last.in_bands == bands_at(20)
    told = [(stage["preset"], stage["data_stage"]) for stage in last.provenance["trained"]]
    assert told[:2] == [("ldsr-autoencoder", "natural"), ("ldsr-autoencoder", "degraded")]
    assert told[2:] == [("ldsr-unet", "natural")] * 2 + [("ldsr-unet", "degraded")] * 2
