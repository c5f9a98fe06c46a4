"""Training task of WaveDiffUR's x2 level: first its estimates (T_theta, M, spread), then the diffusion around them."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pipeline.errors import UsageError
from pipeline.models.wavediffur import MEASURED_LOW_PASS_PX, SYSTEM, WaveDiffUR, wavediffur_bundle
from pipeline.models.wavelet import from_details, haar, not_below_zero, projected
from pipeline.models.wavelet_diffusion import PROCESSES
from pipeline.models.wavelet_network import PAPER, SMALL, WaveletNetwork
from training.degradation.degrade import Degradation
from training.degradation.sensor import relative_widths
from training.loop.task import Measured, Objective
from training.presets import Preset, Stage
from training.quality import baselines
from training.quality.pairs import (
    HELD_OUT_PER_SET,
    Pair,
    average,
    from_many_sets,
    held_out_pairs,
    ibp_scores,
    per_set_mean,
    score,
    side_by_side,
    watched_pairs,
    watched_words,
)
from training.task_spec import TaskSpec
from training.tasks import wavelet_losses as losses
from training.tasks.super_resolution import COLOURS, SENSOR, range_of
from training.tasks.wavelet_batches import (
    AVERAGED,
    CASCADED,
    INPUTS,
    MEASURED,
    coarser,
    draw_kind,
    inputs,
    kind_of,
    references,
)
from training.tasks.wavelet_cascade import CASCADES, every_level

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from pipeline.models.bundle import Bundle
    from pipeline.models.wavelet_network import MeanEstimate
    from training.data.sources import TrainingData
    from training.loop.run import Draw

SCALE = 2
OF_MEANS = "x2 of means"
SAMPLES = 4  # number of validation images in the sample sheet
EXPECTED_FLOOR = 0.03  # relative to local reflectance; lower limit of the expected error, to bound image weights
SPREAD_WEIGHT = 0.05
# Weights of the losses. `squared` is that of the squared error of the image, relative to its expected error: its
# minimiser is the conditional mean, around which the diffusion draws. The others are eqs. 19 and 20; see
# `wavelet_losses` for the paper's 2 of total variation. `unconditional` is the share of batches without a condition.
WEIGHTS: dict[str, float] = {
    "squared": 1.0,
    "vhd": losses.MSE_WEIGHT,
    "tv": losses.TV_WEIGHT,
    "l1": 0.0,
    "ssim": 0.0,
    "unconditional": 0.1,
}


class WaveletLevel:
    """Task of one x2 level."""

    def __init__(self, preset: Preset, data: TrainingData) -> None:
        self.preset, self.data, self.bands = preset, data, preset.bands
        self.recipe = preset.recipe
        _check(self.recipe)
        _check_architecture(preset.architecture)
        self.network = WaveletNetwork(**preset.architecture, bands=len(self.bands))
        self.range = range_of(self.recipe, SCALE)
        colours = {name: self.recipe[name] for name in COLOURS}
        self.sampler = data.hr_sampler("train", preset.crop_px, bands=self.bands, **colours)
        self.pairs = {"x4": watched_pairs(data, self.bands, preset.total_scale), "x2": self._measured()}
        self.pairs[OF_MEANS] = [replace(pair, lr=baselines.box(pair.hr, SCALE)) for pair in self.pairs["x2"]]
        self.baseline = {name: self._average(pairs, ibp_scores(pairs)) for name, pairs in self.pairs.items()}

    def batch(self, draw: Draw) -> dict[str, Tensor]:
        """Return sharp `hr` (B, bands, n, n), its input `lr`, `reference` as `hr` (NaN: none) and `measured` (B,).

        `lr` has n/2 px, or n/4 where the level above is to make the input; see `wavelet_batches`.
        """
        patches = self.sampler.patches(draw.rng, self.preset.batch)
        sharp = torch.from_numpy(np.stack([patch.pixels for patch in patches]))
        hr = coarser(sharp, draw.rng, self.recipe["coarser"])
        kind = draw_kind(draw.rng, self.recipe)
        lr = inputs(hr, kind, self.range, draw.torch, relative_widths(self.bands))
        for image, patch in zip(lr, patches, strict=True):
            # The coarse image of a pair is a sensor's, which a level that reads means must not learn from.
            if kind != AVERAGED and patch.coarse is not None and patch.coarse.shape == image.shape:
                image.copy_(torch.from_numpy(patch.coarse))
        measured = torch.full((len(hr),), kind == MEASURED)
        return {"lr": lr, "hr": hr, "reference": references(hr, draw.torch, self.recipe), "measured": measured}

    def begin(self, stage: Stage, draw: Draw) -> None:
        """Do nothing."""

    def finish(self) -> None:
        """Do nothing."""

    def loss(self, stage: Stage, batch: dict[str, Tensor], draw: Draw) -> Objective:
        """Return the loss of the estimates, or that of the noise."""
        kind = kind_of(batch["lr"], batch["hr"], batch["measured"])
        lr = self._above(batch["lr"]) if kind == CASCADED else batch["lr"]
        estimate = partial(self.network.estimate, lr, batch["reference"], measured=kind == MEASURED)
        if stage.name == "mean":
            return self._estimate_loss(estimate(), lr, batch["hr"], MEASURED_LOW_PASS_PX if kind == MEASURED else 1)
        with torch.no_grad():
            known = estimate()
        return self._noise_loss(known, batch["hr"], draw.on(lr.device))

    def _estimate_loss(self, estimate: MeanEstimate, lr: Tensor, hr: Tensor, low_pass_px: int) -> Objective:
        """Return the losses of the estimates as the level stores them, after eq. 9. The spread trains its head only."""
        network, weights = self.network, self.recipe
        image = from_details(projected(estimate.low, estimate.target, low_pass_px), estimate.details)
        error, unit = image - hr, network.unit(baselines.nearest(lr, SCALE))
        spread = estimate.spread
        expected = (spread.square().mean((1, 2, 3)) + (EXPECTED_FLOOR * unit).square().mean((1, 2, 3))).detach()
        truth = haar(hr).details()
        residual = estimate.spread * estimate.standardised(hr)
        parts = {
            "squared": (error.square().mean((1, 2, 3)) / expected).mean(),
            "spread": _surprise(spread, residual.detach(), network.unit(lr).repeat(1, 4, 1, 1)),
        }
        if weights["vhd"]:
            parts["vhd"] = losses.squared_error(estimate.details, truth)
        if weights["tv"]:
            parts["tv"] = losses.total_variation(estimate.details)
        if weights["l1"]:
            parts["l1"] = error.abs().mean()
        if weights["ssim"]:
            parts["ssim"] = 1 - losses.structural_similarity(image, hr)
        total = sum((weights.get(name, SPREAD_WEIGHT) * part for name, part in parts.items()), hr.new_zeros(()))
        return Objective(total, parts)

    def _noise_loss(self, estimate: MeanEstimate, hr: Tensor, generator: torch.Generator) -> Objective:
        """Return eq. 3: the squared error of the noise in the standardised residual, at random timesteps."""
        x0, device = estimate.standardised(hr), hr.device
        levels = self.network.score.get_buffer("alpha_bar")
        t = torch.randint(len(levels), (len(x0),), generator=generator, device=device)
        ab = levels[t].to(x0.dtype)[:, None, None, None]
        noise = torch.randn(x0.shape, generator=generator, device=device)
        left_out = float(torch.rand((), generator=generator, device=device)) < self.recipe["unconditional"]
        found = self.network.score(
            ab.sqrt() * x0 + (1 - ab).sqrt() * noise, t, None if left_out else estimate.condition
        )
        error = losses.epsilon_error(found, noise)
        return Objective(error, {"noise": error})

    @torch.no_grad()
    def _above(self, lr: Tensor) -> Tensor:
        """Return what the level above gives (B, C, 2h, 2w): the mean estimate under the projection of a sensor's."""
        estimate = self.network.estimate(lr, measured=True)
        low = projected(estimate.low, estimate.target, MEASURED_LOW_PASS_PX)
        return not_below_zero(from_details(low, estimate.details), low / 2)

    @torch.no_grad()
    def validate(self, stage: Stage) -> Measured:
        """Return PSNR gains over IBP at x4 and x2 of the estimates, and in the diffusion stage of one draw."""
        levels = WaveDiffUR(self.network, self.bundle())
        gains = {}
        for name, pairs in self.pairs.items():
            measured = name != OF_MEANS
            means = [score(every_level(levels, pair, measured=measured)[-1], pair) for pair in pairs]
            gains[name] = self._average(pairs, means) - self.baseline[name]
            if stage.name == "detail" and name == "x4":
                drawn = [score(every_level(levels, pair, measured=measured, member=0)[-1], pair) for pair in pairs]
                gains[f"{name} drawn"] = self._average(pairs, drawn) - self.baseline[name]
        text = "PSNR over IBP: " + "  ".join(f"{name} {gain:+.2f}" for name, gain in gains.items())
        known = {f"psnr_ibp {name}": value for name, value in self.baseline.items()}
        return Measured(text, {**known, **{f"gain {name}": gain for name, gain in gains.items()}})

    @torch.no_grad()
    def samples(self, stage: Stage) -> list[dict[str, Tensor]]:
        """Return input, bicubic, ours (the estimate, later one draw) and truth of a few pairs at x4."""
        levels = WaveDiffUR(self.network, self.bundle())
        shown = from_many_sets(self.pairs["x4"], SAMPLES)
        member = 0 if stage.name == "detail" else None
        return [side_by_side(pair, every_level(levels, pair, measured=True, member=member)[-1]) for pair in shown]

    @property
    def watching(self) -> str:
        """Which images `validate` scores."""
        return watched_words(self.pairs["x4"], self.data, self.bands)

    def describe(self) -> dict[str, Any]:
        """Return the provenance of data and recipe."""
        return {**self.data.describe(TASK.use, self.bands), "degradation": repr(self.range), "recipe": self.recipe}

    def bundle(self, provenance: dict[str, Any] | None = None, licence: str = "") -> Bundle:
        """Return the bundle of the current network."""
        return wavediffur_bundle(self.preset.architecture, self.bands, provenance, licence, self.preset.sampler)

    def _measured(self) -> list[Pair]:
        chips = self.data.held_out_chips(self.bands)
        return held_out_pairs(chips, Degradation().of_scale(SCALE), per_set=HELD_OUT_PER_SET)

    @staticmethod
    def _average(pairs: Sequence[Pair], scores: Sequence[float]) -> float:
        return average(per_set_mean(pairs, scores))


def _surprise(spread: Tensor, residual: Tensor, unit: Tensor) -> Tensor:
    """Return the mean negative log-likelihood of residuals under a spread, in units of the local reflectance."""
    return (spread / unit).log().mean() + 0.5 * (residual / spread).square().mean()


def _check(recipe: Mapping[str, float]) -> None:
    """Raise UsageError for shares that are none, or that exceed 1 together."""
    for group in (("measured", "cascaded"), ("referenced", "misled"), ("coarser",), ("unconditional",)):
        if min(recipe[name] for name in group) < 0 or sum(recipe[name] for name in group) > 1:
            found = ", ".join(f"{name}={recipe[name]:g}" for name in group)
            raise UsageError(f"recipe {found}", "shares from 0 to 1, at most 1 together")
    for name in ("squared", "vhd", "tv", "l1", "ssim"):
        if recipe[name] < 0:
            raise UsageError(f"recipe {name}={recipe[name]:g}", "a weight of at least 0")


def _check_architecture(architecture: Mapping[str, Any]) -> None:
    """Raise UsageError for an unknown process, and for widths that their heads do not divide."""
    if architecture.get("process", PROCESSES[0]) not in PROCESSES:
        raise UsageError(f"process={architecture['process']}", f"one of {', '.join(PROCESSES)}")
    pairs = (("csp_heads", architecture["csp_width"]), ("detail_heads", architecture["detail_width"]))
    for heads, width in (*pairs, ("score_heads", architecture["score_widths"][-1])):
        if width % architecture[heads]:
            raise UsageError(f"{heads}={architecture[heads]}", f"a divisor of the width, {width}")


_RECIPE = {**SENSOR, **COLOURS, **INPUTS, **WEIGHTS}
_STAGES = (
    Stage("mean", 0.65, ("csp.", "cshr.", "spread."), 1.5e-3),
    Stage("detail", 0.35, ("score.",), 1e-3),
)

TASK = TaskSpec(
    name=SYSTEM,
    summary="x2 level of the wavelet cascade (WaveDiffUR): its estimates, then the diffusion around them",
    kind=SYSTEM,
    presets=(
        Preset(
            name="wavediffur",
            task=SYSTEM,
            architecture=SMALL,
            stages=_STAGES,
            minutes=120,
            batch=4,
            crop_px=128,
            recipe=_RECIPE,
            scale=SCALE,
            scales=(SCALE,),
            levels=2,
        ),
        Preset(  # sizes, Adam and schedule of the paper; both stages by its losses
            name="wavediffur-paper",
            task=SYSTEM,
            architecture=PAPER,
            stages=_STAGES,
            images=88_000,
            batch=8,
            crop_px=256,
            warmup_steps=0,
            schedule="step",
            betas=(0.9, 0.999),
            recipe={**_RECIPE, "l1": 1.0, "ssim": 1.0, "squared": 0.0},
            scale=SCALE,
            scales=(SCALE,),
            levels=2,
        ),
    ),
    build=WaveletLevel,
    cascades=CASCADES,
)
