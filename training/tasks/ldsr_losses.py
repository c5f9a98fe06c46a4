"""Losses of the autoencoder of latent diffusion: adversarial and perceptual terms (Esser et al., CVPR 2021)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Sequence

ADAPTIVE_MOST = 1e4  # limit of the adaptive weight, as in the published code of Esser et al.
_ADAPTIVE_FLOOR = 1e-4
_WEIGHT_RANGE = (1e-9, 1.0)


class PatchDiscriminator(nn.Module):
    """PatchGAN (Isola et al., CVPR 2017): images (B, bands, H, W) to scores (B, 1, h, w) of overlapping patches.

    `width` channels after the first of `layers` convolutions of stride 2, doubled by each, at most eightfold.
    """

    def __init__(self, bands: int, width: int = 64, layers: int = 3) -> None:
        super().__init__()
        parts: list[nn.Module] = [nn.Conv2d(bands, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        channels = width
        for layer in range(1, layers + 1):
            wider = width * min(2**layer, 8)
            stride = 2 if layer < layers else 1
            parts += [
                nn.Conv2d(channels, wider, 4, stride, 1, bias=False),
                nn.GroupNorm(1, wider),  # batches are small and differ in land cover
                nn.LeakyReLU(0.2),
            ]
            channels = wider
        self.layers = nn.Sequential(*parts, nn.Conv2d(channels, 1, 4, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        """Scores, high for real patches."""
        scores: Tensor = self.layers(image)
        return scores


def hinge(real: Tensor, made: Tensor) -> Tensor:
    """Return the hinge loss of a discriminator from its scores of real and of reconstructed images."""
    return 0.5 * (functional.relu(1 - real).mean() + functional.relu(1 + made).mean())


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, last: nn.Parameter) -> Tensor:
    """Return the ratio of the gradients' norms of two losses at the decoder's last layer (Esser et al., eq. 7)."""
    norms = [torch.autograd.grad(loss, last, retain_graph=True)[0].norm() for loss in (reconstruction, adversarial)]
    ratio: Tensor = norms[0] / (norms[1] + _ADAPTIVE_FLOOR)
    return ratio.clamp(0.0, ADAPTIVE_MOST).detach()


def three_of(bands: int, generator: torch.Generator) -> Sequence[int]:
    """Draw an ordered choice of three bands, which a perceptual distance of colour images can compare."""
    chosen: list[int] = torch.randperm(bands, generator=generator)[:3].tolist()
    return chosen


class DivergenceWeight(nn.Module):
    """Weight of the Kullback-Leibler term, adjusted until latents have the standard deviation `target`.

    The weight is multiplied by exp(rate * log(spread / target)) after every batch: it grows while latents are too wide.
    """

    def __init__(self, first: float, target: float, rate: float = 0.02) -> None:
        super().__init__()
        self.target, self.rate = target, rate
        self.register_buffer("weight", torch.tensor(float(first)))

    def follow(self, spread: Tensor) -> None:
        """Adjust the weight by the spread of a batch. Does nothing for a target of 0."""
        if self.target:
            factor = (self.rate * (spread.detach() / self.target).log()).exp()
            self.get_buffer("weight").mul_(factor).clamp_(*_WEIGHT_RANGE)
