"""ERGAS of the whole pipeline on native scenes degraded four times, against the measured bands.

Every band is blurred by the same Gaussian in its own pixels and averaged over 4 x 4 of them. The pipeline's 2.5 m
output then corresponds to the measured 10 m bands, its 5 m to 20 m and its 15 m to 60 m.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from pipeline.bands import BAND_NAMES, BY_NAME, RGB, bands_at
from training.data.tiles import BANDS
from training.degradation.degrade import Degradation, degrade
from training.quality import metrics, product, wald
from training.quality.baselines import box
from training.quality.metrics import trimmed
from training.quality.product import DEFAULT, Way
from training.quality.tables import Record

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from torch import Tensor

    from pipeline.superres.system import System
    from training.data.tiles import Tile

FACTOR = 4
SIGMAS_PX = (1.5, 1.8, 2.2)  # px of the measured grid of each band
GROUPS: Mapping[str, tuple[str, ...]] = {"RGB": RGB, "NIR": ("B08",), "20 m": bands_at(20), "60 m": bands_at(60)}
BORDER_10M_PX, BORDER_PX = 8, 2  # cropped from every score, in 10 m px; minimum in px of the measured grid
WAYS = (DEFAULT, Way(consistency="none"), Way(consistency="box"))
PLAIN = Way(consistency="none")
LEAST_60M_PX = 16  # minimum side of a scene, so that pixels remain inside its borders


@dataclass(frozen=True)
class NativeScene:
    """Measured reflectance (bands, h, w) by GSD, bands in the order of `tiles.BANDS`."""

    source: str
    place: str
    trained: bool  # whether it may have been used in training
    rho: Mapping[int, Tensor]

    def coarser(self, sigma_px: float) -> dict[int, Tensor]:
        """Return the scene as measured by a sensor with a four times larger GSD."""
        how = Degradation(sigma_px=sigma_px, noise=0.0, scale=FACTOR)
        return {gsd: degrade(values[None], how)[0] for gsd, values in self.rho.items()}


def native_scenes(tiles: Iterable[Tile], per_set: int | None = None) -> list[NativeScene]:
    """Return the measured parts of tiles with all 12 bands, at most `per_set` per source."""
    found: list[NativeScene] = []
    for tile in tiles:
        absent = set(BAND_NAMES) - set(tile.present)
        if absent or (per_set and _count(found, tile.source) >= per_set):
            continue
        part = wald.largest_measured(tile.rho, tile.valid)
        sides = None if part is None else [side // FACTOR * FACTOR for side in part[60].shape[1:]]
        if part is None or sides is None or min(sides) < LEAST_60M_PX:
            continue
        rho = {g: torch.from_numpy(v[:, : sides[0] * 60 // g, : sides[1] * 60 // g].copy()) for g, v in part.items()}
        trained = tile.split == "train" and not tile.watched
        found.append(NativeScene(tile.source, tile.place, trained, rho))
    return found


def _count(scenes: Sequence[NativeScene], source: str) -> int:
    return sum(scene.source == source for scene in scenes)


def ergas(found: Tensor, scene: NativeScene, bands: Sequence[str]) -> float:
    """Return Wald's ERGAS of `found` (12, 4h, 4w), in the order of `BAND_NAMES`, over bands of one GSD."""
    gsd = BY_NAME[bands[0]].gsd_m
    images = found[[BAND_NAMES.index(name) for name in bands]]
    truth = scene.rho[gsd][[BANDS[gsd].index(name) for name in bands]]
    on_grid = box(images[None], gsd // 10)[0]
    border = max(BORDER_PX, BORDER_10M_PX * 10 // gsd)
    return metrics.ergas(trimmed(on_grid, border), trimmed(truth, border), FACTOR)


@torch.inference_mode()
def judge(system: System, plain: System, scenes: Sequence[NativeScene], seed: int = 0) -> list[Record]:
    """Return ERGAS of every scene by blur (one table each), product and band group."""
    records = []
    products = [(plain, PLAIN), *((system, way) for way in WAYS)]
    for sigma in SIGMAS_PX:
        for index, scene in enumerate(scenes):
            dn = {gsd: product.to_dn(values.numpy()) for gsd, values in scene.coarser(sigma).items()}
            for of, way in products:
                rho = product.store(dn, BANDS, of, way.options(of, seed, index), BAND_NAMES).rho
                values = {name: ergas(rho, scene, bands) for name, bands in GROUPS.items()}
                method = f"stored {of.name}: {way}"
                records.append(Record(table(sigma), scene.source, scene.place, index, method, values))
    return records


def table(sigma_px: float) -> str:
    """Return the name of the table of one blur."""
    return f"native scenes, blur {sigma_px:g} px"
