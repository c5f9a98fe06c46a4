"""Training task of the lite fusion: Wald's protocol on Sentinel-2, for both stages at once.

Tiles are degraded by a factor, so that their measured bands are the truth for the networks' output (Wald 1997).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional

from pipeline.errors import UsageError
from pipeline.models.bundle import Bundle
from pipeline.models.lite_fusion import (
    BANDS_20M,
    FOLD,
    GUIDES,
    LATTICE,
    NORMALISATION,
    OUT_BANDS,
    SYSTEM,
    FusionNetwork,
    Trunk,
)
from training.data import unreadable
from training.degradation.degrade import Degradation, degrade
from training.loop.task import Measured
from training.presets import Preset, Stage
from training.quality import picture_fusion, wald
from training.task_spec import TaskSpec
from training.tasks import lite_wald

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from training.data.sources import TrainingData
    from training.data.tiles import Tile
    from training.loop.run import Draw

TILES_TRIED, PLACES_TRIED = 100, 8  # attempts to find a measured crop
MEASURED = 0.95  # minimum share of measured pixels in a crop
WATCHED_TILES, JUDGED_TILES = 4, 4  # maximum for tuning and validation, and for validation only
SAMPLES = 4  # maximum number of places in the sheet of samples
CROP_60M = 16  # side of a crop: 960 m, 96 px of 10 m
SHARPEN_FACTOR = 2  # 10 -> 20, 20 -> 40, 60 -> 120 m
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


def _scale(trunk: Trunk, learned: Sequence[Tensor], share: float) -> None:
    """Set the trunk's last convolution to `share` of `learned`."""
    for parameter, value in zip(trunk.exit.parameters(), learned, strict=True):
        parameter.copy_(share * value)


class Fusion:
    """Task of the lite fusion."""

    def __init__(self, preset: Preset, data: TrainingData) -> None:
        self.preset, self.data = preset, data
        self.network = FusionNetwork(**preset.architecture)
        tiles = tiles_to_train_on(data)
        self.sampler = TileSampler(tiles)
        self.watched = whole(data.watched_tiles(), WATCHED_TILES)
        if not self.watched:
            raise UsageError(
                f"{data.file.path}: no Sentinel-2 scene is held out of training, to decide by",
                'a source with watched = true or split = "held-out", or more places',
            )
        judged = [tile for tile in data.tiles("held-out") if tile.evaluated]
        self.judged = {**self.watched, **whole(judged, JUDGED_TILES)}
        self.views = views(data.watched_tiles())

    def begin(self, stage: Stage, draw: Draw) -> None:
        """Do nothing."""

    def batch(self, draw: Draw) -> dict[str, Tensor]:
        """Return crops at native GSD (`native10` ...) and the inputs of each task (`sharpen10`, `guide20` ...)."""
        crop = self.sampler.batch(draw.rng, self.preset.batch)
        sigma = float(draw.rng.uniform(*SENSOR_SIGMA))
        batch = {"mask": crop.mask}
        for gsd, rho in crop.rho.items():
            batch[f"native{gsd}"] = rho
            batch[f"sharpen{gsd}"] = coarser(rho, SHARPEN_FACTOR, sigma)
        at20 = torch.cat([functional.avg_pool2d(crop.rho[10], 2), crop.rho[20]], dim=1)  # B04 B03 B02 B08 and six
        batch["truth20"] = at20[:, 3:]
        batch["guide10"], batch["guide20"] = disturbed(crop.rho[10][:, :3], draw), disturbed(at20[:, :3], draw)
        b08, rest = coarser(crop.rho[10][:, 3:], FOLD, sigma), coarser(crop.rho[20], FOLD // 2, sigma)
        batch["detail40"] = torch.cat([b08, rest, wald.resampled(crop.rho[60], b08)], dim=1)
        at80 = coarser(at20[:, 3:], FOLD, sigma)
        batch["detail80"] = torch.cat([at80, wald.resampled(crop.rho[60], at80)], dim=1)
        return batch

    def loss(self, stage: Stage, batch: dict[str, Tensor], draw: Draw) -> Tensor:
        """Return the sum of the losses of three tasks, each on the grid of its truth."""
        mask, network = batch["mask"], self.network
        sharp = network.sharpen(batch["sharpen10"], batch["sharpen20"], batch["sharpen60"], mask[:, 1:])
        near = network.detail(batch["guide10"], batch["detail40"], mask)
        far = network.detail(batch["guide20"], batch["detail80"], mask)
        return (
            relative_loss(sharp[:, :6], batch["native20"], mask[:, 1:7])  # 40 -> 20 m, four guides
            + relative_loss(near[:, :1], batch["native10"][:, 3:], mask[:, :1])  # B08, 40 -> 10 m, RGB
            + relative_loss(far[:, :7], batch["truth20"], mask[:, :7])  # B08 and 20 m bands, 80 -> 20 m, RGB
        )

    @torch.no_grad()
    def finish(self) -> None:
        """Scale the learned residual of both trunks by the shares with the lowest ERGAS on the watched places.

        With few training places, a network is overconfident and sharpens every scene too much. A share of 0 leaves only
        the regression, 1 the network as trained.
        """
        for row, trunk in ((0, self.network.sharpen_trunk), (1, self.network.detail_trunk)):
            learned = [parameter.clone() for parameter in trunk.exit.parameters()]
            errors = {}
            for share in SHARES:
                _scale(trunk, learned, share)
                errors[share] = sum(self._ergas(rho)[row] for rho in self.watched.values())
            _scale(trunk, learned, min(errors, key=lambda share: errors[share]))

    def _ergas(self, rho: dict[int, NDArray[np.float32]]) -> list[float]:
        """Return ERGAS of 20 m x2 and NIR x4 on one place."""
        return [row.ergas["lite"] for row in lite_wald.measure(self.network, rho, sixty=False)]

    @torch.no_grad()
    def validate(self, stage: Stage) -> Measured:
        """Return ERGAS of 20 m x2 and NIR x4 with ATPRK-like for comparison, on watched, then on held-out places."""
        parts, values = [], dict[str, float]()
        for name, rho in self.judged.items():
            rows = lite_wald.measure(self.network, rho, sixty=False)
            scores = (f"{row.task} {row.ergas['lite']:.3f} ({row.ergas['ATPRK-like']:.3f})" for row in rows)
            place = name.split("/")[-1]
            parts.append(f"{place}: " + ", ".join(scores))
            values |= {f"ergas {row.task} {place}": row.ergas["lite"] for row in rows}
        return Measured("ERGAS lite (ATPRK-like) " + "; ".join(parts), values)

    @torch.no_grad()
    def samples(self, stage: Stage) -> list[dict[str, Tensor]]:
        """Return guide, input, ours and truth of watched places in false colour: 20 m x8, or x2 of small scenes."""
        rows = []
        for view in self.views:
            scene = view.scene.cut(2)
            if scene is not None:
                task = next(lite_wald.eight(self.network, scene), None) or lite_wald.twenty(self.network, scene)
                rows.append(picture_fusion.samples(task, view.part, lite_wald.LEARNED))
        return rows

    def describe(self) -> dict[str, Any]:
        """Return the provenance of the data."""
        return {**self.data.describe(TASK.use), "protocol": "Wald"}

    def bundle(self, provenance: dict[str, Any] | None = None, licence: str = "") -> Bundle:
        """Return the bundle of the current network."""
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


def tiles_to_train_on(data: TrainingData) -> list[Tile]:
    """Return the tiles of the training split. Raises UsageError if there is none."""
    tiles = data.tiles("train")
    if not tiles:
        raise UsageError(
            f"{data.file.path}: no Sentinel-2 scene to train on",
            f'a source of role "sentinel2" with RGB and bands of 20 m, {CROP_60M * 60} m a side or more, not held out',
        )
    return tiles


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


def disturbed(rgb: Tensor, draw: Draw) -> Tensor:
    """Perturb the guide as a super-resolver might: slightly blurred or sharpened, noisy and changed in level."""
    soft = degrade(rgb, Degradation(sigma_px=float(draw.rng.uniform(0.5, 1.2)), noise=0.0, scale=1))
    strength = float(draw.rng.uniform(-0.4, 1.0))  # 1: blurred, 0: unchanged, negative: sharpened
    noise = float(draw.rng.uniform(0, 0.004)) * torch.randn(rgb.shape, generator=draw.torch)
    level = 1 + 0.02 * torch.randn((len(rgb), 3, 1, 1), generator=draw.torch)
    return level * (rgb + strength * (soft - rgb)) + noise


TASK = TaskSpec(
    name=SYSTEM,
    summary="our small fusion of all other bands, guided by RGB",
    kind=SYSTEM,
    presets=(
        Preset(
            name="lite-fusion",
            task=SYSTEM,
            architecture={"sharpen_width": 48, "sharpen_blocks": 5, "detail_width": 64, "detail_blocks": 5},
            stages=(Stage("wald", 1.0, (), 3e-4),),
            minutes=10,
            batch=8,
        ),
    ),
    build=Fusion,
    use="fusion",
    judge=lite_wald.JUDGE,
)
