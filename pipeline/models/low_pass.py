"""Low-pass constraints: the coarse image decides the low frequencies of a finer estimate.

As published (SEN2SR), a mask in the Fourier domain of the window swaps the low frequencies. Fourier transforms take the
window as periodic, so its left edge changes pixels at its right edge. Two constraints of ours have finite reach, and
compare with what was measured, not with an interpolation that has lost contrast. `by_smoothed_means`, the default,
corrects the block means of the estimate over a few coarse pixels at a time: the coarse image decides radiometry and
everything wide, and near its Nyquist frequency, where a real sensor has lost contrast that block means keep, the
estimate stands. `by_block_means` makes all block means those of the coarse image.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from pipeline.models.lite import finer
from pipeline.models.resampling import upsample

if TYPE_CHECKING:
    from torch import Tensor

ORDER = 2  # of the Butterworth mask


def distances(height: int, width: int) -> Tensor:
    """Return the distance (height, width) of each frequency from zero, in cycles per window, zero at the centre."""
    rows, columns = (torch.arange(side, dtype=torch.float64) - side // 2 for side in (height, width))
    return (rows[:, None].square() + columns.square()).sqrt()


def radius(height: int, width: int, scale: int) -> int:
    """Return the radius of the masks, in cycles per window: the Nyquist frequency of pixels `scale` times as large."""
    return min(height // 2, width // 2) // scale


def ideal_mask(height: int, width: int, scale: int) -> Tensor:
    """Return a disc of ones within `radius` (height, width), float32, frequency zero at the centre."""
    return (distances(height, width) <= radius(height, width, scale)).float()


def butterworth_mask(height: int, width: int, scale: int) -> Tensor:
    """Return the Butterworth mask of order 2 around `radius` (height, width), float32, frequency zero at the centre."""
    ratio = distances(height, width) / radius(height, width, scale)
    return (1 / (1 + ratio ** (2 * ORDER))).float()


def by_mask(fine: Tensor, smooth: Tensor, mask: Tensor) -> Tensor:
    """Replace the share `mask` (h, w) of the spectrum of `fine` (B, C, h, w) by that of `smooth` (B, C, h, w)."""
    spectrum = torch.fft.fft2(smooth - fine) * torch.fft.ifftshift(mask.to(fine.device))
    change: Tensor = torch.fft.ifft2(spectrum).real
    return fine + change


def published_upsample(coarse: Tensor, size: tuple[int, int]) -> Tensor:
    """Interpolate (B, C, h, w) to `size` as the release does: cubic with a = -0.5; PyTorch's has it if antialiased."""
    return functional.interpolate(coarse, size=size, mode="bicubic", antialias=True)


def by_smoothed_means(fine: Tensor, coarse: Tensor, scale: int) -> Tensor:
    """Correct `fine` (B, C, scale*h, scale*w) by its difference of block means to `coarse` (B, C, h, w), smoothed.

    A binomial filter of 3 x 3 coarse pixels smooths: it passes what is wide and half of what repeats every four coarse
    pixels. Reaches 4 coarse pixels.
    """
    rest = coarse - functional.avg_pool2d(fine, scale)
    bands, taps = rest.shape[1], rest.new_full((3,), 0.25)  # filled where it is: a copy would wait for a GPU
    taps[1] = 0.5
    kernel = torch.outer(taps, taps).expand(bands, 1, 3, 3)
    smooth = functional.conv2d(functional.pad(rest, (1, 1, 1, 1), mode="replicate"), kernel, groups=bands)
    return fine + upsample(smooth, scale)


def by_block_means(fine: Tensor, coarse: Tensor, scale: int) -> Tensor:
    """Give `fine` (B, C, scale*h, scale*w) the block means of `coarse` (B, C, h, w), by a smooth change.

    They agree to 2 % of a difference that changes from pixel to pixel, and better where it is wider. Reaches 4 coarse
    pixels, and weakly up to 12.
    """
    return fine + finer(coarse - functional.avg_pool2d(fine, scale), scale)
