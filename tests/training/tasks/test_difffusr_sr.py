"""DiffFuSR's super-resolver, tiny: batches, what is learned and stored, and its bundle in the pipeline."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.errors import UsageError
from pipeline.models.bundle import load_bundle, load_tensors
from pipeline.models.difffusr import ARCHITECTURE
from pipeline.superres.system import load
from pipeline.superres.weights import choose
from tests.training.tasks_for_tests import add_preset
from training import registry, train
from training.data.places import split_of
from training.data.rasters import Chip
from training.data.sources import load_training_file
from training.degradation.published import SWITCHES
from training.loop.run import Budget, Draw, Run
from training.loop.savepoint import CHECKPOINT
from training.presets import Preset, Stage
from training.quality.pairs import HELD_OUT_PER_SET, Pair
from training.tasks.difffusr_sr import BLIND, DiffFuSRSuperResolution, middle, orthogonal_

TINY = Preset(
    name="tiny-difffusr",
    task="difffusr-sr",
    architecture={
        "base": 8,
        "mults": [1, 2],
        "res_blocks": 1,
        "fold": 2,
        "groups": 4,
        "attention_strides": [2],
        "block2_norm": False,
        "features": 8,
        "growth": 4,
        "encoder_blocks": 1,
        "degradation_base": 2,
    },
    stages=(Stage("all", 1.0, (), 1e-3),),
    images=16,
    batch=2,
    crop_px=64,
    warmup_steps=0,
    schedule="step",
    betas=(0.9, 0.999),
    sampler={"name": "ddim", "steps": 2, "spacing": "trailing"},
    recipe={**BLIND, "queue": 7, "small_px": 48},
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


@pytest.fixture(scope="module")
def imagery(tmp_path_factory):
    """A training file of two places, one in each split."""
    root = tmp_path_factory.mktemp("imagery")
    rng = np.random.default_rng(0)
    (root / "dubai_1m").mkdir()
    for tile in (1, 2):
        blocks = rng.integers(40, 200, (26, 26, 3)).astype(np.uint8)
        Image.fromarray(np.kron(blocks, np.ones((10, 10, 1), np.uint8))).save(root / f"dubai_1m/tile{tile}_a.jpg")
    assert {split_of("dubai_1m/tile1"), split_of("dubai_1m/tile2")} == {"train", "held-out"}
    (root / "mine.toml").write_text(TOML)
    return root / "mine.toml"


@pytest.fixture
def data(imagery):
    return load_training_file(imagery)


def task_of(data, preset=TINY):
    torch.manual_seed(0)
    return DiffFuSRSuperResolution(preset, data)


def test_the_preset_has_the_published_architecture_and_recipe():
    preset = registry.presets()["difffusr-sr"]
    assert preset.architecture == ARCHITECTURE
    assert (preset.batch, preset.crop_px, preset.schedule, preset.betas) == (8, 256, "step", (0.9, 0.999))
    assert preset.stages[0].learning_rate == 1e-4
    assert preset.recipe["queue"] == 8192


def test_a_batch_holds_a_query_and_its_key_in_network_range(data):
    batch = task_of(data).batch(Draw.seeded(0))
    assert {name: tuple(tensor.shape) for name, tensor in batch.items()} == {
        "hr": (2, 3, 64, 64),
        "lr": (2, 3, 16, 16),
        "other": (2, 3, 16, 16),
    }
    assert all(-1 <= float(tensor.min()) <= float(tensor.max()) <= 1 for tensor in batch.values())
    assert not torch.equal(batch["lr"], batch["other"])
    coarse = torch.nn.functional.avg_pool2d(batch["hr"], 4)
    assert float((coarse - batch["lr"]).abs().mean()) < 0.15  # the same place, blurred
    assert float((coarse - batch["other"]).abs().mean()) > float((coarse - batch["lr"]).abs().mean())


def test_several_images_of_each_set_watch_training(data):
    blocks = [np.kron(np.random.default_rng(i).random((3, 16, 16)), np.ones((1, 4, 4))) for i in range(9)]
    chips = [Chip(name, f"{name}/{i}", 2.5, (0.3 * block).astype(np.float32), encoded=False)
             for i, (name, block) in enumerate(zip("aaaaaaaab", blocks, strict=True))]  # fmt: skip
    held = SimpleNamespace(file=data.file, hr_sampler=data.hr_sampler, held_out_chips=lambda bands: chips)
    task = task_of(held)
    assert [pair.place for pair in task.pairs] == [*(f"a/{i}" for i in range(HELD_OUT_PER_SET)), "b/8"]
    assert "PSNR over bicubic" in task.validate(TINY.stages[0]).text
    shown = [row["truth"] for row in task.samples(TINY.stages[0])]
    places = [next(pair.place for pair in task.pairs if torch.equal(pair.hr[0], truth)) for truth in shown]
    assert places == ["a/0", "b/8", "a/1", "a/2"]


def test_published_switches_reach_the_batch(data):
    task = task_of(data, replace(TINY, published=SWITCHES))
    batch = task.batch(Draw.seeded(0))
    for name in ("hr", "lr", "other"):
        steps = (batch[name] + 1) / 2 * 255
        torch.testing.assert_close(steps, steps.round(), atol=1e-3, rtol=0)
    assert task.weights.squared
    assert task.range.noise_law == "uniform"
    assert task.describe()["as_published"] == list(SWITCHES)
    plain = (task_of(data).batch(Draw.seeded(0))["hr"] + 1) / 2 * 255
    assert float((plain - plain.round()).abs().max()) > 0.1


def test_the_sensor_blur_replaces_blind_kernels(data):
    quiet = {**TINY.recipe, "psf": "sentinel2"}
    task = task_of(data, replace(TINY, recipe=quiet))
    assert not torch.equal(task.batch(Draw.seeded(0))["lr"], task_of(data).batch(Draw.seeded(0))["lr"])
    assert task.describe()["degradation"] == "Sentinel-2 MTF"
    with pytest.raises(UsageError, match="psf=guess"):
        task_of(data, replace(TINY, recipe={**TINY.recipe, "psf": "guess"}))
    with pytest.raises(UsageError, match="multiple of 4 px"):
        task_of(data, replace(TINY, crop_px=66))


def test_orthogonal_weights_and_zero_biases(data):
    network = task_of(data).network
    for name, parameter in network.ema.named_parameters():
        if name.endswith("weight") and parameter.dim() > 1:
            flat = parameter.detach().flatten(1)
            product = flat @ flat.T if flat.shape[0] <= flat.shape[1] else flat.T @ flat
            torch.testing.assert_close(product, torch.eye(len(product)), atol=1e-4, rtol=0)
        elif name.endswith("bias"):
            assert not parameter.detach().any()
    before = network.encoder.conv_first.weight.clone()
    orthogonal_(network.ema)
    assert torch.equal(network.encoder.conv_first.weight, before)


def test_all_networks_learn_and_the_checkpoint_keeps_the_queue(data, tmp_path):
    task = task_of(data)
    before = {name: value.clone() for name, value in task.network.state_dict().items()}
    Run(task, TINY, Budget(images=40), tmp_path, seed=1).train(every_s=1e9, until_images=20)
    content = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    learned = ("ema.first_conv_x", "encoder.conv_first", "encoder.conv_last", "E.encoder_q.mlp.0")
    for name in (f"{layer}.weight" for layer in learned):
        assert not torch.equal(content["network"][name], before[name]), name
        assert not torch.equal(content["average"][name], before[name]), name
        assert not torch.equal(content["average"][name], content["network"][name]), name
    statistics = "E.encoder_q.E.1.running_mean"
    assert torch.equal(content["average"][statistics], content["network"][statistics])
    assert content["companion"]["queue"].shape == (7, 8)
    assert not any("queue" in name or "encoder_k" in name for name in content["average"])
    again = task_of(data)
    run = Run(again, TINY, Budget(images=40), tmp_path, seed=1)
    run.resume(tmp_path)
    assert torch.equal(again.companion.queue, content["companion"]["queue"])
    assert int(again.companion.cursor) == 20 % 7


def test_resuming_ends_with_the_same_weights_bit_by_bit(data, tmp_path):
    whole = Run(task_of(data), TINY, Budget(images=16), tmp_path / "whole", seed=1)
    whole.train(every_s=1e9)
    Run(task_of(data), TINY, Budget(images=16), tmp_path / "part", seed=1).train(every_s=1e9, until_images=8)
    again = Run(task_of(data), TINY, Budget(images=16), tmp_path / "part", seed=1)
    again.resume(tmp_path / "part")
    again.train(every_s=1e9)
    for name, value in whole.task.network.state_dict().items():
        assert torch.equal(value, again.task.network.state_dict()[name]), name


def test_validation_and_samples_leave_the_networks_trainable(data):
    task = task_of(data)
    said = task.validate(TINY.stages[0]).text
    assert said.startswith("PSNR over bicubic ")
    assert all(parameter.requires_grad for parameter in task.network.parameters())
    (row,) = task.samples(TINY.stages[0])
    assert list(row) == ["input", "bicubic", "ours", "truth"]
    assert all(image.shape == (3, 64, 64) for image in row.values())


def test_networks_on_another_device_are_validated_and_shown(data, far):
    task = task_of(data)
    task.network.to(far)
    assert task.validate(TINY.stages[0]).text.startswith("PSNR over bicubic ")
    (row,) = task.samples(TINY.stages[0])
    assert all(image.device == torch.device("cpu") for image in row.values())


def test_the_middle_of_a_pair_stays_a_pair():
    columns = torch.arange(100.0).expand(1, 3, 80, 100)
    pair = Pair("a", 0, columns, torch.nn.functional.avg_pool2d(columns, 4))
    cut = middle(pair, 66)
    assert (cut.hr.shape, cut.lr.shape) == ((1, 3, 64, 64), (1, 3, 16, 16))
    torch.testing.assert_close(torch.nn.functional.avg_pool2d(cut.hr, 4), cut.lr)


@pytest.fixture(scope="module")
def trained(imagery, tmp_path_factory):
    """The folder of a tiny run by the command."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        add_preset(patch, TINY)
        command = ["--preset", TINY.name, "--data", str(imagery), "--out", str(folder), "--every", "0"]
        assert train.main([*command, "--recipe", "contrast=0.01", "--as-published", "noise", "squared"]) == 0
    return folder


def test_the_bundle_has_provenance_and_inference_networks_only(trained):
    bundle = load_bundle(trained / "tiny-difffusr.safetensors")
    assert bundle.provenance["as_published"] == ["noise", "squared"]
    assert bundle.provenance["recipe"]["contrast"] == 0.01
    assert bundle.provenance["images"] >= 16
    names = set(load_tensors(bundle))
    assert {name.split(".")[0] for name in names} == {"ema", "encoder", "E"}
    assert not any("encoder_k" in name or "queue" in name for name in names)
    assert sorted((trained / "samples").iterdir())
    assert "loss contrast" in (trained / "log.csv").read_text()


def test_the_bundle_runs_in_the_pipeline(trained):
    choice = choose("difffusr", (str(trained / "tiny-difffusr.safetensors"),))
    resolver = load(choice, "cpu").predictor.resolver
    lr = torch.rand(2, 3, 24, 24, generator=torch.Generator().manual_seed(0)) * 0.3
    state = resolver.scene_state(lr)
    noise = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(1))
    out = resolver.sample(lr, noise, state)
    assert out.shape == (2, 3, 96, 96)
    assert torch.isfinite(out).all()
    assert 0 <= float(out.min()) <= float(out.max()) <= 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--recipe", "speed=3"], "has no speed"),
        (["--recipe", "contrast=much"], "expected a value like 0.05"),
        (["--as-published", "angel"], "angel is not known"),
    ],
)
def test_unknown_settings_are_refused_in_one_line(imagery, tmp_path, capsys, options, said):
    command = ["--preset", "difffusr-sr-small", "--data", str(imagery), "--out", str(tmp_path / "run")]
    assert train.main([*command, *options]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert said in error


def test_lite_presets_have_no_published_departures(imagery, tmp_path, capsys):
    command = ["--preset", "lite-sr", "--data", str(imagery), "--out", str(tmp_path / "run"), "--as-published"]
    assert train.main(command) == 2
    assert "DiffFuSR" in capsys.readouterr().err
