"""Training examples of DiffFuSR's fusion (arXiv 2506.11764): Wald's protocol per band group, on Sentinel-2 tiles.

The network of the 10, 20 or 60 m bands sees all bands up to its GSD, degraded by its factor in inference (x4, x8, x24
to 2.5 m), and RGB at its own GSD. The measured bands are the truth.
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
_TILES_TRIED, _PLACES_TRIED = 100, 8  # attempts to find a measured crop
_VALID = 0.95  # minimum share of measured pixels in a crop
_TILES_MEASURED = 64  # maximum read for band statistics


@dataclass(frozen=True)
class Example:
    """Training data of one network in reflectance: guide (B, 3, n, n), input bands (B, c, n, n), truth."""

    guide: Tensor
    seen: Tensor
    truth: Tensor


@dataclass(frozen=True)
class Group:
    """Training tiles of one network, and the side of its crops in px of 60 m."""

    gsd_m: int
    side_60m: int
    tiles: tuple[Tile, ...]

    @property
    def odds(self) -> NDArray[np.float64]:
        """Sampling probabilities of the tiles: square root of area times weight."""
        odds: NDArray[np.float64] = np.array([tile.weight * math.sqrt(math.prod(tile.shape)) for tile in self.tiles])
        odds /= odds.sum()
        return odds

    def crops(self, rng: np.random.Generator, count: int) -> dict[int, Tensor]:
        """Draw random crops by GSD, (count, bands, h, w) reflectance, rotated and flipped.

        Raises UsageError if no measured crop is found.
        """
        odds = self.odds
        crops = [self._crop(rng, odds) for _ in range(count)]
        return {gsd: torch.from_numpy(np.stack([crop[gsd] for crop in crops])) for gsd in crops[0]}

    def middle(self, tile: Tile) -> dict[int, Tensor]:
        """Return the centre of a large enough tile as a batch of one."""
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
    """Return the input bands of the network for `gsd_m`, in channel order."""
    return tuple(chain.from_iterable(bands for gsd, bands in INPUTS.items() if gsd <= gsd_m))


def unit_60m(gsd_m: int) -> int:
    """Return the unit of a group's crop sides in px of 60 m: whole degraded pixels of its own bands, 60 m aligned."""
    return math.lcm(FACTORS[gsd_m] * gsd_m, 60) // 60


def fits(tile: Tile, gsd_m: int, side_60m: int) -> bool:
    """Return whether a tile is large enough for such a crop and has all bands of the group."""
    return min(tile.shape) >= side_60m and set(inputs_of(gsd_m)) <= set(tile.present)


def group_of(gsd_m: int, tiles: Sequence[Tile], crop_px: int) -> Group | None:
    """Return the group with crops of `crop_px` on its own grid, or as large as its tiles allow; None without tiles."""
    unit = unit_60m(gsd_m)
    wanted = max(crop_px * gsd_m // 60 // unit * unit, unit)
    largest = max((min(tile.shape) for tile in tiles if fits(tile, gsd_m, unit)), default=0)
    side = min(wanted, largest // unit * unit)
    usable = tuple(tile for tile in tiles if fits(tile, gsd_m, side))
    return Group(gsd_m, side, usable) if side and usable else None


def coarser(rho: Tensor, factor: int) -> Tensor:
    """Apply D_s of the released code to (B, C, h, w): Gaussian of 5 x 5 taps, sigma = `factor` px, then block means."""
    sigma = torch.full((len(rho),), float(factor))
    blur = gaussian(sigma, sigma, torch.zeros(len(rho)), taps=_TAPS)
    return apply_kernels(rho, compose(blur, factor, "box"), factor)


def example_of(rho: dict[int, Tensor], gsd_m: int) -> Example:
    """Return the example for `gsd_m` from crops by GSD: degraded bands, bilinear on its grid, and box-averaged RGB."""
    truth = rho[gsd_m]
    seen = [
        functional.interpolate(coarser(bands, FACTORS[gsd_m]), truth.shape[-2:], mode="bilinear", align_corners=False)
        for gsd, bands in rho.items()
        if gsd <= gsd_m
    ]
    return Example(functional.avg_pool2d(rho[10][:, :3], gsd_m // 10), torch.cat(seen, dim=1), truth)


def statistics(tiles: Sequence[Tile]) -> dict[str, tuple[float, float]]:
    """Return mean and standard deviation of reflectance of every band over its measured pixels.

    Reads at most `_TILES_MEASURED` tiles, evenly spaced in order.
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
