"""How well a store's `uncertainty` predicts the error of its reflectance, per image and pooled over a set."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from pipeline.bands import TARGET_GSD_M
from training.quality import metrics
from training.quality.metrics import trimmed
from training.quality.pairs import BORDER_PX
from training.quality.tables import Record

if TYPE_CHECKING:
    from torch import Tensor

    from training.quality.pairs import Pair
    from training.quality.product import Stored

TABLE, POOLED = "spread", "spread, pooled"
RANK = "Spearman"
# Rings of periods in 2.5 m px, from the Nyquist limit of 10 m pixels to that of 2.5 m pixels.
RINGS_PX = ((8.0, 5.0), (5.0, 3.2), (3.2, 2.5), (2.5, 2.0))
POWERS = tuple(f"power at {TARGET_GSD_M * a:g} to {TARGET_GSD_M * b:g} m, dB" for a, b in RINGS_PX)
METRICS = (
    RANK,
    "spread / error",
    "bands alike, added",
    "bands alike, missing",
    "neighbours alike, added",
    "neighbours alike, missing",
    *POWERS,
)


def of_image(method: str, pair: Pair, mean: Stored, draw: Stored) -> Record:
    """Compare the members' deviation from their mean with that of the truth: location, magnitude and texture."""
    missing = trimmed(pair.hr[0] - mean.rho, BORDER_PX)
    added = trimmed(draw.rho - mean.rho, BORDER_PX)
    values: dict[str, float | None] = dict.fromkeys(METRICS)
    if mean.spread is not None:
        deviation = trimmed(mean.spread, BORDER_PX)
        numbers = (
            metrics.spearman(deviation, missing.abs()),
            float(deviation.square().mean().sqrt() / missing.square().mean().sqrt()),
            metrics.band_correlation(added),
            metrics.band_correlation(missing),
            metrics.neighbour_correlation(added),
            metrics.neighbour_correlation(missing),
            *(metrics.power_ratio_db(added, missing, ring) for ring in RINGS_PX),
        )
        values = dict(zip(METRICS, numbers, strict=True))
    why = dict.fromkeys(values, "fewer than two members") if mean.spread is None else {}
    return Record(TABLE, pair.source, pair.place, pair.index, method, values, why)


class Pools:
    """Spreads and errors of all pixels of a set, for a rank correlation across places."""

    def __init__(self) -> None:
        self._pixels: dict[tuple[str, str], list[tuple[Tensor, Tensor]]] = {}

    def add(self, method: str, pair: Pair, mean: Stored) -> None:
        """Add the mean of one image's members. Ignore it without a spread."""
        if mean.spread is None:
            return
        missing = trimmed(pair.hr[0] - mean.rho, BORDER_PX).abs()
        kept = trimmed(mean.spread, BORDER_PX).flatten(), missing.flatten()
        self._pixels.setdefault((pair.source, method), []).append(kept)

    def records(self) -> list[Record]:
        """Return one record per set and method."""
        return [
            Record(POOLED, source, "all", 0, method, {RANK: metrics.spearman(*map(torch.cat, zip(*many, strict=True)))})
            for (source, method), many in self._pixels.items()
        ]
