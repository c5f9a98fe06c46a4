"""Interpolation and folding of images: what torch computes, in a fraction of its time on a CPU."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

_KEYS = -0.75  # the parameter of Keys' kernel (Keys 1981) that torch uses without antialiasing
_REACH_PX = 2  # pixels on either side that the kernel needs
_ROWS, _COLS = 2, 3  # axes of an image


def upsample(x: Tensor, scale: int) -> Tensor:
    """Upsample (B, C, h, w) to (B, C, scale*h, scale*w), bicubic, with pixel areas aligned (no half-pixel shift).

    As `torch.nn.functional.interpolate`, up to the rounding of float32. That sums 16 products for each fine pixel; on a
    CPU, where no gradient is asked for, this sums 4 along each axis, for one phase of the fine grid at a time.
    """
    if not _summed_by_phase(x):
        return functional.interpolate(x, scale_factor=scale, mode="bicubic", align_corners=False)
    rows = _along(_ROWS, functional.pad(x, (0, 0, _REACH_PX, _REACH_PX), mode="replicate"), scale)
    return _along(_COLS, functional.pad(rows, (_REACH_PX, _REACH_PX, 0, 0), mode="replicate"), scale)


def _summed_by_phase(x: Tensor) -> bool:
    """Return whether an image is on a CPU, of a type that holds running sums, and without gradient."""
    wide = x.dtype in (torch.float32, torch.float64)
    return x.device.type == "cpu" and wide and not (torch.is_grad_enabled() and x.requires_grad)


def _along(axis: int, padded: Tensor, scale: int) -> Tensor:
    """Upsample an image that is padded by `_REACH_PX` at both ends of an axis, along that axis."""
    shape = [*padded.shape]
    count = shape[axis] - 2 * _REACH_PX
    out = padded.new_empty((*shape[:axis], count, scale, *shape[axis + 1 :]))
    for phase, ((first, weight), *others) in enumerate(_kernel(scale)):
        total = padded.narrow(axis, _REACH_PX + first, count) * weight
        for offset, share in others:
            total.add_(padded.narrow(axis, _REACH_PX + offset, count), alpha=share)
        out.select(axis + 1, phase).copy_(total)
    return out.flatten(axis, axis + 1)


@lru_cache
def _kernel(scale: int) -> tuple[tuple[tuple[int, float], ...], ...]:
    """Return, for each phase of the fine grid, the offsets in px of the coarse pixels to sum, and their weights."""
    found = []
    for phase in range(scale):
        place = (phase + 0.5) / scale - 0.5
        nearest = math.floor(place)
        offsets = range(nearest - 1, nearest + 3)
        found.append(tuple((offset, _weight(abs(place - offset))) for offset in offsets))
    return tuple(found)


def _weight(d: float) -> float:
    """Return the value of Keys' kernel at a distance in px, at most 2."""
    a = _KEYS
    return ((a + 2) * d - (a + 3)) * d * d + 1 if d <= 1 else ((a * d - 5 * a) * d + 8 * a) * d - 4 * a


def folded(x: Tensor, scale: int) -> Tensor:
    """Return (B, C*scale*scale, h, w) of (B, C, scale*h, scale*w), the phases of a coarse pixel as channels.

    As `torch.nn.functional.pixel_unshuffle`, value by value.
    """
    b, c, height, width = x.shape
    split = x.reshape(b, c, height // scale, scale, width // scale, scale)
    return split.permute(0, 1, 3, 5, 2, 4).reshape(b, c * scale * scale, height // scale, width // scale)


def unfolded(x: Tensor, scale: int) -> Tensor:
    """Return (B, C, scale*h, scale*w) of (B, C*scale*scale, h, w), as `torch.nn.functional.pixel_shuffle`."""
    b, channels, h, w = x.shape
    split = x.reshape(b, channels // scale**2, scale, scale, h, w)
    return split.permute(0, 1, 4, 2, 5, 3).reshape(b, channels // scale**2, scale * h, scale * w)
