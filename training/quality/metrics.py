"""Image quality metrics, one number per image, computed in float64.

Images are reflectance tensors (C, H, W) unless noted. Undefined values (no spectrum, no variance) are NaN, never zero.
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

PAPER_STEPS = 255  # 8-bit steps per unit reflectance in DiffFuSR's Table IV


def trimmed(x: Tensor, border_px: int) -> Tensor:
    """Crop `border_px` pixels on every side, so that metrics exclude padding artefacts."""
    return x[..., border_px : x.shape[-2] - border_px, border_px : x.shape[-1] - border_px] if border_px else x


def psnr(x: Tensor, reference: Tensor, data_range: float = 1.0) -> float:
    """Return the PSNR in dB, 10 log10(range^2 / MSE) over all bands; infinite for equal images."""
    mse = float((x - reference).double().square().mean())
    return math.inf if mse == 0 else 10 * math.log10(data_range**2 / mse)


def band_psnr(x: Tensor, reference: Tensor) -> float:
    """Return the mean over bands (C, H, W) of the PSNR in dB, with the maximum of the reference band as peak."""
    mse = (x - reference).double().square().mean((1, 2))
    peak = reference.double().amax((1, 2))
    return float((10 * (peak**2 / mse).log10()).mean())


def ssim(x: Tensor, reference: Tensor, data_range: float = 1.0) -> float:
    """Return the SSIM, mean over bands and pixels (Wang et al. 2004): 11x11 Gaussian of 1.5 px, K 0.01, 0.03.

    Images are (C, H, W) or (B, C, H, W) of at least 11 px a side. The outer 5 px, where the window does not fit, are
    excluded.
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
    """Return sqrt(mean over bands of (RMSE / mean)^2) for (C, H, W), with means of `means_of`. Both ERGAS scale it."""
    rmse = (x - reference).double().square().mean((-2, -1)).sqrt()
    return float((rmse / means_of.double().mean((-2, -1))).square().mean().sqrt())


def ergas(x: Tensor, reference: Tensor, scale: float) -> float:
    """Return Wald's ERGAS: 100 / scale * sqrt(mean over bands of (RMSE / mean)^2), means of the reference (C, H, W).

    Wald 2000, "Quality of high resolution synthesised images: is there a simple criterion?". Values of different
    scales are not comparable, because of the factor 1 / scale.
    """
    return 100 / scale * _relative_rmse(x, reference, reference)


def eight_bit(x: Tensor) -> Tensor:
    """Quantise reflectance as in DiffFuSR's comparison: round(255 rho) clipped to 0..255, float64."""
    return (x.double() * PAPER_STEPS).round().clamp(0, PAPER_STEPS)


def ergas_table_iv(x: Tensor, reference: Tensor, scale: float) -> float:
    """Return the ERGAS of Table IV of DiffFuSR (arXiv 2506.11764): 100 * scale * sqrt(...), on 8-bit values (C, H, W).

    The band means are those of the product `x`, and the scale multiplies instead of dividing as in Wald's: scale^2
    times as large for unbiased images. Infinite if a band of the product is all 0.
    """
    product = eight_bit(x)
    return 100 * scale * _relative_rmse(product, eight_bit(reference), product)


def sam(x: Tensor, reference: Tensor) -> float:
    """Return the mean spectral angle in degrees over pixels (C, H, W) with non-zero spectra (Kruse et al. 1993).

    NaN for a single band.
    """
    if len(x) < 2:
        return math.nan
    a, b = x.double().flatten(-2), reference.double().flatten(-2)
    norms = a.norm(dim=-2) * b.norm(dim=-2)
    cosine = ((a * b).sum(-2)[norms > 0] / norms[norms > 0]).clamp(-1, 1)
    return float(torch.rad2deg(cosine.acos()).mean())


def r_squared(x: Tensor, reference: Tensor) -> float:
    """Return R2 = 1 - SSE / SST per band (C, H, W), averaged over bands; NaN for flat references."""
    truth = reference.double()
    errors = (x.double() - truth).square().sum((-2, -1))
    spread = (truth - truth.mean((-2, -1), keepdim=True)).square().sum((-2, -1))
    return _mean_of_ratios(spread - errors, spread)


def correlation(x: Tensor, reference: Tensor) -> float:
    """Return Pearson's correlation per band (C, H, W), averaged over bands; NaN if a band of either is constant."""
    a, b = (image.double() - image.double().mean((-2, -1), keepdim=True) for image in (x, reference))
    return _mean_of_ratios((a * b).sum((-2, -1)), (a.square().sum((-2, -1)) * b.square().sum((-2, -1))).sqrt())


def cosine(x: Tensor, reference: Tensor) -> float:
    """Return the cosine similarity (correlation without subtracting means) per band (C, H, W), averaged over bands.

    DiffFuSR's Table IV calls it cross-correlation. It is near 1 for any two bright images.
    """
    a, b = x.double(), reference.double()
    return _mean_of_ratios((a * b).sum((-2, -1)), (a.square().sum((-2, -1)) * b.square().sum((-2, -1))).sqrt())


def _mean_of_ratios(above: Tensor, below: Tensor) -> float:
    """Return the mean ratio over bands (C,); NaN if any denominator is 0."""
    return math.nan if bool((below == 0).any()) else float((above / below).mean())


def sre_db(x: Tensor, reference: Tensor) -> float:
    """Return the signal to reconstruction error in dB, mean over bands (C, H, W) of 10 log10(mean^2 / MSE).

    Lanaras et al. 2018 (DSen2). Unlike PSNR it is comparable between bright and dark bands. Infinite for an exact band.
    """
    mse = (x - reference).double().square().mean((-2, -1))
    return float((10 * (reference.double().mean((-2, -1)).square() / mse).log10()).mean())


def spectral_rmse(x: Tensor, reference: Tensor) -> float:
    """Return the mean over pixels (C, H, W) of the RMSE over bands, in percent of reflectance. 0 is best.

    A reading of WaveDiffUR's "SRE", lower is better, for which the paper gives no formula.
    """
    return 100 * float((x - reference).double().square().mean(-3).sqrt().mean())


def average_gradient(x: Tensor) -> float:
    """Return the mean over bands and pixels (..., H, W) of sqrt((dx^2 + dy^2) / 2), by forward differences."""
    z = x.double()
    dx, dy = z[..., :-1, 1:] - z[..., :-1, :-1], z[..., 1:, :-1] - z[..., :-1, :-1]
    return float(((dx.square() + dy.square()) / 2).sqrt().mean())


def gradient_ratio(x: Tensor, reference: Tensor) -> float:
    """Return the average gradient relative to the reference: 1 is equally sharp, less is softer. NaN if it is flat."""
    below = average_gradient(reference)
    return average_gradient(x) / below if below > 0 else math.nan


def band_correlation(x: Tensor) -> float:
    """Return the mean correlation of adjacent bands (C, H, W): near 1 for real detail, near 0 for chromatic noise."""
    return correlation(x[:-1], x[1:])


def neighbour_correlation(x: Tensor) -> float:
    """Return the correlation of (C, H, W) at a lag of one pixel, mean of axes and bands; near 0 for white noise."""
    return (correlation(x[..., :-1, :], x[..., 1:, :]) + correlation(x[..., :-1], x[..., 1:])) / 2


def power_ratio_db(x: Tensor, reference: Tensor, periods_px: tuple[float, float]) -> float:
    """Return the spectral power of (C, H, W) relative to the reference in dB, within a range of periods in px.

    Uses radial frequencies of Hann-windowed images over all bands. NaN if the image is too small for the periods.
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
    """Return `r_squared` of block means of x (C, H, W) against the measured coarse image (C, h, w)."""
    return r_squared(functional.avg_pool2d(x[None], x.shape[-1] // coarse.shape[-1])[0], coarse)


def spearman(x: Tensor, y: Tensor) -> float:
    """Return the rank correlation over all values of two images; NaN if either is constant."""
    if any(bool(image.min() == image.max()) for image in (x, y)):
        return math.nan
    return float(stats.spearmanr(x.flatten().numpy(), y.flatten().numpy()).statistic)
