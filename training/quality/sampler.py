"""A super-resolver on whole images: its networks alone, without the pipeline's windows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from pipeline.bands import RGB
from pipeline.errors import UsageError
from pipeline.superres.spec import StageInput

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from pipeline.superres.spec import NoiseSource, SceneState, Stage
    from pipeline.superres.system import System


@dataclass(frozen=True)
class Sampler:
    """RGB (b, 3, h, w) at 10 m -> (b, 3, 4h, 4w), reflectance.

    `sample` takes standard normal noise of the output's shape and the state of the scene. `mean` is the conditional
    mean without draws, `scene_state` makes a state of windows (K, 3, 64, 64); None where a system has none. Sides of
    the input are multiples of `multiple_px`.
    """

    sample: Callable[[Tensor, Tensor, SceneState | None], Tensor]
    mean: Callable[[Tensor], Tensor] | None = None
    scene_state: Callable[[Tensor], SceneState] | None = None
    multiple_px: int = 1


def resolving_stage(system: System) -> Stage:
    """The stage that brings RGB from 10 m to its output. UsageError for systems without one, or that read more."""
    for stage in system.stages:
        if not stage.follows and set(RGB) <= {*stage.gives}:
            if stage.measured != RGB or len(stage.reads) > 1:
                lacking = ", ".join(band for band in stage.measured if band not in RGB)
                raise UsageError(
                    f"{system.name} reads {lacking}, which images of three colours lack", "a system that reads RGB"
                )
            return stage
    raise UsageError(f"{system.name} has no network for RGB", "a system with weights")


def of_system(system: System) -> Sampler:
    """The networks of a system's first stage. UsageError as for `resolving_stage`."""
    stage, predictor = resolving_stage(system), system.predictor
    assert predictor is not None  # a system with stages has one

    def predict(lr: Tensor, noise: NoiseSource | None, state: SceneState | None) -> Tensor:
        valid = torch.ones_like(lr[:, :1], dtype=torch.bool)
        return predictor.predict(stage, StageInput({stage.reads[0].name: lr}, frozenset(RGB), valid, noise, state))

    def sample(lr: Tensor, noise: Tensor, state: SceneState | None) -> Tensor:
        return predict(lr, lambda step, channels, coarser=1: noise, state)

    factor = round(stage.reads[0].gsd_m / stage.gsd_m)
    return Sampler(
        sample,
        (lambda lr: predict(lr, None, None)) if stage.regresses or not stage.stochastic else None,
        (lambda windows: predictor.scene_state(stage, windows)) if stage.scene_state else None,
        -(-stage.multiple_px // factor),
    )
