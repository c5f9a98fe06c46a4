"""Training task of DiffFuSR's super-resolution (arXiv 2506.11764): three networks trained together.

Sharp images are degraded x4 by random blur and noise. The U-Net predicts x0 from noisy images. The spatial encoder
gives it features and a coarse image; the degradation encoder learns to distinguish degradations.
"""

from __future__ import annotations

import contextlib
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pipeline.errors import UsageError
from pipeline.models.difffusr import RGB_BANDS, SCALE, SYSTEM, DiffFuSR, Networks, difffusr_bundle, to_network
from training import placement
from training.degradation.blind import degrade_blind, eight_bit, range_of
from training.degradation.published import SWITCHES, AsPublished
from training.loop.task import Measured
from training.presets import SMALL_PX, Preset, Stage
from training.quality import baselines
from training.quality.pairs import (
    Pair,
    average,
    from_many_sets,
    members,
    per_set_mean,
    score,
    side_by_side,
    watched_pairs,
    watched_words,
)
from training.quality.sampler import Sampler
from training.task_spec import TaskSpec
from training.tasks.contrast import MOMENTUM, QUEUE, TEMPERATURE, MomentumContrast
from training.tasks.difffusr_convert import RESOLVER
from training.tasks.losses import Eq8, degradation_encoder, eq8_losses

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from pipeline.models.bundle import Bundle
    from training.data.sources import TrainingData
    from training.loop.batches import Draw
    from training.loop.task import Objective

LR_MULTIPLE_PX = 8  # of the U-Net
VIEWS = 2  # crops per image: a query and its key
SAMPLES = 4  # number of validation images in the sample sheet
# Weights of DiffFuSR's eq. 8, its momentum contrast, and the blur: "blind" kernels or that of "sentinel2".
BLIND: dict[str, Any] = {
    "aux": 1.0,
    "contrast": 0.05,
    "queue": QUEUE,
    "momentum": MOMENTUM,
    "temperature": TEMPERATURE,
    "psf": "blind",
}


@dataclass(frozen=True)
class Recipe:
    """Settings of this task in a preset."""

    aux: float = 1.0
    contrast: float = 0.05
    queue: int = QUEUE
    momentum: float = MOMENTUM
    temperature: float = TEMPERATURE
    psf: str = "blind"
    small_px: int = SMALL_PX  # crop side for images smaller than the preset's `crop_px`

    def check(self, crop_px: int, multiple: int) -> None:
        """Raise UsageError for invalid settings."""
        if self.psf not in ("blind", "sentinel2"):
            raise UsageError(f"recipe psf={self.psf}", "blind or sentinel2")
        for name, side in (("crop_px", crop_px), ("small_px", self.small_px)):
            if side % multiple:
                raise UsageError(f"{name}={side}", f"a multiple of {multiple} px, which this U-Net needs")


class DiffFuSRSuperResolution:
    """Task of DiffFuSR's super-resolver in one stage. `companion` is the momentum contrast."""

    def __init__(self, preset: Preset, data: TrainingData) -> None:
        self.preset, self.data = preset, data
        self.recipe = recipe = Recipe(**preset.recipe)
        self.published = AsPublished.of(preset.published)
        self.network = Networks(**preset.architecture)
        recipe.check(preset.crop_px, self.network.ema.multiple)
        orthogonal_(self.network.ema)
        encoder = degradation_encoder(self.network)
        width = 4 * int(preset.architecture["degradation_base"])
        self.companion = MomentumContrast(encoder, width, recipe.queue, recipe.momentum, recipe.temperature)
        self.weights = Eq8(recipe.aux, recipe.contrast, self.published.squared)
        self.range = range_of(self.published)
        self.sampler = data.hr_sampler("train", preset.crop_px, recipe.small_px)
        self.pairs = [middle(pair, preset.crop_px) for pair in watched_pairs(data)]
        self.baseline = average(self._per_set([baselines.bicubic(pair.lr) for pair in self.pairs]))

    def batch(self, draw: Draw) -> dict[str, Tensor]:
        """Return sharp `hr` (B, 3, n, n), coarse `lr`, and `other` of a second crop (B, 3, n/4, n/4), network range."""
        hr = torch.from_numpy(self.sampler.batch(draw.rng, self.preset.batch, views=VIEWS))
        hr = eight_bit(hr) if self.published.hr_8bit else hr
        sensor = RGB_BANDS if self.recipe.psf == "sentinel2" else ()
        lr = degrade_blind(hr, self.range, draw.torch, VIEWS, SCALE, sensor)
        lr = eight_bit(lr, rounded=True) if self.published.lr_8bit else lr
        return {"hr": to_network(hr[::VIEWS]), "lr": to_network(lr[::VIEWS]), "other": to_network(lr[1::VIEWS])}

    def begin(self, stage: Stage, draw: Draw) -> None:
        """Copy the encoder to the momentum encoder and fill the queue with random directions."""
        self.companion.begin(degradation_encoder(self.network), draw.torch)

    def finish(self) -> None:
        """Do nothing."""

    def loss(self, stage: Stage, batch: dict[str, Tensor], draw: Draw) -> Objective:
        """Return the loss of eq. 8."""
        return eq8_losses(self.network, self.companion, batch, draw.on(batch["hr"].device), self.weights)

    def validate(self, stage: Stage) -> Measured:
        """Return the PSNR gain of one member over bicubic on held-out places."""
        gain = average(self._per_set(self._members(self.pairs))) - self.baseline
        values = {"psnr_bicubic": self.baseline, "gain_one": gain}
        return Measured(f"PSNR over bicubic {self.baseline:.2f} dB: one {gain:+.2f}", values)

    def samples(self, stage: Stage) -> list[dict[str, Tensor]]:
        """Return input, bicubic, one member and truth of a few held-out places."""
        shown = from_many_sets(self.pairs, SAMPLES)
        return [side_by_side(pair, ours) for pair, ours in zip(shown, self._members(shown), strict=True)]

    @property
    def watching(self) -> str:
        """Which images `validate` scores."""
        return watched_words(self.pairs, self.data)

    def describe(self) -> dict[str, Any]:
        """Return the provenance of data and recipe."""
        return {
            **self.data.describe(TASK.use),
            "degradation": repr(self.range) if self.recipe.psf == "blind" else "Sentinel-2 MTF",
            "recipe": asdict(self.recipe),
            "as_published": list(self.preset.published),
        }

    def bundle(self, provenance: dict[str, Any] | None = None, licence: str = "") -> Bundle:
        """Return the bundle of the current networks."""
        return difffusr_bundle(self.preset.architecture, provenance, licence, self.preset.sampler)

    def _members(self, pairs: Sequence[Pair]) -> list[Tensor]:
        """Return one sample (1, 3, H, W) of each pair."""
        with self._system() as system:
            device = placement.device_of(self.network)
            sampler = Sampler(system.sample, scene_state=system.scene_state, multiple_px=LR_MULTIPLE_PX)
            return [members(sampler, pair, 1, device=device) for pair in pairs]

    def _per_set(self, estimates: Sequence[Tensor]) -> dict[str, float]:
        scores = [score(estimate, pair) for estimate, pair in zip(estimates, self.pairs, strict=True)]
        return per_set_mean(self.pairs, scores)

    @contextlib.contextmanager
    def _system(self) -> Iterator[DiffFuSR]:
        """Yield the networks as a pipeline system, which freezes them. Restore `requires_grad` afterwards."""
        trained = [parameter.requires_grad for parameter in self.network.parameters()]
        yield DiffFuSR(self.network, self.bundle())
        for parameter, before in zip(self.network.parameters(), trained, strict=True):
            parameter.requires_grad_(before)


def orthogonal_(network: nn.Module) -> None:
    """Initialise all convolutions and linear layers with orthogonal weights and zero biases, as Wu et al."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.orthogonal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def middle(pair: Pair, side_px: int) -> Pair:
    """Crop the pair's centre to at most `side_px`, a multiple of the scale."""
    height, width = (min(side, side_px) // SCALE for side in pair.hr.shape[-2:])
    top, left = ((side - cut) // 2 for side, cut in zip(pair.lr.shape[-2:], (height, width), strict=True))
    lr = pair.lr[..., top : top + height, left : left + width]
    y, x = slice(SCALE * top, SCALE * (top + height)), slice(SCALE * left, SCALE * (left + width))
    return replace(pair, hr=pair.hr[..., y, x], lr=lr)


TASK = TaskSpec(
    name=SYSTEM,
    summary="DiffFuSR's super-resolver (arXiv 2506.11764), as published and small",
    kind=SYSTEM,
    presets=(
        Preset(  # arXiv 2506.11764 and the authors' configuration: 1000 epochs of 256 images
            name="difffusr-sr",
            task=SYSTEM,
            architecture={
                "base": 64,
                "mults": [1, 2, 2, 4, 8],
                "res_blocks": 5,
                "fold": 2,
                "groups": 32,
                "attention_strides": [16],
                "block2_norm": False,
                "features": 64,
                "growth": 32,
                "encoder_blocks": 23,
                "degradation_base": 64,
            },
            stages=(Stage("all", 1.0, (), 1e-4),),
            images=256_000,
            batch=8,
            crop_px=256,
            warmup_steps=0,
            schedule="step",
            betas=(0.9, 0.999),
            sampler={"name": "ddim", "steps": 20, "spacing": "published", "denoise_last": False},
            recipe={**BLIND, "small_px": 128},
        ),
        Preset(  # the same recipe at a ninth of the size, for CPUs
            name="difffusr-sr-small",
            task=SYSTEM,
            architecture={
                "base": 64,
                "mults": [1, 2, 2, 2],
                "res_blocks": 2,
                "fold": 2,
                "groups": 32,
                "attention_strides": [],
                "block2_norm": True,
                "features": 64,
                "growth": 32,
                "encoder_blocks": 8,
                "degradation_base": 64,
            },
            stages=(Stage("all", 1.0, (), 1e-4),),
            minutes=120,
            batch=8,
            crop_px=96,
            schedule="step",
            betas=(0.9, 0.999),
            sampler={"name": "ddim", "steps": 4, "spacing": "trailing"},
            recipe={**BLIND, "small_px": 64},
        ),
    ),
    build=DiffFuSRSuperResolution,
    switches=SWITCHES,
    whose="DiffFuSR",
    convert=RESOLVER,
)
