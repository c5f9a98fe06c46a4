"""Training of the small prior: components first, latents of unit variance, then a denoiser."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline.models.bundle import load_bundle
from pipeline.models.diffusion_prior import Prior
from pipeline.models.tone import OURS
from tests.models.sgdm_small import OUR_PRIOR
from tests.training import sgdm_for_tests
from tests.training.tasks_for_tests import add_preset
from training.data.sources import load_training_file
from training.loop.batches import Draw
from training.tasks.sgdm_prior import AUTOENCODER, DENOISER, TASK, SmallPrior

(PRESET,) = TASK.presets
TINY = replace(PRESET, architecture=OUR_PRIOR, batch=4, crop_px=64, warmup_steps=1)


@pytest.fixture
def task(tmp_path):
    torch.manual_seed(0)
    data = load_training_file(sgdm_for_tests.images(tmp_path), output_gsd_m=1.25, scale=8)
    return SmallPrior(TINY, data)


def stage(name):
    return next(one for one in TINY.stages if one.name == name)


def test_the_autoencoder_starts_as_components_of_unit_variance(task):
    task.begin(stage(AUTOENCODER), Draw.seeded(0, 0))
    draw = Draw.seeded(0, 0)  # the same batches again
    images = torch.cat([task.batch(draw)["hr"] for _ in range(8)])
    with torch.no_grad():
        latent = task.network.encode(2 * OURS.to_image(images) - 1)
        decoded = OURS.to_reflectance((task.network.decode(latent) + 1) / 2)
    spreads = latent.transpose(0, 1).flatten(1).std(1)
    torch.testing.assert_close(spreads, torch.ones(8), rtol=1e-3, atol=0)
    flat = images.mean((2, 3), keepdim=True)
    assert float((decoded - images).square().mean()) < 0.5 * float((flat - images).square().mean())


def test_a_later_stage_leaves_the_autoencoder_and_scales_its_latents(task):
    task.begin(stage(AUTOENCODER), Draw.seeded(0, 0))
    with torch.no_grad():
        task.network.vae.decoder.exit.weight.add_(0.01)  # as after some training
        task.network.vae.encoder.linear.weight[:8].mul_(3)
        task.network.vae.encoder.linear.bias[:8].mul_(3)
    before = {name: value.clone() for name, value in task.network.vae.state_dict().items()}
    task.begin(stage(DENOISER), Draw.seeded(0, 0))
    assert all(torch.equal(before[name], value) for name, value in task.network.vae.state_dict().items())
    assert task.bundle().architecture["scaling"] == pytest.approx(1 / 3, rel=1e-3)


@pytest.mark.parametrize("name", [AUTOENCODER, DENOISER])
def test_losses_fall(task, name):
    task.begin(stage(AUTOENCODER), Draw.seeded(0, 0))
    if name == DENOISER:
        task.begin(stage(DENOISER), Draw.seeded(0, 0))
    of = [p for key, p in task.network.named_parameters() if key.startswith(stage(name).trains)]
    optimiser = torch.optim.Adam(of, lr=3e-3)
    batch, losses = task.batch(Draw.seeded(0, 2)), []
    for _ in range(12):
        objective = task.loss(stage(name), batch, Draw.seeded(0, 3))
        optimiser.zero_grad()
        objective.total.backward()
        optimiser.step()
        losses.append(float(objective.total.detach()))
    assert losses[-1] < 0.95 * losses[0]


def test_a_trained_prior_is_loaded_with_its_scaling(tmp_path, monkeypatch):
    monkeypatch.setattr("training.tasks.sgdm_prior.BATCHES_AT_FIRST", 2)
    add_preset(monkeypatch, TINY)
    bundle = sgdm_for_tests.trained(tmp_path, "sgdm-prior", count=8)
    prior = Prior.from_bundle(load_bundle(Path(bundle.path)))
    assert prior.scaling == bundle.architecture["scaling"] != 1.0
    assert prior.estimates == "velocity"
