"""Gaussian blur of each Sentinel-2 band, from its MTF at the Nyquist frequency of its own grid."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pipeline.bands import BANDS, RGB

if TYPE_CHECKING:
    from collections.abc import Sequence

MTF_NYQUIST: dict[str, float] = {band.name: band.mtf for band in BANDS}  # at the Nyquist frequency of its own grid


def sensor_sigma_px(band: str, scale: int) -> float:
    """Return the sigma, in px of the sharp grid, of the Gaussian with the band's MTF at the coarse Nyquist frequency.

    exp(-2 (pi f sigma)^2) = MTF at f = 1 / (2 scale) gives sigma = (scale / pi) sqrt(2 ln(1 / MTF)).
    """
    return scale / math.pi * math.sqrt(2 * math.log(1 / MTF_NYQUIST[band]))


def relative_widths(bands: Sequence[str]) -> tuple[float, ...]:
    """Return the width of each band's blur relative to the mean of RGB, at equal GSD.

    For RGB bands only, all widths are 1.
    """
    if set(bands) <= set(RGB):
        return (1.0,) * len(bands)
    mean = sum(sensor_sigma_px(band, 1) for band in RGB) / len(RGB)
    return tuple(sensor_sigma_px(band, 1) / mean for band in bands)
