"""Training losses of the lite networks and of DiffFuSR (the sum of its eq. 8).

Lite networks minimise mean squared errors, whose minimiser is the conditional mean. CorrDiff requires that of its first
stage, and it makes the x0 estimates of the second stage the posterior mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional

from pipeline.models.degradation import DegradationEncoder
from pipeline.models.diffusion import cosine_alpha_bar
from pipeline.models.resampling import upsample
from training.loop.task import Objective

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from pipeline.models.difffusr import Networks
    from pipeline.models.lite import LiteNetwork
    from training.tasks.contrast import MomentumContrast

_LEVELS = np.sqrt(np.concatenate([[1.0], cosine_alpha_bar()]))
CPU = torch.device("cpu")
SPREAD_WEIGHT = 0.05
EXPECTED_FLOOR = 0.03  # relative to local reflectance; lower limit of the expected error, to bound image weights
SNR_FLOOR = 0.1  # errors at nearly clean levels weigh at most 1 / floor times as much as at pure noise


def regression_loss(network: LiteNetwork, lr: Tensor, hr: Tensor) -> Tensor:
    """Return the squared error of the mean plus the negative log-likelihood of the spread, which trains its head only.

    The squared error is relative to the expected error of each image, so that fields weigh as much as towns. This
    weight depends only on the coarse image, so the minimiser is still the conditional mean.
    """
    unit, features = network.unit(lr), network.features(lr)
    error = network.mean(upsample(lr, network.scale), features, unit) - hr
    spread = network.spread(features.detach(), unit)
    expected = (spread.square() + (EXPECTED_FLOOR * unit).square()).mean((1, 2, 3)).detach()
    squared = error.square().mean((1, 2, 3)) / expected
    surprise = (spread / unit).log() + 0.5 * (error.detach() / spread).square()
    return squared.mean() + SPREAD_WEIGHT * surprise.mean()


@lru_cache(maxsize=8)
def _levels_on(device: torch.device) -> Tensor:
    return torch.from_numpy(_LEVELS).to(device)


def sample_levels(count: int, generator: torch.Generator, device: torch.device = CPU) -> Tensor:
    """Draw signal levels (count,) in [0, 1]: s ~ U(sqrt(ab_t), sqrt(ab_(t-1))), t ~ U{1..1000}, cosine schedule.

    They are drawn and interpolated on `device`, so that it is not waited for.
    """
    levels = _levels_on(device)
    time = torch.rand(count, generator=generator, device=device).double() * (len(levels) - 1)
    below = time.long()
    share = time - below
    return (share * (levels[below + 1] - levels[below]) + levels[below]).float()


def denoising_loss(network: LiteNetwork, lr: Tensor, hr: Tensor, generator: torch.Generator) -> Tensor:
    """Return the squared x0 error of the standardised residual at random noise levels. Trains the denoiser only.

    `generator` is that of the images' device (`Draw.on`).
    """
    with torch.no_grad():
        features, unit = network.features(lr), network.unit(lr)
        spread = network.spread(features, unit)
        x0 = (hr - network.mean(upsample(lr, network.scale), features, unit)) / spread
    level = sample_levels(len(lr), generator, lr.device)
    a = level[:, None, None, None]
    eps = torch.randn(x0.shape, generator=generator, device=lr.device)
    error = network.denoiser(a * x0 + (1 - a * a).sqrt() * eps, level, features) - x0
    loss: Tensor = (error.square() / (1 - a * a).clamp_min(SNR_FLOOR)).mean()
    return loss


def degradation_encoder(networks: Networks) -> DegradationEncoder:
    """Return the query encoder with its type, which is lost in the ModuleDict that keeps the released names."""
    encoder = networks.get_submodule("E.encoder_q")
    if not isinstance(encoder, DegradationEncoder):
        msg = f"E.encoder_q is a {type(encoder).__name__}; expected a DegradationEncoder"
        raise TypeError(msg)
    return encoder


@dataclass(frozen=True)
class Eq8:
    """Weights of DiffFuSR's losses relative to x0's, and whether x0's error is squared (code) or absolute (eq. 5)."""

    aux: float = 1.0
    contrast: float = 0.05  # released code; 0.01 in the paper
    squared: bool = False


def eq8_losses(
    networks: Networks,
    contrast: MomentumContrast,
    batch: Mapping[str, Tensor],
    generator: torch.Generator,
    weights: Eq8,
) -> Objective:
    """Return DiffFuSR's total loss (arXiv 2506.11764, eq. 8): x0 + aux * coarse image + contrast * InfoNCE.

    `batch` holds `hr` (B, 3, 4h, 4w), `lr` (B, 3, h, w) and `other` (B, 3, h, w), a second crop of the same images
    with the same degradation, all in network range. All noise levels have equal weight. At nearly clean levels the
    error is small, because the input contains x0. `generator` is that of the images' device (`Draw.on`).
    """
    hr, lr = batch["hr"], batch["lr"]
    features, vector = networks.encoder(lr), networks.degradation(lr)
    level = sample_levels(len(lr), generator, lr.device)[:, None]
    noise = torch.randn(hr.shape, generator=generator, device=hr.device)
    s = level[:, :, None, None]
    x0 = networks.ema(s * hr + (1 - s * s).clamp_min(0).sqrt() * noise, level, features, vector)
    error = functional.mse_loss if weights.squared else functional.l1_loss
    parts = {
        "x0": error(x0.float(), hr),
        "aux": functional.l1_loss(networks.encoder.coarse(features).float(), hr),
        "contrast": contrast.loss(degradation_encoder(networks), vector, batch["other"]),
    }
    total = parts["x0"] + weights.aux * parts["aux"] + weights.contrast * parts["contrast"]
    return Objective(total, parts)
