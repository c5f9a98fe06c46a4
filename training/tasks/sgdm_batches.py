"""Batches for map guidance: sharp images, what a sensor makes of them, and maps of the same ground."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pipeline.errors import UsageError
from pipeline.models.map_words import rendered
from pipeline.models.sgdm import RENDERED, absent
from pipeline.models.tone import OURS
from training.data.made_maps import CLASSES, MADE, made_maps
from training.data.triplets import one_hot, shown_classes
from training.degradation.degrade import degrade_randomly
from training.degradation.sensor import relative_widths
from training.tasks.super_resolution import SENSOR, range_of

if TYPE_CHECKING:
    from torch import Tensor

    from training.data.sources import TrainingData
    from training.loop.batches import Draw
    from training.presets import Preset

IMAGES: dict[str, Any] = {
    **SENSOR,
    # Shares of images without a map, and with one that shows nothing: so that the weights also work without a map, and
    # where a map lacks what is there, as those of much of the world do.
    "no_map": 0.4,
    "empty": 0.1,
}
COMMON, OWN = 0.2, 0.15  # deviations of the logarithms of gammas and gains


class MapBatches:
    """Sharp and coarse reflectance with maps as a preset's weights take them."""

    def __init__(self, preset: Preset, data: TrainingData) -> None:
        self.preset, self.data = preset, data
        self.no_map, self.empty = (float(preset.recipe[name]) for name in ("no_map", "empty"))
        if min(self.no_map, self.empty) < 0 or self.no_map + self.empty > 1:
            raise UsageError(
                f"recipe no_map={self.no_map:g}, empty={self.empty:g}", "shares from 0, of at most 1 in all"
            )
        self.range = range_of(preset.recipe, preset.scale)
        self.absent = absent(preset.architecture)
        # Colours are never permuted: the classes of the maps are told from them.
        self.sampler = data.hr_sampler("train", preset.crop_px, preset.least_px, preset.bands, recoloured=0.0)

    @property
    def classes(self) -> tuple[str, ...]:
        """Classes that the maps may show: those that are told from images, and those of stores of triplets."""
        sources = self.data.of_role("triplets")
        given = {name for source in sources for name in shown_classes(source)}
        made = MADE if len(sources) < len(self.data.sources) else ()
        return tuple(name for name in CLASSES if name in given or name in made)

    def __call__(self, draw: Draw) -> dict[str, Tensor]:
        """Return `hr` (B, 3, n, n), `lr` (B, 3, n/scale, n/scale) and `map` (B, K, n, n); `absent` if there is none."""
        patches = self.sampler.patches(draw.rng, self.preset.batch)
        hr = torch.from_numpy(np.stack([patch.pixels for patch in patches]))
        lr = degrade_randomly(hr, self.range, draw.torch, self.preset.scale, relative_widths(self.preset.bands))
        for image, patch in zip(lr, patches, strict=True):
            if patch.coarse is not None:
                image.copy_(torch.from_numpy(patch.coarse))
        maps = [
            made if patch.of_map is None else torch.from_numpy(one_hot(patch.of_map)).float()
            for made, patch in zip(made_of(hr, self.preset), patches, strict=True)
        ]
        of_classes, chance = torch.stack(maps), torch.from_numpy(draw.rng.random(len(hr)))
        of_classes[chance < self.no_map + self.empty] = 0
        of_map = shown_to(self.preset.architecture, of_classes)
        of_map[chance < self.no_map] = self.absent
        return {"hr": hr, "lr": lr, "map": of_map}


def other_colours(lr: Tensor, rng: np.random.Generator, share: float) -> Tensor:
    """Return coarse images (B, bands, h, w), a share of them with a random gamma and gain of each band.

    So do images of two sensors, seasons or processors differ. Gamma and gain are common to the bands in one part, their
    own in another, each log-normal.
    """
    shape = (len(lr), lr.shape[1], 1, 1)
    drawn = [COMMON * rng.standard_normal((len(lr), 1, 1, 1)) + OWN * rng.standard_normal(shape) for _ in range(2)]
    chosen = rng.random((len(lr), 1, 1, 1)) < share
    gamma, gain = (torch.from_numpy(np.where(chosen, np.exp(one), 1.0)).to(lr) for one in drawn)
    bright = lr.clamp_min(0) / OURS.white
    return torch.where(torch.from_numpy(chosen).to(lr.device), OURS.white * gain * bright**gamma, lr)


def made_of(hr: Tensor, preset: Preset) -> Tensor:
    """Return made maps (B, classes, n, m) of sharp images (B, 3, n, m)."""
    return torch.from_numpy(made_maps(hr.numpy(), preset.output_gsd_m, preset.bands)).float()


def shown_to(architecture: dict[str, Any], of_map: Tensor) -> Tensor:
    """Return a map of `CLASSES` (B, classes, n, m) as weights of an architecture take it: rendered, or its classes."""
    if architecture["words"] == RENDERED:
        return rendered(of_map, CLASSES)
    return of_map[:, [CLASSES.index(name) for name in architecture["classes"]]]
