"""Image quality against a reference: PSNR, SSIM, ERGAS, SAM.

In: tensors (C, H, W) or (B, C, H, W) in reflectance. Out: floats. Imports torch only.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional


def trimmed(x: Tensor, border_px: int) -> Tensor:
    """Without `border_px` pixels on every side; metrics leave out what padding made up."""
    return x[..., border_px : x.shape[-2] - border_px, border_px : x.shape[-1] - border_px] if border_px else x


def psnr(x: Tensor, reference: Tensor, data_range: float = 1.0) -> float:
    """Peak signal-to-noise ratio in dB, 10 log10(range^2 / MSE) over all bands; infinite for equal images."""
    mse = float((x - reference).double().square().mean())
    return math.inf if mse == 0 else 10 * math.log10(data_range**2 / mse)


def ssim(x: Tensor, reference: Tensor, data_range: float = 1.0) -> float:
    """Structural similarity, mean over bands and pixels (Wang et al. 2004): 11x11 Gaussian of 1.5 px, K 0.01, 0.03."""
    r = torch.arange(11, dtype=torch.float64) - 5
    g = torch.exp(-0.5 * (r / 1.5) ** 2)
    window = torch.outer(g, g)[None, None] / g.sum() ** 2

    def smooth(z: Tensor) -> Tensor:
        return functional.conv2d(z, window)

    a = x.double().reshape(-1, 1, *x.shape[-2:])
    b = reference.double().reshape(-1, 1, *reference.shape[-2:])
    mean_a, mean_b = smooth(a), smooth(b)
    var_a, var_b = smooth(a * a) - mean_a**2, smooth(b * b) - mean_b**2
    covariance = smooth(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    score = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return float((score / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))).mean())


def ergas(x: Tensor, reference: Tensor, scale: float) -> float:
    """Wald's ERGAS: 100 / scale * sqrt(mean over bands of (RMSE / mean)^2), means from the reference (C, H, W)."""
    rmse = (x - reference).double().square().mean((-2, -1)).sqrt()
    relative = rmse / reference.double().mean((-2, -1))
    return float(100 / scale * relative.square().mean().sqrt())


def sam(x: Tensor, reference: Tensor) -> float:
    """Mean spectral angle in degrees over pixels (C, H, W) whose spectra are not zero."""
    a, b = x.double().flatten(-2), reference.double().flatten(-2)
    norms = a.norm(dim=-2) * b.norm(dim=-2)
    cosine = ((a * b).sum(-2)[norms > 0] / norms[norms > 0]).clamp(-1, 1)
    return float(torch.rad2deg(cosine.acos()).mean())
