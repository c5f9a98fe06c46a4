"""Batches of one x2 level of WaveDiffUR: inputs as a sensor, an average or a coarser level gives them, and references.

One network serves all levels of a cascade. The first reads what a sensor has blurred, all others read the level above.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from training.degradation.degrade import degrade_randomly
from training.quality.baselines import box

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.random import Generator
    from torch import Tensor

    from training.degradation.degrade import DegradationRange

# What the input of a batch is, and how many times coarser than the truth it begins.
MEASURED, AVERAGED, CASCADED = "measured", "averaged", "cascaded"
LEAST_PX = 32  # side of the truth; its details have half of it, their own input a quarter
REFERENCE_BLUR = 1.5  # a reference may be this many times coarser than the output, as the paper's
_LEAST_SPREAD = 1e-4

INPUTS: dict[str, float] = {
    # Shares of batches whose input is a sensor's, or the mean estimate of the level above; the rest are averages.
    "measured": 0.4,
    "cascaded": 0.3,
    "coarser": 0.5,  # share of batches whose truth is averaged by 2, and of those by 4
    # Shares of images with a reference of the same ground and with one of other ground; others have none.
    "referenced": 0.2,
    "misled": 0.1,
}


def levels_above(kind: str) -> int:
    """Return how many levels lie between the input of a batch and its truth."""
    return 2 if kind == CASCADED else 1


def kind_of(lr: Tensor, hr: Tensor, measured: Tensor) -> str:
    """Return the kind of a batch by its shapes and flags (B,)."""
    if hr.shape[-1] == 4 * lr.shape[-1]:
        return CASCADED
    return MEASURED if bool(measured[0]) else AVERAGED


def draw_kind(rng: Generator, recipe: Mapping[str, float]) -> str:
    """Draw the kind of a batch."""
    at = float(rng.random())
    if at < recipe["measured"]:
        return MEASURED
    return CASCADED if at < recipe["measured"] + recipe["cascaded"] else AVERAGED


def coarser(hr: Tensor, rng: Generator, share: float) -> Tensor:
    """Average images (B, C, n, n) by 2 with this probability, twice at most, and keep at least `LEAST_PX`."""
    for _ in range(2):
        if hr.shape[-1] // 2 < LEAST_PX or rng.random() >= share:
            break
        hr = box(hr, 2)
    return hr


def inputs(
    hr: Tensor, kind: str, within: DegradationRange, generator: torch.Generator, widths: Sequence[float]
) -> Tensor:
    """Return the input (B, C, h, w) of a batch for truths (B, C, H, W): half their size, a quarter if cascaded.

    `within` is the sensor's at x2. A cascade begins with a sensor, or with averages where the kind is not measured.
    """
    if kind == AVERAGED:
        return box(hr, 2)
    if kind == MEASURED:
        return degrade_randomly(hr, within, generator, 2, widths)
    return degrade_randomly(box(hr, 2), within, generator, 2, widths)


def references(hr: Tensor, generator: torch.Generator, recipe: Mapping[str, float]) -> Tensor:
    """Return references (B, C, H, W) of truths, NaN for images without one.

    A reference of the same ground has other radiometry, and half of them are up to 1.5 times coarser. One of other
    ground is that of the next image. All have mean and standard deviation of the truth, band by band, as
    the pipeline matches references to what it has.
    """
    count = len(hr)
    at = torch.rand(count, generator=generator)
    true = at < recipe["referenced"]
    misled = (at >= recipe["referenced"]) & (at < recipe["referenced"] + recipe["misled"])
    seen = _other_light(_softer(hr, generator), generator)
    ground = torch.where(misled, (torch.arange(count) + 1) % count, torch.arange(count))
    found = _matched(seen[ground], hr)
    found[~(true | misled)] = torch.nan
    return found


def _softer(hr: Tensor, generator: torch.Generator) -> Tensor:
    """Return images as if they were 1.5 times coarser, or as they are, with equal odds per batch."""
    if float(torch.rand((), generator=generator)) < 0.5:
        return hr
    size = [round(side / REFERENCE_BLUR) for side in hr.shape[-2:]]
    soft = functional.interpolate(hr, size=size, mode="area")
    return functional.interpolate(soft, size=hr.shape[-2:], mode="bicubic", align_corners=False)


def _other_light(image: Tensor, generator: torch.Generator) -> Tensor:
    """Return reflectance (B, C, H, W) at another gamma per image and band: another sensor, another day."""
    power = 0.8 + 0.45 * torch.rand(image.shape[:2], generator=generator)
    return image.clamp_min(1e-4) ** power[..., None, None]


def _matched(image: Tensor, to: Tensor) -> Tensor:
    """Return images (B, C, H, W) with mean and standard deviation of others."""
    spread = image.std((-2, -1), keepdim=True).clamp_min(_LEAST_SPREAD)
    centred = (image - image.mean((-2, -1), keepdim=True)) / spread
    return centred * to.std((-2, -1), keepdim=True) + to.mean((-2, -1), keepdim=True)
