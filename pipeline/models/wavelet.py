"""Orthonormal Haar wavelets and the projections of WaveDiffUR (Shi et al., "WaveDiffUR", eqs. 4 and 9).

Images are (..., C, H, W) with any leading dimensions.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


class HaarBands(NamedTuple):
    """Bands of one Haar level, each (..., C, H, W), of an image (..., C, 2H, 2W).

    For a block of pixels a b / c d: A = (a+b+c+d)/2, twice the block mean; H = (a+b-c-d)/2 is PyWavelets' cH,
    V = (a-b+c-d)/2 its cV and D = (a-b-c+d)/2 its cD.
    """

    A: Tensor
    H: Tensor
    V: Tensor
    D: Tensor

    def details(self) -> Tensor:
        """Return V, H and D one after the other, the order of eq. 10, (..., 3C, H, W)."""
        return torch.cat((self.V, self.H, self.D), dim=-3)


def haar(image: Tensor) -> HaarBands:
    """Return the bands of an image (..., C, H, W), each (..., C, ceil(H/2), ceil(W/2)).

    An odd side is padded symmetrically by one row or column at its end.
    """
    image = padded_to_multiple(image, 2)
    a, b = image[..., 0::2, 0::2], image[..., 0::2, 1::2]
    c, d = image[..., 1::2, 0::2], image[..., 1::2, 1::2]
    return HaarBands((a + b + c + d) / 2, (a + b - c - d) / 2, (a - b + c - d) / 2, (a - b - c + d) / 2)


def inverse_haar(bands: HaarBands, size: tuple[int, int] | None = None) -> Tensor:
    """Return the image (..., C, 2H, 2W) of bands (..., C, H, W), cropped to `size` (rows, columns) if given."""
    low, h, v, d = bands
    pixels = ((low + h + v + d) / 2, (low + h - v - d) / 2, (low - h + v - d) / 2, (low - h - v + d) / 2)
    image = functional.pixel_shuffle(torch.stack(pixels, dim=-3), 2).squeeze(-3)
    return image if size is None else image[..., : size[0], : size[1]]


def from_details(low: Tensor, details: Tensor) -> Tensor:
    """Return the image (..., C, 2H, 2W) of A (..., C, H, W) and V, H, D one after the other (..., 3C, H, W)."""
    v, h, d = details.chunk(3, dim=-3)
    return inverse_haar(HaarBands(low, h, v, d))


def padded_to_multiple(image: Tensor, multiple: int) -> Tensor:
    """Repeat the last row and column of (..., H, W) until both sides are multiples of `multiple`."""
    height, width = image.shape[-2:]
    for axis, missing in ((-2, -height % multiple), (-1, -width % multiple)):
        if missing:
            edge = image.narrow(axis, image.shape[axis] - 1, 1)
            image = torch.cat((image, *[edge] * missing), dim=axis)
    return image


def low_pass(image: Tensor, block_px: int) -> Tensor:
    """Return phi_N of (..., H, W): each block of N x N px replaced by its mean; blocks at the far border may be cut.

    phi is an orthogonal projector, phi(phi(x)) = phi(x). Eq. 9 gives phi(A_0) = phi(tau) only for such a phi; bicubic
    down- and upsampling is none.
    """
    height, width = image.shape[-2:]
    return replicated(block_means(image, block_px), block_px)[..., :height, :width]


def block_means(image: Tensor, block_px: int) -> Tensor:
    """Return the means of N x N px, (..., ceil(H / N), ceil(W / N)), of (..., H, W)."""
    planes = image.reshape(-1, 1, *image.shape[-2:])
    means = functional.avg_pool2d(planes, block_px, ceil_mode=True, count_include_pad=False)
    return means.reshape(*image.shape[:-2], *means.shape[-2:])


def replicated(image: Tensor, times: int) -> Tensor:
    """Repeat each pixel of (..., H, W) `times` by `times`."""
    return image.repeat_interleave(times, dim=-2).repeat_interleave(times, dim=-1)


def projected(image: Tensor, target: Tensor, block_px: int) -> Tensor:
    """Return image - phi_N(image) + phi_N(target), (..., H, W): eq. 9 with alpha = I - phi and b = phi(target).

    With N = 1 this is the target. N = 0 stands for no projection and returns the image.
    """
    if block_px == 0:
        return image
    return target if block_px == 1 else image + low_pass(target - image, block_px)


def noised(image: Tensor, alpha_bar: float, noise: Tensor) -> Tensor:
    """Return sqrt(alpha_bar) * image + sqrt(1 - alpha_bar) * noise, the forward process at one step."""
    scaled: Tensor = alpha_bar**0.5 * image + (1 - alpha_bar) ** 0.5 * noise
    return scaled


def consistent(fine: Tensor, coarse: Tensor) -> Tensor:
    """Return fine (..., kH, kW) with the mean of each k x k block replaced by the pixel of coarse (..., H, W).

    For k = 2 this replaces band A by 2 * coarse, for k = 4 band A of the second Haar level by 4 * coarse, and so on:
    the hard consistency of any super-resolver's output. Raises ValueError if fine is no whole multiple of coarse.
    """
    times = fine.shape[-1] // coarse.shape[-1]
    if fine.shape[-2:] != (times * coarse.shape[-2], times * coarse.shape[-1]):
        msg = f"a fine image of {tuple(fine.shape[-2:])} px; expected a whole multiple of {tuple(coarse.shape[-2:])} px"
        raise ValueError(msg)
    return fine + replicated(coarse - block_means(fine, times), times)


def not_below_zero(fine: Tensor, coarse: Tensor) -> Tensor:
    """Return fine (..., kH, kW) with less detail in k x k blocks whose detail makes reflectance negative.

    `coarse` (..., H, W) are the means of the blocks, as after `consistent`. Interpolation and networks overshoot beside
    dark ground, where a spectrum then loses its direction, and the next level overshoots further. The detail of such a
    block is multiplied by the share that takes its lowest pixel to zero, band by band. Means stay, and so do pixels of
    all other blocks, bit by bit. So does a block whose mean is negative, which no share of its detail could mend.
    """
    height, width = coarse.shape[-2:]
    times = fine.shape[-1] // width
    planes = fine.reshape(-1, 1, times * height, times * width)
    lowest = -functional.max_pool2d(-planes, times).reshape(coarse.shape)
    below = (lowest < 0) & (coarse >= 0)
    share = torch.where(below, coarse / (coarse - lowest), 1.0)
    mean, kept, changed = (replicated(of, times) for of in (coarse, share, below))
    return torch.where(changed, (mean + kept * (fine - mean)).clamp_min(0.0), fine)


def twice(image: Tensor, mode: str = "bicubic") -> Tensor:
    """Interpolate (B, C, H, W) to (B, C, 2H, 2W), half-pixel centres, edges replicated, cubic with a = -0.75."""
    return functional.interpolate(image, scale_factor=2, mode=mode, align_corners=False)
