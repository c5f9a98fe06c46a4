"""Training task of DiffFuSR's fusion (arXiv 2506.11764): three networks, one per native GSD, trained together.

The loss is the sum of the absolute errors of z-scores. A group without large enough tiles or with missing bands is not
trained, which the provenance records.
"""

from __future__ import annotations

import contextlib
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

from pipeline.errors import UsageError
from pipeline.models.difffusr_fusion import (
    INPUTS,
    SYSTEM,
    DiffFuSRFusion,
    FusionNetworks,
    difffusr_fusion_bundle,
    name_of,
)
from training import placement
from training.loop.task import Measured, Objective
from training.presets import Preset, Stage
from training.quality.metrics import ergas
from training.quality.picture import ends_of, stretched
from training.quality.wald import Judge
from training.task_spec import TaskSpec
from training.tasks.difffusr_convert import FUSION
from training.tasks.fusion_tiles import disturbed, tiles_to_train_on
from training.tasks.wald_groups import FACTORS, Example, example_of, fits, group_of, inputs_of, statistics, unit_60m

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from torch import Tensor

    from pipeline.models.bundle import Bundle
    from training.data.sources import TrainingData
    from training.loop.batches import Draw

KEPT = {10: slice(3, 4), 20: slice(0, 6), 60: slice(0, 2)}  # outputs used in inference: at 10 m only B08
SHOWN = {10: (3, 0, 1), 20: (4, 3, 0)}  # false colour: B08 B04 B03, and B11 B8A B05
# Mean and standard deviation of bands from the training "tiles" or as "released"; dropout of guide features; whether
# guides are blurred, sharpened and changed in level, so that the network does not rely on their radiometry.
WALD: dict[str, Any] = {"statistics": "tiles", "dropout": 0.2, "disturb_guide": True}
WATCHED = 4  # maximum number of tiles for validation and sample images


@dataclass(frozen=True)
class Recipe:
    """Settings of this task in a preset."""

    statistics: str = "tiles"
    dropout: float = 0.2  # of the guide branch's features in training (released code)
    disturb_guide: bool = True

    def check(self) -> None:
        """Raise UsageError for invalid settings."""
        if self.statistics not in ("tiles", "released"):
            raise UsageError(f"recipe statistics={self.statistics}", "tiles or released")
        if not 0 <= self.dropout < 1:
            raise UsageError(f"recipe dropout={self.dropout}", "0 or more and less than 1")


class DiffFuSRFusionTask:
    """Task of DiffFuSR's fusion networks."""

    def __init__(self, preset: Preset, data: TrainingData) -> None:
        self.preset, self.data = preset, data
        self.recipe = Recipe(**preset.recipe)
        self.recipe.check()
        self.network = FusionNetworks(**preset.architecture)
        tiles = tiles_to_train_on(data)
        found = {gsd: group_of(gsd, tiles, preset.crop_px) for gsd in INPUTS}
        self.groups = {gsd: group for gsd, group in found.items() if group is not None}
        if not self.groups:
            raise UsageError(f"{data.file.path}: no Sentinel-2 tile is large enough", "tiles of 120 m or more")
        self.watched = data.watched_tiles()[:WATCHED]
        self.normalisation = self._normalisation(statistics(tiles) if self.recipe.statistics == "tiles" else {})
        for gsd in INPUTS.keys() - self.groups.keys():
            silence_(self.network.get_submodule(f"{name_of(gsd)}.conv_last"))

    def batch(self, draw: Draw) -> dict[str, Tensor]:
        """Return z-scores of every group on its grid: `guide20` (B, 3, n, n), `seen20` (B, 10, n, n), `truth20` ..."""
        batch: dict[str, Tensor] = {}
        for gsd, group in self.groups.items():
            example = example_of(group.crops(draw.rng, self.preset.batch), gsd)
            if self.recipe.disturb_guide:
                example = replace(example, guide=disturbed(example.guide, draw))
            z = self._z_scores(example, gsd)
            batch |= {f"guide{gsd}": z.guide, f"seen{gsd}": z.seen, f"truth{gsd}": z.truth}
        return batch

    def begin(self, stage: Stage, draw: Draw) -> None:
        """Do nothing."""

    def finish(self) -> None:
        """Do nothing."""

    def loss(self, stage: Stage, batch: dict[str, Tensor], draw: Draw) -> Objective:
        """Return the sum over groups of the mean absolute error of z-scores."""
        parts, generator = {}, draw.on(placement.device_of(self.network))
        for gsd in self.groups:
            network = self.network.get_submodule(name_of(gsd))
            with dropped(network.get_submodule("rgb_rrdb"), self.recipe.dropout, generator):
                fused = network(batch[f"guide{gsd}"], batch[f"seen{gsd}"])
            parts[f"{gsd}m"] = functional.l1_loss(fused.float(), batch[f"truth{gsd}"])
        return Objective(sum(parts.values(), torch.zeros((), device=fused.device)), parts)

    @torch.no_grad()
    def validate(self, stage: Stage) -> Measured:
        """Return ERGAS per group, with bilinear interpolation for comparison, averaged over watched tile centres."""
        words, values = [], dict[str, float]()
        for gsd in self.groups:
            ours, plain = [], []
            for example in self._examples(gsd):
                truth = example.truth[0, KEPT[gsd]]
                ours.append(ergas(self._fused(example, gsd)[0, KEPT[gsd]], truth, FACTORS[gsd]))
                plain.append(ergas(own_bands(example, gsd)[0, KEPT[gsd]], truth, FACTORS[gsd]))
            if ours:
                fused, bilinear = sum(ours) / len(ours), sum(plain) / len(plain)
                values |= {f"ergas {gsd} m": fused, f"ergas {gsd} m bilinear": bilinear}
                words.append(f"{gsd} m {fused:.3f} ({bilinear:.3f})")
        text = ", ".join(words) or "not measured: no watched tile is large enough"
        return Measured(f"ERGAS (bilinear) {text}", values)

    @torch.no_grad()
    def samples(self, stage: Stage) -> list[dict[str, Tensor]]:
        """Return guide, bilinear, fused and true images of the watched tiles at the finest group's GSD.

        In false colour, each band from 0 (black) to 1 (white) by the truth; the guide by itself.
        """
        gsd = min(self.groups)
        if gsd not in SHOWN:
            return []
        rows, bands = [], list(SHOWN[gsd])
        for example in self._examples(gsd):
            guide, truth = example.guide[0], example.truth[0, bands]
            ends = ends_of(truth, by_band=True)
            seen = {"bilinear": own_bands(example, gsd), "ours": self._fused(example, gsd)}
            shown = {label: stretched(image[0, bands], ends) for label, image in seen.items()}
            rows.append(
                {"guide": stretched(guide, ends_of(guide, by_band=True)), **shown, "truth": stretched(truth, ends)}
            )
        return rows

    @property
    def compiled(self) -> Iterable[nn.Module]:
        """Parts of the networks without the dropout between them, a hook that is another one at every step."""
        return (part for gsd in self.groups for part in self.network.get_submodule(name_of(gsd)).children())

    def describe(self) -> dict[str, Any]:
        """Return the provenance of data and recipe. `untrained` names the groups that were not trained."""
        untrained = {
            f"{gsd} m": f"no tile of {unit_60m(gsd) * 60} m with {', '.join(inputs_of(gsd))}"
            for gsd in INPUTS
            if gsd not in self.groups
        }
        crops = {f"{gsd} m": f"{len(group.tiles)} tiles, {group.side_60m * 60} m" for gsd, group in self.groups.items()}
        return {
            **self.data.describe(TASK.use),
            "protocol": "Wald x4, x8, x24",
            "crops": crops,
            "untrained": untrained,
            "recipe": asdict(self.recipe),
        }

    def bundle(self, provenance: dict[str, Any] | None = None, licence: str = "") -> Bundle:
        """Return the bundle of the current networks."""
        described = difffusr_fusion_bundle(self.preset.architecture, provenance, licence)
        return replace(described, normalisation=self.normalisation)

    def _normalisation(self, measured: dict[str, tuple[float, float]]) -> dict[str, Any]:
        """Return mean and sd of every band: measured, else released."""
        released = difffusr_fusion_bundle().normalisation
        return {
            "kind": released["kind"],
            "mean": {**released["mean"], **{band: mean for band, (mean, _) in measured.items()}},
            "sd": {**released["sd"], **{band: sd for band, (_, sd) in measured.items()}},
        }

    def _scale(self, bands: Sequence[str], like: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and sd of bands, (bands, 1, 1)."""
        mean, sd = (
            like.new_tensor([self.normalisation[key][b] for b in bands])[:, None, None] for key in ("mean", "sd")
        )
        return mean, sd

    def _z_scores(self, example: Example, gsd: int) -> Example:
        def scaled(rho: Tensor, bands: Sequence[str]) -> Tensor:
            mean, sd = self._scale(bands, rho)
            return (rho - mean) / sd

        guide = scaled(example.guide, INPUTS[10][:3])
        return Example(guide, scaled(example.seen, inputs_of(gsd)), scaled(example.truth, INPUTS[gsd]))

    def _examples(self, gsd: int) -> list[Example]:
        group = self.groups[gsd]
        tiles = [tile for tile in self.watched if fits(tile, gsd, group.side_60m)]
        return [example_of(group.middle(tile), gsd) for tile in tiles]

    def _fused(self, example: Example, gsd: int) -> Tensor:
        """Return the network's output in reflectance (1, bands, n, n) on the CPU."""
        z, network = self._z_scores(example, gsd), self.network.get_submodule(name_of(gsd))
        out = placement.run(placement.device_of(network), network, z.guide, z.seen).float()
        mean, sd = self._scale(INPUTS[gsd], out)
        return out * sd + mean


def own_bands(example: Example, gsd: int) -> Tensor:
    """Return the input bands that the network also returns."""
    return example.seen[:, -len(INPUTS[gsd]) :]


@contextlib.contextmanager
def dropped(module: nn.Module, rate: float, generator: torch.Generator) -> Iterator[None]:
    """Apply dropout with `rate` to the module's output inside the block (Srivastava 2014).

    `generator` is that of the output's device.
    """

    def drop(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        kept = torch.rand(output.shape, generator=generator, device=output.device) >= rate
        return output * kept / (1 - rate)

    handle = module.register_forward_hook(drop)
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def silence_(layer: nn.Module) -> None:
    """Zero a last layer. An untrained network then returns band means, and projection restores the native pixels."""
    for parameter in layer.parameters():
        parameter.zero_()


TASK = TaskSpec(
    name=SYSTEM,
    summary="DiffFuSR's fusion of the bands that are not RGB, as published and small",
    kind=SYSTEM,
    presets=(
        Preset(
            name="difffusr-fusion",
            task=SYSTEM,
            architecture={"channels": 64, "growth": 32, "blocks": 5, "reduction": 4},
            stages=(Stage("wald", 1.0, (), 1e-4),),
            images=64_000,
            batch=4,
            warmup_steps=0,
            schedule="constant",
            betas=(0.9, 0.999),
            recipe=dict(WALD),
        ),
        Preset(
            name="difffusr-fusion-small",
            task=SYSTEM,
            architecture={"channels": 32, "growth": 16, "blocks": 1, "reduction": 4},
            stages=(Stage("wald", 1.0, (), 3e-4),),
            minutes=60,
            batch=4,
            betas=(0.9, 0.999),
            recipe=dict(WALD),
        ),
    ),
    build=DiffFuSRFusionTask,
    use="fusion",
    judge=Judge(DiffFuSRFusion.from_bundle),
    convert=FUSION,
)
