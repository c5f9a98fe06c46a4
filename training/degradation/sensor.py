"""How wide Sentinel-2 sees each band: its MTF at the Nyquist frequency of the band's own grid, as a Gaussian."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pipeline.bands import BANDS, RGB

if TYPE_CHECKING:
    from collections.abc import Sequence

MTF_NYQUIST: dict[str, float] = {band.name: band.mtf for band in BANDS}  # at the Nyquist frequency of its own grid


def sensor_sigma_px(band: str, scale: int) -> float:
    """Width in px of the sharp grid of the Gaussian whose transfer at the coarse Nyquist frequency is the band's MTF.

    exp(-2 (pi f sigma)^2) = MTF at f = 1 / (2 scale) gives sigma = (scale / pi) sqrt(2 ln(1 / MTF)).
    """
    return scale / math.pi * math.sqrt(2 * math.log(1 / MTF_NYQUIST[band]))


def relative_widths(bands: Sequence[str]) -> tuple[float, ...]:
    """Width of each band's blur over the mean width of the three colours, all on grids of one GSD.

    The colours alone are taken to be blurred alike: 1.
    """
    if set(bands) <= set(RGB):
        return (1.0,) * len(bands)
    mean = sum(sensor_sigma_px(band, 1) for band in RGB) / len(RGB)
    return tuple(sensor_sigma_px(band, 1) / mean for band in bands)
