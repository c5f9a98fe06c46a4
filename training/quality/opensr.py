"""OpenSR-test: seven numbers for the consistency of a super-resolved image with its input and the added detail.

Aybar et al., "A Comprehensive Benchmark for Optical Remote Sensing Image Super-Resolution" (IEEE GRSL 2024), with the
constants of the authors' package 1.3 (its documentation states others). Implemented from the definitions and checked
against the package's results. Images are reflectance tensors (C, H, W).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy import fft, ndimage
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from torch import Tensor

    Distance = Callable[[Tensor, Tensor], Tensor]

CONSISTENCY = ("reflectance", "spectral", "spatial")
CORRECTNESS = ("hallucination", "omission", "improvement")
NAMES = (*CONSISTENCY, "synthesis", *CORRECTNESS)

BORDER_PX = 16  # px of the sharp grid, cropped first
MAX_SHIFT_PX = 5.0  # larger shifts count as failures of the correlation
SHIFT_STEPS = 50  # per pixel
PENALTY = 0.05  # lambda of all three scores
TEMPERATURE = 0.25  # of the softmin over the three
QUANTILE = 0.75  # of the reference distance; pixels with all distances below it are excluded
EPSILON = 1e-8
SHIFT_REASON = f"the correlation found a shift above {MAX_SHIFT_PX:g} LR px, which is taken for its failure"


def fractional_difference(x: Tensor, y: Tensor) -> Tensor:
    """Return the mean over bands of |x - y| / |x + y|, (C, H, W) twice -> (H, W): the package's default "nd"."""
    return ((x - y).abs() / (x + y + EPSILON).abs()).nanmean(0)


def absolute_difference(x: Tensor, y: Tensor) -> Tensor:
    """Return the mean over bands of |x - y|, (C, H, W) twice -> (H, W): the package's "l1"."""
    return (x - y).abs().mean(0)


def spectral_angle(x: Tensor, y: Tensor) -> Tensor:
    """Return the angle between spectra in degrees, (C, H, W) twice -> (H, W); NaN where a spectrum is zero."""
    cosine = (x * y).sum(0) / (x.norm(dim=0) * y.norm(dim=0))
    return torch.rad2deg(cosine.clamp(-1, 1).acos())


def to_coarse(x: Tensor, scale: int) -> Tensor:
    """Downsample by antialiased bilinear (a tent of two coarse pixels), (C, H, W) -> (C, H/scale, W/scale)."""
    return functional.interpolate(x[None], scale_factor=1 / scale, mode="bilinear", antialias=True)[0]


def to_fine(x: Tensor, scale: int) -> Tensor:
    """Upsample bilinearly, (C, h, w) -> (C, scale*h, scale*w)."""
    return functional.interpolate(x[None], scale_factor=scale, mode="bilinear")[0]


def find_shift(
    reference: NDArray[np.float32], moving: NDArray[np.float32], steps: int = SHIFT_STEPS
) -> tuple[float, float]:
    """Return the shift (rows, columns) that registers `moving` (H, W) to `reference`, to 1/`steps` px.

    Phase correlation, refined at its peak by a matrix-multiply DFT (Guizar-Sicairos et al. 2008, Optics Letters 33).
    """
    product = fft.fft2(reference) * np.conj(fft.fft2(moving))
    product /= np.maximum(np.abs(product), 100 * np.finfo(np.float32).eps)
    peak = np.unravel_index(np.argmax(np.abs(fft.ifft2(product))), product.shape)
    whole = [p - n if p > n // 2 else p for p, n in zip(peak, product.shape, strict=True)]
    reach = math.ceil(1.5 * steps) // 2
    nearby = np.arange(math.ceil(1.5 * steps)) - reach
    rows, columns = (
        np.exp(2j * np.pi * np.outer(at + nearby / steps, fft.fftfreq(n)))
        for at, n in zip(whole, product.shape, strict=True)
    )
    fine = np.unravel_index(np.argmax(np.abs(rows @ product @ columns.T)), (len(nearby), len(nearby)))
    dy, dx = (float(at + nearby[i] / steps) for at, i in zip(whole, fine, strict=True))
    return dy, dx


def shift_between(moving: Tensor, reference: Tensor) -> tuple[float, float] | None:
    """Return `find_shift` on band means of (C, H, W), or None if it exceeds MAX_SHIFT_PX."""
    shift = find_shift(reference.mean(0).numpy(), moving.mean(0).numpy())
    return shift if math.hypot(*shift) <= MAX_SHIFT_PX else None


def match_histogram(image: NDArray[np.float32], reference: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return `image` with its histogram matched to `reference`, by quantiles."""
    flat = image.ravel()
    below = np.searchsorted(np.sort(flat), flat, side="right") / flat.size
    values, counts = np.unique(reference, return_counts=True)
    matched = np.interp(below, np.cumsum(counts) / reference.size, values)
    return matched.astype(np.float32).reshape(image.shape)


def harmonised(sr: Tensor, hr: Tensor) -> Tensor:
    """Return `sr` (C, H, W) matched to `hr` by histogram per band, then by one shift of the image."""
    matched = np.stack([match_histogram(a, b) for a, b in zip(sr.numpy(), hr.numpy(), strict=True)])
    shift = shift_between(torch.from_numpy(matched), hr)
    if shift is not None and shift != (0.0, 0.0):
        matched = np.stack([ndimage.shift(band, shift, order=1, mode="nearest") for band in matched])
    return torch.from_numpy(matched)


@dataclass(frozen=True)
class Triplet:
    """Cropped input (C, h, w), estimate and truth (C, H, W), with their scores."""

    lr: Tensor
    sr: Tensor
    hr: Tensor
    scale: int

    @classmethod
    def of(cls, lr: Tensor, sr: Tensor, hr: Tensor, border_px: int = BORDER_PX) -> Triplet:
        """Crop all three by `border_px` of the sharp grid. Raises ValueError if sizes do not nest or are too small."""
        scale, rest = divmod(hr.shape[-1], lr.shape[-1])
        if rest or hr.shape != sr.shape or min(hr.shape[-2:]) <= 2 * border_px:
            msg = (
                f"sizes {tuple(lr.shape)}, {tuple(sr.shape)}, {tuple(hr.shape)}; expected a whole scale and more than "
            )
            raise ValueError(msg + f"{2 * border_px} px a side")
        return cls(_cropped(lr, border_px // scale), _cropped(sr, border_px), _cropped(hr, border_px), scale)

    def consistency(self) -> dict[str, float]:
        """Return reflectance (mean |LR - down(SR)|), spectral (mean angle, deg), spatial (shift, LR px; NaN if > 5)."""
        coarse = to_coarse(self.sr, self.scale)
        shift = shift_between(self.lr, coarse)
        return {
            "reflectance": float(absolute_difference(self.lr, coarse).nanmean()),
            "spectral": float(spectral_angle(self.lr, coarse).nanmean()),
            "spatial": math.nan if shift is None else math.hypot(*shift),
        }

    def added(self, distance: Distance = fractional_difference) -> dict[str, float]:
        """Return synthesis (mean |up(LR) - SR|) and shares of hallucination, omission, improvement by `distance`."""
        up, sr = to_fine(self.lr, self.scale), harmonised(self.sr, self.hr)
        synthesis = float(absolute_difference(up, sr).nanmean())
        return {"synthesis": synthesis, **correctness(up, sr, self.hr, distance)}


def correctness(up: Tensor, sr: Tensor, hr: Tensor, distance: Distance) -> dict[str, float]:
    """Return the shares of hallucination, omission and improvement, which sum to one; images (C, H, W), sharp grid.

    The reference distance is that of the interpolated input to the truth. Relative to it, i is the distance of the
    estimate to the truth, o that of the estimate to the interpolated input, and h = i + o - 1. Improvement scores
    i + o (1 - exp(-h lambda)), omission o + i (1 - exp(-h lambda)), hallucination exp(-i o lambda). The softmin of the
    three is averaged over pixels where any distance exceeds the third quartile of the reference distance.
    """
    reference, to_truth, to_input = distance(up, hr), distance(sr, hr), distance(sr, up)
    least = reference.flatten().kthvalue(int(QUANTILE * reference.numel())).values
    told = (reference > least) | (to_truth > least) | (to_input > least)
    i, o = to_truth[told] / reference[told], to_input[told] / reference[told]
    excess = 1 - torch.exp(-(i + o - 1) * PENALTY)
    scores = torch.stack([torch.exp(-i * o * PENALTY), o + i * excess, i + o * excess])
    shares = torch.softmax(-scores / TEMPERATURE, dim=0).nanmean(1)
    return dict(zip(CORRECTNESS, shares.tolist(), strict=True))


def opensr(lr: Tensor, sr: Tensor, hr: Tensor, distance: Distance = fractional_difference) -> dict[str, float]:
    """Return all seven numbers of one image: lr (C, h, w), sr and hr (C, H, W) reflectance, float32 on the CPU."""
    triplet = Triplet.of(lr, sr, hr)
    return {**triplet.consistency(), **triplet.added(distance)}


def explained(values: dict[str, float | None]) -> tuple[dict[str, float | None], dict[str, str]]:
    """Return `values` with None for a shift that was not measured, and the reason by name."""
    shift = values["spatial"]
    if shift is None or math.isnan(shift):
        return {**values, "spatial": None}, {"spatial": SHIFT_REASON}
    return values, {}


def _cropped(x: Tensor, px: int) -> Tensor:
    return x[..., px : x.shape[-2] - px, px : x.shape[-1] - px].float()
