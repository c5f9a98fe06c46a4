"""Training task of LDSR's autoencoder: reconstruction first, then a discriminator beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pipeline.errors import UsageError
from pipeline.models import ldsr_published
from pipeline.models.bundle import Bundle, LatticeSpec
from pipeline.models.latent import interpolated
from pipeline.models.latent_small import SMALL, SmallAutoencoder
from pipeline.models.ldsr import AUTOENCODER, BANDS, SCALE, SQRT, network_of, normalisation_of
from pipeline.models.lite import LATTICE
from training.loop.task import Measured, Objective
from training.presets import Preset, Stage
from training.quality.metrics import gradient_ratio
from training.quality.pairs import (
    average,
    from_many_sets,
    ibp_scores,
    per_set_mean,
    score,
    side_by_side,
    watched_words,
)
from training.quality.perceptual import displayed
from training.task_spec import TaskSpec
from training.tasks.ldsr_batches import IMAGES, OF_BANDS, ImageBatches, image_bands, watched
from training.tasks.ldsr_losses import DivergenceWeight, PatchDiscriminator, adaptive_weight, hinge, three_of
from training.tasks.lpips_vgg import PerceptualLoss, lpips_loss

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor
    from torch.optim import Optimizer

    from pipeline.models.latent import Moments
    from training.data.sources import TrainingData
    from training.loop.batches import Draw
    from training.quality.pairs import Pair

SAMPLES = 4
RECONSTRUCT, ADVERSARIAL = "reconstruct", "adversarial"
PAPER_BATCH, RATE_PER_IMAGE = 8, 4.5e-6
BATCHES_AT_FIRST = 8  # for the principal components from which small networks start
WEIGHTS: dict[str, Any] = {
    "kl": 1e-6,  # of the divergence per value of the image, beside the mean absolute error
    "latent_spread": 5.0,  # the thesis' optimum, towards which `kl` is adjusted; 0 leaves it as it is
    "discriminator": 64,  # channels of its first convolution
    "gan": 0.5,  # times the adaptive weight
    "perceptual": 1.0,  # of LPIPS on three random bands, where its networks are available; else 0
    "blurred": 0.25,  # share of images that are interpolated coarse ones, which condition the denoiser
}
PERCEPTUAL: dict[str, Any] = {  # files of LPIPS; "" for torch's folder of checkpoints and the package lpips
    "vgg": "",  # FILE or FILE@SHA256 of the convolutions, in the layout of torchvision's VGG16
    "lpips": "",  # the linear layers, the package's weights/v0.1/vgg.pth
}


class AutoencoderOnly(nn.Module):
    """The autoencoder under the name that it has beside a denoiser."""

    def __init__(self, autoencoder: nn.Module) -> None:
        super().__init__()
        self.autoencoder: Any = autoencoder


class Companion(nn.Module):
    """What the training has beside the network: the discriminator, and the weight of the divergence."""

    def __init__(self, bands: int, recipe: Mapping[str, Any]) -> None:
        super().__init__()
        self.discriminator = PatchDiscriminator(bands, int(recipe["discriminator"]))
        self.divergence = DivergenceWeight(recipe["kl"], recipe["latent_spread"])


class LatentAutoencoder:
    """Task of the autoencoder."""

    def __init__(self, preset: Preset, data: TrainingData) -> None:
        self.preset, self.data, self.bands, self.recipe = preset, data, preset.bands, preset.recipe
        _check(self.recipe)
        self.network = AutoencoderOnly(network_of(preset.architecture, len(self.bands), untrained=True).autoencoder)
        self.companion = Companion(len(self.bands), self.recipe)
        files = str(self.recipe["vgg"]), str(self.recipe["lpips"])
        wanted = self.recipe["perceptual"]
        self.perceptual = lpips_loss(*files) if wanted else PerceptualLoss(None)  # not in checkpoints
        self.normalisation = normalisation_of(self.bundle())
        self.batches = ImageBatches(preset, data)
        self.pairs = watched(preset, data)
        self.baseline = average(per_set_mean(self.pairs, ibp_scores(self.pairs)))

    def batch(self, draw: Draw) -> dict[str, Tensor]:
        """Return `image` (B, bands, n, n), some of them interpolated, and `lr` (B, bands, n/4, n/4) reflectance."""
        found = self.batches(draw)
        image = found["hr"]
        blurred = torch.rand(len(image), generator=draw.torch) < self.recipe["blurred"]
        image[blurred] = interpolated(found["lr"][blurred])
        return {"image": image, "lr": found["lr"]}

    def begin(self, stage: Stage, draw: Draw) -> None:
        """Start small networks from principal components of the first batches."""
        autoencoder = self.network.autoencoder
        if isinstance(autoencoder, SmallAutoencoder) and autoencoder.untrained:
            first = [self.batch(draw) for _ in range(BATCHES_AT_FIRST)]
            side = min(batch["lr"].shape[-1] for batch in first)
            images = torch.cat([batch["image"][..., : SCALE * side, : SCALE * side] for batch in first])
            coarse = torch.cat([batch["lr"][..., :side, :side] for batch in first])
            spread = float(self.recipe["latent_spread"]) or 1.0
            of = self.normalisation
            autoencoder.start_from_components(of.to_network(images), of.condition(coarse), spread)

    def finish(self) -> None:
        """Do nothing."""

    def optimisers(self, stage: Stage) -> dict[str, Optimizer]:
        """Return Adam for the autoencoder, and for the discriminator in the adversarial stage."""
        rate, betas = stage.learning_rate, self.preset.betas
        trained = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        found: dict[str, Optimizer] = {"autoencoder": torch.optim.Adam(trained, lr=rate, betas=betas)}
        if stage.name == ADVERSARIAL:
            parameters = self.companion.discriminator.parameters()
            found["discriminator"] = torch.optim.Adam(parameters, lr=rate, betas=betas)
        return found

    def turns(self, stage: Stage, batch: dict[str, Tensor], draw: Draw) -> Iterator[tuple[str, Tensor | Objective]]:
        """Yield the loss of the autoencoder, then that of the discriminator."""
        image = self.normalisation.to_network(batch["image"])
        generator = draw.on(image.device)
        adversarial = stage.name == ADVERSARIAL
        moments = self.network.autoencoder.encode(image)
        noise = torch.randn(moments.mean.shape, generator=generator, device=image.device)
        made = self.network.autoencoder.decode(moments.sample(noise), self.normalisation.condition(batch["lr"]))
        chosen = three_of(len(self.bands), draw.torch) if self.perceptual.network else ()
        yield "autoencoder", self._reconstruction(image, made, moments, chosen, adversarial)
        self.companion.divergence.follow(moments.mean.std())
        if adversarial:
            discriminator = self.companion.discriminator
            loss = hinge(discriminator(image), discriminator(made.detach()))
            yield "discriminator", Objective(loss, {"discriminator": loss})

    def _reconstruction(
        self, image: Tensor, made: Tensor, moments: Moments, chosen: Sequence[int], adversarial: bool
    ) -> Objective:
        reconstruction = absolute = (image - made).abs().mean()
        divergence = moments.divergence().mean() / image[0].numel()
        parts = {"l1": absolute, "divergence": divergence, "spread": moments.mean.std()}
        if chosen:
            parts["perceptual"] = self._perceptual(image[:, chosen], made[:, chosen])
            reconstruction = absolute + self.recipe["perceptual"] * parts["perceptual"]
        total = reconstruction + self.companion.divergence.get_buffer("weight") * divergence
        if adversarial:
            parts["adversarial"] = -self.companion.discriminator(made).mean()
            scaled = adaptive_weight(reconstruction, parts["adversarial"], self.network.autoencoder.last_layer)
            total = total + self.recipe["gan"] * scaled * parts["adversarial"]
        return Objective(total, parts)

    def _perceptual(self, image: Tensor, made: Tensor) -> Tensor:
        """Return the mean LPIPS of images of three bands in the range of the networks."""
        pictures = [displayed(self.normalisation.to_reflectance(of)).float() for of in (image, made)]
        network = self.perceptual.network
        assert network is not None
        distance: Tensor = network.to(image.device)(*pictures).mean()
        return distance

    @torch.no_grad()
    def validate(self, stage: Stage) -> Measured:
        """Return the PSNR and gradient of decoded latents of held-out images, beside IBP's PSNR, and their spread."""
        named: dict[str, list[float]] = {"psnr": [], "gradient": [], "spread": []}
        for pair in self.pairs:
            latent, decoded = self._passed(pair)
            named["psnr"].append(score(decoded, pair))
            named["gradient"].append(gradient_ratio(decoded, pair.hr))
            named["spread"].append(float(latent.std()))
        psnr, gradient, spread = (average(per_set_mean(self.pairs, values)) for values in named.values())
        text = (
            f"PSNR of decoded latents {psnr:.2f} dB (IBP from x{SCALE} {self.baseline:.2f}), gradient "
            f"{gradient:.2f} of the truth's, spread {spread:.2f}"
        )
        numbers = {"psnr_decoded": psnr, "psnr_ibp": self.baseline, "gradient": gradient, "latent_spread": spread}
        return Measured(text, numbers)

    @torch.no_grad()
    def samples(self, stage: Stage) -> list[dict[str, Tensor]]:
        """Return input, bicubic, the decoded latent of the truth, and the truth of a few held-out places."""
        return [side_by_side(pair, self._passed(pair)[1]) for pair in from_many_sets(self.pairs, SAMPLES)]

    @property
    def watching(self) -> str:
        """Which images `validate` scores."""
        return watched_words(self.pairs, self.data, self.image_bands)

    @property
    def image_bands(self) -> tuple[str, ...]:
        """Bands of the images learned from, of which those of the network are completed."""
        return image_bands(self.preset, self.data)

    @property
    def remarks(self) -> list[str]:
        """Say it if the recipe asks for LPIPS and it is not available."""
        lacking = self.perceptual.reason
        return [f"no perceptual loss: {lacking}; its weight is 0"] if lacking else []

    def describe(self) -> dict[str, Any]:
        """Return the provenance of data and recipe. `perceptual` is the loss that was used, or why there was none."""
        described = self.data.describe(TASK.use, self.image_bands) | {"image_bands": list(self.image_bands)}
        used = "LPIPS (VGG16) of three random bands" if self.perceptual.network else "none"
        perceptual = f"none: {self.perceptual.reason}" if self.perceptual.reason else used
        return {
            **described,
            "degradation": self.batches.described(),
            "recipe": self.recipe,
            "perceptual": perceptual,
        }

    def bundle(self, provenance: dict[str, Any] | None = None, licence: str = "") -> Bundle:
        """Return the bundle of the current network."""
        return Bundle(
            system=AUTOENCODER,
            architecture=self.preset.architecture,
            in_bands=self.bands,
            out_bands=self.bands,
            scale=SCALE,
            lattice=lattice_of(self.preset.architecture),
            normalisation=normalisation(self.preset.architecture),
            provenance=provenance or {},
            licence=licence,
        )

    def _passed(self, pair: Pair) -> tuple[Tensor, Tensor]:
        """Return the latent of a held-out image, and the reflectance decoded from it."""
        of, autoencoder = self.normalisation, self.network.autoencoder
        latent = autoencoder.encode(of.to_network(pair.hr)).mean
        return latent, of.to_reflectance(autoencoder.decode(latent, of.condition(pair.lr)))


def normalisation(architecture: Mapping[str, Any]) -> dict[str, Any]:
    """Return the normalisation of networks: reflectance as it is for the published ones."""
    return dict(SQRT) if architecture["networks"] == "small" else {"kind": "none"}


def lattice_of(architecture: Mapping[str, Any]) -> LatticeSpec:
    """Return the windows of networks, in px of the output."""
    return LATTICE if architecture["networks"] == "small" else ldsr_published.LATTICE


def _check(recipe: Mapping[str, Any]) -> None:
    """Raise UsageError for weights below 0 or shares beyond 0 to 1."""
    for name in WEIGHTS:
        if recipe[name] < 0 or (name == "blurred" and recipe[name] > 1):
            expected = "a share from 0 to 1" if name == "blurred" else "a number of at least 0"
            raise UsageError(f"recipe {name}={recipe[name]:g}", expected)


TASK = TaskSpec(
    name=AUTOENCODER,
    summary="autoencoder of latent diffusion (OpenSR), for images of four or six bands",
    kind=AUTOENCODER,
    presets=(
        Preset(
            name="ldsr-autoencoder",
            task=AUTOENCODER,
            architecture=SMALL,
            stages=(Stage(RECONSTRUCT, 1.0, (), 1.5e-3),),
            minutes=60,
            batch=8,
            crop_px=128,
            recipe={**IMAGES, **WEIGHTS, **PERCEPTUAL},
            bands=BANDS,
            scales=(SCALE,),
        ),
        Preset(  # sharper images of the same latents: another decoder for a trained encoder, given by --init
            name="ldsr-decoder",
            task=AUTOENCODER,
            architecture=SMALL,
            stages=(Stage(ADVERSARIAL, 1.0, ("autoencoder.decoder.",), 1e-3),),
            minutes=15,
            batch=8,
            crop_px=128,
            recipe={**IMAGES, **WEIGHTS, **PERCEPTUAL, "blurred": 0.0, "discriminator": 24},
            bands=BANDS,
            scales=(SCALE,),
        ),
        # The published networks on a GPU. Sizes of crops and moments of Adam are those of LDM (Rombach et al. 2022), as
        # is the learning rate, 4.5e-6 times the batch, and 50 000 steps before the discriminator begins.
        Preset(
            name="ldsr-autoencoder-paper",
            task=AUTOENCODER,
            architecture=ldsr_published.ARCHITECTURE,
            stages=(
                Stage(RECONSTRUCT, 0.5, (), PAPER_BATCH * RATE_PER_IMAGE),
                Stage(ADVERSARIAL, 0.5, (), PAPER_BATCH * RATE_PER_IMAGE),
            ),
            images=100_000 * PAPER_BATCH,
            batch=PAPER_BATCH,
            crop_px=256,
            schedule="constant",
            betas=(0.5, 0.9),
            recipe={**IMAGES, **WEIGHTS, **PERCEPTUAL},
            bands=BANDS,
            scales=(SCALE,),
        ),
    ),
    build=LatentAutoencoder,
    of_bands=OF_BANDS,
)
