"""Training of latent diffusion's denoiser on an autoencoder that stays as it is."""

from dataclasses import replace

import pytest
import torch

from pipeline.models.bundle import load_bundle, load_tensors
from pipeline.models.latent_sampler import betas
from tests.training.latent_for_tests import (
    AUTOENCODER,
    AUTOENCODER_PAPER,
    PUBLISHED,
    UNET,
    UNET_PAPER,
    write_images,
)
from tests.training.tasks_for_tests import add_preset
from training import train
from training.data.sources import load_training_file
from training.loop.batches import Draw
from training.tasks.ldsr_unet import TASK, LatentDenoiser


@pytest.fixture
def rgbn(tmp_path):
    return write_images(tmp_path, "rgbn")


def run(name, file, out, *more):
    command = ["--preset", name, "--data", str(file), "--out", str(out), "--every", "1e9", "--images", "8", *more]
    assert train.main(command) == 0
    return load_bundle(next(out.glob("*.safetensors")))


@pytest.mark.parametrize(
    "presets", [(AUTOENCODER, UNET), pytest.param((AUTOENCODER_PAPER, UNET_PAPER), marks=pytest.mark.slow)]
)
def test_the_autoencoder_stays_as_it_is(rgbn, tmp_path, monkeypatch, presets):
    for preset in presets:
        add_preset(monkeypatch, preset)
    first, second = (preset.name for preset in presets)
    autoencoder = run(first, rgbn, tmp_path / "a")
    both = run(second, rgbn, tmp_path / "b", "--init", autoencoder.path)
    before, after = load_tensors(autoencoder), load_tensors(both)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert torch.allclose(after["betas"].double(), torch.from_numpy(betas()), atol=1e-7)
    assert (after["latent_spread"] != 1).all()  # measured
    kept = run(second, rgbn, tmp_path / "c", "--init", both.path)
    assert torch.equal(load_tensors(kept)["latent_spread"], after["latent_spread"])


def test_every_weight_of_the_published_denoiser_is_trained(rgbn):
    torch.manual_seed(0)
    task = LatentDenoiser(UNET_PAPER, load_training_file(rgbn))
    (stage,) = UNET_PAPER.stages
    named = dict(task.network.named_parameters())
    assert {name for name in named if name.startswith(stage.trains)} == {name for name in named if "unet." in name}
    losses = []
    optimiser = torch.optim.Adam(task.network.unet.parameters(), lr=1e-3)
    for step in range(3):
        objective = task.loss(stage, task.batch(Draw.seeded(0, step)), Draw.seeded(1, step))
        losses.append(objective.total.item())
        optimiser.zero_grad()
        objective.total.backward()
        optimiser.step()
    assert losses[0] == pytest.approx(1.0, abs=0.15)  # no noise is found at first
    assert all(named[name].grad is not None and named[name].grad.any() for name in named if "unet." in name)
    assert all(named[name].grad is None for name in named if "unet." not in name)


def test_latents_and_conditions_of_the_published_network_are_drawn(rgbn, monkeypatch):
    task, drawn = LatentDenoiser(UNET_PAPER, load_training_file(rgbn)), []
    encode = task.network.encode
    monkeypatch.setattr(task.network, "encode", lambda image, noise: drawn.append(noise) or encode(image, noise))
    task.loss(UNET_PAPER.stages[0], task.batch(Draw.seeded(0)), Draw.seeded(1))
    condition, truth = drawn
    assert condition.shape == truth.shape == (2, 4, 8, 8)
    assert not torch.equal(condition, truth)


def test_given_weights_keep_their_spread_of_one(rgbn):
    task = LatentDenoiser(UNET_PAPER, load_training_file(rgbn))
    task.begin(UNET_PAPER.stages[0], Draw.seeded(0))  # a release is loaded whole, by no `begin_from`
    assert (task.network.get_buffer("latent_spread") == 1).all()


def test_the_preset_of_the_paper():
    paper = TASK.presets[1]
    assert (paper.ema, paper.crop_px) == (0.9999, 512)
    assert 5e-5 <= paper.stages[0].learning_rate <= 1e-4
    assert paper.architecture == {**paper.architecture, **{name: PUBLISHED[name] for name in ("bands", "latents")}}
    assert paper.images / paper.batch > 10 / (1 - paper.ema)
    assert replace(paper, name="x").sampler["steps"] == 100
