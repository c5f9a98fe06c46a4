"""Training of Fusion X2 and X4 by Wald's protocol on Sentinel-2 tiles; the truth is the measured 20 m bands.

X2 learns 40 -> 20 m, guided by the 10 m bands at 20 m, for use as 20 -> 10 m. X4 learns 80 -> 20 m, guided by the
10 m bands at 20 m as a super-resolver might give them, for use as 10 -> 2.5 m. Measured 20 m bands are softer than
averages of the guide, which X2 learns as well. Where all bands are averages, as at 160 -> 80 m, it is wrong.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from pipeline.models import low_pass
from pipeline.models.lite_fusion import BANDS_20M, regression_detail
from pipeline.models.resampling import upsample
from pipeline.models.span import Span
from pipeline.models.span_fusion import (
    NORMALISATION,
    SCALES,
    X2,
    SpanFusion,
    estimate,
    fusion_bundle,
    network,
)
from training.loop.task import Measured
from training.quality import picture_fusion, wald
from training.tasks import span_wald
from training.tasks.fusion_tiles import SENSOR_SIGMA, SHARES, coarser, disturbed
from training.tasks.tile_task import TileTask

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from pipeline.models.bundle import Bundle
    from training.data.sources import TrainingData
    from training.loop.run import Draw
    from training.presets import Preset, Stage

REFERENCE = "GSA"  # beside which scores are reported
SHARPENED = 0.5  # share of X4's batches whose bands come from 160 m through a regression, as from a Fusion X2
ANGLES = 0.3  # weight of the spectral angle in the loss
DARK = 0.05  # reflectance, length of a spectrum
FLOOR = 0.003  # error below which a band's loss falls no more, relative to its mean; of the angle, in radians
DISTURBED = 0.5  # share of X4's batches whose guide is not the measured one
SIX = slice(1, 1 + len(BANDS_20M))  # of the bands in a crop's mask


class SpanTask(TileTask[Span]):
    """Task of one fusion, that of the preset's task name."""

    def __init__(self, preset: Preset, data: TrainingData) -> None:
        super().__init__(preset, data, network(preset.architecture, NORMALISATION))
        self.kind, self.scale = preset.task, SCALES[preset.task]

    def batch(self, draw: Draw) -> dict[str, Tensor]:
        """Return degraded bands `six` (B, 6, h, w), `guide` (B, 4, s*h, s*w), `truth` (B, 6, s*h, s*w) and `mask`."""
        crop = self.sampler.batch(draw.rng, self.preset.batch)
        sigma = float(draw.rng.uniform(*SENSOR_SIGMA))
        ten, twenty = crop.rho[10], crop.rho[20]
        found = {"truth": twenty, "mask": crop.mask[:, SIX], "six": coarser(twenty, self.scale, sigma)}
        if self.kind == X2:
            return {**found, "guide": coarser(ten, 2, sigma)}
        if draw.rng.random() < SHARPENED:
            found["six"] = _as_sharpened(coarser(twenty, 8, sigma), coarser(ten, 8, sigma))
        guide = functional.avg_pool2d(ten, 2)
        return {**found, "guide": disturbed(guide, draw) if draw.rng.random() < DISTURBED else guide}

    def loss(self, stage: Stage, batch: dict[str, Tensor], draw: Draw) -> Tensor:
        """Return the logarithm of the squared error by band, on average, and that of spectra of unit length.

        The logarithm makes a band's relative gain count, not its error: near infrared has a fifth of the error of short
        waves, and a 25th of its square.
        """
        found = estimate(self.network, batch["six"], batch["guide"], NORMALISATION)
        truth, mask = batch["truth"], batch["mask"]
        errors, held = squared_by_band(found, truth, mask)
        bands = ((errors + FLOOR**2).log() * held).sum() / held.sum().clamp_min(1)
        return bands + ANGLES * (angle_loss(found, truth, mask) + FLOOR**2).log()

    @torch.no_grad()
    def finish(self) -> None:
        """Scale the learned residual of each band by the share with the lowest error on the watched places.

        With few training places, a network is overconfident and sharpens every scene too much. A share of 0 leaves only
        the regression, 1 the network as trained. A band that no watched place has takes the best share of all together.
        """
        last = self.network.exit
        learned, errors = [parameter.clone() for parameter in last.parameters()], dict[float, dict[str, float]]()
        for share in SHARES:
            _scale(last, learned, dict.fromkeys(BANDS_20M, share))
            errors[share] = self._watched_errors()
        together = min(errors, key=lambda share: sum(errors[share].values()))
        best = {band: min(errors, key=lambda share: errors[share][band]) for band in errors[together]}
        _scale(last, learned, {**dict.fromkeys(BANDS_20M, together), **best})

    def _watched_errors(self) -> dict[str, float]:
        """Return the sum of ERGAS over the watched places, by band."""
        errors = dict[str, float]()
        for rho in self.watched.values():
            task = self._wald(rho)
            for row in wald.rows_by_band(task)[1:] if task is not None else ():
                (band,) = row.bands
                errors[band] = errors.get(band, 0.0) + row.ergas[span_wald.LABELS[self.kind]]
        return errors

    def _wald(self, rho: dict[int, NDArray[np.float32]]) -> wald.Task | None:
        """Return the task on one place, with all bands, or None if the place is too small."""
        scene = wald.Scene({gsd: torch.from_numpy(values.copy()) for gsd, values in rho.items()})
        return next(span_wald.tasks(SpanFusion(self.network, self.bundle()), scene, every=False), None)

    @torch.no_grad()
    def validate(self, stage: Stage) -> Measured:
        """Return ERGAS and SAM with those of GSA for comparison, on watched, then on held-out places."""
        parts, values, ours = [], dict[str, float](), span_wald.LABELS[self.kind]
        for name, rho in self.judged.items():
            task, place = self._wald(rho), name.split("/")[-1]
            if task is None:
                continue
            row = wald.row_of(task)
            scores = {metric: (row.by(metric)[ours], row.by(metric)[REFERENCE]) for metric in ("ERGAS", "SAM")}
            parts.append(f"{place}: " + ", ".join(f"{m} {a:.3f} ({b:.3f})" for m, (a, b) in scores.items()))
            values |= {f"{metric.lower()} {place}": a for metric, (a, _) in scores.items()}
        return Measured(f"{ours} ({REFERENCE}) " + "; ".join(parts), values)

    @torch.no_grad()
    def samples(self, stage: Stage) -> list[dict[str, Tensor]]:
        """Return guide, input, ours and truth of watched places in false colour."""
        fusion, rows = SpanFusion(self.network, self.bundle()), []
        for view in self.views:
            task = next(span_wald.tasks(fusion, view.scene, every=False), None)
            if task is not None:
                rows.append(picture_fusion.samples(task, view.part, span_wald.LABELS[self.kind]))
        return rows

    def describe(self) -> dict[str, Any]:
        """Return the provenance of the data."""
        return {**self.data.describe("fusion"), "protocol": "Wald"}

    def bundle(self, provenance: dict[str, Any] | None = None, licence: str = "") -> Bundle:
        """Return the bundle of the current network."""
        return fusion_bundle(self.kind, self.preset.architecture, provenance, licence)


def _scale(last: nn.Module, learned: Sequence[Tensor], shares: Mapping[str, float]) -> None:
    """Set the outputs of the last convolution, one per band, to `shares` of `learned`."""
    by_band = torch.tensor([shares[band] for band in BANDS_20M])
    for parameter, value in zip(last.parameters(), learned, strict=True):
        parameter.copy_(value * by_band.to(value.device).reshape(-1, *[1] * (value.dim() - 1)))


def squared_by_band(found: Tensor, truth: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return squared errors of (B, C, h, w) relative to each image's means, over the images that have a band, (C,).

    `mask` (B, C, 1, 1) tells which bands they have. Then 1 for bands that any image has, and 0, with an error of 0,
    for others, (C,).
    """
    scale, has = truth.mean((2, 3), keepdim=True) + 0.03, mask[..., 0, 0]
    squared = ((found - truth) / scale).square().mean((2, 3)) * has
    images = has.sum(0)
    return squared.sum(0) / images.clamp_min(1), images.clamp_max(1)


def angle_loss(found: Tensor, truth: Tensor, mask: Tensor) -> Tensor:
    """Return the mean squared spectral angle in radians of (B, C, h, w), nearly, over the bands that `mask` (B, C) has.

    Dark pixels count less: their angles are noise.
    """
    a, b = (x * mask / ((x * mask).square().sum(1, keepdim=True) + DARK**2).sqrt() for x in (found, truth))
    return (a - b).square().sum(1).mean()


def _as_sharpened(six: Tensor, guide: Tensor) -> Tensor:
    """Return bands (B, 6, 2h, 2w) as a Fusion X2 would give them, from coarse ones and a guide (B, 4, 2h, 2w)."""
    n = NORMALISATION
    up = upsample(six, 2) + regression_detail(six, guide, 2, n["window_px"], n["ridge"], n["detail_limit"])
    return low_pass.by_block_means(up.clamp_min(0), six, 2)
