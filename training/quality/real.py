"""Consistency of a run's output with real Sentinel-2 images, for which there is no truth."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from pipeline.bands import RGB
from training.data.tiles import BANDS
from training.quality import metrics, product
from training.quality.opensr import Triplet, explained, to_coarse
from training.quality.product import Way
from training.quality.tables import Record

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from pipeline.superres.system import System
    from training.data.tiles import Tile

PATCHES = 9
PATCH_PX = 84  # side at 10 m; a multiple of 60 m
FACTOR = 4  # 10 m -> 2.5 m
CONTRACTS = ("none", "sensor", "box", "tent")
BRIGHTEST = "brightest input"  # reflectance; indicates snow and cloud
SNOW_REFLECTANCE = 0.6
DIGITS = {
    "reflectance": 5,
    "spectral": 3,
    "spatial": 4,
    "block R2": 5,
    "PSNR, 8-bit": 1,
    "cosine": 4,
    "ERGAS": 2,
    "ERGAS (Table IV)": 1,
}


def patches(
    tiles: Iterable[Tile], side_px: int, count: int = PATCHES, per_tile: int = 1, bands: tuple[str, ...] = RGB
) -> list[tuple[Tile, NDArray[np.float32]]]:
    """Return up to `count` fully measured patches of 10 m bands (bands, side, side), at most `per_tile` per tile.

    A single patch is the centre of its tile. Several do not overlap.
    """
    chosen: list[tuple[Tile, NDArray[np.float32]]] = []
    places = [BANDS[10].index(band) for band in bands]
    for tile in (tile for tile in tiles if set(bands) - set(RGB) <= set(tile.present)):
        own = 0
        for top, left in _corners(tile, side_px, per_tile):
            measured = tile.valid[top // 6 : -(-(top + side_px) // 6), left // 6 : -(-(left + side_px) // 6)]
            if own == per_tile or len(chosen) == count or not measured.all():
                continue
            chosen.append((tile, tile.rho[10][places, top : top + side_px, left : left + side_px]))
            own += 1
    return chosen


def _corners(tile: Tile, side_px: int, per_tile: int) -> Iterator[tuple[int, int]]:
    """Yield the upper left corners of squares around the centre of a tile."""
    spans = [side * 6 for side in tile.shape]
    if min(spans) < side_px:
        return
    fits = [1 if per_tile == 1 else span // side_px for span in spans]
    for row in range(fits[0]):
        for col in range(fits[1]):
            top, left = ((span - n * side_px) // 2 for span, n in zip(spans, fits, strict=True))
            yield top + row * side_px, left + col * side_px


def scores(lr: Tensor, sr: Tensor) -> dict[str, float | None]:
    """Return the consistency of sr (bands, 4n, 4n) with lr (bands, n, n): OpenSR-test and DiffFuSR's Table IV."""
    found: dict[str, float | None] = {**Triplet.of(lr, sr, sr).consistency()}
    coarse = to_coarse(sr, FACTOR)
    stored, given = metrics.eight_bit(coarse), metrics.eight_bit(lr)
    return found | {
        "block R2": metrics.block_mean_r2(sr, lr),
        "PSNR, 8-bit": metrics.psnr(stored, given, data_range=metrics.PAPER_STEPS),
        "cosine": metrics.cosine(stored, given),
        "ERGAS": metrics.ergas(coarse, lr, FACTOR),
        "ERGAS (Table IV)": metrics.ergas_table_iv(coarse, lr, FACTOR),
    }


def judge(
    system: System,
    plain: System,
    tiles: Iterable[Tile],
    seed: int = 0,
    bands: tuple[str, ...] = RGB,
    per_set: int | None = None,
) -> list[Record]:
    """Score `system` and interpolation (`plain`) on held-out real patches with every consistency setting.

    `per_set`: maximum number of patches per source.
    """
    untrained = [tile for tile in tiles if tile.split == "held-out"]
    records = []
    for index, (tile, rho) in enumerate(_judged(untrained, bands, per_set)):
        lr = torch.from_numpy(rho)
        for under_test in (plain, system):
            for contract in CONTRACTS:
                options = Way(consistency=contract).options(under_test, seed, index)
                stored = product.of_image(rho, bands, under_test, options)
                values, why = explained({**scores(lr, stored.rho), BRIGHTEST: float(rho.max())})
                method = f"{under_test.name}, {contract}"
                records.append(Record("real", tile.source or "L2A", tile.place, index, method, values, why))
    return records


def _judged(
    tiles: Sequence[Tile], bands: tuple[str, ...], per_set: int | None
) -> list[tuple[Tile, NDArray[np.float32]]]:
    """Return the patches to judge, at most `PATCHES`, and at most `per_set` of each source."""
    if per_set is None:
        return patches(tiles, PATCH_PX, per_tile=PATCHES, bands=bands)
    found = []
    for source in dict.fromkeys(tile.source for tile in tiles):
        of_source = [tile for tile in tiles if tile.source == source]
        found += patches(of_source, PATCH_PX, per_set, per_set, bands)
    return found[:PATCHES]
