"""Loss terms of WaveDiffUR (eqs. 3, 19 and 20), as plain functions of tensors (..., C, H, W).

The paper's weight of total variation, 2, is 20 times that of the data term and removes detail. Its ancestor DiffLL has
0.01, on a total variation with a built-in factor of 2. The default here is 0.01 on mean squared differences.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from torch import Tensor

MSE_WEIGHT = 0.1  # lambda_1 of eq. 19
TV_WEIGHT = 0.01  # lambda_2 of eq. 19; 2 in the paper
_SSIM_PX, _SSIM_SD_PX = 11, 1.5  # Wang et al. 2004
_SSIM_K = (0.01, 0.03)


def squared_error(found: Tensor, truth: Tensor) -> Tensor:
    """Return the mean squared error over all elements."""
    return functional.mse_loss(found, truth)


def total_variation(details: Tensor, power: int = 2) -> Tensor:
    """Return the mean of |difference|^power of vertical neighbours plus that of horizontal neighbours; `power` 1 or 2.

    Raises ValueError for another power.
    """
    if power not in (1, 2):
        msg = f"total variation of power {power}; expected 1 or 2"
        raise ValueError(msg)
    down, across = (details.diff(dim=axis).abs().pow(power).mean() for axis in (-2, -1))
    return down + across


def realness(found: Tensor, truth: Tensor, mse_weight: float = MSE_WEIGHT, tv_weight: float = TV_WEIGHT) -> Tensor:
    """Return eq. 19 of details V, H, D (..., 3C, H, W): mse_weight * MSE + tv_weight * squared total variation."""
    return mse_weight * squared_error(found, truth) + tv_weight * total_variation(found)


def structural_similarity(found: Tensor, truth: Tensor, data_range: float = 1.0) -> Tensor:
    """Return the mean SSIM of images (B, C, H, W) of at least 11 px a side, differentiable.

    Settings and cropping are those of `training.quality.metrics.ssim`.
    """
    c1, c2 = ((k * data_range) ** 2 for k in _SSIM_K)
    mean_a, mean_b = _smooth(found), _smooth(truth)
    var_a, var_b = _smooth(found * found) - mean_a**2, _smooth(truth * truth) - mean_b**2
    covariance = _smooth(found * truth) - mean_a * mean_b
    score = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return (score / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))).mean()


def consistency(found: Tensor, truth: Tensor, data_range: float = 1.0) -> Tensor:
    """Return eq. 20 of images (B, C, H, W): mean absolute error + 1 - SSIM(found, truth)."""
    return functional.l1_loss(found, truth) + 1 - structural_similarity(found, truth, data_range)


def epsilon_error(estimate: Tensor, noise: Tensor) -> Tensor:
    """Return eq. 3 in its epsilon form, all timesteps weighted alike: the mean squared error of the noise."""
    return functional.mse_loss(estimate, noise)


def _smooth(image: Tensor) -> Tensor:
    """Return Gaussian means (B, C, H - 10, W - 10) where the window fits."""
    r = torch.arange(_SSIM_PX, dtype=image.dtype, device=image.device) - _SSIM_PX // 2
    g = torch.exp(-0.5 * (r / _SSIM_SD_PX) ** 2)
    g = g / g.sum()
    b, c, height, width = image.shape
    planes = image.reshape(b * c, 1, height, width)
    smooth = functional.conv2d(functional.conv2d(planes, g[None, None, :, None]), g[None, None, None, :])
    return smooth.reshape(b, c, *smooth.shape[-2:])
