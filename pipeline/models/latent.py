"""Latent diffusion: an autoencoder, a denoiser of its latents, and the noise schedule (Rombach et al., CVPR 2022).

Both networks come in two forms, the published ones of `ldsr_published` and the small ones of `latent_small`. A
coarse image conditions the denoiser as the latent of its interpolation (OpenSR thesis, section 3.1.4.1).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

STRIDE = 4  # pixels of an image per pixel of its latent, along one axis
LOG_VARIANCE_RANGE = (-30.0, 20.0)  # as in the published code


@dataclass(frozen=True)
class Moments:
    """Normal distribution of a latent: mean and logarithm of the variance, (B, L, h, w) each."""

    mean: Tensor
    log_variance: Tensor

    @classmethod
    def of(cls, moments: Tensor) -> Moments:
        """Split (B, 2 L, h, w) into mean and log-variance, which is limited to `LOG_VARIANCE_RANGE`."""
        mean, log_variance = moments.chunk(2, dim=1)
        return cls(mean, log_variance.clamp(*LOG_VARIANCE_RANGE))

    @property
    def spread(self) -> Tensor:
        """Standard deviation (B, L, h, w)."""
        return (0.5 * self.log_variance).exp()

    def sample(self, noise: Tensor) -> Tensor:
        """Return mean + spread * noise."""
        return self.mean + self.spread * noise

    def divergence(self) -> Tensor:
        """Return the Kullback-Leibler divergence from the standard normal distribution, summed per image, (B,)."""
        variance = self.log_variance.exp()
        return 0.5 * (self.mean.square() + variance - 1 - self.log_variance).sum((1, 2, 3))


class Autoencoder(Protocol):
    """Network between images (B, C, 4h, 4w) and latents (B, L, h, w)."""

    def encode(self, image: Tensor) -> Moments:
        """Return the distribution of the latent."""
        ...

    def decode(self, latent: Tensor, coarse: Tensor | None = None) -> Tensor:
        """Return the image of a latent. Networks that see it need the coarse image (B, C, h, w) beside it."""
        ...

    def __call__(self, image: Tensor, coarse: Tensor | None = None) -> Tensor:
        """Return the image of the latent's mean."""
        ...


class Denoiser(nn.Module, ABC):
    """Network that estimates the noise in a latent.

    `regresses`: it also estimates the latent of a condition without any noise, around which it then draws.
    """

    regresses = False

    def prepare(self, condition: Tensor) -> Tensor:
        """Return what all timesteps need of a condition (`LatentNetwork.condition`), computed once."""
        return condition

    def centre(self, prepared: Tensor) -> Tensor:
        """Return the latent (B, L, h, w) expected without any noise: the condition's own, unless `regresses`."""
        return prepared

    def balance(self, prepared: Tensor, alpha: Tensor) -> Tensor:
        """Return the weight of squared errors of the noise in training, broadcastable to (B, L, h, w).

        `alpha` (B, 1, 1, 1) is alpha_bar.
        """
        del prepared
        return torch.ones_like(alpha)

    @abstractmethod
    def forward(self, noisy: Tensor, prepared: Tensor, timestep: Tensor) -> Tensor:
        """Return the noise (B, L, h, w) in `noisy`, given a prepared condition and timesteps (B,) from 0."""


class LatentNetwork(nn.Module):
    """Autoencoder and denoiser with their schedule.

    Buffers: `betas` (T,) of the schedule, and `latent_spread` (L,), by which latents are divided before noise is added.
    Published weights divide by 1. `sees_coarse`: decoder and denoiser are given the coarse image as it is, too.
    """

    def __init__(
        self, autoencoder: nn.Module, unet: Denoiser, latents: int, timesteps: int = 1000, *, sees_coarse: bool = False
    ) -> None:
        super().__init__()
        self.sees_coarse = sees_coarse
        self.autoencoder: Any = autoencoder
        self.unet = unet
        self.register_buffer("betas", torch.zeros(timesteps))
        self.register_buffer("latent_spread", torch.ones(latents))

    def alpha_bar(self) -> NDArray[np.float64]:
        """Return alpha_bar after every timestep, float64 (T,)."""
        betas: NDArray[np.float64] = self.get_buffer("betas").double().cpu().numpy()
        found: NDArray[np.float64] = (1 - betas).cumprod()
        return found

    def encode(self, image: Tensor, noise: Tensor | None = None) -> Tensor:
        """Return a scaled latent of an image in network range: its mean, or a sample with `noise`."""
        moments = self.autoencoder.encode(image)
        latent = moments.mean if noise is None else moments.sample(noise)
        scaled: Tensor = latent / self._spread()
        return scaled

    def condition(self, image: Tensor, coarse: Tensor, noise: Tensor | None = None) -> Tensor:
        """Return what the denoiser is given of a coarse image (B, C, h, w), interpolated as `image` (B, C, 4h, 4w).

        It is the scaled latent of the interpolated image, with the coarse image behind it where networks see that.
        """
        latent = self.encode(image, noise)
        return torch.cat([latent, coarse], dim=1) if self.sees_coarse else latent

    def decode(self, latent: Tensor, coarse: Tensor | None = None) -> Tensor:
        """Return the image, in network range, of a scaled latent; networks that see it need the coarse one."""
        image: Tensor = self.autoencoder.decode(latent * self._spread(), coarse)
        return image

    def noise(self, prepared: Tensor) -> Callable[[Tensor, int], Tensor]:
        """Return the estimate of the noise, given a prepared condition: a function of scaled latent and timestep."""

        def epsilon(noisy: Tensor, timestep: int) -> Tensor:
            found: Tensor = self.unet(noisy, prepared, torch.full((len(noisy),), timestep, device=noisy.device))
            return found

        return epsilon

    def _spread(self) -> Tensor:
        return self.get_buffer("latent_spread")[:, None, None]


def interpolated(coarse: Tensor, scale: int = STRIDE) -> Tensor:
    """Return a coarse image (B, C, h, w) on the grid of the fine one, bilinear, pixel areas aligned."""
    return functional.interpolate(coarse, scale_factor=scale, mode="bilinear", align_corners=False)
