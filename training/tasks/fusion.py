"""Training task of the lite fusion: Wald's protocol on Sentinel-2, for both stages at once.

Tiles are degraded by a factor, so that their measured bands are the truth for the networks' output (Wald 1997).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

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
)
from training.loop.task import Measured
from training.presets import Preset, Stage
from training.quality import picture_fusion, wald
from training.task_spec import TaskSpec
from training.tasks import lite_wald
from training.tasks.fusion_tiles import SENSOR_SIGMA, coarser, disturbed, keep_best_share, relative_loss
from training.tasks.tile_task import TileTask

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from training.data.sources import TrainingData
    from training.loop.run import Draw

SHARPEN_FACTOR = 2  # 10 -> 20, 20 -> 40, 60 -> 120 m


class Fusion(TileTask[FusionNetwork]):
    """Task of the lite fusion."""

    def __init__(self, preset: Preset, data: TrainingData) -> None:
        super().__init__(preset, data, FusionNetwork(**preset.architecture))

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
            keep_best_share(trunk.exit, partial(self._watched_ergas, row))

    def _watched_ergas(self, row: int) -> float:
        """Return the sum of ERGAS over the watched places, of 20 m x2 (0) or NIR x4 (1)."""
        return sum(self._ergas(rho)[row] for rho in self.watched.values())

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
