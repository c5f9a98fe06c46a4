"""The presets with the networks of the paper at their real size: parameters, and one step of training each."""

from dataclasses import replace

import pytest
import torch

from pipeline.models.ldsr import network_of
from tests.training.latent_for_tests import write_images
from training.data.sources import load_training_file
from training.loop.batches import Draw
from training.tasks import ldsr_autoencoder, ldsr_unet
from training.tasks.ldsr_autoencoder import ADVERSARIAL, LatentAutoencoder
from training.tasks.ldsr_losses import PatchDiscriminator
from training.tasks.ldsr_unet import LatentDenoiser
from training.tasks.lpips_vgg import LpipsVgg

AUTOENCODER = next(preset for preset in ldsr_autoencoder.TASK.presets if preset.name == "ldsr-autoencoder-paper")
UNET = next(preset for preset in ldsr_unet.TASK.presets if preset.name == "ldsr-unet-paper")
# Millions of parameters of autoencoder and U-Net: those of release 1.0, which its file of 1.13 GB holds once and twice,
# and those of the six bands of 20 m, whose latents have six channels.
SIZES = [({}, 55.33, 113.63), ({"bands": 6, "latents": 6}, 55.36, 113.64)]


def millions(network):
    return sum(parameter.numel() for parameter in network.parameters()) / 1e6


@pytest.mark.parametrize("preset", [AUTOENCODER, UNET])
@pytest.mark.parametrize(("changed", "autoencoder", "unet"), SIZES)
def test_presets_have_as_many_parameters_as_the_release(preset, changed, autoencoder, unet):
    with torch.device("meta"):
        network = network_of({**preset.architecture, **changed}, changed.get("bands", 4))
    assert round(millions(network.autoencoder), 2) == autoencoder
    assert round(millions(network.unet), 2) == unet


def test_what_trains_the_autoencoder_has_the_more_than_72_million_of_the_thesis():
    with torch.device("meta"):
        autoencoder = network_of(AUTOENCODER.architecture, 4).autoencoder
        discriminator = PatchDiscriminator(4, AUTOENCODER.recipe["discriminator"])
        parts = [millions(one) for one in (autoencoder, LpipsVgg(), discriminator)]
    assert [round(part, 1) for part in parts] == [55.3, 14.7, 2.8]
    assert 72 < sum(parts) < 73


@pytest.fixture
def data(tmp_path):
    return load_training_file(write_images(tmp_path, "rgbn"))


def smallest(preset):
    return replace(preset, batch=1, crop_px=64, recipe={**preset.recipe, "other_bands": 0.0, "perceptual": 0.0})


def stepped(network, loss, optimiser):
    """One step; returns the share of tensors that moved."""
    before = {name: value.detach().clone() for name, value in network.named_parameters()}
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    moved = [not torch.equal(value, before[name]) for name, value in network.named_parameters()]
    return sum(moved) / len(moved)


@pytest.mark.slow
def test_the_autoencoder_of_the_paper_takes_a_step_with_its_discriminator(data):
    torch.manual_seed(0)
    task, stage = LatentAutoencoder(smallest(AUTOENCODER), data), AUTOENCODER.stages[-1]
    assert stage.name == ADVERSARIAL
    batch = task.batch(Draw.seeded(0))
    assert batch["image"].shape == (1, 4, 64, 64)
    networks = {"autoencoder": task.network, "discriminator": task.companion.discriminator}
    optimisers = task.optimisers(stage)
    for name, objective in task.turns(stage, batch, Draw.seeded(1)):
        assert torch.isfinite(objective.total)
        assert stepped(networks.pop(name), objective.total, optimisers[name]) > 0.9
    assert not networks


@pytest.mark.slow
def test_the_denoiser_of_the_paper_takes_a_step_and_its_autoencoder_stays(data):
    torch.manual_seed(0)
    task = LatentDenoiser(smallest(UNET), data)
    batch = task.batch(Draw.seeded(0))
    loss = task.loss(UNET.stages[0], batch, Draw.seeded(1)).total
    assert loss.item() == pytest.approx(1.0, abs=0.3)  # the last convolution is 0, so the error is the noise itself
    autoencoder = {name: value.clone() for name, value in task.network.autoencoder.state_dict().items()}
    moved = stepped(task.network.unet, loss, torch.optim.Adam(task.network.unet.parameters(), lr=1e-4))
    assert 0 < moved < 0.1  # behind the convolutions that begin at 0 nothing moves yet
    assert all(torch.equal(value, autoencoder[name]) for name, value in task.network.autoencoder.state_dict().items())
