"""Held-out images by which the training of map guidance is watched, with their maps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from pipeline.models.map_words import rendered
from pipeline.models.resampling import upsample
from pipeline.models.tone import OURS
from training import placement
from training.data.made_maps import CLASSES
from training.data.triplets import one_hot
from training.quality.map_guidance import another
from training.quality.pairs import centre, from_many_sets, side_by_side, watched_pairs
from training.tasks.sgdm_batches import made_of, shown_to

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from pipeline.models.sgdm import SGDM
    from training.data.sources import TrainingData
    from training.presets import Preset
    from training.quality.pairs import Pair


@dataclass(frozen=True)
class Watched:
    """A held-out image, its map of `CLASSES` (1, classes, H, W), and the map as the weights take it (1, K, H, W)."""

    pair: Pair
    of_map: Tensor
    shown: Tensor

    def side_by_side(self, estimate: Tensor) -> dict[str, Tensor]:
        """Return labelled images (3, H, W) with an estimate (1, 3, H, W), for a sheet of samples."""
        shown = side_by_side(self.pair, estimate)
        picture = rendered(self.of_map, CLASSES)[0].square() * self.pair.hr.quantile(0.98)  # as bright as the image
        return {"input": shown.pop("input"), "map": picture, **shown}

    def drawn(self, system: SGDM, device: torch.device, steps: int, with_map: bool = True) -> Tensor:
        """Return one draw (1, 3, H, W) in reflectance of a system on `device`, the same at every call; see `sample`."""
        height, width = self.pair.hr.shape[-2:]
        size = (1, system.latents, height // system.stride, width // system.stride)
        generator = torch.Generator().manual_seed(self.pair.index)
        coarse = upsample(OURS.to_image(self.pair.lr), self.pair.scale).clamp(0, 1)

        def noise(number: int) -> Tensor:
            del number  # asked for in the order of the steps
            return torch.randn(size, generator=generator).to(device)

        def draw(coarse: Tensor, of_map: Tensor) -> Tensor:
            return system.sample(coarse, of_map if with_map else None, None, noise, steps)

        return OURS.to_reflectance(placement.run(device, draw, coarse, self.shown))


def watched(data: TrainingData, preset: Preset, multiple_px: int) -> list[Watched]:
    """Return the held-out images of `watched_pairs`, cut to the side of training crops or the next smaller multiple."""
    found = []
    for pair in watched_pairs(data, preset.bands, preset.scale):
        cut = centre(pair, preset.crop_px, multiple_px)
        if cut is not None:
            of_map = (
                made_of(cut.hr, preset) if cut.of_map is None else torch.from_numpy(one_hot(cut.of_map))[None].float()
            )
            found.append(Watched(cut, of_map, shown_to(preset.architecture, of_map)))
    return found


def others_maps(images: Sequence[Watched]) -> list[Tensor]:
    """Return for each image the map of another of its size, as the weights take it."""
    maps = [one.shown for one in images]
    return [another(maps, place) for place in range(len(maps))]


def few(images: Sequence[Watched], count: int) -> list[Watched]:
    """Return at most `count` images from as many sets as possible."""
    chosen = {id(pair) for pair in from_many_sets([one.pair for one in images], count)}
    return [one for one in images if id(one.pair) in chosen]
