"""What training tasks of fusion share: crops of Sentinel-2 tiles, their degradation, and the loss by band."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional

from pipeline.errors import UsageError
from training.data import unreadable
from training.degradation.degrade import Degradation, degrade
from training.quality import picture_fusion
from training.quality.wald import OUT_BANDS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray
    from torch import Tensor, nn

    from training.data.sources import TrainingData
    from training.data.tiles import Tile
    from training.loop.run import Draw

TILES_TRIED, PLACES_TRIED = 100, 8  # attempts to find a measured crop
MEASURED = 0.95  # minimum share of measured pixels in a crop
WATCHED_TILES, JUDGED_TILES = 4, 4  # maximum for tuning and validation, and for validation only
SAMPLES = 4  # maximum number of places in the sheet of samples
CROP_60M = 16  # side of a crop: 960 m, 96 px of 10 m
SENSOR_SIGMA = (0.0, 0.5)  # blur before the block mean, in coarse px, as of a coarser sensor
SHARES = (0.0, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)  # shares of the learned residual tried at the end
GAIN = (0.75, 1.35)  # range per band, for other surfaces and illumination
HAZE = 0.05  # maximum added reflectance per band, so that one network serves Level-1C and Level-2A
DROPS = ((0.25, ("B01", "B09")), (0.1, ("B06", "B07")))  # probabilities of dropping these bands


@dataclass(frozen=True)
class Crop:
    """A batch of crops: reflectance (B, bands, h, w) by native GSD, and masks of the available bands."""

    rho: dict[int, Tensor]
    mask: Tensor  # (B, 9, 1, 1), order of OUT_BANDS


class TileSampler:
    """Sampler of random tile crops: rotated, flipped, with changed radiometry and dropped bands."""

    def __init__(self, tiles: Sequence[Tile]) -> None:
        self.tiles = tiles
        sizes = np.array([tile.weight * math.sqrt(tile.shape[0] * tile.shape[1]) for tile in tiles])
        self.odds = sizes / sizes.sum()

    def batch(self, rng: np.random.Generator, count: int) -> Crop:
        """Draw `count` crops of 960 m. Raises UsageError if no measured crop is found."""
        crops = [self._measured(rng) for _ in range(count)]
        rho = {gsd: torch.from_numpy(np.stack([rho[gsd] for rho, _ in crops])) for gsd in (10, 20, 60)}
        return Crop(rho, torch.tensor([mask for _, mask in crops])[:, :, None, None])

    def _measured(self, rng: np.random.Generator) -> tuple[dict[int, NDArray[np.float32]], list[float]]:
        """Draw one crop from a random tile."""
        for _ in range(TILES_TRIED):
            tile = self.tiles[int(rng.choice(len(self.tiles), p=self.odds))]
            ny, nx = tile.shape
            with unreadable.skipping(tile.label):
                for _ in range(PLACES_TRIED):
                    y, x = int(rng.integers(ny - CROP_60M + 1)), int(rng.integers(nx - CROP_60M + 1))
                    if tile.valid[y : y + CROP_60M, x : x + CROP_60M].mean() > MEASURED:
                        return self._crop(tile, y, x, rng)
        unreadable.raise_any(tile.label for tile in self.tiles)
        raise UsageError(f"{TILES_TRIED} tiles show no {CROP_60M * 60} m of measured ground", "scenes with fewer gaps")

    def _crop(
        self, tile: Tile, y: int, x: int, rng: np.random.Generator
    ) -> tuple[dict[int, NDArray[np.float32]], list[float]]:
        """Return the crop by GSD with upper left 60 m pixel (y, x), and its band mask."""
        turns, flip = int(rng.integers(4)), rng.random() < 0.5
        present = set(tile.present)
        for chance, names in DROPS:
            present -= set(names) if rng.random() < chance else set()
        held = [float(name in present) for name in OUT_BANDS]
        rho = {}
        for gsd, values in tile.rho.items():
            f = 60 // gsd
            part = values[:, y * f : (y + CROP_60M) * f, x * f : (x + CROP_60M) * f]
            part = np.rot90(part, turns, axes=(1, 2))
            part = part[:, :, ::-1] if flip else part
            gain = rng.uniform(*GAIN, len(part))[:, None, None]
            rho[gsd] = (part * gain + rng.uniform(0, HAZE, len(part))[:, None, None]).astype(np.float32)
        mask20, mask60 = np.array(held[1:7]), np.array(held[7:])
        rho[20] = (rho[20] * mask20[:, None, None]).astype(np.float32)
        rho[60] = (rho[60] * mask60[:, None, None]).astype(np.float32)
        return rho, held


def relative_loss(estimate: Tensor, truth: Tensor, mask: Tensor) -> Tensor:
    """Return the mean over available bands of squared error relative to the band mean, as in ERGAS."""
    scale = truth.mean((2, 3), keepdim=True) + 0.03
    return (((estimate - truth) / scale).square() * mask).mean() / mask.mean().clamp_min(1e-3)


@torch.no_grad()
def keep_best_share(last: nn.Module, error: Callable[[], float]) -> None:
    """Scale the parameters of a residual's last convolution by the one of `SHARES` with the lowest `error`."""
    learned = [parameter.clone() for parameter in last.parameters()]

    def scale(share: float) -> None:
        for parameter, value in zip(last.parameters(), learned, strict=True):
            parameter.copy_(share * value)

    errors = {}
    for share in SHARES:
        scale(share)
        errors[share] = error()
    scale(min(errors, key=lambda share: errors[share]))


def tiles_to_train_on(data: TrainingData) -> list[Tile]:
    """Return the tiles of the training split. Raises UsageError if there is none."""
    tiles = data.tiles("train")
    if not tiles:
        raise UsageError(
            f"{data.file.path}: no Sentinel-2 scene to train on",
            f'a source of role "sentinel2" with RGB and bands of 20 m, {CROP_60M * 60} m a side or more, not held out',
        )
    return tiles


def watched_places(data: TrainingData) -> dict[str, dict[int, NDArray[np.float32]]]:
    """Return the places to decide by, reflectance by GSD. Raises UsageError if there are none."""
    watched = whole(data.watched_tiles(), WATCHED_TILES)
    if not watched:
        raise UsageError(
            f"{data.file.path}: no Sentinel-2 scene is held out of training, to decide by",
            'a source with watched = true or split = "held-out", or more places',
        )
    return watched


def judged_places(data: TrainingData) -> dict[str, dict[int, NDArray[np.float32]]]:
    """Return held-out places that no decision looks at, reflectance by GSD."""
    return whole([tile for tile in data.tiles("held-out") if tile.evaluated], JUDGED_TILES)


def views(tiles: Sequence[Tile]) -> list[picture_fusion.View]:
    """Return at most `SAMPLES` measured places that differ in land cover; of small tiles, all that was measured."""
    found = picture_fusion.chosen(tiles, SAMPLES)
    return found or [view for tile in tiles[:SAMPLES] if (view := picture_fusion.whole_view(tile)) is not None]


def whole(tiles: Sequence[Tile], count: int) -> dict[str, dict[int, NDArray[np.float32]]]:
    """Return {place: reflectance by GSD} of at most `count` tiles, evenly spaced in order, without empty borders."""
    chosen = [tiles[len(tiles) * i // count] for i in range(count)] if len(tiles) > count else tiles
    return {tile.place: cut.rho for tile in chosen if (cut := tile.whole.trimmed()) is not None}


def coarser(rho: Tensor, factor: int, sigma: float) -> Tensor:
    """Blur by `sigma` coarse px, then take block means, (B, C, h, w) -> (B, C, h/factor, w/factor)."""
    if sigma * factor < 0.2:
        return functional.avg_pool2d(rho, factor)
    return degrade(rho, Degradation(sigma_px=sigma * factor, decimator="box", noise=0.0, scale=factor))


def disturbed(guide: Tensor, draw: Draw) -> Tensor:
    """Perturb a guide (B, C, h, w) as a super-resolver might: blurred or sharpened a little, noisy, of other level."""
    soft = degrade(guide, Degradation(sigma_px=float(draw.rng.uniform(0.5, 1.2)), noise=0.0, scale=1))
    strength = float(draw.rng.uniform(-0.4, 1.0))  # 1: blurred, 0: unchanged, negative: sharpened
    noise = float(draw.rng.uniform(0, 0.004)) * torch.randn(guide.shape, generator=draw.torch)
    level = 1 + 0.02 * torch.randn((*guide.shape[:2], 1, 1), generator=draw.torch)
    return level * (guide + strength * (soft - guide)) + noise
