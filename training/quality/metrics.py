"""Image quality against a reference, one number per image.

In: tensors (C, H, W), or (B, C, H, W) where that is said, in reflectance. Out: floats, computed in float64. Imports
torch, numpy, scipy. What a metric cannot say of an image (no spectrum, no variance) is NaN, never zero.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy import ndimage, stats
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from numpy.typing import NDArray

PAPER_STEPS = 255  # 8-bit values per unit of reflectance in DiffFuSR's Table IV


def trimmed(x: Tensor, border_px: int) -> Tensor:
    """Without `border_px` pixels on every side; metrics leave out what padding made up."""
    return x[..., border_px : x.shape[-2] - border_px, border_px : x.shape[-1] - border_px] if border_px else x


def psnr(x: Tensor, reference: Tensor, data_range: float = 1.0) -> float:
    """Peak signal-to-noise ratio in dB, 10 log10(range^2 / MSE) over all bands; infinite for equal images."""
    mse = float((x - reference).double().square().mean())
    return math.inf if mse == 0 else 10 * math.log10(data_range**2 / mse)


def band_psnr(x: Tensor, reference: Tensor) -> float:
    """Mean over bands (C, H, W) of the PSNR in dB whose peak is the maximum of the reference's band."""
    mse = (x - reference).double().square().mean((1, 2))
    peak = reference.double().amax((1, 2))
    return float((10 * (peak**2 / mse).log10()).mean())


def ssim(x: Tensor, reference: Tensor, data_range: float = 1.0) -> float:
    """Structural similarity, mean over bands and pixels (Wang et al. 2004): 11x11 Gaussian of 1.5 px, K 0.01, 0.03.

    (C, H, W) or (B, C, H, W) of at least 11 px a side; the 5 px where the window does not fit are left out.
    """
    r = np.arange(11) - 5
    g = np.exp(-0.5 * (r / 1.5) ** 2)
    g /= g.sum()

    def smooth(z: NDArray[np.float64]) -> NDArray[np.float64]:
        rows = ndimage.correlate1d(z, g, axis=-2)[..., 5:-5, :]
        both: NDArray[np.float64] = ndimage.correlate1d(rows, g, axis=-1)[..., 5:-5]
        return both

    a, b = x.double().numpy(), reference.double().numpy()
    mean_a, mean_b = smooth(a), smooth(b)
    var_a, var_b = smooth(a * a) - mean_a**2, smooth(b * b) - mean_b**2
    covariance = smooth(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    score = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return float((score / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))).mean())


def _relative_rmse(x: Tensor, reference: Tensor, means_of: Tensor) -> float:
    """sqrt(mean over bands of (RMSE / mean)^2) for (C, H, W), means from `means_of`; both ERGAS below scale it."""
    rmse = (x - reference).double().square().mean((-2, -1)).sqrt()
    return float((rmse / means_of.double().mean((-2, -1))).square().mean().sqrt())


def ergas(x: Tensor, reference: Tensor, scale: float) -> float:
    """Wald's ERGAS: 100 / scale * sqrt(mean over bands of (RMSE / mean)^2), means from the reference (C, H, W).

    Wald 2000, "Quality of high resolution synthesised images: is there a simple criterion?". Falls with the scale by
    its own factor, so it never compares across scales.
    """
    return 100 / scale * _relative_rmse(x, reference, reference)


def eight_bit(x: Tensor) -> Tensor:
    """Reflectance as DiffFuSR's comparison stores it: round(255 rho) within 0 .. 255, float64."""
    return (x.double() * PAPER_STEPS).round().clamp(0, PAPER_STEPS)


def ergas_table_iv(x: Tensor, reference: Tensor, scale: float) -> float:
    """ERGAS as in Table IV of DiffFuSR (arXiv 2506.11764): 100 * scale * sqrt(...), on 8-bit values (C, H, W).

    The band means are those of `x`, the product, and the factor multiplies where Wald's divides: scale^2 times as
    large for unbiased images. Infinite where a band of the product is 0 throughout.
    """
    product = eight_bit(x)
    return 100 * scale * _relative_rmse(product, eight_bit(reference), product)


def sam(x: Tensor, reference: Tensor) -> float:
    """Mean spectral angle in degrees over pixels (C, H, W) whose spectra are not zero (Kruse et al. 1993).

    NaN for a single band, which has no spectrum.
    """
    if len(x) < 2:
        return math.nan
    a, b = x.double().flatten(-2), reference.double().flatten(-2)
    norms = a.norm(dim=-2) * b.norm(dim=-2)
    cosine = ((a * b).sum(-2)[norms > 0] / norms[norms > 0]).clamp(-1, 1)
    return float(torch.rad2deg(cosine.acos()).mean())


def r_squared(x: Tensor, reference: Tensor) -> float:
    """Coefficient of determination 1 - SSE / SST per band (C, H, W), averaged over bands; NaN for flat references."""
    truth = reference.double()
    errors = (x.double() - truth).square().sum((-2, -1))
    spread = (truth - truth.mean((-2, -1), keepdim=True)).square().sum((-2, -1))
    return _mean_of_ratios(spread - errors, spread)


def correlation(x: Tensor, reference: Tensor) -> float:
    """Pearson's correlation per band (C, H, W), averaged over bands; NaN where a band of either does not vary."""
    a, b = (image.double() - image.double().mean((-2, -1), keepdim=True) for image in (x, reference))
    return _mean_of_ratios((a * b).sum((-2, -1)), (a.square().sum((-2, -1)) * b.square().sum((-2, -1))).sqrt())


def cosine(x: Tensor, reference: Tensor) -> float:
    """Correlation without taking means away, per band (C, H, W), averaged over bands.

    What DiffFuSR's Table IV calls cross-correlation; near 1 for any two bright images.
    """
    a, b = x.double(), reference.double()
    return _mean_of_ratios((a * b).sum((-2, -1)), (a.square().sum((-2, -1)) * b.square().sum((-2, -1))).sqrt())


def _mean_of_ratios(above: Tensor, below: Tensor) -> float:
    """Mean over bands (C,); NaN where nothing stands below the line of any of them."""
    return math.nan if bool((below == 0).any()) else float((above / below).mean())


def sre_db(x: Tensor, reference: Tensor) -> float:
    """Signal to reconstruction error in dB, mean over bands (C, H, W) of 10 log10(mean^2 / MSE).

    Lanaras et al. 2018 (DSen2): unlike PSNR it compares bright and dark bands. Infinite for an exact band.
    """
    mse = (x - reference).double().square().mean((-2, -1))
    return float((10 * (reference.double().mean((-2, -1)).square() / mse).log10()).mean())


def average_gradient(x: Tensor) -> float:
    """Mean over bands and pixels (..., H, W) of sqrt((dx^2 + dy^2) / 2), differences to the next pixel, reflectance."""
    z = x.double()
    dx, dy = z[..., :-1, 1:] - z[..., :-1, :-1], z[..., 1:, :-1] - z[..., :-1, :-1]
    return float(((dx.square() + dy.square()) / 2).sqrt().mean())


def gradient_ratio(x: Tensor, reference: Tensor) -> float:
    """Average gradient over that of the reference: 1 is as sharp as the truth, less is softer. NaN for a flat one."""
    below = average_gradient(reference)
    return average_gradient(x) / below if below > 0 else math.nan


def band_correlation(x: Tensor) -> float:
    """Mean correlation of one band (C, H, W) with the next: of what ground adds near 1, of coloured noise near 0."""
    return correlation(x[:-1], x[1:])


def neighbour_correlation(x: Tensor) -> float:
    """Correlation of (C, H, W) with itself one pixel on, mean of both axes and all bands: near 0 for plain noise."""
    return (correlation(x[..., :-1, :], x[..., 1:, :]) + correlation(x[..., :-1], x[..., 1:])) / 2


def power_ratio_db(x: Tensor, reference: Tensor, periods_px: tuple[float, float]) -> float:
    """Power of (C, H, W) over that of the reference in dB, at periods from the longer to the shorter, in px.

    Radial frequencies of Hann-windowed images, all bands together. NaN where the image is too small for such periods.
    """
    low, high = 1 / max(periods_px), 1 / min(periods_px)
    height, width = x.shape[-2:]
    radial = torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.fftfreq(width)[None])
    ring = (radial >= low) & (radial < high)
    if not bool(ring.any()):
        return math.nan
    window = torch.hann_window(height)[:, None] * torch.hann_window(width)[None]
    powers = []
    for image in (x, reference):
        centred = (image - image.mean((-2, -1), keepdim=True)).double() * window
        powers.append(float(torch.fft.fft2(centred).abs().square()[..., ring].mean()))
    return 10 * math.log10(powers[0] / powers[1]) if min(powers) > 0 else math.nan


def block_mean_r2(x: Tensor, coarse: Tensor) -> float:
    """`r_squared` of block means of x (C, H, W) against what was measured, coarse (C, h, w): how well it is kept."""
    return r_squared(functional.avg_pool2d(x[None], x.shape[-1] // coarse.shape[-1])[0], coarse)


def spearman(x: Tensor, y: Tensor) -> float:
    """Rank correlation over all values of two images; NaN where one of them does not vary."""
    if any(bool(image.min() == image.max()) for image in (x, y)):
        return math.nan
    return float(stats.spearmanr(x.flatten().numpy(), y.flatten().numpy()).statistic)
