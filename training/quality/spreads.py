"""What the members of an ensemble know of their error: their standard deviation against it, by image and pooled.

In: members and their truth. Out: `Record`s. Imports metrics and the pipeline's Ensemble.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from pipeline.superres.members import Ensemble
from training.quality import metrics
from training.quality.metrics import trimmed
from training.quality.pairs import BORDER_PX
from training.quality.tables import Record

if TYPE_CHECKING:
    from torch import Tensor

    from training.quality.pairs import Pair

TABLE, POOLED = "spread", "spread, pooled"
RANK = "Spearman"
METRICS = (
    RANK,
    "spread / error",
    "bands alike, added",
    "bands alike, missing",
    "neighbours alike, added",
    "neighbours alike, missing",
)


def _deviation_and_missing(pair: Pair, samples: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
    """Standard deviation of members (N, 3, H, W), what their mean lacks of the truth, and the mean; borders cut off."""
    ensemble = Ensemble()
    for sample in samples:
        ensemble.add(sample)
    spread = None if ensemble.spread is None else trimmed(ensemble.spread, BORDER_PX)
    return spread, trimmed(pair.hr[0] - ensemble.mean, BORDER_PX), ensemble.mean


def of_image(method: str, pair: Pair, samples: Tensor) -> Record:
    """Where, how far and with what texture members depart from their mean, against how the truth does."""
    deviation, missing, mean = _deviation_and_missing(pair, samples)
    added = trimmed(samples[0] - mean, BORDER_PX)
    values: dict[str, float | None] = dict.fromkeys(METRICS)
    if deviation is not None:
        numbers = (
            metrics.spearman(deviation, missing.abs()),
            float(deviation.square().mean().sqrt() / missing.square().mean().sqrt()),
            metrics.band_correlation(added),
            metrics.band_correlation(missing),
            metrics.neighbour_correlation(added),
            metrics.neighbour_correlation(missing),
        )
        values = dict(zip(METRICS, numbers, strict=True))
    why = dict.fromkeys(values, "fewer than two members") if deviation is None else {}
    return Record(TABLE, pair.source, pair.place, pair.index, method, values, why)


class Pools:
    """Deviations and errors of all pixels of a set, for a rank correlation over places and not only within one."""

    def __init__(self) -> None:
        self._pixels: dict[tuple[str, str], list[tuple[Tensor, Tensor]]] = {}

    def add(self, method: str, pair: Pair, samples: Tensor) -> None:
        """Take in the members (N, 3, H, W) of one image; fewer than two say nothing."""
        deviation, missing, _ = _deviation_and_missing(pair, samples)
        if deviation is not None:
            kept = deviation.flatten(), missing.abs().flatten()
            self._pixels.setdefault((pair.source, method), []).append(kept)

    def records(self) -> list[Record]:
        """One per set and method."""
        return [
            Record(POOLED, source, "all", 0, method, {RANK: metrics.spearman(*map(torch.cat, zip(*many, strict=True)))})
            for (source, method), many in self._pixels.items()
        ]
