"""What training minimises: mean squared errors throughout.

Their minimiser is the conditional mean, which CorrDiff's first stage wants by definition and which makes the x0
estimates of the second the posterior mean.

In: a network, sharp and coarse reflectance. Out: scalar losses. Imports torch and the networks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from pipeline.models.diffusion import cosine_alpha_bar

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.models.lite import LiteNetwork

_LEVELS = np.sqrt(np.concatenate([[1.0], cosine_alpha_bar()]))
SPREAD_WEIGHT = 0.05
EXPECTED_FLOOR = 0.03  # of the local reflectance: images with less error than this to expect do not weigh more
SNR_FLOOR = 0.1  # errors at nearly clean levels count at most 1 / floor as much as at pure noise


def regression_loss(network: LiteNetwork, lr: Tensor, hr: Tensor) -> Tensor:
    """Squared error of the mean, and the likelihood of its spread given that error; the second moves only its head.

    Each image counts in units of the error expected of it, so that fields weigh as much as towns. The weight follows
    from the coarse image alone, hence the minimiser is still the conditional mean.
    """
    unit, features = network.unit(lr), network.features(lr)
    error = network.mean(lr, features, unit) - hr
    spread = network.spread(features.detach(), unit)
    expected = (spread.square() + (EXPECTED_FLOOR * unit).square()).mean((1, 2, 3)).detach()
    squared = error.square().mean((1, 2, 3)) / expected
    surprise = (spread / unit).log() + 0.5 * (error.detach() / spread).square()
    return squared.mean() + SPREAD_WEIGHT * surprise.mean()


def sample_levels(count: int, generator: torch.Generator) -> Tensor:
    """Signal levels (count,) in [0, 1]: uniform in time, continuous between the 1000 steps of the cosine schedule."""
    time = torch.rand(count, generator=generator).double().numpy() * (len(_LEVELS) - 1)
    return torch.from_numpy(np.interp(time, np.arange(len(_LEVELS)), _LEVELS)).float()


def denoising_loss(network: LiteNetwork, lr: Tensor, hr: Tensor, generator: torch.Generator) -> Tensor:
    """Squared x0 error of the standardised residual at random noise levels; all but the denoiser stays as it is."""
    with torch.no_grad():
        features, unit = network.features(lr), network.unit(lr)
        spread = network.spread(features, unit)
        x0 = (hr - network.mean(lr, features, unit)) / spread
    level = sample_levels(len(lr), generator).to(lr.device)
    a = level[:, None, None, None]
    eps = torch.randn(x0.shape, generator=generator).to(lr.device)
    error = network.denoiser(a * x0 + (1 - a * a).sqrt() * eps, level, features) - x0
    loss: Tensor = (error.square() / (1 - a * a).clamp_min(SNR_FLOOR)).mean()
    return loss
