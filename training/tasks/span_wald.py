"""Wald's protocol for Fusion X2 and X4, alone and one after the other, at scales with known truth."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING

import torch

from pipeline.models.bundle import load_bundle
from pipeline.models.ldsr import LDSR, SYSTEM
from pipeline.models.lite_fusion import BANDS_20M, LiteFusion
from pipeline.models.span_fusion import X2, X4, SpanFusion, chained
from pipeline.superres.systems import guided_fusion
from pipeline.superres.weights import SHIPPED
from training import placement
from training.quality import wald
from training.quality.wald import EIGHT, Judge, Row, Scene, Task, eighths, named, wald_coarser

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from pipeline.models.bundle import Bundle
    from training.quality.wald import Loaded

LABELS = {X2: "Fusion X2", X4: "Fusion X4"}
CHAIN = "Fusion X2, X4"
SIX = "latent diffusion, Fusion X2"
PIPELINE = "pipeline's fusion, RGB alone"
LEAST_60M = {X2: 2, X4: 4}  # sides of scenes are multiples of it, so that degraded pixels are whole


@dataclass(frozen=True)
class Judged:
    """One fusion, and the other of the pair if it is evaluated with it."""

    bundle: Bundle
    fusion: SpanFusion
    other: SpanFusion | None = None
    six: LDSR | None = None  # latent diffusion of the six bands


def load(bundle: Bundle, others: Sequence[Bundle] = ()) -> Judged:
    """Load a fusion; X4 with the first X2 among `others`, to judge both in turn. Raises BundleError on a misfit."""
    before = [other for other in others if other.system == X2] if bundle.system == X4 else []
    other = SpanFusion.from_bundle(before[0]) if before else None
    latent = [one for one in others if one.system == SYSTEM and one.out_bands == BANDS_20M]
    return Judged(bundle, SpanFusion.from_bundle(bundle), other, LDSR.from_bundle(latent[0]) if latent else None)


def _rows(judged: Loaded, rho: Mapping[int, NDArray[np.float32]], present: tuple[str, ...]) -> list[Row]:
    assert isinstance(judged, Judged)  # `JUDGE` loads this type
    scene = Scene({gsd: torch.from_numpy(values.copy()) for gsd, values in rho.items()}, present)
    found = [row for task in tasks(judged.fusion, scene) for row in wald.rows_by_band(task)]
    if judged.other is not None:
        found += [
            row for task in eight(judged.other, judged.fusion, scene, judged.six) for row in wald.rows_by_band(task)
        ]
    return found


def tasks(fusion: SpanFusion, scene: Scene, every: bool = True) -> Iterator[Task]:
    """Yield the tasks of one fusion that a scene allows; only the first unless `every`."""
    part = scene.cut(LEAST_60M[fusion.bundle.system])
    if part is None or not part.held(BANDS_20M):
        return
    yield task_of(fusion, part)
    if every:
        yield task_of(fusion, part, blur=False)


def task_of(fusion: SpanFusion, scene: Scene, blur: bool = True) -> Task:
    """Return 20 m x2 or x4: bands degraded to 40 or 80 m, the four 10 m bands at 20 m as guides, measured 20 m."""
    scale, held = fusion.scale, scene.held(BANDS_20M)
    coarse, guides = wald_coarser(scene.rho[20], scale, blur), wald_coarser(scene.rho[10], 2, blur)
    out = placement.run(placement.device_of(fusion.network), fusion.predict, coarse[None], guides[None])[0]
    learned = {LABELS[fusion.bundle.system]: out[held]}
    name = f"20 m x{scale}" + ("" if blur else ", block means only")
    return Task(name, scale, coarse[held], guides, scene.rho[20][held], learned, named(BANDS_20M, held))


def eight(x2: SpanFusion, x4: SpanFusion, scene: Scene, six: LDSR | None = None) -> Iterator[Task]:
    """Yield 20 m x8, as from 20 m to 2.5 m: X2 guided by four bands at 80 m, then X4 by four at 20 m.

    Beside them stands the pipeline's own fusion (shipped weights), which reads the same bands but is guided by RGB
    alone at 20 m; and, given latent diffusion of the six bands, its mean to 40 m and X2. Other methods have all four
    guides at 20 m. Yields nothing if the scene is too small.
    """
    for part in eighths(scene):
        held, coarse = part.held(BANDS_20M), part.coarser(EIGHT)
        guides = wald_coarser(part.rho[10], 2)
        run = partial(placement.run, placement.device_of(x4.network), partial(chained, x2, x4))
        found = {CHAIN: run(coarse[20][None], coarse[10][None], guides[None])[0]}
        if six is not None:
            half = placement.run(placement.device_of(six.network), six.mean, coarse[20][None])
            found[SIX] = placement.run(placement.device_of(x2.network), x2.predict, half, guides[None])[0]
        (own,) = wald.eight_by_predict(_shipped(), scene, PIPELINE)
        learned = {**{name: out[held] for name, out in found.items()}, **own.learned}
        truth = part.rho[20][held]
        yield Task("20 m x8", EIGHT, coarse[20][held], guides, truth, learned, named(BANDS_20M, held))


@lru_cache(maxsize=1)
def _shipped() -> LiteFusion:
    """Return the fusion that comes with the project."""
    return LiteFusion.from_bundle(load_bundle(SHIPPED / guided_fusion.SHIPPED.shipped))


JUDGE = Judge(load, _rows, load)
