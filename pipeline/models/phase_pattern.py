"""Remove the fixed pattern that a pixel-shuffled head repeats in every coarse pixel of k x k px.

A head that gives the k*k phases from different weights leaves a pattern of a few DN on flat ground. Its spectrum lies
at the frequencies of the coarse grid, which alias to a constant, so the sensor does not constrain it.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

CELL = 4  # coarse px: means are formed over 3 x 3 such cells
PASSES = 2  # the second removes what the first leaves where activity differs within a cell
REACH_PX = PASSES * 3 * CELL  # coarse px around a pixel that its pattern depends on
FLOOR = 1e-4  # reflectance, 1 DN: lower bound of activity


def without_phase_pattern(image: Tensor, smooth: Tensor, scale: int) -> Tensor:
    """Return the image (B, C, scale*h, scale*w) in reflectance without the pattern of its detail over `smooth`.

    `smooth` has the same shape and unit. Means of coarse pixels stay as they are.
    """
    for _ in range(PASSES):
        image = image - phase_pattern(image - smooth, scale)
    return image


def phase_pattern(detail: Tensor, scale: int) -> Tensor:
    """Return what detail (B, C, scale*h, scale*w) repeats by phase around every coarse pixel, with mean 0 over each.

    Detail of the ground averages out over neighbouring coarse pixels, phase by phase; the pattern does not. In the
    local mean by phase, each coarse pixel is weighted by the inverse of its activity. The mean is taken in full where
    the activity is at most that of the quiet ground nearby, and scaled down where it is higher, so that a town and the
    field next to it do not affect each other.
    """
    b, c, height, width = detail.shape
    detail = functional.pixel_unshuffle(detail.reshape(b * c, 1, height, width), scale)
    detail = detail - detail.mean(1, keepdim=True)
    activity = _pooled(detail.square().mean(1, keepdim=True), 3) + FLOOR**2
    weight = 1 / activity
    total = _by_cell(weight)
    pattern = _at_coarse(_by_cell(weight * detail) / total, detail)
    quiet = _at_coarse(_by_cell(torch.ones_like(weight)) / total, detail)  # harmonic mean of the activity
    share = quiet / torch.maximum(activity, quiet)
    return functional.pixel_shuffle(share * pattern, scale).reshape(b, c, height, width)


def _pooled(values: Tensor, size: int) -> Tensor:
    """Return the mean over size x size neighbours, fewer at the border."""
    return functional.avg_pool2d(values, size, stride=1, padding=size // 2, count_include_pad=False)


def _by_cell(values: Tensor) -> Tensor:
    """Sum over cells of `CELL` px (those at the far border may be smaller), then average 3 x 3 cells."""
    height, width = values.shape[-2:]
    whole = functional.pad(values, (0, -width % CELL, 0, -height % CELL))
    return _pooled(functional.avg_pool2d(whole, CELL), 3)


def _at_coarse(values: Tensor, like: Tensor) -> Tensor:
    """Interpolate values of cells to coarse pixels."""
    height, width = like.shape[-2:]
    return functional.interpolate(values, scale_factor=CELL, mode="bilinear", align_corners=False)[..., :height, :width]
