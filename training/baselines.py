"""Classical methods that learned ones have to beat: interpolation, iterative back-projection, GSA, ATPRK-like.

In: coarse images (and a sharp guide). Out: sharp images. Imports torch only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

IBP_ITERATIONS = 10


def nearest(lr: Tensor, scale: int = 4) -> Tensor:
    """Replication, (B, C, h, w) -> (B, C, scale*h, scale*w)."""
    return functional.interpolate(lr, scale_factor=scale, mode="nearest")


def bicubic(lr: Tensor, scale: int = 4) -> Tensor:
    """Cubic interpolation, pixel-area convention."""
    return functional.interpolate(lr, scale_factor=scale, mode="bicubic", align_corners=False)


def box(hr: Tensor, scale: int = 4) -> Tensor:
    """Block means, (B, C, H, W) -> (B, C, H/scale, W/scale)."""
    return functional.avg_pool2d(hr, scale)


def ibp(
    lr: Tensor, scale: int = 4, down: Callable[[Tensor], Tensor] | None = None, iterations: int = IBP_ITERATIONS
) -> Tensor:
    """Iterative back-projection (Irani and Peleg 1991): x <- x + bicubic(lr - down(x)), from the bicubic estimate.

    `down` is the assumed sensor, by default the block mean.
    """
    x = bicubic(lr, scale)
    for _ in range(iterations):
        x = x + bicubic(lr - (down(x) if down else box(x, scale)), scale)
    return x


def regress(targets: Tensor, guides: Tensor) -> Tensor:
    """Least squares with intercept, over all pixels: targets (C, h, w) on guides (K, h, w) -> slopes (C, K)."""
    g, t = guides.flatten(1).double(), targets.flatten(1).double()
    g, t = g - g.mean(1, keepdim=True), t - t.mean(1, keepdim=True)
    slopes: Tensor = torch.linalg.solve(g @ g.T, g @ t.T).T
    return slopes.float()


def gsa(ms: Tensor, guides: Tensor, scale: int) -> Tensor:
    """Gram-Schmidt adaptive (Aiazzi et al. 2007), the pan of each band regressed from the guides.

    ms (C, h, w), guides (K, scale*h, scale*w) -> (C, scale*h, scale*w). Gain: cov(band, intensity) / var(intensity),
    measured on interpolated images as in the original.
    """
    up, low = bicubic(ms[None], scale)[0], bicubic(box(guides[None], scale), scale)[0]
    pans = torch.einsum("ck,khw->chw", regress(ms, box(guides[None], scale)[0]), guides - low)
    intensity = torch.einsum("ck,khw->chw", regress(ms, box(guides[None], scale)[0]), low)
    centred = intensity - intensity.mean((1, 2), keepdim=True)
    gain = (up * centred).mean((1, 2)) / centred.square().mean((1, 2)).clamp_min(1e-12)
    return up + gain[:, None, None] * pans


def atprk_like(ms: Tensor, guides: Tensor, scale: int) -> Tensor:
    """Area-to-point regression kriging (Wang et al. 2015), the kriging of residuals replaced by back-projection.

    ms (C, h, w), guides (K, scale*h, scale*w) -> (C, scale*h, scale*w): regression on the sharp guides plus the coarse
    residual, interpolated so that its block means are kept.
    """
    slopes = regress(ms, box(guides[None], scale)[0])
    trend = torch.einsum("ck,khw->chw", slopes, guides)
    residual = ms - box(trend[None], scale)[0]
    return trend + ibp(residual[None], scale)[0]
