"""Training task of the small prior of map guidance: an autoencoder of pictures, then a denoiser of its latents."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from pipeline.models.diffusion_prior import SMALL_PRIOR, SYSTEM, Prior, prior_bundle
from pipeline.models.latent_sampler import forward
from pipeline.models.latent_small import SmallAutoencoder
from pipeline.models.sgdm import SMALL_LATTICE
from pipeline.models.tone import OURS
from training import placement
from training.loop.task import Measured, Objective
from training.presets import Preset, Stage
from training.quality.metrics import gradient_ratio
from training.quality.pairs import (
    average,
    from_many_sets,
    per_set_mean,
    score,
    side_by_side,
    watched_pairs,
    watched_words,
)
from training.task_spec import TaskSpec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from pipeline.models.bundle import Bundle
    from training.data.sources import TrainingData
    from training.loop.batches import Draw
    from training.quality.pairs import Pair

SAMPLES = 4
AUTOENCODER, DENOISER = "autoencoder", "denoiser"
BATCHES_AT_FIRST = 8  # from which principal components, and then the spread of latents, are measured
DIVERGENCE = 1e-6  # weight of the divergence per value of the image, beside the mean absolute error (Rombach et al.)
MULTIPLE_PX = 32  # of the U-Net's input: latents of 1/4, halved three times


class Companion(nn.Module):
    """What the training has beside the network: the factor on latents, by which their variance is 1."""

    def __init__(self, scaling: float) -> None:
        super().__init__()
        self.register_buffer("scaling", torch.tensor(scaling))


class SmallPrior:
    """Task of the prior."""

    def __init__(self, preset: Preset, data: TrainingData) -> None:
        self.preset, self.data, self.bands = preset, data, preset.bands
        self.network = Prior(preset.architecture)
        self.companion = Companion(self.network.scaling)
        self.sampler = data.hr_sampler("train", preset.crop_px, bands=self.bands)
        self.pairs = whole_latents(watched_pairs(data, self.bands, preset.scale), MULTIPLE_PX)

    def batch(self, draw: Draw) -> dict[str, Tensor]:
        """Return `hr` (B, 3, n, n) reflectance."""
        patches = self.sampler.patches(draw.rng, self.preset.batch)
        return {"hr": torch.from_numpy(np.stack([patch.pixels for patch in patches]))}

    def begin(self, stage: Stage, draw: Draw) -> None:
        """Start our autoencoder from principal components; scale latents to unit variance for the denoiser."""
        autoencoder = self.network.vae
        if isinstance(autoencoder, SmallAutoencoder) and autoencoder.untrained:
            batches = [self.batch(draw)["hr"] for _ in range(BATCHES_AT_FIRST)]
            side = min(batch.shape[-1] for batch in batches)
            first = torch.cat([batch[..., :side, :side] for batch in batches])
            autoencoder.start_from_components(2 * OURS.to_image(first) - 1, None, 1.0, each=True)
        if stage.name == DENOISER:
            scaling = self.companion.get_buffer("scaling")
            with torch.no_grad():
                latents = [self._latent(self.batch(draw)["hr"]).flatten() for _ in range(BATCHES_AT_FIRST)]
            scaling.div_(torch.cat(latents).std().to(scaling))

    def finish(self) -> None:
        """Do nothing."""

    def loss(self, stage: Stage, batch: dict[str, Tensor], draw: Draw) -> Objective:
        """Return the loss of the autoencoder, or that of the noise (Ho et al. 2020, eq. 14)."""
        image = 2 * OURS.to_image(batch["hr"]) - 1
        generator = draw.on(image.device)
        if stage.name == AUTOENCODER:
            return self._reconstruction(image, generator)
        with torch.no_grad():
            truth = self._latent(batch["hr"])
        loss, noise = self._denoising(truth, generator)
        return Objective(loss, {"noise": noise})

    def _reconstruction(self, image: Tensor, generator: torch.Generator) -> Objective:
        moments = self.network.moments(image)
        noise = torch.randn(moments.mean.shape, generator=generator, device=image.device)
        self.network.scaling = 1.0
        made = self.network.decode(moments.sample(noise))
        absolute, divergence = (made - image).abs().mean(), moments.divergence().mean() / image[0].numel()
        return Objective(absolute + DIVERGENCE * divergence, {"l1": absolute, "divergence": divergence})

    def _denoising(self, truth: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return the mean squared error of what the U-Net estimates, and that of the noise."""
        alphas = torch.from_numpy(self.network.alpha_bar).to(truth)
        t = torch.randint(len(alphas), (len(truth),), generator=generator, device=truth.device)
        noise = torch.randn(truth.shape, generator=generator, device=truth.device)
        noisy = forward(truth, alphas[t][:, None, None, None], noise)
        found = self.network.noise(noisy, t, torch.zeros_like(t))
        errors = (found - noise).square().mean((1, 2, 3))
        return (self.network.balance(t) * errors).mean(), errors.mean().detach()

    def _latent(self, hr: Tensor) -> Tensor:
        self.network.scaling = float(self.companion.get_buffer("scaling"))
        return self.network.encode(2 * OURS.to_image(hr.to(placement.device_of(self.network))) - 1)

    def _decoded(self, pair: Pair) -> Tensor:
        """Return the decoded latent of a held-out image, in reflectance."""
        device = placement.device_of(self.network)
        made = placement.run(device, lambda image: self.network.decode(self._latent(image)), pair.hr)
        return OURS.to_reflectance((made + 1) / 2)

    @torch.no_grad()
    def validate(self, stage: Stage) -> Measured:
        """Return PSNR and gradient of decoded held-out images; of the denoiser, the error of the noise there."""
        if stage.name == DENOISER:
            generator = torch.Generator().manual_seed(0)
            losses = [float(self._denoising(self._latent(pair.hr).cpu(), generator)[1]) for pair in self.pairs]
            found = average(per_set_mean(self.pairs, losses))
            return Measured(f"error of the noise in latents of held-out images {found:.4f}", {"noise": found})
        named: dict[str, list[float]] = {"psnr": [], "gradient": []}
        for pair in self.pairs:
            decoded = self._decoded(pair)
            named["psnr"].append(score(decoded, pair))
            named["gradient"].append(gradient_ratio(decoded, pair.hr))
        psnr, gradient = (average(per_set_mean(self.pairs, values)) for values in named.values())
        text = f"PSNR of decoded latents {psnr:.2f} dB, gradient {gradient:.2f} of the truth's"
        return Measured(text, {"psnr_decoded": psnr, "gradient": gradient})

    @torch.no_grad()
    def samples(self, stage: Stage) -> list[dict[str, Tensor]]:
        """Return input, bicubic, the decoded latent of the truth, and the truth of a few held-out places."""
        return [side_by_side(pair, self._decoded(pair)) for pair in from_many_sets(self.pairs, SAMPLES)]

    @property
    def watching(self) -> str:
        """Which images `validate` scores."""
        return watched_words(self.pairs, self.data, self.bands)

    def describe(self) -> dict[str, Any]:
        """Return the provenance of data and recipe."""
        return {**self.data.describe(TASK.use, self.bands), "tone": OURS.described}

    def bundle(self, provenance: dict[str, Any] | None = None, licence: str = "") -> Bundle:
        """Return the bundle of the current network."""
        architecture = {**self.preset.architecture, "scaling": float(self.companion.get_buffer("scaling"))}
        return prior_bundle(architecture, SMALL_LATTICE, provenance, licence)


def whole_latents(pairs: Sequence[Pair], multiple_px: int) -> list[Pair]:
    """Return the pairs cut to multiples of `multiple_px`, without those that are smaller."""
    found = []
    for pair in pairs:
        height, width = (side // multiple_px * multiple_px for side in pair.hr.shape[-2:])
        if height and width:
            lr = pair.lr[..., : height // pair.scale, : width // pair.scale]
            found.append(replace(pair, hr=pair.hr[..., :height, :width], lr=lr))
    return found


TASK = TaskSpec(
    name=SYSTEM,
    summary="small prior of map guidance (SGDM), in place of Stable Diffusion",
    kind=SYSTEM,
    presets=(
        Preset(
            name=SYSTEM,
            task=SYSTEM,
            architecture=SMALL_PRIOR,
            stages=(
                Stage(AUTOENCODER, 0.2, ("vae.",), 1e-3),
                Stage(DENOISER, 0.8, ("unet.", "contexts"), 8e-4),
            ),
            minutes=60,
            batch=8,
            crop_px=128,
            scale=8,
            scales=(8, 16),
            half=True,
        ),
    ),
    build=SmallPrior,
)
