"""Pairs of held-out images and their degraded forms, samples of a super-resolver on them, and PSNR per set."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from pipeline.bands import RGB
from pipeline.errors import UsageError
from pipeline.terminal import counted
from training import placement
from training.data.patches import contrast
from training.data.rasters import harmonise, median_gamma
from training.degradation.degrade import Degradation, degrade
from training.degradation.sensor import relative_widths
from training.quality import baselines
from training.quality.metrics import psnr, trimmed

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from training.data.rasters import Chip
    from training.data.sources import TrainingData
    from training.quality.sampler import Sampler

# Images per set that are validated for every log line; `training.evaluate` uses all. With the shipped weights, this
# takes 33 of the project's 231 images. The error (standard deviation) of the mean over sets is then 0.09 dB, that of
# the difference of two checkpoints 0.04 dB; with one image per set, 0.30 and 0.17 dB. A validation costs as many
# operations as 2 to 4 training steps of a diffusion U-Net, or 23 of the second stage of our small super-resolver.
HELD_OUT_PER_SET = 6
BORDER_PX = 8  # excluded from the scores of all methods
MAX_SIDE_PX = 256
MIN_SIDE_PX = 40  # smaller images vanish when metrics crop their borders
FLAT = 0.02  # `contrast` below which an image is skipped as flat
BATCH_PX = 2**17  # output pixels per pass of a network, to bound memory
STATE_PX = 64  # side of the windows for a scene's state
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Pair:
    """One held-out image (1, bands, H, W) in reflectance and its degraded form (1, bands, H/scale, W/scale).

    `of_map` (H, W): numbers of a map's classes, 0 for other ground, where the image comes with a map.
    """

    source: str
    index: int
    hr: Tensor
    lr: Tensor
    place: str = ""
    bands: tuple[str, ...] = RGB
    of_map: NDArray[np.uint8] | None = None

    @property
    def scale(self) -> int:
        """Pixels of the image per degraded pixel, along one axis."""
        return self.hr.shape[-1] // self.lr.shape[-1]

    @property
    def shown(self) -> list[int]:
        """Indices of the bands that are shown, as `shown_of`."""
        return shown_of(self.bands)


def shown_of(bands: Sequence[str]) -> list[int]:
    """Return the indices of red, green and blue; without RGB, of the first three bands, with the last repeated."""
    if set(RGB) <= set(bands):
        return [bands.index(band) for band in RGB]
    return [min(place, len(bands) - 1) for place in range(3)]


def held_out_pairs(
    chips: Sequence[Chip], how: Degradation, per_set: int | None = None, max_side_px: int = MAX_SIDE_PX
) -> list[Pair]:
    """Return pairs of the chips that are large enough and not flat.

    They are centre crops of at most `max_side_px` with median harmonisation and noise seeded per image. `how.sigma_px`
    is the blur of RGB; that of other bands follows from their MTF. Real pairs keep their own coarse image; those of
    another scale than `how` are left out. `per_set` limits the number of pairs per set.
    """
    pairs: list[Pair] = []
    for index, chip in enumerate(chips):
        seen = sum(pair.source == chip.source for pair in pairs)
        if min(chip.pixels.shape[1:]) < MIN_SIDE_PX or contrast(chip.pixels, chip.encoded) <= FLAT:
            continue
        if per_set is not None and seen >= per_set:
            continue
        if chip.coarse is not None and chip.pixels.shape[-1] != how.scale * chip.coarse.shape[-1]:
            continue
        height, width = (min(side, max_side_px) // how.scale * how.scale for side in chip.pixels.shape[1:])
        step = 1 if chip.coarse is None else how.scale
        top, left = (
            (side - size) // 2 // step * step for side, size in zip(chip.pixels.shape[1:], (height, width), strict=True)
        )
        crop = chip.pixels[:, top : top + height, left : left + width]
        hr = reflectance(chip, crop)[None]
        if chip.coarse is None:
            lr = degrade(hr, how, torch.Generator().manual_seed(index), relative_widths(chip.bands))
        else:
            rows, cols = (slice(at // step, (at + size) // step) for at, size in ((top, height), (left, width)))
            lr = torch.from_numpy(chip.coarse[:, rows, cols].copy())[None]
        of_map = None if chip.of_map is None else chip.of_map[top : top + height, left : left + width]
        pairs.append(Pair(chip.source, index, hr, lr, chip.place, chip.bands, of_map))
    return pairs


def reflectance(chip: Chip, pixels: NDArray[np.float32]) -> Tensor:
    """Return pixels (bands, h, w) of a chip as reflectance, 8-bit ones by the median harmonisation."""
    return torch.from_numpy(harmonise(pixels, median_gamma(chip.bands)) if chip.encoded else pixels.copy())


def watched_pairs(data: TrainingData, bands: tuple[str, ...] = RGB, scale: int = 4) -> list[Pair]:
    """Return the first held-out pairs of each set, for validation during training. Raises UsageError if none."""
    chips = data.held_out_chips(bands)
    pairs = held_out_pairs(chips, Degradation().of_scale(scale), per_set=HELD_OUT_PER_SET)
    if not pairs:
        small = f"flat, black, or less than {MIN_SIDE_PX} px a side"
        found = (
            f"the {len(chips)} held-out images are unusable: {small}" if chips else "no image is held out to judge by"
        )
        raise UsageError(
            f"{data.file.path}: {found}",
            "at least one, to watch training by",
            "more places (cells of 7.68 km; files, where they are not georeferenced), or a source with "
            'split = "held-out"',
        )
    return pairs


def centre(pair: Pair, most_px: int, multiple_px: int) -> Pair | None:
    """Return the centre of a pair, whole coarse pixels, in sides of multiples of both; None if it is too small."""
    sides = [min(most_px, side) // multiple_px * multiple_px for side in pair.hr.shape[-2:]]
    if not all(sides):
        return None
    corner = [(side - cut) // 2 // pair.scale for side, cut in zip(pair.hr.shape[-2:], sides, strict=True)]
    (top, left), (ny, nx) = corner, (side // pair.scale for side in sides)
    lr = pair.lr[..., top : top + ny, left : left + nx]
    rows, cols = (slice(pair.scale * at, pair.scale * (at + count)) for at, count in ((top, ny), (left, nx)))
    of_map = None if pair.of_map is None else pair.of_map[rows, cols]
    return replace(pair, lr=lr, hr=pair.hr[..., rows, cols], of_map=of_map)


def watched_words(pairs: Sequence[Pair], data: TrainingData, bands: tuple[str, ...] = RGB) -> str:
    """Return which held-out images training is watched by, in one sentence."""
    count = sum(image.share("held-out") > 0 for image in data.of_bands(bands))
    chosen = f"at most {HELD_OUT_PER_SET} of each set, the first that are not flat"
    crops, images = counted(len(pairs), "crop"), counted(count, "held-out image")
    return f"watched: {crops} of {images} ({chosen}); training.evaluate judges all"


def from_many_sets(pairs: Sequence[Pair], count: int) -> list[Pair]:
    """Return at most `count` pairs from as many sets as possible: the first of each, then the second of each ..."""
    sources = [pair.source for pair in pairs]
    rank = {id(pair): sources[:place].count(pair.source) for place, pair in enumerate(pairs)}
    return sorted(pairs, key=lambda pair: rank[id(pair)])[:count]


def score(estimate: Tensor, pair: Pair) -> float:
    """Return the PSNR in dB (data range 1 reflectance) without the border."""
    return psnr(trimmed(estimate, BORDER_PX), trimmed(pair.hr, BORDER_PX))


def per_set_mean(pairs: Sequence[Pair], scores: Sequence[float]) -> dict[str, float]:
    """Return the mean score per set."""
    sets: dict[str, list[float]] = {}
    for pair, value in zip(pairs, scores, strict=True):
        sets.setdefault(pair.source, []).append(value)
    return {name: sum(values) / len(values) for name, values in sets.items()}


def average(per_set: dict[str, float]) -> float:
    """Return the mean over sets, with equal weights."""
    return sum(per_set.values()) / len(per_set)


def ibp_scores(pairs: Sequence[Pair]) -> list[float]:
    """Return the scores of iterative back-projection with the box kernel on every pair."""
    return [score(baselines.ibp(pair.lr, pair.scale), pair) for pair in pairs]


def noise_of(pair: Pair, member: int, seed: int = 0) -> Tensor:
    """Return standard normal noise (1, bands, H, W) of one member of one image, reproducible by seed.

    Members come in antithetic pairs, as in the pipeline: 2k + 1 has the negated noise of 2k.
    """
    generator = torch.Generator().manual_seed(seed * 10**9 + pair.index * 1000 + member // 2 * 2)
    noise = torch.randn(pair.hr.shape, generator=generator)
    return -noise if member % 2 else noise


@torch.inference_mode()
def members(sampler: Sampler, pair: Pair, count: int, seed: int = 0, device: torch.device = CPU) -> Tensor:
    """Return the first `count` samples of one image, (count, bands, H, W) reflectance, several per network pass.

    `device` is that of the sampler's weights. Noise is drawn, and the result returned, on the CPU.
    """
    lr, (height, width) = mirrored(pair.lr, sampler.multiple_px), pair.hr.shape[-2:]
    size = (lr.shape[-2] * pair.scale, lr.shape[-1] * pair.scale)
    state = None if sampler.scene_state is None else sampler.scene_state(state_windows(pair.lr))
    at_once = max(1, BATCH_PX // (size[0] * size[1]))
    parts = []
    for first in range(0, count, at_once):
        noise = torch.cat([noise_of(pair, member, seed) for member in range(first, min(first + at_once, count))])
        padded = functional.pad(noise, (0, size[1] - width, 0, size[0] - height))

        def predicted(many: Tensor, noise: Tensor) -> Tensor:
            return sampler.sample(many, noise, state)

        out = placement.run(device, predicted, lr.expand(len(noise), -1, -1, -1), padded)
        parts.append(out[..., :height, :width])
    return torch.cat(parts)


def members_mean(sampler: Sampler, pair: Pair, count: int, device: torch.device = CPU) -> Tensor:
    """Return the mean of the first `count` samples, (1, bands, H, W)."""
    return members(sampler, pair, count, device=device).mean(0, keepdim=True)


def side_by_side(pair: Pair, estimate: Tensor) -> dict[str, Tensor]:
    """Return labelled images (3, H, W) of a pair and its estimate (1, bands, H, W) for a sheet of samples."""
    return {
        "input": baselines.nearest(pair.lr, pair.scale)[0, pair.shown],
        "bicubic": baselines.bicubic(pair.lr, pair.scale)[0, pair.shown],
        "ours": estimate[0, pair.shown],
        "truth": pair.hr[0, pair.shown],
    }


def state_windows(lr: Tensor) -> Tensor:
    """Return one window (1, bands, 64, 64) from the centre of an image (1, bands, h, w), mirrored if it is smaller."""
    large = mirrored(lr, 1, STATE_PX)
    top, left = ((side - STATE_PX) // 2 for side in large.shape[-2:])
    return large[..., top : top + STATE_PX, left : left + STATE_PX]


def mirrored(lr: Tensor, multiple: int, least: int = 1) -> Tensor:
    """Pad (1, bands, h, w) by reflection to multiples of `multiple` and at least `least` px a side."""
    for axis in (-2, -1):
        side = lr.shape[axis]
        wanted = max(-(-side // multiple) * multiple, least)
        there_and_back = [*range(side), *reversed(range(side))]
        lr = lr.index_select(axis, torch.tensor([there_and_back[i % (2 * side)] for i in range(wanted)]))
    return lr
