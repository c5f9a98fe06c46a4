"""Sensor blur, decimation and noise of reflectance, as one strided convolution per sample.

All values are float (no 8-bit step). Coarse pixel centres are the centres of their blocks: no half-pixel shift.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Sequence

Decimator = Literal["box", "bicubic"]
GAUSS_TAPS = 21  # as in the blind-SR kernels of Wu et al.; 3.4 sigma at the widest blur used in training
MIN_SIGMA_PX, MAX_SIGMA_PX = 0.3, 4.0  # limits of a kernel of GAUSS_TAPS; above x4 both grow with the scale


@dataclass(frozen=True)
class DegradationRange:
    """Ranges drawn per image in training. Widths in px of the sharp grid, noise in reflectance.

    Sentinel-2's 10 m bands have MTF 0.15 to 0.30 at Nyquist, which is sigma 2.0 to 2.5 px at 2.5 m, decimation
    included. A wider range avoids overfitting to one kernel. The presets set the values.
    """

    sigma_px: tuple[float, float]
    anisotropic: float  # share of images whose two widths differ
    bicubic: float  # share decimated by an antialiased cubic instead of the block mean
    noise: tuple[float, float]  # standard deviation, log-uniform

    def wrong(self, scale: int = 4) -> str:
        """Return what is expected if the values are invalid at this scale, else an empty string."""
        blur, noise, most = self.sigma_px, self.noise, MAX_SIGMA_PX * max(1, scale / 4)
        if not MIN_SIGMA_PX <= blur[0] <= blur[1] <= most:
            return f"blur from {MIN_SIGMA_PX:g} to {most:g} px, the lower first"
        if not 0 < noise[0] <= noise[1] < 1:
            return "noise above 0 and below 1 in reflectance, the lower first"
        if not (0 <= self.anisotropic <= 1 and 0 <= self.bicubic <= 1):
            return "shares between 0 and 1"
        return ""


@dataclass(frozen=True)
class Degradation:
    """One degradation for all images. The defaults are those of the held-out evaluation."""

    sigma_px: float = 2.2
    decimator: Decimator = "box"
    noise: float = 1e-3
    scale: int = 4

    def of_scale(self, scale: int) -> Degradation:
        """Return the same sensor at another scale: the blur of the coarse pixel stays the same."""
        return replace(self, sigma_px=self.sigma_px * scale / self.scale, scale=scale)


def gaussian(sigma_a: Tensor, sigma_b: Tensor, theta: Tensor, taps: int = GAUSS_TAPS) -> Tensor:
    """Return Gaussian kernels (B, taps, taps) of sigma_a, sigma_b (B,) px, with axis a rotated by theta (B,) rad."""
    r = torch.arange(taps, dtype=torch.float32) - (taps - 1) / 2
    y, x = torch.meshgrid(r, r, indexing="ij")
    c, s = theta.cos()[:, None, None], theta.sin()[:, None, None]
    along, across = c * x + s * y, c * y - s * x
    k = torch.exp(-0.5 * ((along / sigma_a[:, None, None]) ** 2 + (across / sigma_b[:, None, None]) ** 2))
    return k / k.sum((1, 2), keepdim=True)


def blur_taps(scale: int) -> int:
    """Return the odd number of taps of blur kernels at this scale."""
    return GAUSS_TAPS if scale <= 4 else 2 * round(GAUSS_TAPS // 2 * scale / 4) + 1


def decimation_taps(scale: int, decimator: Decimator) -> Tensor:
    """Return one axis of the decimation filter: (scale,) for box, (4*scale,) for the cubic with a = -0.5."""
    if decimator == "box":
        return torch.full((scale,), 1 / scale)
    x = (torch.arange(4 * scale, dtype=torch.float32) - (4 * scale - 1) / 2).abs() / scale
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    taps = torch.where(x <= 1, near, far)
    return taps / taps.sum()


def compose(blur: Tensor, scale: int, decimator: Decimator) -> Tensor:
    """Combine blur kernels (B, n, n) and decimation to kernels (B, n + taps - 1, ...) for a stride of `scale`."""
    taps = decimation_taps(scale, decimator)
    flat = torch.outer(taps, taps)[None, None]
    return functional.conv2d(blur[:, None], flat, padding=len(taps) - 1)[:, 0]


def apply_kernels(sharp: Tensor, kernels: Tensor, scale: int) -> Tensor:
    """Filter (B, C, H, W) at stride `scale` with reflection at the borders.

    One kernel per image (B, k, k), or per image and channel (B, C, k, k); k - scale is even.
    """
    b, c, h, w = sharp.shape
    pad = (kernels.shape[-1] - scale) // 2
    padded = functional.pad(sharp, (pad, pad, pad, pad), mode="reflect").reshape(1, b * c, h + 2 * pad, w + 2 * pad)
    per_channel = kernels if kernels.dim() == 4 else kernels[:, None].expand(-1, c, -1, -1)
    weight = per_channel.flatten(0, 1)[:, None].to(sharp.dtype)
    out = functional.conv2d(padded, weight, stride=scale, groups=b * c)
    return out.reshape(b, c, *out.shape[-2:])


def kernels_of(
    sigma_a: Tensor, sigma_b: Tensor, theta: Tensor, scale: int, decimator: Decimator, widths: Sequence[float] = ()
) -> Tensor:
    """Return blur and decimation kernels for `apply_kernels`: (B, k, k), or (B, C, k, k) per channel.

    `widths` scale both sigmas (B,) per channel. If there are none or all are 1, the channels share a kernel.
    """
    taps = blur_taps(scale)
    if all(width == 1 for width in widths):
        return compose(gaussian(sigma_a, sigma_b, theta, taps), scale, decimator)
    of_bands = torch.tensor(widths)
    a, b = ((sigma[:, None] * of_bands).flatten() for sigma in (sigma_a, sigma_b))
    kernels = compose(gaussian(a, b, theta.repeat_interleave(len(of_bands)), taps), scale, decimator)
    return kernels.reshape(len(sigma_a), len(of_bands), *kernels.shape[-2:])


def degrade(
    sharp: Tensor, how: Degradation, generator: torch.Generator | None = None, widths: Sequence[float] = ()
) -> Tensor:
    """Degrade (B, C, H, W) to (B, C, H/scale, W/scale) with one degradation. Adds noise only if a generator is given.

    `widths`: blur of each channel relative to `how.sigma_px` (see `sensor.relative_widths`); default 1.
    """
    sigma = torch.full((len(sharp),), how.sigma_px)
    kernels = kernels_of(sigma, sigma, torch.zeros(len(sharp)), how.scale, how.decimator, widths)
    coarse = apply_kernels(sharp, kernels, how.scale)
    if generator is None or how.noise == 0:
        return coarse
    return coarse + how.noise * torch.randn(coarse.shape, generator=generator)


def degrade_randomly(
    sharp: Tensor, within: DegradationRange, generator: torch.Generator, scale: int = 4, widths: Sequence[float] = ()
) -> Tensor:
    """Degrade (B, C, H, W) to (B, C, H/scale, W/scale), with random blur and noise per image, one decimator per batch.

    `widths`: blur of each channel relative to that of its image, as in `degrade`.
    """

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(len(sharp), generator=generator)

    sigma_a, sigma_b = uniform(*within.sigma_px), uniform(*within.sigma_px)
    isotropic = uniform(0, 1) >= within.anisotropic
    sigma_b, theta = torch.where(isotropic, sigma_a, sigma_b), uniform(0, math.pi)
    decimator: Decimator = "bicubic" if float(torch.rand((), generator=generator)) < within.bicubic else "box"
    coarse = apply_kernels(sharp, kernels_of(sigma_a, sigma_b, theta, scale, decimator, widths), scale)
    noise = torch.exp(uniform(math.log(within.noise[0]), math.log(within.noise[1])))
    return coarse + noise[:, None, None, None] * torch.randn(coarse.shape, generator=generator)
