"""Batches for latent diffusion: sharp images and what a sensor makes of them."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pipeline.bands import RGB
from pipeline.errors import UsageError
from pipeline.superres.systems.guided_fusion import NATIVE
from training.degradation.degrade import degrade_randomly
from training.degradation.harmonise import Harmoniser
from training.degradation.sensor import relative_widths
from training.quality.pairs import watched_pairs
from training.tasks.super_resolution import COLOURS, SENSOR, range_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.random import Generator
    from torch import Tensor

    from training.data.sources import TrainingData
    from training.loop.run import Draw
    from training.presets import Preset
    from training.quality.pairs import Pair

IMAGES: dict[str, Any] = {
    **SENSOR,
    **COLOURS,
    # Share of batches of images that lack some bands: of RGB images, whose other bands are their intensity (OpenSR
    # thesis, section 3.2), or for bands of 20 m of RGBN images, whose bands are repeated (section 3.1.5). With 1, no
    # image has to have all bands, and held-out images are completed likewise.
    "other_bands": 0.4,
    # Share of images whose bands are permuted, so that kernels are learned and not bands (section 3.1.5).
    "permuted": 0.0,
    # File of `training.harmonise`, which then makes the coarse images and gives the sharp ones the same radiometry. For
    # reflectance of another sensor; real pairs and completed images stay as they are.
    "harmoniser": "",
}
# What `--bands` sets beside the bands. The six bands of 20 m are those of a sensor that no sharp image has; completed
# images repeat bands, so kernels must do for any band. RGBN have sharp images of their own and keep their order.
OF_BANDS: dict[int, tuple[str, ...]] = {6: ("permuted=1",)}


class ImageBatches:
    """Pairs of sharp and coarse reflectance of a preset's bands."""

    def __init__(self, preset: Preset, data: TrainingData) -> None:
        self.preset, self.permuted = preset, float(preset.recipe["permuted"])
        self.others = float(preset.recipe["other_bands"])
        if not (0 <= self.others <= 1 and 0 <= self.permuted <= 1):
            raise UsageError(f"recipe other_bands={self.others:g}, permuted={self.permuted:g}", "shares from 0 to 1")
        self.range = range_of(preset.recipe, preset.scale)
        self.widths = relative_widths(preset.bands)
        given = str(preset.recipe["harmoniser"])
        self.harmoniser = _harmoniser(Path(given), preset) if given else None
        colours = {name: preset.recipe[name] for name in COLOURS}
        whole, lacking = (
            partial(data.hr_sampler, "train", preset.crop_px, bands=bands, **colours)
            for bands in (preset.bands, lacking_of(preset.bands, data))
        )
        self.sampler = whole() if self.others < 1 else None
        self.lacking = lacking() if self.others else None

    def __call__(self, draw: Draw) -> dict[str, Tensor]:
        """Return `lr` (B, bands, n/4, n/4) and `hr` (B, bands, n, n) reflectance. Pairs keep their coarse image."""
        lacking = draw.rng.random() < self.others
        sampler = self.lacking if lacking else self.sampler
        assert sampler is not None
        patches = sampler.patches(draw.rng, self.preset.batch)
        hr = torch.from_numpy(np.stack([patch.pixels for patch in patches]))
        if lacking:
            hr = completed(hr, self.preset.bands, draw.rng)
        if self.harmoniser is not None and not lacking:
            own, hr, lr = hr, self.harmoniser.sharp(hr), self.harmoniser.apply(hr, draw.torch)
        else:
            own, lr = hr, degrade_randomly(hr, self.range, draw.torch, self.preset.scale, self.widths)
        for row, patch in enumerate(patches):
            if patch.coarse is not None and not lacking:
                hr[row], lr[row] = own[row], torch.from_numpy(patch.coarse)
        for row in range(len(hr)):
            if draw.rng.random() < self.permuted:
                order = torch.from_numpy(draw.rng.permutation(hr.shape[1]))
                hr[row], lr[row] = hr[row][order], lr[row][order]
        return {"lr": lr, "hr": hr}

    def described(self) -> str | dict[str, Any]:
        """Return the provenance of the degradation."""
        return repr(self.range) if self.harmoniser is None else self.harmoniser.described()


def _harmoniser(path: Path, preset: Preset) -> Harmoniser:
    """Return the harmoniser of a preset's bands. Raises UsageError if it is not of these or of another scale."""
    found = Harmoniser.read(path).of(preset.bands)
    if found.scale != preset.scale:
        raise UsageError(f"{path} is of scale {found.scale}", f"{preset.scale}, as {preset.name}")
    return found


def lacking_of(bands: Sequence[str], data: TrainingData) -> tuple[str, ...]:
    """Return the bands of the images that are completed: RGB; for bands without these, RGBN if any image has them."""
    wider = any(set(NATIVE[10]) <= set(image.bands) for image in (*data.offered, *data.native))
    return RGB if set(RGB) <= set(bands) or not wider else NATIVE[10]


def image_bands(preset: Preset, data: TrainingData) -> tuple[str, ...]:
    """Return the bands that images must have: the preset's, unless all images are completed."""
    return preset.bands if float(preset.recipe["other_bands"]) < 1 else lacking_of(preset.bands, data)


def watched(preset: Preset, data: TrainingData) -> list[Pair]:
    """Return `watched_pairs` in the preset's bands, completed if all images are. Raises UsageError if none."""
    bands = image_bands(preset, data)
    pairs = watched_pairs(data, bands, preset.scale)
    return pairs if bands == preset.bands else [_completed_pair(pair, preset.bands) for pair in pairs]


def _completed_pair(pair: Pair, bands: tuple[str, ...]) -> Pair:
    """Return a pair in other bands, the same for the sharp and the coarse image."""
    hr, lr = (completed(image, bands, np.random.default_rng(pair.index)) for image in (pair.hr, pair.lr))
    return replace(pair, hr=hr, lr=lr, bands=bands)


def completed(hr: Tensor, bands: Sequence[str], rng: Generator) -> Tensor:
    """Return images (B, len(bands), H, W) of such that have some or none of the bands, RGB or RGBN (B, c, H, W).

    Where RGB are wanted, other bands are their mean. Otherwise bands are those of RGBN, or RGB and their mean, repeated
    in random order.
    """
    if set(RGB) <= set(bands):
        intensity = hr.mean(1)
        return torch.stack([hr[:, RGB.index(band)] if band in RGB else intensity for band in bands], 1)
    if hr.shape[1] == len(RGB):
        hr = completed(hr, NATIVE[10], rng)
    count = hr.shape[1]
    rounds = [rng.permutation(count) for _ in range(-(-len(bands) // count))]
    return hr[:, torch.from_numpy(np.concatenate(rounds)[: len(bands)])]
