"""Losses: noise levels, and DiffFuSR's total put together by hand."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pipeline.models.difffusr import Networks
from pipeline.models.diffusion import cosine_alpha_bar
from pipeline.models.lite import LiteNetwork
from tests.models.small import LITE
from training.tasks.contrast import MomentumContrast
from training.tasks.losses import Eq8, degradation_encoder, denoising_loss, eq8_losses, sample_levels

TINY = {
    "base": 8,
    "mults": [1, 2],
    "res_blocks": 1,
    "fold": 2,
    "groups": 4,
    "attention_strides": [],
    "block2_norm": True,
    "features": 8,
    "growth": 4,
    "encoder_blocks": 1,
    "degradation_base": 2,
}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def networks():
    torch.manual_seed(0)
    return Networks(**TINY)


@pytest.fixture
def batch():
    return {
        "hr": torch.rand(2, 3, 32, 32, generator=seeded(1)) * 2 - 1,
        "lr": torch.rand(2, 3, 8, 8, generator=seeded(2)) * 2 - 1,
        "other": torch.rand(2, 3, 8, 8, generator=seeded(3)) * 2 - 1,
    }


def contrast_of(networks):
    contrast = MomentumContrast(degradation_encoder(networks), 8, 16)
    contrast.begin(degradation_encoder(networks), seeded(4))
    return contrast


def test_levels_lie_between_steps_and_steps_are_equally_likely():
    edges = np.sqrt(np.concatenate([[1.0], cosine_alpha_bar()]))[::-1]
    drawn = sample_levels(200_000, seeded()).double().numpy()
    assert drawn.min() >= edges[0]
    assert drawn.max() <= 1
    counts, _ = np.histogram(drawn, edges[::50])  # 20 runs of 50 steps each
    np.testing.assert_allclose(counts / len(drawn), 0.05, atol=3e-3)
    wide = (edges[1] <= drawn) & (drawn < edges[101])
    within = (drawn[wide] - edges[np.searchsorted(edges, drawn[wide], "right") - 1]) / np.diff(edges)[
        np.searchsorted(edges, drawn[wide], "right") - 1
    ]
    assert within.mean() == pytest.approx(0.5, abs=0.01)  # uniform between the two


def test_levels_are_those_of_interpolation_bit_by_bit():
    """Weights trained earlier drew them so."""
    levels = np.sqrt(np.concatenate([[1.0], cosine_alpha_bar()]))
    time = torch.rand(200_000, generator=seeded(6)).double().numpy() * (len(levels) - 1)
    expected = torch.from_numpy(np.interp(time, np.arange(len(levels)), levels)).float()
    assert torch.equal(sample_levels(200_000, seeded(6)), expected)


def test_on_another_device_losses_draw_nothing_on_the_cpu(networks, batch):
    """Nothing is drawn on "meta": the generator would have moved on if noise were drawn here and sent there."""
    generator = seeded(5)
    before = generator.get_state()
    contrast = SimpleNamespace(loss=lambda *_: torch.zeros((), device="meta"))  # autocast does not know "meta"
    there = {name: tensor.to("meta") for name, tensor in batch.items()}
    objective = eq8_losses(networks.to("meta"), contrast, there, generator, Eq8())
    lite = LiteNetwork(**LITE).to("meta")
    noisy = denoising_loss(lite, there["lr"], there["hr"], generator)
    assert (objective.total.device.type, noisy.device.type) == ("meta", "meta")
    assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize("squared", [False, True])
def test_eq8_is_the_sum_of_its_parts(networks, batch, squared):
    weights = Eq8(aux=0.7, contrast=0.3, squared=squared)
    objective = eq8_losses(networks, contrast_of(networks), batch, seeded(5), weights)
    parts = objective.parts
    torch.testing.assert_close(objective.total, parts["x0"] + 0.7 * parts["aux"] + 0.3 * parts["contrast"])

    generator = seeded(5)
    level = sample_levels(2, generator)[:, None]
    eps = torch.randn(batch["hr"].shape, generator=generator)
    s = level[:, :, None, None]
    features = networks.encoder(batch["lr"])
    x0 = networks.ema(s * batch["hr"] + (1 - s**2).sqrt() * eps, level, features, networks.degradation(batch["lr"]))
    difference = x0 - batch["hr"]
    by_hand = difference.square().mean() if squared else difference.abs().mean()
    torch.testing.assert_close(parts["x0"], by_hand, rtol=1e-5, atol=1e-6)
    coarse = networks.encoder.coarse(features)
    torch.testing.assert_close(parts["aux"], (coarse - batch["hr"]).abs().mean())


def test_every_network_learns_from_eq8(networks, batch):
    objective = eq8_losses(networks, contrast_of(networks), batch, seeded(5), Eq8())
    objective.total.backward()
    idle = {name for name, parameter in networks.named_parameters() if parameter.grad is None}
    assert idle == set()


def test_published_weights_are_the_defaults():
    assert Eq8() == Eq8(aux=1.0, contrast=0.05, squared=False)
