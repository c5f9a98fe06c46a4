"""DiffFuSR's fusion examples (arXiv 2506.11764): Wald's protocol per group of bands, on Sentinel-2 tiles.

The network of the 10, 20 or 60 m bands sees all bands up to its GSD made coarser by the factor that it will have to
bridge later (x4, x8, x24 to 2.5 m) and RGB at its own GSD; the measured bands are the truth. In: tiles. Out: crops,
examples, statistics of bands. Imports torch and the networks' band order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional

from pipeline.errors import UsageError
from pipeline.models.difffusr_fusion import INPUTS
from training.data import unreadable
from training.degradation.degrade import apply_kernels, compose, gaussian

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from training.data.tiles import Tile

FACTORS = {10: 4, 20: 8, 60: 24}  # by native GSD in metres
_TAPS = 5  # of the blur before decimation; with sigma = factor it is nearly a box (released code)
_TILES_TRIED, _PLACES_TRIED = 100, 8  # until a crop shows ground that was measured
_VALID = 0.95  # at least this share of it
_TILES_MEASURED = 64  # at most so many are read for the statistics of bands


@dataclass(frozen=True)
class Example:
    """What one network learns from, reflectance: guide (B, 3, n, n), bands as it sees them (B, c, n, n), truth."""

    guide: Tensor
    seen: Tensor
    truth: Tensor


@dataclass(frozen=True)
class Group:
    """The tiles that one network learns from, and the side of its crops in px of 60 m."""

    gsd_m: int
    side_60m: int
    tiles: tuple[Tile, ...]

    @property
    def odds(self) -> NDArray[np.float64]:
        """Tiles are drawn by the square root of their area times their weight."""
        odds: NDArray[np.float64] = np.array([tile.weight * math.sqrt(math.prod(tile.shape)) for tile in self.tiles])
        odds /= odds.sum()
        return odds

    def crops(self, rng: np.random.Generator, count: int) -> dict[int, Tensor]:
        """Random crops by GSD, (count, bands, h, w) reflectance, turned and flipped. UsageError where all are empty."""
        odds = self.odds
        crops = [self._crop(rng, odds) for _ in range(count)]
        return {gsd: torch.from_numpy(np.stack([crop[gsd] for crop in crops])) for gsd in crops[0]}

    def middle(self, tile: Tile) -> dict[int, Tensor]:
        """The middle of a tile that is large enough, as a batch of one."""
        y, x = ((side - self.side_60m) // 2 for side in tile.shape)
        return {gsd: torch.from_numpy(part.copy())[None] for gsd, part in self._cut(tile, y, x).items()}

    def _crop(self, rng: np.random.Generator, odds: NDArray[np.float64]) -> dict[int, NDArray[np.float32]]:
        side = self.side_60m
        for _ in range(_TILES_TRIED):
            tile = self.tiles[int(rng.choice(len(self.tiles), p=odds))]
            with unreadable.skipping(tile.label):
                for _ in range(_PLACES_TRIED):
                    y, x = (int(rng.integers(length - side + 1)) for length in tile.shape)
                    if tile.valid[y : y + side, x : x + side].mean() > _VALID:
                        turns, flip = int(rng.integers(4)), rng.random() < 0.5
                        return {gsd: turned(part, turns, flip) for gsd, part in self._cut(tile, y, x).items()}
        unreadable.raise_any(tile.label for tile in self.tiles)
        raise UsageError(f"{_TILES_TRIED} tiles show no {side * 60} m of measured ground", "scenes with fewer gaps")

    def _cut(self, tile: Tile, y: int, x: int) -> dict[int, NDArray[np.float32]]:
        cut = {}
        for gsd in (gsd for gsd in INPUTS if gsd <= self.gsd_m):
            f = 60 // gsd
            cut[gsd] = tile.rho[gsd][:, y * f : (y + self.side_60m) * f, x * f : (x + self.side_60m) * f]
        return cut


def turned(raster: NDArray[np.float32], turns: int, mirrored: bool) -> NDArray[np.float32]:
    """A raster (c, n, n) after quarter turns, mirrored left to right where asked for, in memory of its own."""
    found = np.rot90(raster, turns, axes=(1, 2))
    return np.ascontiguousarray(found[:, :, ::-1] if mirrored else found)


def inputs_of(gsd_m: int) -> tuple[str, ...]:
    """Bands that the network for `gsd_m` sees, in its channel order."""
    return tuple(chain.from_iterable(bands for gsd, bands in INPUTS.items() if gsd <= gsd_m))


def unit_60m(gsd_m: int) -> int:
    """Crops of a group are multiples of this many px of 60 m: whole coarsened pixels of its own bands, 60 m aligned."""
    return math.lcm(FACTORS[gsd_m] * gsd_m, 60) // 60


def fits(tile: Tile, gsd_m: int, side_60m: int) -> bool:
    """Whether a tile holds such a crop with all the bands that the group needs."""
    return min(tile.shape) >= side_60m and set(inputs_of(gsd_m)) <= set(tile.present)


def group_of(gsd_m: int, tiles: Sequence[Tile], crop_px: int) -> Group | None:
    """The group with crops of `crop_px` of its own grid, or as large as its tiles allow; None when none is enough."""
    unit = unit_60m(gsd_m)
    wanted = max(crop_px * gsd_m // 60 // unit * unit, unit)
    largest = max((min(tile.shape) for tile in tiles if fits(tile, gsd_m, unit)), default=0)
    side = min(wanted, largest // unit * unit)
    usable = tuple(tile for tile in tiles if fits(tile, gsd_m, side))
    return Group(gsd_m, side, usable) if side and usable else None


def coarser(rho: Tensor, factor: int) -> Tensor:
    """D_s of the released code: Gaussian of 5 x 5 taps and sigma = `factor` px, then block means; (B, C, h, w)."""
    sigma = torch.full((len(rho),), float(factor))
    blur = gaussian(sigma, sigma, torch.zeros(len(rho)), taps=_TAPS)
    return apply_kernels(rho, compose(blur, factor, "box"), factor)


def example_of(rho: dict[int, Tensor], gsd_m: int) -> Example:
    """What the network for `gsd_m` learns from crops by GSD: coarsened bands bilinear on its grid, box-averaged RGB."""
    truth = rho[gsd_m]
    seen = [
        functional.interpolate(coarser(bands, FACTORS[gsd_m]), truth.shape[-2:], mode="bilinear", align_corners=False)
        for gsd, bands in rho.items()
        if gsd <= gsd_m
    ]
    return Example(functional.avg_pool2d(rho[10][:, :3], gsd_m // 10), torch.cat(seen, dim=1), truth)


def statistics(tiles: Sequence[Tile]) -> dict[str, tuple[float, float]]:
    """Mean and standard deviation of reflectance of every band over measured ground that carries it.

    Of many tiles some are read, evenly spaced in their order.
    """
    sums: dict[str, NDArray[np.float64]] = {}
    count = min(len(tiles), _TILES_MEASURED)
    for tile in (tiles[len(tiles) * i // count] for i in range(count)):
        for gsd, bands in INPUTS.items():
            valid = np.repeat(np.repeat(tile.valid, 60 // gsd, axis=0), 60 // gsd, axis=1)
            for band, values in zip(bands, tile.rho[gsd], strict=True):
                if band in tile.present:
                    chosen = values[valid].astype(np.float64)
                    moments = np.array([chosen.size, chosen.sum(), np.square(chosen).sum()])
                    sums[band] = sums.get(band, np.zeros(3)) + moments
    found = {}
    for band, (number, total, squares) in sums.items():
        if number:
            mean = total / number
            found[band] = (float(mean), math.sqrt(max(squares / number - mean**2, 1e-12)))
    return found
