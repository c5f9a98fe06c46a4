"""DiffFuSR's blind degradations (arXiv 2506.11764, eq. 9 to 11), or Sentinel-2's own blur instead.

Coarse = (sharp * kernel) decimated by an antialiased cubic + noise, with kernel and noise drawn per image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch

from training.degradation.degrade import apply_kernels, compose, gaussian
from training.degradation.sensor import sensor_sigma_px

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from training.degradation.published import AsPublished

_REACH = 5  # side of a sensor kernel in coarse px: 4.6 standard deviations on each side of the widest band
_STEPS_8BIT = 255.0


@dataclass(frozen=True)
class BlindRange:
    """Ranges drawn per image. Widths are standard deviations in px of the sharp grid; noise is in reflectance."""

    isotropic_px: tuple[float, float] = (2.0, 4.0)
    axes_px: tuple[float, float] = (0.2, 4.0)  # of both axes of an anisotropic kernel
    anisotropic: float = 0.5  # share of images with an anisotropic kernel
    angle_rad: tuple[float, float] = (0.0, math.pi)
    noise: tuple[float, float] = (5e-4, 1e-2)
    noise_law: Literal["log-uniform", "uniform"] = "log-uniform"


def range_of(published: AsPublished) -> BlindRange:
    """Return the range with the switches of `published` applied."""
    within = BlindRange()
    if published.angle:
        within = replace(within, angle_rad=(0.0, math.pi / 180))
    if published.anisotropic:
        within = replace(within, anisotropic=1.0)
    if published.noise:
        within = replace(within, noise=(0.0, 25 / 255), noise_law="uniform")
    return within


def draw_kernels(images: int, within: BlindRange, generator: torch.Generator) -> Tensor:
    """Draw blur kernels (images, 21, 21), each summing to one (eq. 9: covariance R diag(l1^2, l2^2) R^T)."""
    isotropic, l1, l2 = (
        _uniform(images, bounds, generator) for bounds in (within.isotropic_px, within.axes_px, within.axes_px)
    )
    two_widths = torch.rand(images, generator=generator) < within.anisotropic
    angle = _uniform(images, within.angle_rad, generator)
    return gaussian(torch.where(two_widths, l1, isotropic), torch.where(two_widths, l2, isotropic), angle)


def draw_noise(images: int, within: BlindRange, generator: torch.Generator) -> Tensor:
    """Draw the standard deviations of noise (images,)."""
    if within.noise_law == "uniform":
        return _uniform(images, within.noise, generator)
    low, high = within.noise
    return torch.exp(_uniform(images, (math.log(low), math.log(high)), generator))


def degrade_blind(
    sharp: Tensor,
    within: BlindRange,
    generator: torch.Generator,
    views: int = 1,
    scale: int = 4,
    sensor: Sequence[str] = (),
) -> Tensor:
    """Degrade (images * views, C, H, W) to (images * views, C, H/scale, W/scale), float.

    Adjacent `views` of one image share kernel and noise level but not the noise itself, so they form a positive pair
    for contrastive learning. With `sensor` bands, one per channel, the blur is Sentinel-2's instead.
    """
    images = len(sharp) // views
    if sensor:
        coarse = apply_kernels(sharp, sensor_kernels(sensor, scale).expand(len(sharp), -1, -1, -1), scale)
    else:
        kernels = compose(draw_kernels(images, within, generator), scale, "bicubic")
        coarse = apply_kernels(sharp, kernels.repeat_interleave(views, dim=0), scale)
    sd = draw_noise(images, within, generator).repeat_interleave(views)
    return coarse + sd[:, None, None, None] * torch.randn(coarse.shape, generator=generator)


def sensor_kernels(bands: Sequence[str], scale: int) -> Tensor:
    """Return the blur kernel of each band (bands, 5 scale, 5 scale), centred on the coarse pixel.

    The MTF includes the detector's integration over its pixel, so no block mean follows.
    """
    sigma = torch.tensor([sensor_sigma_px(band, scale) for band in bands])
    return gaussian(sigma, sigma, torch.zeros(len(bands)), taps=_REACH * scale)


def eight_bit(reflectance: Tensor, rounded: bool = False) -> Tensor:
    """Clip reflectance to [0, 1] and quantise to 1 / 255 (39 DN), down as a cast does, or to nearest if `rounded`."""
    steps = reflectance.clamp(0, 1) * _STEPS_8BIT
    return (steps.round() if rounded else steps.floor()) / _STEPS_8BIT


def _uniform(count: int, bounds: tuple[float, float], generator: torch.Generator) -> Tensor:
    low, high = bounds
    return low + (high - low) * torch.rand(count, generator=generator)
