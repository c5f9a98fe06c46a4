"""Removal of the fixed pattern that a pixel-shuffled head repeats in every coarse pixel, a few DN on flat ground.

The pattern is the local mean by phase, weighted by inverse activity. It is subtracted in full on quiet ground and less
on active ground, so that towns and fields do not affect each other. Means of coarse pixels do not change.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.models.resampling import folded, unfolded

CELL = 4  # coarse px: means are formed over 3 x 3 such cells
PASSES = 2  # the second removes what the first leaves where activity differs within a cell
REACH_PX = PASSES * 3 * CELL  # coarse px around a pixel that affect its correction
FLOOR = 1e-4  # least activity, in reflectance (1 DN)


def without_phase_pattern(image: Tensor, smooth: Tensor, scale: int) -> Tensor:
    """Remove the phase pattern from an image (B, C, scale*h, scale*w) in reflectance; `smooth` has the same shape.

    The pattern is estimated from the detail, image - smooth.
    """
    phases, smooth_phases = _phases(image, scale), _phases(smooth, scale)
    for _ in range(PASSES):
        phases = phases - _pattern(phases - smooth_phases)
    return unfolded(phases, scale).reshape(image.shape)


def phase_pattern(detail: Tensor, scale: int) -> Tensor:
    """Return the phase pattern of detail (B, C, scale*h, scale*w); its mean is 0 over each coarse pixel.

    The pattern lies at the frequencies of the coarse grid. They alias to a constant, so the sensor cannot observe them.
    Detail of the ground averages out over neighbouring coarse pixels, phase by phase; the pattern does not.
    """
    return unfolded(_pattern(_phases(detail, scale)), scale).reshape(detail.shape)


def _phases(image: Tensor, scale: int) -> Tensor:
    """Return (B*C, scale*scale, h, w) of an image (B, C, scale*h, scale*w)."""
    return folded(image.flatten(0, 1)[:, None], scale)


def _pattern(detail: Tensor) -> Tensor:
    """Return the phase pattern of detail (n, phases, h, w)."""
    detail = detail - detail.mean(1, keepdim=True)
    activity = _pooled(detail.square().mean(1, keepdim=True), 3) + FLOOR**2
    weight = 1 / activity
    total = _by_cell(weight)
    pattern = _at_coarse(_by_cell(weight * detail) / total, detail)
    quiet = _at_coarse(_by_cell(torch.ones_like(weight)) / total, detail)  # harmonic mean of the activity
    share = quiet / torch.maximum(activity, quiet)
    return share * pattern


def _pooled(values: Tensor, size: int) -> Tensor:
    """Return the mean over size x size neighbours, fewer at the border."""
    return functional.avg_pool2d(values, size, stride=1, padding=size // 2, count_include_pad=False)


def _by_cell(values: Tensor) -> Tensor:
    """Return sums over cells of `CELL` px (cells at the far border may be smaller), averaged over 3 x 3 cells."""
    height, width = values.shape[-2:]
    whole = functional.pad(values, (0, -width % CELL, 0, -height % CELL))
    return _pooled(functional.avg_pool2d(whole, CELL), 3)


def _at_coarse(values: Tensor, like: Tensor) -> Tensor:
    """Interpolate values of cells to coarse pixels."""
    height, width = like.shape[-2:]
    return functional.interpolate(values, scale_factor=CELL, mode="bilinear", align_corners=False)[..., :height, :width]
