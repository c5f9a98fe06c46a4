"""Interface of a super-resolver for evaluation: whole images of any size, without the window lattice."""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from pipeline.bands import SCALE_10M, TARGET_GSD_M
from pipeline.errors import UsageError
from pipeline.superres.registry import known
from pipeline.superres.spec import MEASURED, StageInput

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from pipeline.superres.spec import Input, NoiseSource, SceneState, Stage
    from pipeline.superres.system import System

NATIVE_GSD_M = 10.0  # of the evaluated images
STEPS_PER_STAGE = 10_000  # more than any sampler asks for, so that stages of a chain draw different noise


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


def resolving_stages(system: System) -> tuple[Stage, ...]:
    """Return the stages, each after the one that it reads, that bring measured bands of 10 m to 2.5 m or finer.

    They read nothing else that is needed, and give the bands that they read. Raises UsageError if there are none.
    """
    if not system.stages:
        raise UsageError(f"{system.name} has no network", "a system with weights")
    spared = _spared(system)
    for first in system.stages:
        read = _only_input(first, spared)
        if read is None or read.gsd_m != NATIVE_GSD_M or read.source != MEASURED:
            continue
        chain = _continued((first,), system.stages, spared)
        if chain[-1].gsd_m <= TARGET_GSD_M and all(set(read.bands) <= set(stage.gives) for stage in chain):
            return chain
    first = system.stages[0]
    needed = "; ".join(f"{', '.join(given.bands)} at {given.gsd_m:g} m" for given in first.reads)
    raise UsageError(
        f"{system.name} reads {needed}, and gives {', '.join(first.gives)} at {first.gsd_m:g} m",
        f"stages that bring bands of {NATIVE_GSD_M:g} m, and nothing else, to {TARGET_GSD_M:g} m",
        "judge it on native scenes: --only scenes",
    )


def _spared(system: System) -> set[str]:
    """Return the sources of the conditions that a system may do without."""
    spec = known().get(system.name)
    return set() if spec is None else {one.source for one in spec.conditions if not one.required}


def _only_input(stage: Stage, spared: set[str]) -> Input | None:
    """Return what a stage reads beside spared conditions, or None if that is several inputs."""
    needed = [given for given in stage.reads if given.source not in spared]
    return needed[0] if len(needed) == 1 else None


def _continued(chain: tuple[Stage, ...], stages: tuple[Stage, ...], spared: set[str]) -> tuple[Stage, ...]:
    """Return the chain with the stages that read its last one alone, until 2.5 m."""
    for stage in stages:
        read = _only_input(stage, spared)
        if chain[-1].gsd_m > TARGET_GSD_M and read is not None and read.source == chain[-1].name:
            chain = (*chain, stage)
    return chain


def bands_of(system: System) -> tuple[str, ...]:
    """Return the input bands of its `resolving_stages`, in channel order."""
    return _read(system, resolving_stages(system)[0]).bands


def scale_of(system: System) -> int:
    """Return the scale of its `resolving_stages`: that of their weights; x4, from 10 to 2.5 m, without weights."""
    chain = resolving_stages(system)
    if not all(stage.weights in system.bundles for stage in chain):
        return SCALE_10M
    return math.prod(system.bundles[stage.weights].scale for stage in chain)


def of_system(system: System, scale: int = 4) -> Sampler:
    """Return the sampler of a system's `resolving_stages`, as block means at `scale`. Raises UsageError without any.

    The noise of a sample has that scale.
    """
    chain, predictor = resolving_stages(system), system.predictor
    assert predictor is not None  # a system with stages has one
    bands, factor = bands_of(system), round(NATIVE_GSD_M / chain[-1].gsd_m)

    def predict(lr: Tensor, noise: Tensor | None, state: SceneState | None) -> Tensor:
        found, valid = lr, torch.ones_like(lr[:, :1], dtype=torch.bool)
        for number, stage in enumerate(chain):
            read = _read(system, stage)
            order = bands if number == 0 else chain[number - 1].gives
            image = found if order == read.bands else found[:, [order.index(band) for band in read.bands]]
            keyed = None if noise is None else keyed_noise(noise, number, image, round(read.gsd_m / stage.gsd_m))
            given = StageInput({read.name: image}, frozenset(bands), valid, keyed, state, system.options)
            found = predictor.predict(stage, given)
        last = chain[-1].gives
        found = found if last == bands else found[:, [last.index(band) for band in bands]]
        return found if scale == factor else functional.avg_pool2d(found, factor // scale)

    def scene_state(windows: Tensor) -> SceneState:
        states = [predictor.scene_state(stage, windows) for stage in chain if stage.scene_state]
        return {key: value for state in states for key, value in state.items()}

    return Sampler(
        predict,
        (lambda lr: predict(lr, None, None)) if all(one.regresses or not one.stochastic for one in chain) else None,
        scene_state if any(stage.scene_state for stage in chain) else None,
        math.lcm(*(_multiple_px(stage) for stage in chain)),
    )


def _read(system: System, stage: Stage) -> Input:
    """Return what a stage of `resolving_stages` reads."""
    read = _only_input(stage, _spared(system))
    assert read is not None
    return read


def _multiple_px(stage: Stage) -> int:
    """Return of what the sides of an image of 10 m have to be multiples."""
    factor = round(NATIVE_GSD_M / stage.gsd_m)
    return -(-stage.multiple_px // factor)


def keyed_noise(noise: Tensor, number: int, image: Tensor, factor: int) -> NoiseSource:
    """Return the noise of one stage, by number, that makes `factor` times the size of an image (b, bands, h, w).

    `noise` (b, ...) is standard normal noise, which determines all of it.
    """

    def keyed(step: int, channels: int, coarser: int = 1) -> Tensor:
        shape = (len(noise), channels, *(side * factor // coarser for side in image.shape[-2:]))
        of_chain = number * STEPS_PER_STAGE + step
        return noise if of_chain == 0 and shape == noise.shape else further_noise(noise, of_chain, shape)

    return keyed


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
