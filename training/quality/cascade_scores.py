"""Scores of a cascade of x2 levels at several scales, beside one step and methods without a network."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Literal

import torch

from training.degradation.degrade import Degradation, degrade
from training.degradation.sensor import relative_widths
from training.quality import baselines, metrics
from training.quality.metrics import trimmed
from training.quality.niqe import BLOCK_PX, Niqe, luminance
from training.quality.pairs import BORDER_PX, Pair, held_out_pairs, reflectance, score, shown_of
from training.quality.tables import Record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from training.data.rasters import Chip
    from training.quality.cascade import Cascade

    Kind = Literal["sensor", "means"]

SIDE_PX = 512  # maximum side of an image, if every scale can be measured on it
LEAST_COARSE_PX = 8  # a side, of what a cascade begins with
SENSOR: Kind = "sensor"
MEANS: Kind = "means"
KINDS: tuple[Kind, ...] = (SENSOR, MEANS)
FIRST_SCALE = 2
PER_SOURCE = 32  # images of each source to which NIQE is fitted, so that none prevails
NIQE = "NIQE"
TRUTH, BICUBIC, IBP, IBP_TRUE = "truth", "bicubic", "IBP", "IBP, true kernel"
ONE_STEP, CASCADE, DRAW = "one step", "cascade", "cascade, one draw"
METHODS = (TRUTH, BICUBIC, IBP, IBP_TRUE, ONE_STEP, CASCADE, DRAW)
OF_PAIR: Mapping[str, Callable[[Tensor, Tensor], float]] = {
    "SSIM": metrics.ssim,
    "SAM": metrics.sam,
    "SRE dB": metrics.sre_db,
    "spectral RMSE": metrics.spectral_rmse,
}


@dataclass(frozen=True)
class Naturalness:
    """NIQE, or the reason why it could not be fitted."""

    model: Niqe | None = None
    reason: str = "no model was fitted"

    @classmethod
    def fitted(cls, chips: Iterable[Chip]) -> Naturalness:
        """Fit the first `PER_SOURCE` chips of each source that have a block."""
        try:
            return cls(Niqe.fit(_luminances(chips)))
        except ValueError as error:
            return cls(None, f"the images to train on give {error}")

    def score(self, rgb: Tensor) -> tuple[float | None, dict[str, str]]:
        """Return the score of reflectance (3, H, W), or None with the reason."""
        if self.model is None:
            return None, {NIQE: self.reason}
        found = self.model.score(luminance(rgb))
        small = f"images of fewer than two blocks of {self.model.block_px} px that are not flat"
        return (None, {NIQE: small}) if math.isnan(found) else (found, {})


WITHOUT = Naturalness()


def _luminances(chips: Iterable[Chip]) -> Iterator[NDArray[np.float64]]:
    taken: Counter[str] = Counter()
    for chip in chips:
        if min(chip.pixels.shape[1:]) >= BLOCK_PX and taken[chip.source] < PER_SOURCE:
            taken[chip.source] += 1
            yield luminance(reflectance(chip, chip.pixels)[shown_of(chip.bands)])


@dataclass(frozen=True)
class Seen:
    """How coarse images are made: block means, or a sensor's view by `how` at its scale."""

    kind: Kind
    how: Degradation

    @property
    def measured(self) -> bool:
        """Whether the first level may undo a sensor's blur."""
        return self.kind == SENSOR

    def coarse(self, fine: Tensor, pair: Pair, generator: torch.Generator | None = None) -> Tensor:
        """Return (1, bands, H, W) as (1, bands, H/scale, W/scale) at the scale of `how`; noise of a sensor only."""
        if self.kind == MEANS:
            return baselines.box(fine, self.how.scale)
        return degrade(fine, self.how, generator, relative_widths(pair.bands))

    def of_scale(self, scale: int) -> Seen:
        """Return the same at another scale. The blur of the coarse pixel stays the same."""
        return replace(self, how=self.how.of_scale(scale))


def truths(chips: Sequence[Chip], scales: Sequence[int], per_set: int | None = None) -> dict[int, list[Pair]]:
    """Return the sharp images that are large enough for each scale, with their means over 2 x 2 px.

    They are centre crops of at most 512 px, or more if the largest scale needs it. An image is the same at every scale:
    its sides are multiples of the largest one that leaves `LEAST_COARSE_PX`. Coarse images of real pairs are not used.
    """
    sharp = [replace(chip, coarse=None) for chip in chips]
    side_px = max(SIDE_PX, LEAST_COARSE_PX * max(scales))
    how = Degradation().of_scale(FIRST_SCALE)
    found: dict[int, list[Pair]] = {scale: [] for scale in scales}
    for pair in held_out_pairs(sharp, how, per_set, side_px):
        fit = [scale for scale in scales if min(pair.hr.shape[-2:]) >= LEAST_COARSE_PX * scale]
        for scale in fit:
            found[scale].append(_cut(pair, max(fit)))
    return found


def _cut(pair: Pair, multiple: int) -> Pair:
    """Return the centre of a sharp image whose sides are multiples of `multiple`, even."""
    sides = [side // multiple * multiple for side in pair.hr.shape[-2:]]
    top, left = ((whole - side) // 2 for whole, side in zip(pair.hr.shape[-2:], sides, strict=True))
    hr = pair.hr[..., top : top + sides[0], left : left + sides[1]]
    return replace(pair, hr=hr, lr=baselines.box(hr, FIRST_SCALE))


def seen(pair: Pair, how: Seen) -> Pair:
    """Return the pair with its coarse image made by `how`, with noise seeded per image."""
    return replace(pair, lr=how.coarse(pair.hr, pair, torch.Generator().manual_seed(pair.index)))


def estimates(cascade: Cascade, pair: Pair, how: Seen, seed: int = 0, *, draws: bool = True) -> dict[str, Tensor]:
    """Return the estimates (1, bands, H, W) of all methods, that of one draw only with `draws`.

    One step and `stopped` are the mean after that many levels, with the remaining factor by back-projection.
    """
    lr, scale = pair.lr, pair.scale
    means = cascade.every_level(pair, measured=how.measured)
    draw = {DRAW: cascade.every_level(pair, measured=how.measured, member=0, seed=seed)[-1]} if draws else {}
    stops = [
        mean if (left := scale >> level) == 1 else baselines.ibp(mean, left) for level, mean in enumerate(means, 1)
    ]
    true = {IBP_TRUE: baselines.ibp(lr, scale, partial(how.coarse, pair=pair))} if how.measured else {}
    return {
        BICUBIC: baselines.bicubic(lr, scale),
        IBP: baselines.ibp(lr, scale),
        **true,
        ONE_STEP: stops[0],
        **{stopped(level): stop for level, stop in enumerate(stops, 1) if 1 < level < len(stops)},
        CASCADE: stops[-1],
        **draw,
    }


def stopped(level: int) -> str:
    """Return the name of the estimate that a cascade gives after some of its levels, at least 2 and not all."""
    return f"{level} levels"


def scores(
    estimate: Tensor, pair: Pair, how: Seen, natural: Naturalness = WITHOUT
) -> tuple[dict[str, float | None], dict[str, str]]:
    """Return every metric of an estimate (1, bands, H, W), and the reasons for those that are None."""
    x, truth = (trimmed(image, BORDER_PX)[0] for image in (estimate, pair.hr))
    values: dict[str, float | None] = {"PSNR": score(estimate, pair)}
    values |= {name: metric(x, truth) for name, metric in OF_PAIR.items()}
    return _with_own(values, estimate, pair, how, natural)


def scores_of_truth(
    pair: Pair, how: Seen, natural: Naturalness = WITHOUT
) -> tuple[dict[str, float | None], dict[str, str]]:
    """Return the metrics that the truth itself has, and the reasons for those that are None."""
    return _with_own({}, pair.hr, pair, how, natural)


def _with_own(
    values: dict[str, float | None], image: Tensor, pair: Pair, how: Seen, natural: Naturalness
) -> tuple[dict[str, float | None], dict[str, str]]:
    """Add the metrics of the image itself: gradient, naturalness and consistency with the coarse image."""
    x, truth = (trimmed(of, BORDER_PX)[0] for of in (image, pair.hr))
    values["AG"] = metrics.PAPER_STEPS * metrics.average_gradient(x)
    values["AG / truth"] = metrics.gradient_ratio(x, truth)
    values["consistency"] = float((how.coarse(image, pair) - pair.lr).double().abs().mean())
    values[NIQE], why = natural.score(x[pair.shown])
    return values, why


@torch.inference_mode()
def judge(
    cascade: Cascade,
    pairs: Sequence[Pair],
    how: Seen,
    seed: int = 0,
    natural: Naturalness = WITHOUT,
    *,
    draws: bool = True,
) -> list[Record]:
    """Score all methods on all sharp images seen by `how`; the table is named after it."""
    records, table = [], table_of(how.kind, how.how.scale)
    for sharp in pairs:
        pair = seen(sharp, how)
        found = {TRUTH: scores_of_truth(pair, how, natural)}
        for method, estimate in estimates(cascade, pair, how, seed, draws=draws).items():
            found[method] = scores(estimate, pair, how, natural)
        for method, (values, why) in found.items():
            records.append(Record(table, pair.source, pair.place, pair.index, method, values, why))
    return records


def table_of(kind: str, scale: int) -> str:
    """Return the name of the table of one scale."""
    return f"{kind} x{scale}"
