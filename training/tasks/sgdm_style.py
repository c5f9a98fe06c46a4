"""Training task of the distribution of styles: of their means, and of the logarithms of their deviations (eq. 13).

Styles of training images are collected first, by the encoder of trained guidance. A flow learns from them, and the
weights with the lowest loss on held-out images are kept. A normal distribution with full covariance is fitted too, and
takes the flow's place if it describes the styles of held-out images better: few images are too few for a flow.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from pipeline.errors import UsageError
from pipeline.models.bundle import Bundle, BundleError, check_fit, load_tensors
from pipeline.models.guidance import PUBLISHED, REAL, StyleEncoder
from pipeline.models.guidance_parts import Style, statistics
from pipeline.models.sgdm import SMALL_LATTICE
from pipeline.models.sgdm import SYSTEM as GUIDANCE
from pipeline.models.style_flow import COUPLINGS, DIM, HIDDEN, GaussianStyle, StyleFlow
from pipeline.models.style_model import FLOW, GAUSSIAN, SYSTEM, StyleModel, style_bundle
from pipeline.models.tone import Tone
from training import placement
from training.loop.optimisers import OWN
from training.loop.task import Measured
from training.presets import Preset, Stage
from training.task_spec import TaskSpec

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor
    from torch.optim import Optimizer

    from training.data.patches import PatchSampler
    from training.data.places import Split
    from training.data.sources import TrainingData
    from training.loop.batches import Draw

ENCODER = "guidance.style."  # prefix of the encoder's tensors in weights of guidance
AT_ONCE = 16  # images encoded together
WATCHED_EVERY = 25  # steps, after which the loss on held-out images is taken
ARCHITECTURE: dict[str, Any] = {
    "model": FLOW,
    "dim": DIM,
    "couplings": COUPLINGS,
    "hidden": list(HIDDEN),
    "log_std": True,
}
RECIPE: dict[str, Any] = {
    "vectors": 4096,  # styles collected from images to train on
    "held_out": 1024,  # and from held-out images
    "weight_decay": 0.01,
}


class Collected(nn.Module):
    """Styles that were collected, mean and deviation (N, 2, C), and the best weights of the flow so far."""

    def __init__(self, architecture: dict[str, Any], vectors: int, held_out: int) -> None:
        super().__init__()
        self.best = StyleModel(architecture).requires_grad_(False)
        self.register_buffer("learned", torch.zeros(vectors, 2, int(architecture["dim"])))
        self.register_buffer("held_out", torch.zeros(held_out, 2, int(architecture["dim"])))
        self.register_buffer("best_loss", torch.tensor(math.inf))
        self.register_buffer("steps", torch.tensor(0))

    @property
    def filled(self) -> bool:
        """Whether styles have been collected."""
        return bool(self.get_buffer("held_out").any())

    def styles(self, name: str) -> Style:
        """Return the styles "learned" from, or those "held_out"."""
        mean, std = self.get_buffer(name).unbind(1)
        return Style(mean, std)


class Encoder:
    """The style encoder of guidance, which takes reflectance in its own tone."""

    def __init__(self, bundle: Bundle) -> None:
        sizes = {**PUBLISHED, **bundle.architecture["guidance"]}
        if sizes["variant"] != REAL:
            raise BundleError(f"weights {bundle.path} have no styles", f"guidance of variant {REAL}, such as sgdm-plus")
        self.network = StyleEncoder(sizes["widths"][-1], len(sizes["widths"])).eval().requires_grad_(False)
        self.width, self.stride = int(sizes["widths"][-1]), 2 ** len(sizes["widths"])
        self.tone = Tone.of(bundle.normalisation)
        tensors = load_tensors(bundle)
        own = {name.removeprefix(ENCODER): tensor for name, tensor in tensors.items() if name.startswith(ENCODER)}
        check_fit(own, self.network.state_dict(), f"the style encoder of {bundle.path} does not fit")
        self.network.load_state_dict(own)

    @torch.no_grad()
    def __call__(self, hr: Tensor) -> Tensor:
        """Return mean and deviation (B, 2, C) of images (B, 3, n, n) in reflectance."""
        found = statistics(self.network(2 * self.tone.to_image(hr) - 1))
        return torch.stack([found.mean, found.std], 1)


class Styles:
    """Task of the distribution of styles."""

    def __init__(self, preset: Preset, data: TrainingData) -> None:
        self.preset, self.data, self.bands, self.recipe = preset, data, preset.bands, preset.recipe
        self.sizes = int(preset.recipe["vectors"]), int(preset.recipe["held_out"])
        least = 2 * int(preset.architecture["dim"])
        if min(self.sizes) < least:
            raise UsageError(f"recipe vectors={self.sizes[0]}, held_out={self.sizes[1]}", f"at least {least} of each")
        self.network = StyleModel({**preset.architecture, "model": FLOW})
        self.companion = Collected({**preset.architecture, "model": FLOW}, *self.sizes)
        self.encoder: Encoder | None = None
        self.kept = FLOW

    def begin_from(self, bundle: Bundle) -> None:
        """Take the style encoder of guidance. Raises BundleError if it has none, or one of another width."""
        encoder = Encoder(bundle)
        if encoder.width != self.network.dim:
            raise BundleError(
                f"styles of {encoder.width} channels in {bundle.path}",
                f"{self.network.dim}, or --set dim={encoder.width}",
            )
        self.encoder = encoder

    def begin(self, stage: Stage, draw: Draw) -> None:
        """Collect styles, once, and start the flow at their location and spread. Raises UsageError without guidance."""
        if self.companion.filled:
            return
        if self.encoder is None:
            raise UsageError(f"{self.preset.name} without an encoder of styles", "--init with weights of sgdm-plus")
        wanted: tuple[tuple[str, Split], ...] = (("learned", "train"), ("held_out", "held-out"))
        for name, split in wanted:
            sampler = self.data.hr_sampler(split, self.preset.crop_px, bands=self.bands, recoloured=0.0)
            self.companion.get_buffer(name).copy_(self._collected(sampler, draw, len(self.companion.get_buffer(name))))
        vectors = self.network.vectors(self.companion.styles("learned"))
        for flow, of in zip((self.network.mean, self.network.std), vectors, strict=True):
            assert isinstance(flow, StyleFlow)
            _start(flow, of.to(flow.loc.device))

    def _collected(self, sampler: PatchSampler, draw: Draw, count: int) -> Tensor:
        assert self.encoder is not None
        found: list[Tensor] = []
        while sum(map(len, found)) < count:
            patches = sampler.patches(draw.rng, AT_ONCE)
            found.append(self.encoder(torch.from_numpy(np.stack([patch.pixels for patch in patches]))))
        return torch.cat(found)[:count]

    def batch(self, draw: Draw) -> dict[str, Tensor]:
        """Return numbers of collected styles, `style` (B,)."""
        return {"style": torch.from_numpy(draw.rng.integers(self.sizes[0], size=self.preset.batch))}

    def optimisers(self, stage: Stage) -> dict[str, Optimizer]:
        """Return AdamW over the flows."""
        decay = float(self.recipe["weight_decay"])
        learning = self.network.parameters()
        return {OWN: torch.optim.AdamW(learning, stage.learning_rate, self.preset.betas, weight_decay=decay)}

    def turns(self, stage: Stage, batch: dict[str, Tensor], draw: Draw) -> Iterator[tuple[str, Tensor]]:
        """Yield the negative log-likelihood; keep the flow that has the lowest on held-out images."""
        steps = self.companion.get_buffer("steps")
        if int(steps) % WATCHED_EVERY == 0:
            self._keep_better()
        steps += 1
        styles = self.companion.styles("learned")
        yield OWN, -self.network.log_prob(Style(styles.mean[batch["style"]], styles.std[batch["style"]])).mean()

    @torch.no_grad()
    def _keep_better(self) -> None:
        """Keep the flow as it is now if its loss on held-out images is the lowest so far."""
        if not (self.companion.filled and isinstance(self.network.mean, StyleFlow)):
            return
        loss = self._held_out_loss(self.network)
        if loss < float(self.companion.get_buffer("best_loss")):
            self.companion.get_buffer("best_loss").fill_(loss)
            self.companion.best.load_state_dict(self.network.state_dict())

    def _held_out_loss(self, model: StyleModel) -> float:
        """Return the mean negative log-likelihood of held-out styles, in nats."""
        return float(-model.log_prob(self.companion.styles("held_out")).mean())

    @torch.no_grad()
    def normal(self) -> StyleModel:
        """Return the normal distributions of the collected styles."""
        model = StyleModel({**self.preset.architecture, "model": GAUSSIAN})
        vectors = model.vectors(self.companion.styles("learned"))
        for normal, of in zip((model.mean, model.std), vectors, strict=True):
            assert isinstance(normal, GaussianStyle)
            normal.fit(of.cpu())
        return model.to(placement.device_of(self.companion.best))

    @torch.no_grad()
    def finish(self) -> None:
        """Take the best flow, or the normal distributions if these describe held-out styles better."""
        self._keep_better()
        flow, normal = self.companion.best, self.normal()
        self.kept = FLOW if self._held_out_loss(flow) <= self._held_out_loss(normal) else GAUSSIAN
        if self.kept == FLOW:
            self.network.load_state_dict(flow.state_dict())
        else:
            self.network = normal

    @torch.no_grad()
    def validate(self, stage: Stage) -> Measured:
        """Return the negative log-likelihood of held-out styles by the best flow and by normal distributions."""
        if not self.companion.filled:
            return Measured("no styles yet")
        self._keep_better()
        flow, normal = float(self.companion.get_buffer("best_loss")), self._held_out_loss(self.normal())
        words = {FLOW: "the flow", GAUSSIAN: "the normal distribution"}
        text = (
            f"negative log-likelihood of held-out styles: flow {flow:.2f}, normal distribution {normal:.2f} nats; "
            f"the lower is kept, now {words[FLOW if flow <= normal else GAUSSIAN]}"
        )
        return Measured(text, {"nll_flow": flow, "nll_normal": normal})

    def describe(self) -> dict[str, Any]:
        """Return the provenance of data and recipe."""
        return {**self.data.describe(TASK.use, self.bands), "recipe": self.recipe}

    def bundle(self, provenance: dict[str, Any] | None = None, licence: str = "") -> Bundle:
        """Return the bundle of the distribution that is kept."""
        return style_bundle({**self.preset.architecture, "model": self.kept}, SMALL_LATTICE, provenance, licence)


@torch.no_grad()
def _start(flow: StyleFlow, vectors: Tensor) -> None:
    """Set the base of a flow to location and spread of what it makes of vectors (N, C) before it has learned."""
    made, _ = flow.base(vectors)
    flow.loc.copy_(made.mean(0))
    flow.log_scale.copy_(made.std(0).clamp_min(torch.finfo(made.dtype).eps).log())


TASK = TaskSpec(
    name=SYSTEM,
    summary="distribution of styles of map guidance (SGDM), by flows",
    kind=SYSTEM,
    presets=(
        Preset(
            name="sflow",
            task=SYSTEM,
            architecture=ARCHITECTURE,
            stages=(Stage("styles", 1.0, (), 1e-3),),
            images=4000 * 256,
            batch=256,
            crop_px=128,
            ema=0.0,
            recipe=RECIPE,
            scale=8,
            scales=(8, 16),
        ),
    ),
    build=Styles,
    follows=(GUIDANCE,),
)
