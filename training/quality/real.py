"""Consistency of the pipeline's own product with real Sentinel-2 images, where there is no truth to compare with.

In: Level-2A tiles and loaded systems. Out: `Record`s. Each tile lends one window of the lattice; it goes through
`pipeline.superres` as in a run, to DN and back. Imports pipeline.superres, OpenSR-test and metrics.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from pipeline.bands import DN_OFFSET, DN_SCALE, NODATA_DN, RGB
from pipeline.superres import fuse, masks
from pipeline.superres.superres import Native, Options, super_resolve
from training.quality import metrics
from training.quality.opensr import Triplet, explained, to_coarse
from training.quality.pairs import state_windows
from training.quality.tables import Record

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray
    from torch import Tensor

    from pipeline.superres.systems import SceneState, System
    from training.data.tiles import Tile

PATCHES = 9
FACTOR = 4  # 10 m -> 2.5 m
BRIGHTEST = "brightest input"  # reflectance; snow and cloud give themselves away by it
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


def patches(tiles: Iterable[Tile], side_px: int, count: int = PATCHES) -> list[tuple[Tile, NDArray[np.float32]]]:
    """The first tiles that hold a window of `side_px` at 10 m, each with the RGB (3, side, side) of its middle."""
    chosen: list[tuple[Tile, NDArray[np.float32]]] = []
    for tile in tiles:
        top, left = ((side * 6 - side_px) // 2 for side in tile.shape)
        if min(top, left) < 0:
            continue
        rgb = tile.rho[10][: len(RGB)]
        measured = tile.valid[top // 6 : -(-(top + side_px) // 6), left // 6 : -(-(left + side_px) // 6)]
        if measured.all():
            chosen.append((tile, rgb[:, top : top + side_px, left : left + side_px].copy()))
        if len(chosen) == count:
            break
    return chosen


def product(
    system: System, rgb: NDArray[np.float32], consistency: str, seed: int = 0, members: int = 1
) -> tuple[Tensor, Tensor]:
    """One window of the lattice through the pipeline: RGB (3, T/4, T/4) -> its (3, n, n) inside and (3, 4n, 4n).

    What lies beyond the window is nodata, as at the edge of a scene; the inside is where no other window has a share.
    """
    lattice = system.lattice
    window = lattice.window(0, 0)
    inside = window.pad(-(lattice.margin_px + lattice.ramp_px))
    dn = np.rint((rgb - DN_OFFSET) / DN_SCALE).clip(1, 65535).astype(np.uint16)
    context = fuse.CONTEXT_PX // FACTOR
    around = np.pad(dn, ((0, 0), (context, context), (context, context)), constant_values=NODATA_DN)
    native = Native(window.pad(fuse.CONTEXT_PX), {10: around}, {10: RGB})
    state = _state(system, rgb)
    result = super_resolve(
        native, inside, system, RGB, Options(seed=seed, members=members, consistency=consistency), lambda _window: state
    )
    rows, cols = inside.coarsen(FACTOR).slices(window.coarsen(FACTOR))
    return _reflectance(dn[:, rows, cols]), _reflectance(result.dn)


def _state(system: System, rgb: NDArray[np.float32]) -> SceneState | None:
    """What the network needs to know of the scene, from this window."""
    if system.resolver is None or not system.resolver.needs_state:
        return None
    return system.resolver.scene_state(state_windows(torch.from_numpy(rgb)[None]))


def _reflectance(dn: NDArray[np.uint16]) -> Tensor:
    return torch.from_numpy(masks.reflectance(dn))


def scores(lr: Tensor, sr: Tensor) -> dict[str, float | None]:
    """Consistency of sr (3, 4n, 4n) with lr (3, n, n): OpenSR-test's three, and DiffFuSR's Table IV on 8-bit values."""
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


def judge(system: System, plain: System, tiles: Iterable[Tile], seed: int = 0) -> list[Record]:
    """`system` and interpolation (`plain`) on real patches, without projection, with that of the box, of the tent."""
    records = []
    for index, (tile, rgb) in enumerate(patches(tiles, system.lattice.window_px // FACTOR)):
        for name, under_test in (("bicubic", plain), (system.name, system)):
            for consistency in ("none", "box", "tent"):
                lr, sr = product(replace(under_test, lattice=system.lattice), rgb, consistency, seed)
                method = f"{name}, {consistency}"
                values, why = explained({**scores(lr, sr), BRIGHTEST: float(rgb.max())})
                records.append(Record("real", tile.source or "L2A", tile.place, index, method, values, why))
    return records
