"""Interface of a super-resolver for evaluation: whole images of any size, without the window lattice."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from pipeline.bands import TARGET_GSD_M
from pipeline.errors import UsageError
from pipeline.superres.spec import MEASURED, StageInput

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from pipeline.superres.spec import NoiseSource, SceneState, Stage
    from pipeline.superres.system import System

NATIVE_GSD_M = 10.0  # of the evaluated images


@dataclass(frozen=True)
class Sampler:
    """Super-resolver of reflectance (b, bands, h, w) at 10 m to (b, bands, scale*h, scale*w).

    `sample` takes standard normal noise of the output's shape and the scene state. `mean` gives the conditional mean
    without noise. `scene_state` computes a state from windows (K, bands, 64, 64). The last two are None if a system
    has none. Input sides must be multiples of `multiple_px`.
    """

    sample: Callable[[Tensor, Tensor, SceneState | None], Tensor]
    mean: Callable[[Tensor], Tensor] | None = None
    scene_state: Callable[[Tensor], SceneState] | None = None
    multiple_px: int = 1


def resolving_stage(system: System) -> Stage:
    """Return the stage that takes only measured 10 m bands to 2.5 m or finer. Raises UsageError if there is none."""
    if not system.stages:
        raise UsageError(f"{system.name} has no network", "a system with weights")
    for stage in system.stages:
        read, alone = stage.reads[0], len(stage.reads) == 1
        scales = read.gsd_m == NATIVE_GSD_M and stage.gsd_m <= TARGET_GSD_M
        if alone and scales and read.source == MEASURED and set(read.bands) <= set(stage.gives):
            return stage
    first = system.stages[0]
    needed = "; ".join(f"{', '.join(given.bands)} at {given.gsd_m:g} m" for given in first.reads)
    raise UsageError(
        f"{system.name} reads {needed}, and gives {', '.join(first.gives)} at {first.gsd_m:g} m",
        f"a stage that brings bands of {NATIVE_GSD_M:g} m, and nothing else, to {TARGET_GSD_M:g} m",
        "judge it on native scenes: --only scenes",
    )


def bands_of(system: System) -> tuple[str, ...]:
    """Return the input bands of its `resolving_stage`, in channel order."""
    return resolving_stage(system).reads[0].bands


def of_system(system: System, scale: int = 4) -> Sampler:
    """Return the sampler of a system's `resolving_stage`, as block means at `scale`. Raises UsageError if it has none.

    The noise of a sample has that scale.
    """
    stage, predictor = resolving_stage(system), system.predictor
    assert predictor is not None  # a system with stages has one
    bands, factor = stage.reads[0].bands, round(stage.reads[0].gsd_m / stage.gsd_m)
    places = [stage.gives.index(band) for band in bands]

    def predict(lr: Tensor, noise: NoiseSource | None, state: SceneState | None) -> Tensor:
        valid = torch.ones_like(lr[:, :1], dtype=torch.bool)
        given = StageInput({stage.reads[0].name: lr}, frozenset(bands), valid, noise, state)
        found = predictor.predict(stage, given)
        found = found if stage.gives == bands else found[:, places]
        return found if scale == factor else functional.avg_pool2d(found, factor // scale)

    def sample(lr: Tensor, noise: Tensor, state: SceneState | None) -> Tensor:
        def keyed(step: int, channels: int, coarser: int = 1) -> Tensor:
            shape = (len(noise), channels, *(side * factor // coarser for side in lr.shape[-2:]))
            return noise if step == 0 and shape == noise.shape else further_noise(noise, step, shape)

        return predict(lr, keyed, state)

    return Sampler(
        sample,
        (lambda lr: predict(lr, None, None)) if stage.regresses or not stage.stochastic else None,
        (lambda windows: predictor.scene_state(stage, windows)) if stage.scene_state else None,
        -(-stage.multiple_px // factor),
    )


def further_noise(noise: Tensor, step: int, shape: tuple[int, ...]) -> Tensor:
    """Return standard normal noise of another shape and step, determined by `noise` (b, ...) per image.

    Negated noise gives negated noise, so that members stay antithetic.
    """
    made = []
    for one in noise.cpu():
        sign = -1.0 if float(one.flatten()[0]) < 0 else 1.0
        seed = zlib.crc32(f"{step} {shape[1:]}".encode(), zlib.crc32((sign * one).contiguous().numpy().tobytes()))
        made.append(sign * torch.randn(shape[1:], generator=torch.Generator().manual_seed(seed)))
    return torch.stack(made).to(noise.device)
