"""A finer reference image fitted to what a level reads: radiometry matched locally, other ground and change left out.

The reference may be of another sensor, date or unit. Only its detail is of use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch.nn import functional

from pipeline.models.wavelet import block_means, twice

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

RADIUS_PX = 8  # of the squares, in px of the image, in which both are compared
# Correlation of reference and image within a square at which the reference begins to count, and at which it counts in
# full. The same ground on another date exceeds the second, other ground seldom reaches the first.
AGREEMENT = (0.55, 0.75)
_LEAST_SPREAD = 0.002  # relative to the local mean; a flat square says nothing about agreement
_TINY = 1e-12


def fitted_bands(reference: Tensor, image: Tensor, rows: Sequence[int]) -> Tensor:
    """Return a reference (B, len(rows), 2H, 2W) of some bands of an image (B, C, H, W) as `fitted`, (B, C, 2H, 2W).

    `rows` are the places of its bands in the image. Bands without a reference are NaN.
    """
    whole = torch.full((*image.shape[:2], *reference.shape[-2:]), torch.nan, device=image.device)
    whole[:, rows] = fitted(reference, image[:, rows])
    return whole


class _Local(NamedTuple):
    mean: Tensor
    spread: Tensor


def fitted(reference: Tensor, image: Tensor) -> Tensor:
    """Return a reference (B, C, 2H, 2W) in the radiometry of an image (B, C, H, W), NaN where it is of no use.

    `reference` is in any unit, NaN where unknown. In squares of 17 px of the image, around each pixel, its means of
    2 x 2 px get mean and standard deviation of the image, band by band. Where they correlate less than `AGREEMENT` with
    the image on average over the bands, the x2 upsampled image takes part or all of its place.
    """
    coarse = block_means(reference, 2)
    known = coarse.isfinite() & image.isfinite()
    ours, theirs = torch.where(known, image, 0.0), torch.where(known, coarse, 0.0)
    here, there = _local(ours, known), _local(theirs, known)
    covariance = _mean(ours * theirs, known) - here.mean * there.mean
    correlation = covariance / (here.spread * there.spread).clamp_min(_TINY)
    correlation = torch.where(_varied(here) & _varied(there), correlation, 0.0)
    gain = here.spread / there.spread.clamp_min(_TINY)
    matched = (reference - _finer(there.mean)) * _finer(gain) + _finer(here.mean)
    low, high = AGREEMENT
    weight = _finer(((correlation.mean(1, keepdim=True) - low) / (high - low)).clamp(0.0, 1.0))
    upsampled = twice(image)
    found = upsampled + weight * (matched - upsampled)
    return torch.where((weight > 0) & found.isfinite(), found, torch.nan)


def _local(image: Tensor, known: Tensor) -> _Local:
    """Return mean and standard deviation (B, C, H, W) of the known pixels in the square around each pixel."""
    mean = _mean(image, known)
    variance = _mean(image * image, known) - mean * mean
    return _Local(mean, variance.clamp_min(0.0).sqrt())


def _mean(image: Tensor, known: Tensor) -> Tensor:
    """Return the mean of the known pixels of (B, C, H, W), 0 elsewhere, in squares; squares at the border are cut."""
    side = 2 * RADIUS_PX + 1
    both = torch.cat((image, known.to(image.dtype)), dim=1)
    total, count = functional.avg_pool2d(both, side, 1, RADIUS_PX, count_include_pad=True).chunk(2, dim=1)
    return total / count.clamp_min(0.5 / side**2)


def _varied(local: _Local) -> Tensor:
    """Return where a square varies enough to be compared."""
    return local.spread > _LEAST_SPREAD * local.mean.abs().clamp_min(_LEAST_SPREAD)


def _finer(image: Tensor) -> Tensor:
    return functional.interpolate(image, scale_factor=2, mode="bilinear", align_corners=False)
