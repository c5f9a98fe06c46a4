"""The pattern that a pixel-shuffled head repeats in every coarse pixel, and images without it.

In: images (B, C, k*h, k*w) whose coarse pixels are k px a side. Out: the same shape. Imports torch alone.

A head that gives the k*k phases of a coarse pixel from different weights leaves a fixed pattern of a few DN where the
ground shows nothing. Its spectrum lies at the frequencies of the coarse grid itself, which alias to a constant: the
sensor says nothing about them. Detail of the ground averages out over neighbouring coarse pixels, phase by phase; the
pattern does not. The local mean by phase, in which every coarse pixel counts by the inverse of its activity, is taken
away where the activity is that of the quiet ground around, and less where it is more. Towns next to a field therefore
leave no trace in it, nor it in them. Means of coarse pixels stay as they are.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

CELL = 4  # coarse px: means are formed over 3 x 3 such cells
PASSES = 2  # what the first leaves, where activity differs within a cell, the second finds
REACH_PX = PASSES * 3 * CELL  # coarse px around a pixel that decide what is taken from it
FLOOR = 1e-4  # reflectance, 1 DN: ground more even than this is not told apart


def without_phase_pattern(image: Tensor, smooth: Tensor, scale: int) -> Tensor:
    """The image (B, C, scale*h, scale*w) in reflectance without what its detail over `smooth`, alike, repeats."""
    for _ in range(PASSES):
        image = image - phase_pattern(image - smooth, scale)
    return image


def phase_pattern(detail: Tensor, scale: int) -> Tensor:
    """What detail (B, C, scale*h, scale*w) repeats by phase around every coarse pixel, with mean 0 over each."""
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
    """Mean over size x size neighbours, of fewer at the border."""
    return functional.avg_pool2d(values, size, stride=1, padding=size // 2, count_include_pad=False)


def _by_cell(values: Tensor) -> Tensor:
    """Sums over cells of `CELL` px (those at the far border may be smaller), then means of 3 x 3 cells."""
    height, width = values.shape[-2:]
    whole = functional.pad(values, (0, -width % CELL, 0, -height % CELL))
    return _pooled(functional.avg_pool2d(whole, CELL), 3)


def _at_coarse(values: Tensor, like: Tensor) -> Tensor:
    """Values of cells, interpolated to coarse pixels."""
    height, width = like.shape[-2:]
    return functional.interpolate(values, scale_factor=CELL, mode="bilinear", align_corners=False)[..., :height, :width]
