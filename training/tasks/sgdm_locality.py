"""Whether a map acts where it is: what an exchanged part of it changes there, and elsewhere.

A U-Net spreads what it is told. Where objects are hardly larger than pixels of its coarser levels, as buildings are, a
changed map then changes the image beside the change nearly as much as within it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.nn import functional

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

WHOLE = 0.5  # share of the images whose whole map is exchanged, not that of a rectangle
SIDES = (0.25, 0.75)  # of the rectangles, relative to the image's
ASKED = 1 / 25  # squared change elsewhere relative to that inside, below which nothing is asked
SOUND = 1e-12


def exchanged(of_map: Tensor, rng: np.random.Generator) -> Tensor:
    """Return maps (B, K, H, W) with those of the next image of the batch instead, everywhere or in a rectangle."""
    found, other = of_map.clone(), of_map.roll(1, 0)
    for number in range(len(of_map)):
        where = [slice(None), slice(None)]
        if rng.random() >= WHOLE:
            where = []
            for side in of_map.shape[-2:]:
                length = round(side * rng.uniform(*SIDES))
                first = int(rng.integers(0, side - length + 1))
                where.append(slice(first, first + length))
        found[number, :, where[0], where[1]] = other[number, :, where[0], where[1]]
    return found


def change(one: Tensor, other: Tensor, differs: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean squares (B,) of the difference of two batches of latents (B, L, h, w), inside and elsewhere.

    differs: where the map does, (B, n h, n w) of 0 or 1; a latent pixel counts by its share on each side. NaN where a
    side is empty.
    """
    squares = (one - other).square().mean(1)
    height, width = squares.shape[-2:]
    share = functional.adaptive_avg_pool2d(differs[:, None].to(squares), (height, width))[:, 0]
    inside = (share * squares).sum((1, 2)) / share.sum((1, 2))
    outside = ((1 - share) * squares).sum((1, 2)) / (1 - share).sum((1, 2))
    return inside, outside


def spread(one: Tensor, other: Tensor, differs: Tensor) -> Tensor:
    """Return by how much the logarithm of the change elsewhere over that inside exceeds what is asked; see `change`.

    It is the mean over the images of which a part differs. It does not depend on the strength of the change, which the
    error of the noise decides: it is large in noisy latents, small in others, and spreads in both.
    """
    share = differs.float().mean((1, 2))
    some = (share > 0) & (share < 1)
    if not bool(some.any()):
        return (one - other).sum() * 0
    inside, outside = change(one[some], other[some], differs[some])
    return ((outside + SOUND) / (inside + SOUND) / ASKED).log().clamp_min(0).mean()
