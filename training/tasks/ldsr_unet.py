"""Training task of LDSR's denoiser, on the latents of an autoencoder that stays as it is.

Published networks minimise eq. 14 of Ho et al. 2020, with latents and conditions drawn as they are when sampling.
Small ones first learn the mean and spread of latents given the coarse image, then the noise around the mean.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from pipeline.errors import UsageError
from pipeline.models import ldsr_published
from pipeline.models.bundle import Bundle, load_into
from pipeline.models.latent import interpolated
from pipeline.models.latent_sampler import forward
from pipeline.models.latent_small import SMALL, SmallDenoiser
from pipeline.models.ldsr import AUTOENCODER, BANDS, LDSR, SCALE, SYSTEM, network_of, normalisation_of
from training import placement
from training.loop.task import Objective
from training.presets import Preset, Stage
from training.quality.pairs import watched_words
from training.quality.sampler import Sampler, further_noise
from training.task_spec import TaskSpec
from training.tasks import ldsr_convert
from training.tasks.ldsr_autoencoder import AutoencoderOnly, lattice_of, normalisation
from training.tasks.ldsr_batches import IMAGES, OF_BANDS, ImageBatches, image_bands, watched
from training.tasks.watched_gains import WatchedGains

if TYPE_CHECKING:
    from torch import Tensor

    from training.data.sources import TrainingData
    from training.loop.batches import Draw
    from training.loop.task import Measured

MEAN, DETAIL = "mean", "detail"
BATCHES_AT_FIRST = 8  # from which the spread of latents is measured
SPREAD_WEIGHT = 0.05
ACTIVITY_FLOOR = 0.02  # of the local reflectance, below which images count no more
SAMPLER: dict[str, Any] = {"name": "ddim", "steps": 10, "eta": 0.0, "temperature": 1.0}


class LatentDenoiser:
    """Task of the denoiser."""

    def __init__(self, preset: Preset, data: TrainingData) -> None:
        self.preset, self.data, self.bands, self.recipe = preset, data, preset.bands, preset.recipe
        self.network = network_of(preset.architecture, len(self.bands), untrained=True)
        self.begun_anew = False
        self.described = normalisation(preset.architecture)
        self.normalisation = normalisation_of(self.bundle())
        self.batches = ImageBatches(preset, data)
        self.watched = WatchedGains(watched(preset, data))

    def begin_from(self, bundle: Bundle) -> None:
        """Take the autoencoder of a bundle. Raises UsageError if it is of other bands, BundleError on a misfit."""
        if bundle.in_bands != self.bands:
            raise UsageError(f"autoencoder {bundle.path} is of {', '.join(bundle.in_bands)}", ", ".join(self.bands))
        load_into(AutoencoderOnly(self.network.autoencoder), bundle)
        self.begun_anew = True
        self.described, self.normalisation = bundle.normalisation, normalisation_of(bundle)

    def batch(self, draw: Draw) -> dict[str, Tensor]:
        """Return `lr` (B, bands, n/4, n/4) and `hr` (B, bands, n, n) reflectance."""
        return self.batches(draw)

    def begin(self, stage: Stage, draw: Draw) -> None:
        """Set the spread of latents by the first batches, unless an earlier stage or given weights did."""
        spread = self.network.get_buffer("latent_spread")
        anew = self.begun_anew or isinstance(self.network.unet, SmallDenoiser)
        if bool((spread != 1).any()) or not anew:
            return
        with torch.no_grad():
            images = [self.batch(draw)["hr"].to(spread.device) for _ in range(BATCHES_AT_FIRST)]
            latents = [self.network.encode(self.normalisation.to_network(image)) for image in images]
        rows = torch.cat([latent.transpose(0, 1).flatten(1) for latent in latents], dim=1)
        spread.copy_(rows.std(1))

    def finish(self) -> None:
        """Do nothing."""

    def loss(self, stage: Stage, batch: dict[str, Tensor], draw: Draw) -> Objective:
        """Return the loss of mean and spread, or that of the noise."""
        device = batch["hr"].device
        generator = draw.on(device)

        def noise() -> Tensor | None:
            if self.network.unet.regresses:
                return None
            n, _, height, width = batch["lr"].shape
            shape = (n, len(self.network.get_buffer("latent_spread")), height, width)
            return torch.randn(shape, generator=generator, device=device)

        with torch.no_grad():
            coarse = self.normalisation.condition(batch["lr"])
            fine = self.normalisation.condition(interpolated(batch["lr"]))
            condition = self.network.condition(fine, coarse, noise())
            truth = self.network.encode(self.normalisation.to_network(batch["hr"]), noise())
        if stage.name == MEAN:
            return self._mean_loss(condition, coarse, truth, batch)
        return self._noise_loss(condition, truth, generator)

    def _mean_loss(self, condition: Tensor, coarse: Tensor, truth: Tensor, batch: dict[str, Tensor]) -> Objective:
        """Return the squared error of the decoded mean, relative to the coarse image's activity, and the spread's loss.

        The weights of images depend on the coarse ones alone, so the minimiser is the conditional mean.
        """
        unet = self.network.unet
        assert isinstance(unet, SmallDenoiser)
        prepared = unet.prepare(condition)
        mean, spread = unet.centre(prepared), unet.spread(prepared)
        made = self.normalisation.to_reflectance(self.network.decode(mean, coarse))
        squared = ((made - batch["hr"]).square().mean((1, 2, 3)) / activity(batch["lr"])).mean()
        surprise = (spread.log() + 0.5 * ((truth - mean.detach()) / spread).square()).mean()
        return Objective(squared + SPREAD_WEIGHT * surprise, {"squared": squared, "spread": surprise})

    def _noise_loss(self, condition: Tensor, truth: Tensor, generator: torch.Generator) -> Objective:
        """Return the weighted squared error of the noise at random timesteps."""
        unet = self.network.unet
        if unet.regresses:
            with torch.no_grad():
                prepared = unet.prepare(condition)
        else:
            prepared = unet.prepare(condition)
        schedule = (1 - self.network.get_buffer("betas")).cumprod(0)
        t = torch.randint(len(schedule), (len(truth),), generator=generator, device=truth.device)
        alpha = schedule[t][:, None, None, None]
        noise = torch.randn(truth.shape, generator=generator, device=truth.device)
        error = unet(forward(truth, alpha, noise), prepared, t) - noise
        loss = (unet.balance(prepared, alpha) * error.square()).mean()
        return Objective(loss, {"noise": loss})

    def validate(self, stage: Stage) -> Measured:
        """Return the PSNR gain over IBP of the mean and, once noise is learned, of one draw and the mean of four."""
        return self.watched.measured(*self._drawn_by(), stage.name == DETAIL)

    def samples(self, stage: Stage) -> list[dict[str, Tensor]]:
        """Return input, bicubic, ours (the mean, later one draw) and truth of a few held-out places."""
        return self.watched.samples(*self._drawn_by(), stage.name == DETAIL)

    def _drawn_by(self) -> tuple[Sampler, torch.device]:
        return sampler(LDSR(self.network, self.bundle())), placement.device_of(self.network)

    @property
    def watching(self) -> str:
        """Which images `validate` scores."""
        return watched_words(self.watched.pairs, self.data, self.image_bands)

    @property
    def image_bands(self) -> tuple[str, ...]:
        """Bands of the images learned from, of which those of the network are completed."""
        return image_bands(self.preset, self.data)

    def describe(self) -> dict[str, Any]:
        """Return the provenance of data and recipe."""
        described = self.data.describe(TASK.use, self.image_bands) | {"image_bands": list(self.image_bands)}
        return {**described, "degradation": self.batches.described(), "recipe": self.recipe}

    def bundle(self, provenance: dict[str, Any] | None = None, licence: str = "") -> Bundle:
        """Return the bundle of autoencoder and denoiser."""
        return Bundle(
            system=SYSTEM,
            architecture=self.preset.architecture,
            in_bands=self.bands,
            out_bands=self.bands,
            scale=SCALE,
            lattice=lattice_of(self.preset.architecture),
            normalisation=self.described,
            sampler=self.preset.sampler,
            provenance=provenance or {},
            licence=licence,
        )


def sampler(system: LDSR) -> Sampler:
    """Return the sampler of the networks for whole images."""

    def sample(lr: Tensor, noise: Tensor, state: object) -> Tensor:
        del state
        shape = (system.latents, *lr.shape[-2:])
        return system.sample(lr, lambda number: further_noise(noise, number, (len(noise), *shape)))

    levels = len(system.bundle.architecture.get("channels", ())) or 1  # of a U-Net, which halves its input between them
    return Sampler(sample, system.mean if system.network.unet.regresses else None, multiple_px=2 ** (levels - 1))


def activity(lr: Tensor) -> Tensor:
    """Return the mean squared difference of coarse images from their 3 x 3 means, with a floor, (B,)."""
    padded = functional.pad(lr, (1, 1, 1, 1), mode="replicate")
    rough = (lr - functional.avg_pool2d(padded, 3, 1)).square()
    return (rough + (ACTIVITY_FLOOR * lr).square()).mean((1, 2, 3)) + 1e-6


TASK = TaskSpec(
    name="ldsr-unet",
    summary="denoiser of latent diffusion (OpenSR), on the latents of a trained autoencoder",
    kind=SYSTEM,
    presets=(
        Preset(
            name="ldsr-unet",
            task="ldsr-unet",
            architecture=SMALL,
            stages=(
                Stage(MEAN, 0.55, ("unet.entry", "unet.blocks", "unet.mean_head", "unet.spread_head"), 1e-3),
                Stage(DETAIL, 0.45, ("unet.noisy_entry", "unet.level", "unet.noisy_blocks", "unet.exit"), 1e-3),
            ),
            minutes=90,
            batch=8,
            crop_px=128,
            sampler=SAMPLER,
            recipe=IMAGES,
            bands=BANDS,
            scales=(SCALE,),
        ),
        # The published network on a GPU, on windows as large as in use, since it normalises and attends over them. The
        # thesis gives neither rate nor batch: 16 windows of 512 px have as many latent pixels as 64 of 256 px, a usual
        # batch of latent diffusion, and 200 000 steps are 20 times the memory of the moving average.
        Preset(
            name="ldsr-unet-paper",
            task="ldsr-unet",
            architecture=ldsr_published.ARCHITECTURE,
            stages=(Stage(DETAIL, 1.0, ("unet.",), 1e-4),),
            images=3_200_000,
            batch=16,
            crop_px=512,
            ema=0.9999,
            warmup_steps=1000,
            betas=(0.9, 0.999),
            sampler=ldsr_published.SAMPLER,
            recipe=IMAGES,
            bands=BANDS,
            scales=(SCALE,),
        ),
    ),
    build=LatentDenoiser,
    of_bands=OF_BANDS,
    follows=(AUTOENCODER,),
    convert=ldsr_convert.LDSR,
)
