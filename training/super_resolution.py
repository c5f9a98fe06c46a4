"""The task of the lite super-resolver: RGB crops near 2.5 m, degraded x4, regression first and diffusion second.

In: the data root and a preset. Out: losses, validation lines, the bundle. Imports the pipeline's networks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from pipeline.models.bundle import Bundle
from pipeline.models.lite import LATTICE, NORMALISATION, RGB_BANDS, SCALE, SYSTEM, LiteNetwork, LiteSuperResolver
from training import losses
from training.data import Chip, ChipSampler, load_chips, split_of
from training.degrade import Degradation, DegradationRange, degrade_randomly
from training.evaluate import average, held_out_pairs, ibp_scores, members_mean, per_set_mean, score
from training.sentinel2 import load_rgbn_dates, load_tiles

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from training.loop import Draw
    from training.presets import Preset, Stage

BRACKET_WEIGHT = 0.4  # of Sentinel-2's own RGB, 10 -> 40 m: the right sensor at the wrong scale
HELD_OUT_PER_SET = 6  # images validated at every line; `training.evaluate` takes all


def bracket_chips(root: Path) -> list[Chip]:
    """Training places of Sentinel-2 as images to learn from: true radiometry, and a scale from the other side."""
    tiles = [(tile.place, tile.rho[10][:3]) for tile in load_tiles(root)] + load_rgbn_dates(root)
    return [
        Chip("sentinel2", place, 10.0, rgb, encoded=False, weight=BRACKET_WEIGHT)
        for place, rgb in tiles
        if split_of(place) == "train"
    ]


class SuperResolution:
    """Task of the lite super-resolver: first the mean, then the diffusion of what it leaves open."""

    def __init__(self, preset: Preset, root: Path) -> None:
        self.preset = preset
        self.network = LiteNetwork(**preset.architecture)
        self.chips = [*load_chips(root / "hr", "train"), *bracket_chips(root / "s2_l2a")]
        self.sampler = ChipSampler(self.chips, preset.crop_px)
        self.pairs = held_out_pairs(load_chips(root / "hr", "held-out"), Degradation(), per_set=HELD_OUT_PER_SET)
        self.baseline = average(per_set_mean(self.pairs, ibp_scores(self.pairs)))

    def batch(self, draw: Draw) -> dict[str, Tensor]:
        """Coarse `lr` (B, 3, n/4, n/4) and sharp `hr` (B, 3, n, n) reflectance."""
        hr = torch.from_numpy(self.sampler.batch(draw.rng, self.preset.batch))
        return {"lr": degrade_randomly(hr, DegradationRange(), draw.torch), "hr": hr}

    def begin(self, stage: Stage, draw: Draw) -> None:
        """Nothing to prepare."""

    def finish(self) -> None:
        """Nothing to finish."""

    def loss(self, stage: Stage, batch: dict[str, Tensor], draw: Draw) -> Tensor:
        """Squared error of the mean, or of the denoised residual."""
        if stage.name == "mean":
            return losses.regression_loss(self.network, batch["lr"], batch["hr"])
        return losses.denoising_loss(self.network, batch["lr"], batch["hr"], draw.torch)

    @torch.no_grad()
    def validate(self, stage: Stage) -> str:
        """PSNR over IBP of the mean head and, in the diffusion stage, of one member and the mean of four."""
        system = LiteSuperResolver(self.network, self.bundle())
        means, singles, fours = [], [], []
        for pair in self.pairs:
            means.append(score(system.mean(pair.lr), pair))
            if stage.name == "detail":
                singles.append(score(members_mean(system, pair, 1), pair))
                fours.append(score(members_mean(system, pair, 4), pair))
        named = {"mean": means, "one": singles, "of 4": fours}
        gains = [
            f"{name} {average(per_set_mean(self.pairs, values)) - self.baseline:+.2f}"
            for name, values in named.items()
            if values
        ]
        return f"PSNR over IBP {self.baseline:.2f} dB: " + "  ".join(gains)

    def describe(self) -> dict[str, Any]:
        """What the provenance of the weights says of their data."""
        sources = sorted({chip.source for chip in self.chips})
        return {"data": sources, "chips": len(self.chips), "degradation": repr(DegradationRange())}

    def bundle(self, provenance: dict[str, Any] | None = None, licence: str = "") -> Bundle:
        """The bundle of the network as it is now."""
        return Bundle(
            system=SYSTEM,
            architecture=self.preset.architecture,
            in_bands=RGB_BANDS,
            out_bands=RGB_BANDS,
            scale=SCALE,
            lattice=LATTICE,
            normalisation=NORMALISATION,
            sampler=self.preset.sampler,
            provenance=provenance or {},
            licence=licence,
        )
