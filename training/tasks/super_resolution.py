"""Training task of the lite super-resolver: crops of sharp images, degraded; first regression, then diffusion."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pipeline.errors import UsageError
from pipeline.models.bundle import Bundle
from pipeline.models.lite import NORMALISATION, SYSTEM, LiteNetwork, LiteSuperResolver, lattice_of_scale
from pipeline.superres.systems.lite import SCALES
from training import placement
from training.data.patches import RECOLOURED
from training.degradation.degrade import DegradationRange, degrade_randomly
from training.degradation.sensor import relative_widths
from training.presets import Preset, Stage
from training.quality.pairs import watched_pairs, watched_words
from training.quality.sampler import Sampler
from training.task_spec import TaskSpec
from training.tasks import losses
from training.tasks.watched_gains import WatchedGains

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from training.data.sources import TrainingData
    from training.loop.run import Draw
    from training.loop.task import Measured

BLUR_SCALE = 4  # at which the recipe's blur counts output pixels
# Degradation of sharp images: ranges of blur in quarters of a coarse pixel (px of 2.5 m where that is 10 m) and of
# noise in reflectance, share of images with anisotropic blur, and share of batches decimated by an antialiased cubic.
SENSOR: dict[str, Any] = {
    "blur_from": 1.3,
    "blur_to": 2.9,
    "anisotropic": 0.2,
    "bicubic": 0.3,
    "noise_from": 4e-4,
    "noise_to": 2e-3,
}

# Share of patches whose bands are permuted: of 8-bit images, and of calibrated reflectance.
COLOURS = {"recoloured": RECOLOURED, "recoloured_reflectance": 0.0}


def range_of(recipe: Mapping[str, float], scale: int = BLUR_SCALE) -> DegradationRange:
    """Return the degradation range of a preset's recipe (see `SENSOR`). Raises UsageError if it is invalid."""
    px = scale / BLUR_SCALE
    within = DegradationRange(
        sigma_px=(px * recipe["blur_from"], px * recipe["blur_to"]),
        anisotropic=recipe["anisotropic"],
        bicubic=recipe["bicubic"],
        noise=(recipe["noise_from"], recipe["noise_to"]),
    )
    wrong = within.wrong(scale)
    if wrong:
        raise UsageError(f"recipe {', '.join(f'{name}={value:g}' for name, value in recipe.items())}", wrong)
    return within


def sampler(resolver: LiteSuperResolver) -> Sampler:
    """Return the sampler of the networks for whole images."""
    return Sampler(lambda lr, noise, _state: resolver.sample(lr, noise), resolver.mean)


class SuperResolution:
    """Task of the lite super-resolver: first the mean, then the diffusion of the residual."""

    def __init__(self, preset: Preset, data: TrainingData) -> None:
        self.preset, self.data, self.bands = preset, data, preset.bands
        self.network = LiteNetwork(**preset.architecture, bands=len(self.bands), scale=preset.scale)
        self.range = range_of(preset.recipe, preset.scale)
        colours = {name: preset.recipe[name] for name in COLOURS if name in preset.recipe}
        self.sampler = data.hr_sampler("train", preset.crop_px, bands=self.bands, **colours)
        self.watched = WatchedGains(watched_pairs(data, self.bands, preset.scale))

    def batch(self, draw: Draw) -> dict[str, Tensor]:
        """Return coarse `lr` (B, bands, n/scale, n/scale) and sharp `hr` (B, bands, n, n) reflectance.

        Pairs keep their own coarse image.
        """
        patches = self.sampler.patches(draw.rng, self.preset.batch)
        hr = torch.from_numpy(np.stack([patch.pixels for patch in patches]))
        lr = degrade_randomly(hr, self.range, draw.torch, self.preset.scale, relative_widths(self.bands))
        for image, patch in zip(lr, patches, strict=True):
            if patch.coarse is not None:
                image.copy_(torch.from_numpy(patch.coarse))
        return {"lr": lr, "hr": hr}

    def begin(self, stage: Stage, draw: Draw) -> None:
        """Do nothing."""

    def finish(self) -> None:
        """Do nothing."""

    def loss(self, stage: Stage, batch: dict[str, Tensor], draw: Draw) -> Tensor:
        """Return the loss of the mean head, or of the denoised residual."""
        if stage.name == "mean":
            return losses.regression_loss(self.network, batch["lr"], batch["hr"])
        return losses.denoising_loss(self.network, batch["lr"], batch["hr"], draw.on(batch["hr"].device))

    def validate(self, stage: Stage) -> Measured:
        """Return the PSNR gain over IBP of the mean head and, in the diffusion stage, of one and the mean of four."""
        return self.watched.measured(*self._drawn_by(), stage.name == "detail")

    def samples(self, stage: Stage) -> list[dict[str, Tensor]]:
        """Return input, bicubic, ours (the mean head's estimate, later one member) and truth of a few pairs."""
        return self.watched.samples(*self._drawn_by(), stage.name == "detail")

    def _drawn_by(self) -> tuple[Sampler, torch.device]:
        return sampler(LiteSuperResolver(self.network, self.bundle())), placement.device_of(self.network)

    @property
    def watching(self) -> str:
        """Which images `validate` scores."""
        return watched_words(self.watched.pairs, self.data, self.bands)

    def describe(self) -> dict[str, Any]:
        """Return the provenance of the data."""
        return {**self.data.describe(TASK.use, self.bands), "degradation": repr(self.range)}

    def bundle(self, provenance: dict[str, Any] | None = None, licence: str = "") -> Bundle:
        """Return the bundle of the current network."""
        return Bundle(
            system=SYSTEM,
            architecture=self.preset.architecture,
            in_bands=self.bands,
            out_bands=self.bands,
            scale=self.preset.scale,
            lattice=lattice_of_scale(self.preset.scale),
            normalisation=NORMALISATION,
            sampler=self.preset.sampler,
            provenance=provenance or {},
            licence=licence,
        )


TASK = TaskSpec(
    name=SYSTEM,
    summary="our small super-resolver: regression, then diffusion of what it leaves open",
    kind=SYSTEM,
    presets=(
        Preset(
            name="lite-sr",
            task=SYSTEM,
            architecture={"width": 48, "blocks": 14, "denoiser_width": 64, "denoiser_blocks": 5},
            stages=(
                Stage("mean", 0.6, ("encoder.", "mean_head.", "spread_head."), 1e-3),
                Stage("detail", 0.4, ("denoiser.",), 1e-3),
            ),
            minutes=60,
            sampler={"name": "dpm++2m", "steps": 6, "spacing": "log-snr"},
            recipe={**SENSOR, **COLOURS},
            scales=SCALES,
        ),
    ),
    build=SuperResolution,
)
