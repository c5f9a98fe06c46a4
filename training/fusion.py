"""The task of the lite fusion: Wald's protocol on Sentinel-2, for both stages at once.

A tile is made coarser by a factor, so that its measured bands are the truth for the networks' output (Wald 1997). In:
tiles and a preset. Out: losses, validation lines, the bundle.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional

from pipeline.models.bundle import Bundle
from pipeline.models.lite_fusion import BANDS_20M, GUIDES, LATTICE, NORMALISATION, OUT_BANDS, SYSTEM, FusionNetwork
from training import wald
from training.degrade import Degradation, degrade
from training.sentinel2 import Tile, load_tiles, read_dsen2_scene

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor

    from training.loop import Draw
    from training.presets import Preset, Stage

CROP_60M = 16  # side of a crop: 960 m, 96 px of 10 m
SHARPEN_FACTOR = 2  # 10 -> 20, 20 -> 40, 60 -> 120 m
DETAIL_FACTOR = 4  # 10 -> 40 m, guided by RGB at 10 m
SENSOR_SIGMA = (0.0, 0.7)  # blur before the block mean, in coarse px: what the next coarser sensor would add
GAIN = (0.75, 1.35)  # per band: other ground, other sun
HAZE = 0.05  # per band, up to this added reflectance: lets one network serve Level-1C and Level-2A
DROPS = ((0.25, ("B01", "B09")), (0.1, ("B06", "B07")))  # chances that a product lacks these bands


@dataclass(frozen=True)
class Crop:
    """A batch of crops: native bands by GSD, (B, bands, h, w) reflectance, and masks of the bands they carry."""

    rho: dict[int, Tensor]
    mask: Tensor  # (B, 9, 1, 1), order of OUT_BANDS


class TileSampler:
    """Random crops of tiles, turned and flipped, with changed radiometry and dropped bands."""

    def __init__(self, tiles: Sequence[Tile]) -> None:
        self.tiles = tiles
        sizes = np.array([np.sqrt(tile.valid.sum()) for tile in tiles])
        self.odds = sizes / sizes.sum()

    def batch(self, rng: np.random.Generator, count: int) -> Crop:
        """`count` crops of 960 m."""
        crops = [self._crop(self.tiles[i], rng) for i in rng.choice(len(self.tiles), size=count, p=self.odds)]
        rho = {gsd: torch.from_numpy(np.stack([rho[gsd] for rho, _ in crops])) for gsd in (10, 20, 60)}
        return Crop(rho, torch.tensor([mask for _, mask in crops])[:, :, None, None])

    def _crop(self, tile: Tile, rng: np.random.Generator) -> tuple[dict[int, np.ndarray[Any, Any]], list[float]]:
        """One crop by GSD, and its mask."""
        ny, nx = tile.valid.shape
        for _ in range(8):
            y, x = int(rng.integers(ny - CROP_60M + 1)), int(rng.integers(nx - CROP_60M + 1))
            if tile.valid[y : y + CROP_60M, x : x + CROP_60M].mean() > 0.95:
                break
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
    """Mean over bands held of squared error in units of the crop's band mean: what ERGAS squares."""
    scale = truth.mean((2, 3), keepdim=True) + 0.03
    return (((estimate - truth) / scale).square() * mask).mean() / mask.mean().clamp_min(1e-3)


class Fusion:
    """Task of the lite fusion."""

    def __init__(self, preset: Preset, root: Path) -> None:
        self.preset = preset
        self.network = FusionNetwork(**preset.architecture)
        self.tiles = [tile for tile in load_tiles(root / "s2_l2a") if tile.split == "train"]
        self.sampler = TileSampler(self.tiles)
        self.test = read_dsen2_scene(root / "s2_l1c" / wald.TEST_SCENE)

    def begin(self, stage: Stage, draw: Draw) -> None:
        """Nothing to prepare."""

    def batch(self, draw: Draw) -> dict[str, Tensor]:
        """Crops at native resolution (`native10` ...), everything x2 (`sharpen10` ...) and x4 coarser (`detail`)."""
        crop = self.sampler.batch(draw.rng, self.preset.batch)
        sigma = float(draw.rng.uniform(*SENSOR_SIGMA))
        batch = {"mask": crop.mask}
        for gsd, rho in crop.rho.items():
            batch[f"native{gsd}"] = rho
            batch[f"sharpen{gsd}"] = coarser(rho, SHARPEN_FACTOR, sigma)
        batch["guide"] = disturbed(crop.rho[10][:, :3], draw)
        b08 = coarser(crop.rho[10][:, 3:], DETAIL_FACTOR, sigma)
        at40 = coarser(crop.rho[20], DETAIL_FACTOR // 2, sigma)
        from60 = functional.interpolate(crop.rho[60], scale_factor=1.5, mode="bicubic")
        batch["detail"] = torch.cat([b08, at40, from60], dim=1)
        return batch

    def loss(self, stage: Stage, batch: dict[str, Tensor], draw: Draw) -> Tensor:
        """Both stages of the network, in equal parts."""
        return self.sharpen_loss(batch) + self.detail_loss(batch)

    def sharpen_loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Everything twice as coarse: 20 m bands against their measurement, 60 m bands after their block mean."""
        mask = batch["mask"]
        out = self.network.sharpen(batch["sharpen10"], batch["sharpen20"], batch["sharpen60"], mask[:, 1:])
        near = relative_loss(out[:, :6], batch["native20"], mask[:, 1:7])
        return near + 0.3 * relative_loss(functional.avg_pool2d(out[:, 6:], 3), batch["native60"], mask[:, 7:])

    def detail_loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Everything four times as coarse, guided by RGB at 10 m, each band judged at its own resolution."""
        mask = batch["mask"]
        out = self.network.detail(batch["guide"], batch["detail"], mask)
        loss = relative_loss(out[:, :1], batch["native10"][:, 3:], mask[:, :1])
        loss = loss + relative_loss(functional.avg_pool2d(out[:, 1:7], 2), batch["native20"], mask[:, 1:7])
        return loss + 0.3 * relative_loss(functional.avg_pool2d(out[:, 7:], 6), batch["native60"], mask[:, 7:])

    @torch.no_grad()
    def validate(self, stage: Stage) -> str:
        """ERGAS on the held-out L1C scene beside ATPRK-like: 20 m x2, 60 m x6, NIR x4 from RGB."""
        rows = wald.measure(self.network, self.test)
        return "  ".join(
            f"{row.task} ERGAS {row.ergas['lite']:.3f} (ATPRK {row.ergas['ATPRK-like']:.3f})" for row in rows
        )

    def describe(self) -> dict[str, Any]:
        """What the provenance of the weights says of their data."""
        return {"data": sorted({tile.place for tile in self.tiles}), "tiles": len(self.tiles), "protocol": "Wald"}

    def bundle(self, provenance: dict[str, Any] | None = None, licence: str = "") -> Bundle:
        """The bundle of the network as it is now."""
        return Bundle(
            system=SYSTEM,
            architecture=self.preset.architecture,
            in_bands=(*GUIDES, *BANDS_20M, "B01", "B09"),
            out_bands=OUT_BANDS,
            scale=4,
            lattice=LATTICE,
            normalisation=NORMALISATION,
            provenance=provenance or {},
            licence=licence,
        )


def coarser(rho: Tensor, factor: int, sigma: float) -> Tensor:
    """Blur of `sigma` coarse px, then block means, (B, C, h, w) -> (B, C, h/factor, w/factor)."""
    if sigma * factor < 0.2:
        return functional.avg_pool2d(rho, factor)
    return degrade(rho, Degradation(sigma_px=sigma * factor, decimator="box", noise=0.0, scale=factor))


def disturbed(rgb: Tensor, draw: Draw) -> Tensor:
    """The guide as a super-resolver might give it: a little soft or sharp, noisy, off in level."""
    soft = degrade(rgb, Degradation(sigma_px=float(draw.rng.uniform(0.5, 1.2)), noise=0.0, scale=1))
    strength = float(draw.rng.uniform(-0.4, 1.0))  # 1: soft, 0: as it is, negative: sharpened
    noise = float(draw.rng.uniform(0, 0.004)) * torch.randn(rgb.shape, generator=draw.torch)
    level = 1 + 0.02 * torch.randn((len(rgb), 3, 1, 1), generator=draw.torch)
    return level * (rgb + strength * (soft - rgb)) + noise
