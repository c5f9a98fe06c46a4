"""Wald's protocol for the lite fusion: both of its stages, at scales with known truth."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from pipeline.models.lite_fusion import BANDS_20M, BANDS_60M, OUT_BANDS, LiteFusion
from training import placement
from training.quality import baselines, wald
from training.quality.wald import EIGHT, LEAST_COARSE, Judge, Row, Scene, Task, eighths, named, of_eight, wald_coarser

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from pipeline.models.lite_fusion import FusionNetwork
    from training.quality.wald import Loaded

LEARNED = "lite"
LEARNED_KEPT = "lite, block means kept between its stages"


def measure(
    network: FusionNetwork,
    rho: Mapping[int, NDArray[np.float32]],
    *,
    sixty: bool = True,
    present: tuple[str, ...] = OUT_BANDS,
) -> list[Row]:
    """Score `baselines.SHARPENERS`, local regression alone and `network` on every task that the scene allows.

    `sixty=False` limits the tasks to 20 m x2 and NIR x4.
    """
    scene = Scene({gsd: torch.from_numpy(values.copy()) for gsd, values in rho.items()}, present).cut(2)
    return [] if scene is None else [_row(task, network) for task in tasks(network, scene, sixty)]


def _rows(fuser: Loaded, rho: Mapping[int, NDArray[np.float32]], present: tuple[str, ...]) -> list[Row]:
    assert isinstance(fuser, LiteFusion)  # `JUDGE` loads this type
    return measure(fuser.network, rho, present=present)


def _row(task: Task, network: FusionNetwork) -> Row:
    """Score all methods on one task, with the local regression on which the network builds."""
    given = (task.coarse[None], task.guides[None], task.scale)
    regression = placement.run(placement.device_of(network), network.regression, *given)[0]
    start = baselines.bicubic(task.coarse[None], task.scale)[0] + regression
    return wald.row_of(task, {"local regression": start})


def tasks(network: FusionNetwork, scene: Scene, every: bool = True) -> Iterator[Task]:
    """Yield the tasks in the order of the table."""
    if scene.held(BANDS_20M):
        yield twenty(network, scene)
        if every:
            yield twenty(network, scene, blur=False)
            yield from eight(network, scene)
    if every and scene.held(BANDS_60M):
        yield from sixty_m(network, scene)
    if "B08" in scene.present:
        yield nir(network, scene)


def twenty(network: FusionNetwork, scene: Scene, blur: bool = True) -> Task:
    """Return the task 20 m x2: bands at 40 m sharpened by four guides at 20 m, against the measured 20 m."""
    coarse, held = scene.coarser(2, blur), scene.held(BANDS_20M)
    out = _sharpen(network, scene, coarse)[: len(BANDS_20M)]
    name = "20 m x2" if blur else "20 m x2, block means only"
    learned = {LEARNED: out[held]}
    return Task(name, 2, coarse[20][held], coarse[10], scene.rho[20][held], learned, named(BANDS_20M, held))


def eight(network: FusionNetwork, scene: Scene) -> Iterator[Task]:
    """Yield the task 20 m x8: bands at 160 m sharpened by RGB at 20 m, as DiffFuSR's 20 m -> 2.5 m.

    As in the pipeline, the network applies `sharpen` x2 with the four bands at 80 m as guides, then `detail` x4 with
    RGB. It is scored a second time with the block means restored between the two stages. Other methods do not use the
    bands at 80 m.
    """
    for part in eighths(scene):
        coarse, guides = part.coarser(EIGHT), wald_coarser(part.rho[10][:3], 2)
        at80 = _sharpen(network, part, coarse)
        kept = torch.cat([wald.project(at80[: len(BANDS_20M)], coarse[20], 2), at80[len(BANDS_20M) :]])
        learned = {
            name: _detail(network, part, guides, torch.cat([coarse[10][3:], sharp]))[1:]
            for name, sharp in ((LEARNED, at80), (LEARNED_KEPT, kept))
        }
        held = part.held(BANDS_20M)
        yield of_eight(part, coarse, guides, {name: out[held] for name, out in learned.items()})


def sixty_m(network: FusionNetwork, scene: Scene) -> Iterator[Task]:
    """Yield the task 60 m x6: bands at 360 m sharpened by four guides at 60 m, against the measured 60 m."""
    side = min(scene.rho[60].shape[1:]) // 6 * 6
    if side < 6 * LEAST_COARSE:
        return
    cut = {gsd: values[:, : side * 60 // gsd, : side * 60 // gsd] for gsd, values in scene.rho.items()}
    part = Scene(cut, scene.present)
    coarse, held = part.coarser(6), scene.held(BANDS_60M)
    out = _sharpen(network, scene, coarse)[len(BANDS_20M) :]
    learned = {LEARNED: out[held]}
    yield Task("60 m x6", 6, coarse[60][held], coarse[10], part.rho[60][held], learned, named(BANDS_60M, held))


def nir(network: FusionNetwork, scene: Scene) -> Task:
    """Return the task NIR x4: B08 at 40 m sharpened by RGB at 10 m, against the measured 10 m."""
    coarse = wald_coarser(scene.rho[10][3:], 4)
    at40 = torch.cat([coarse, wald_coarser(scene.rho[20], 2), wald.resampled(scene.rho[60][None], coarse)[0]])
    out = _detail(network, scene, scene.rho[10][:3], at40)[:1]
    return Task("NIR x4", 4, coarse, scene.rho[10][:3], scene.rho[10][3:], {LEARNED: out}, ("B08",))


def _sharpen(network: FusionNetwork, scene: Scene, coarse: Mapping[int, Tensor]) -> Tensor:
    given = (coarse[10][None], coarse[20][None], coarse[60][None], scene.mask[:, 1:])
    return placement.run(placement.device_of(network), network.sharpen, *given)[0]


def _detail(network: FusionNetwork, scene: Scene, rgb: Tensor, bands: Tensor) -> Tensor:
    return placement.run(placement.device_of(network), network.detail, rgb[None], bands[None], scene.mask)[0]


JUDGE = Judge(LiteFusion.from_bundle, _rows)
