"""Training task of map guidance (SGDM), on a prior that it begins from.

It minimises the squared error of the noise in latents of sharp images (eq. 12), given a coarse image, a map, and the
style of the sharp image itself. Of the prior's U-Net the attention learns, as published, or all of it.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pipeline.errors import UsageError
from pipeline.models.bundle import Bundle, load_bundle
from pipeline.models.diffusion_prior import BANDS
from pipeline.models.diffusion_prior import SYSTEM as PRIOR
from pipeline.models.guidance import PUBLISHED as PUBLISHED_GUIDANCE
from pipeline.models.guidance import PUBLISHED_SYNTHETIC, SYNTHETIC, Guidance
from pipeline.models.latent_sampler import forward
from pipeline.models.resampling import upsample
from pipeline.models.sgdm import (
    LATTICE,
    PUBLISHED,
    SGDM,
    SMALL,
    SMALL_LATTICE,
    STEPS,
    SYSTEM,
    check_together,
    contexts,
    guidance_bundle,
)
from pipeline.models.tone import OURS
from training import placement
from training.loop.optimisers import OWN
from training.loop.task import Measured, Objective
from training.presets import Preset, Stage
from training.quality.pairs import average, per_set_mean, score, watched_words
from training.task_spec import TaskSpec
from training.tasks import sgdm_locality as locality
from training.tasks.sgdm_batches import IMAGES, MapBatches, other_colours
from training.tasks.sgdm_judge import GUIDED
from training.tasks.sgdm_networks import PRIORS, Learning, Noisy, PriorBeside, leave_out
from training.tasks.sgdm_watched import Watched, few, others_maps, watched

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor
    from torch.optim import Optimizer

    from training.data.sources import TrainingData
    from training.loop.batches import Draw

SAMPLES, DRAWN = 4, 8  # held-out images shown, and of which one draw is scored
QUICK_STEPS = 10  # of these draws
SMALL_STEPS = 20  # of the small networks
TIMES = (100, 300, 500, 800)  # at which the error of the noise is watched
ALL = "guidance"  # name of the stage
RECIPE: dict[str, Any] = {
    **IMAGES,
    # Share of batches without a style, so that the weights also keep the colours of the coarse image.
    "no_style": 0.3,
    # Share of the images with a style whose coarse image has other colours than the sharp one. Where both agree, as
    # when one is made of the other, a style tells nothing new and is not learned. Without a style, both agree always.
    "gap": 0.7,
    # Weight of how far a change of the map spreads, and share of the images of a batch on which that is measured.
    "local": 0.1,
    "exchanged": 0.5,
    "visited": 0.8,  # share of the images with a timestep that the sampler visits, if it starts late
    "networks": "small",  # of the prior
    "whole_unet": True,  # or the attention alone, as published
    "unet_rate": 0.5,  # of the learning rate, for the U-Net, which has learned already
    "weight_decay": 0.01,
    # File of the prior, where --init gives weights of guidance to go on from.
    "prior": "",
}
SHARES = ("no_style", "gap", "visited", "exchanged")
RECIPE_PAPER = {
    **RECIPE,
    "no_style": 0.0,
    "no_map": 0.1,
    "empty": 0.0,
    "gap": 0.0,
    "local": 0.0,
    "unet_rate": 1.0,
    "networks": "published",
    "whole_unet": False,
    "small_px": 128,
}


class MapGuidance:
    """Task of guidance."""

    def __init__(self, preset: Preset, data: TrainingData) -> None:
        self.preset, self.data, self.bands, self.recipe = preset, data, preset.bands, preset.recipe
        if preset.recipe["networks"] not in PRIORS:
            raise UsageError(f"recipe networks={preset.recipe['networks']}", " or ".join(PRIORS))
        for name in SHARES:
            if not 0 <= float(self.recipe[name]) <= 1:
                raise UsageError(f"recipe {name}={self.recipe[name]:g}", "a share from 0 to 1")
        self.companion = PriorBeside(PRIORS[preset.recipe["networks"]])
        guidance = Guidance(preset.architecture["guidance"])
        self.network = Learning(guidance, self.companion.networks, bool(self.recipe["whole_unet"]))
        check_together(guidance, self.companion.networks, self.bundle())
        self.styled = bool(guidance.style_width)
        if self.recipe["prior"]:
            self.begin_from(load_bundle(Path(str(self.recipe["prior"]))))
        self.batches = MapBatches(preset, data)
        if (classes := preset.architecture.get("classes")) is not None:  # rendered maps have none
            leave_out(guidance, [name in self.batches.classes for name in classes])
        multiple_px = self.companion.networks.stride * 2 ** (len(preset.architecture["guidance"]["controls"]))
        self.watched = watched(data, preset, multiple_px)

    def begin_from(self, bundle: Bundle) -> None:
        """Take the prior. Raises BundleError if it does not fit."""
        self.companion.take(bundle)

    def batch(self, draw: Draw) -> dict[str, Tensor]:
        """Return `hr`, `lr` and `map`, as `MapBatches`."""
        return self.batches(draw)

    def begin(self, stage: Stage, draw: Draw) -> None:
        """Raise UsageError if there is no prior."""
        if not self.companion.digest:
            raise UsageError(
                f"{self.preset.name} without a prior", "the one that the weights go with", "--set prior=FILE"
            )

    def finish(self) -> None:
        """Do nothing."""

    def optimisers(self, stage: Stage) -> dict[str, Optimizer]:
        """Return AdamW over all that learns."""
        rates = {"guidance": stage.learning_rate, "unet": stage.learning_rate * float(self.recipe["unet_rate"])}
        groups = [
            {"params": [p for p in self.network.get_submodule(name).parameters() if p.requires_grad], "lr": rate}
            for name, rate in rates.items()
        ]
        decay = float(self.recipe["weight_decay"])
        return {OWN: torch.optim.AdamW(groups, stage.learning_rate, self.preset.betas, weight_decay=decay)}

    def turns(self, stage: Stage, batch: dict[str, Tensor], draw: Draw) -> Iterator[tuple[str, Objective]]:
        """Yield the error of the noise, and with `local` how far a change of the map spreads."""
        styled = self.styled and draw.rng.random() >= float(self.recipe["no_style"])
        if styled:
            batch = {**batch, "lr": other_colours(batch["lr"], draw.rng, float(self.recipe["gap"]))}
        generator = draw.on(batch["hr"].device)
        t = self.timesteps(len(batch["hr"]), generator)
        noisy = self.noisy(batch, t, generator)
        found = self.estimate(noisy, batch, batch["map"], styled)
        errors = noisy.errors(found)
        loss = (self.companion.prior.balance(t) * errors).mean()
        parts = {"noise": errors.mean().detach()}
        if float(self.recipe["local"]) and self.network.guidance.map_channels:
            spreads = self._spread(noisy, batch, found, draw, styled)
            loss, parts["spread"] = loss + float(self.recipe["local"]) * spreads, spreads.detach()
        yield OWN, Objective(loss, parts)

    def timesteps(self, count: int, generator: torch.Generator) -> Tensor:
        """Return random timesteps (count,), of which `visited` are among those that the sampler visits."""
        steps, device = len(self.companion.networks.alpha_bar), generator.device
        start = round(steps * float(self.preset.sampler.get("start", 1.0)))
        visited = torch.rand(count, generator=generator, device=device) < float(self.recipe["visited"])
        below = torch.where(visited, start, steps)
        return (torch.rand(count, generator=generator, device=device) * below).long()

    def noisy(self, batch: Mapping[str, Tensor], t: Tensor, generator: torch.Generator) -> Noisy:
        """Return noisy latents of the sharp images at timesteps t (B,)."""
        prior, image = self.companion.prior, 2 * OURS.to_image(batch["hr"]) - 1

        def normal(like: Tensor) -> Tensor:
            return torch.randn(like.shape, generator=generator, device=like.device)

        with torch.no_grad():
            size = (len(image), prior.latents, image.shape[-2] // prior.stride, image.shape[-1] // prior.stride)
            truth = prior.encode(image, normal(image.new_empty(size)))
        noise, alphas = normal(truth), torch.from_numpy(prior.alpha_bar).to(truth)
        return Noisy(forward(truth, alphas[t][:, None, None, None], noise), noise, t)

    def estimate(self, noisy: Noisy, batch: Mapping[str, Tensor], of_map: Tensor, styled: bool) -> Tensor:
        """Return the estimate of the noise (B, L, h, w), given the coarse images, maps and styles."""
        prior, guidance = self.companion.prior, self.network.guidance
        coarse = upsample(OURS.to_image(batch["lr"]), self.preset.scale).clamp(0, 1)
        style = guidance.style_statistics(2 * OURS.to_image(batch["hr"]) - 1) if styled else None
        controls = guidance(2 * coarse - 1, 2 * of_map - 1, style)
        context = contexts(prior, guidance, self.preset.architecture["words"], of_map)
        return prior.noise(noisy.latents, noisy.t, context, controls)

    def _spread(self, noisy: Noisy, batch: Mapping[str, Tensor], found: Tensor, draw: Draw, styled: bool) -> Tensor:
        """Return how far the change spreads that exchanged maps make of the estimates `found` (B, L, h, w).

        It is measured on a share of the images, of those with a map.
        """
        wanted = round(len(found) * float(self.recipe["exchanged"]))
        some = (batch["map"] != self.batches.absent).flatten(1).any(1).nonzero()[:wanted, 0]
        if len(some) < 2:
            return found.sum() * 0
        given = {name: images[some] for name, images in batch.items()}
        of_map = locality.exchanged(given["map"], draw.rng)
        other = self.estimate(noisy.of(some), given, of_map, styled)
        return locality.spread(found[some], other, (of_map != given["map"]).any(1))

    def system(self) -> SGDM:
        """Return the system of the current weights, with its networks in eval mode."""
        return SGDM(self.network.guidance, self.companion.prior, self.bundle())

    def drawn(self, one: Watched, steps: int = QUICK_STEPS, with_map: bool = True) -> Tensor:
        """Return one draw (1, 3, H, W) in reflectance, with its own map or none, and without a style."""
        return one.drawn(self.system(), placement.device_of(self.network), steps, with_map)

    @torch.no_grad()
    def validate(self, stage: Stage) -> Measured:
        """Return the error of the noise on held-out images, with their maps and others' maps, and PSNR of draws.

        Also how much more the estimates change where the map of another image differs than elsewhere.
        """
        pairs = [one.pair for one in self.watched]
        found = [self._watched(one, other) for one, other in zip(self.watched, others_maps(self.watched), strict=True)]
        with_right, with_others = (
            average(per_set_mean(pairs, errors)) for errors in ([one[0] for one in found], [one[1] for one in found])
        )
        ratios = [math.log(one[2]) for one in found if 0 < one[2] < math.inf]
        ratio = math.exp(sum(ratios) / len(ratios)) if ratios else math.nan
        psnr, without = (self._psnr(few(self.watched, DRAWN), with_map) for with_map in (True, False))
        text = (
            f"error of the noise {with_right:.4f}, with maps of other images {with_others:.4f}, which change it "
            f"{ratio:.2f} times as much where they differ; one draw of {QUICK_STEPS} steps: PSNR {psnr:.2f} dB, "
            f"without a map {without:.2f} dB"
        )
        values = {"noise": with_right, "noise, other maps": with_others, "inside over outside": ratio}
        return Measured(text, {**values, "psnr_draw": psnr, "psnr_no_map": without})

    def _psnr(self, images: Sequence[Watched], with_map: bool) -> float:
        """Return the mean PSNR in dB of one draw of each image."""
        return sum(score(self.drawn(one, with_map=with_map), one.pair) for one in images) / len(images)

    def _watched(self, one: Watched, of_map: Tensor) -> tuple[float, float, float]:
        """Return the error of the noise in a held-out image with its map and another, the same noise at every call.

        Then how much more the estimate changes where the maps differ than elsewhere, the geometric mean over timesteps;
        NaN if all or nothing differs.
        """
        device = placement.device_of(self.network)
        given = {"hr": one.pair.hr, "lr": one.pair.lr, "own": one.shown, "other": of_map}
        batch = {name: image.to(device).expand(len(TIMES), -1, -1, -1) for name, image in given.items()}
        generator = torch.Generator(device).manual_seed(one.pair.index)
        noisy = self.noisy(batch, torch.tensor(TIMES, device=device), generator)
        own, other = (self.estimate(noisy, batch, batch[name], self.styled) for name in ("own", "other"))
        differs = (batch["own"] != batch["other"]).any(1)
        inside, outside = locality.change(own, other, differs)
        ratio = float((inside / outside).log().mean().div(2).exp())
        return float(noisy.errors(own).mean()), float(noisy.errors(other).mean()), ratio

    @torch.no_grad()
    def samples(self, stage: Stage) -> list[dict[str, Tensor]]:
        """Return input, bicubic, map, one draw, and truth of a few held-out places."""
        return [one.side_by_side(self.drawn(one)) for one in few(self.watched, SAMPLES)]

    @property
    def compiled(self) -> list[torch.nn.Module]:
        """What `--compile` compiles: the blocks of the U-Net are called one by one."""
        return [self.network.guidance]

    @property
    def watching(self) -> str:
        """Which images `validate` scores."""
        return watched_words([one.pair for one in self.watched], self.data, self.bands)

    def describe(self) -> dict[str, Any]:
        """Return the provenance of data and recipe, in which the prior's file is named without its folder."""
        described = self.data.describe(TASK.use, self.bands) | {"map_classes_shown": list(self.batches.classes)}
        recipe = {**self.recipe, "prior": Path(str(self.recipe["prior"])).name}
        return {**described, "tone": OURS.described, "degradation": repr(self.batches.range), "recipe": recipe}

    def bundle(self, provenance: dict[str, Any] | None = None, licence: str = "") -> Bundle:
        """Return the bundle of the current weights, which name their prior."""
        architecture = {**self.preset.architecture, "scales": [self.preset.scale], "prior": self.companion.digest}
        small = self.recipe["networks"] != "published"
        lattice = SMALL_LATTICE if small else LATTICE
        found = guidance_bundle(architecture, self.preset.scale, provenance, licence, lattice, OURS.described)
        return replace(found, sampler=self.preset.sampler)


_SMALL = {name: value for name, value in SMALL.items() if name != "prior"}
_STYLED = Preset(
    name="sgdm-plus",
    task=SYSTEM,
    architecture=_SMALL,
    stages=(Stage(ALL, 1.0, (), 1e-3),),
    minutes=60,
    batch=8,
    crop_px=128,
    # Little training does not learn the colours of whole windows, which early steps decide: those are left out. More
    # steps add grain, which these networks do not take away again, and let what a map changes spread.
    sampler={"name": "ancestral", "steps": SMALL_STEPS, "start": 0.5},
    recipe=RECIPE,
    bands=BANDS,
    scale=8,
    scales=(8, 16),
    half=True,
)
# Batch, rate and steps of the paper, on two GPUs, without an average of the weights.
_STYLED_PAPER = replace(
    _STYLED,
    name="sgdm-plus-paper",
    architecture={"guidance": PUBLISHED_GUIDANCE, "words": PUBLISHED["words"]},
    stages=(Stage(ALL, 1.0, (), 5e-5),),
    images=2 * 16 * 150_000,
    batch=16,
    crop_px=256,
    ema=0.0,
    warmup_steps=0,
    schedule="constant",
    betas=(0.9, 0.999),
    sampler={"name": "ancestral", "steps": STEPS},
    recipe=RECIPE_PAPER,
    scale=16,
    half=False,
)


def _without_styles(preset: Preset, name: str, guidance: Mapping[str, Any]) -> Preset:
    return replace(preset, name=name, architecture={**preset.architecture, "guidance": dict(guidance)})


TASK = TaskSpec(
    name=SYSTEM,
    summary="guidance of a generative prior by maps and styles (SGDM)",
    kind=SYSTEM,
    presets=(
        _without_styles(_STYLED, "sgdm", {**SMALL["guidance"], "variant": SYNTHETIC}),
        _STYLED,
        _without_styles(_STYLED_PAPER, "sgdm-paper", PUBLISHED_SYNTHETIC),
        _STYLED_PAPER,
    ),
    build=MapGuidance,
    follows=(PRIOR,),
    guided=GUIDED,
)
