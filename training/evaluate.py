"""Measure super-resolution and fusion on places held out by location, beside the methods they have to beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from training import baselines
from training.data import harmonise, GAMMA_MEDIAN
from training.degrade import Degradation, degrade
from training.metrics import psnr, trimmed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from training.data import Chip

BORDER_PX = 8  # left out of every score, of all methods alike
MAX_SIDE_PX = 256
FLAT = 0.02  # spread of 8-bit values / 255 below which an image shows nothing to sharpen


@dataclass(frozen=True)
class Pair:
    """One held-out image (1, 3, H, W) in reflectance and its degraded form (1, 3, H/4, W/4)."""

    source: str
    hr: Tensor
    lr: Tensor


def held_out_pairs(chips: Sequence[Chip], how: Degradation, per_set: int | None = None) -> list[Pair]:
    """Pairs of the chips that show something: centre crops, median harmonisation, noise seeded per image."""
    pairs: list[Pair] = []
    for index, chip in enumerate(chips):
        seen = sum(pair.source == chip.source for pair in pairs)
        if float(chip.pixels.std()) <= FLAT or (per_set is not None and seen >= per_set):
            continue
        height, width = (min(side, MAX_SIDE_PX) // how.scale * how.scale for side in chip.pixels.shape[1:])
        top, left = (chip.pixels.shape[1] - height) // 2, (chip.pixels.shape[2] - width) // 2
        crop = chip.pixels[:, top : top + height, left : left + width]
        hr = torch.from_numpy(harmonise(crop, GAMMA_MEDIAN) if chip.encoded else crop.copy())[None]
        lr = degrade(hr, how, torch.Generator().manual_seed(index))
        pairs.append(Pair(chip.source, hr, lr))
    return pairs


def score(estimate: Tensor, pair: Pair) -> float:
    """PSNR in dB (data range 1 reflectance) without the border."""
    return psnr(trimmed(estimate, BORDER_PX), trimmed(pair.hr, BORDER_PX))


def per_set_mean(pairs: Sequence[Pair], scores: Sequence[float]) -> dict[str, float]:
    """Mean of the scores of each set's images."""
    sets: dict[str, list[float]] = {}
    for pair, value in zip(pairs, scores, strict=True):
        sets.setdefault(pair.source, []).append(value)
    return {name: sum(values) / len(values) for name, values in sets.items()}


def average(per_set: dict[str, float]) -> float:
    """Mean over sets, each counting once."""
    return sum(per_set.values()) / len(per_set)


def ibp_scores(pairs: Sequence[Pair]) -> list[float]:
    """Iterative back-projection with the box kernel on every pair."""
    return [score(baselines.ibp(pair.lr), pair) for pair in pairs]
