"""One model window: native bands in, all bands at 2.5 m out, as one system sees it.

In: native rasters of one lattice window, filled. Out: reflectance (bands, T, T). Imports bands and models; no I/O.

Order: the network super-resolves RGB; RGB is made consistent with the 10 m input, since it guides the rest; the fusion
network predicts the other bands; every band is made consistent with its native raster; where no detail may be
generated, interpolation takes over.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.bands import BY_NAME, RGB, TARGET_GSD_M
from pipeline.errors import PipelineError
from pipeline.superres.consistency import approach, bicubic_up
from pipeline.superres.systems import FUSION_INPUTS, Regressor

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from pipeline.models.bundle import NoiseSource
    from pipeline.superres.systems import SceneState, System

CONTEXT_PX = 48  # two pixels of 60 m: the reach of bicubic interpolation on the coarsest native grid


@dataclass(frozen=True)
class WindowInput:
    """One lattice window on the native grids: filled reflectance by GSD, and how much detail may be generated.

    `rho` reaches CONTEXT_PX further than the window on every side, so that interpolation sees real neighbours at the
    window's edge; networks get the window alone.
    """

    rho: dict[int, NDArray[np.float32]]  # GSD in metres -> (band, (T + 2 * CONTEXT_PX)/k, ...)
    bands: dict[int, tuple[str, ...]]
    valid10: NDArray[np.bool_]  # (T/4, T/4): all RGB bands measured
    weight10: NDArray[np.float32] | None  # (T/4, T/4) of generated detail; None is 1 everywhere


def factor_of(band: str) -> int:
    """Output pixels per native pixel of `band`, along one axis: 4, 8 or 24."""
    return round(BY_NAME[band].gsd_m / TARGET_GSD_M)


def _with_context(window: WindowInput, system: System) -> dict[str, Tensor]:
    """Native raster (1, 1, h, w) of every band with its context, on the system's device."""
    import torch

    tensors = {gsd: torch.from_numpy(rho)[:, None, None].to(system.device) for gsd, rho in window.rho.items()}
    return {name: tensors[gsd][i] for gsd, names in window.bands.items() for i, name in enumerate(names)}


def _crop(image: Tensor, px: int) -> Tensor:
    return image[..., px:-px, px:-px]


def _natives(window: WindowInput, system: System) -> dict[str, Tensor]:
    """Native raster (1, 1, T/k, T/k) of every band over the window alone."""
    return {name: _crop(image, CONTEXT_PX // factor_of(name)) for name, image in _with_context(window, system).items()}


def interpolated(window: WindowInput, system: System, order: tuple[str, ...], consistency: str) -> dict[str, Tensor]:
    """The bands of `order` by bicubic interpolation made consistent: (1, 1, T, T) each."""
    images, natives = {}, _with_context(window, system)
    for name in order:
        native, factor = natives[name], factor_of(name)
        up = approach(bicubic_up(native, factor), native, factor, consistency)
        images[name] = _crop(up, CONTEXT_PX)
    return images


def generated(
    window: WindowInput,
    system: System,
    order: tuple[str, ...],
    noise: NoiseSource | None,
    state: SceneState | None,
    consistency: str,
) -> dict[str, Tensor]:
    """The bands of `order` by the system's networks, made consistent: (1, 1, T, T) each.

    A draw that follows from `noise`, or the conditional mean where that is None. The networks see every band of
    `window`, whichever are asked for.
    """
    import torch

    if system.resolver is None or system.fuser is None:
        return interpolated(window, system, order, consistency)
    natives = _natives(window, system)
    lr = torch.cat([natives[name] for name in system.resolver.in_bands], 1)
    if noise is None:
        if not isinstance(system.resolver, Regressor):
            raise PipelineError(f"{system.name} gives no mean without draws", "members of 1 or more")
        sr = system.resolver.mean(lr)
    else:
        valid = torch.from_numpy(window.valid10)[None, None].to(system.device)
        sr = system.resolver.predict(lr, {}, valid, noise, state)
    guide = approach(sr, lr, 4, consistency, "network")
    images = {name: guide[:, i : i + 1] for i, name in enumerate(system.resolver.out_bands)}
    rgb = torch.cat([images[name] for name in RGB], 1)
    others = [name for name in system.fuser.out_bands if name in order and name not in images]
    if others:
        fused = system.fuser.predict(rgb, _fusion_inputs(natives, lr), tuple(natives))
        for name in others:
            i, factor = system.fuser.out_bands.index(name), factor_of(name)
            images[name] = approach(fused[:, i : i + 1], natives[name], factor, consistency)
    return {name: images[name] for name in order}


def _fusion_inputs(natives: dict[str, Tensor], lr: Tensor) -> dict[int, Tensor]:
    """Channels in the order of FUSION_INPUTS; bands that the product lacks are zeros."""
    import torch

    inputs = {}
    for gsd, names in FUSION_INPUTS.items():
        ny, nx = lr.shape[-2] * 10 // gsd, lr.shape[-1] * 10 // gsd
        absent = torch.zeros((1, 1, ny, nx), device=lr.device)
        inputs[gsd] = torch.cat([natives.get(name, absent) for name in names], 1)
    return inputs


def window_bands(
    window: WindowInput,
    system: System,
    order: tuple[str, ...],
    noise_of: Callable[[int], NoiseSource],
    state: SceneState | None,
    consistency: str,
    members: int,
) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
    """Mean over `members` draws of all bands in `order`, (bands, T, T) reflectance, and their spread (or None).

    Without members: the conditional mean as the system gives it.

    The spread is the standard deviation of one member, as `Ensemble` estimates it; None with fewer than two.
    """
    import torch

    from pipeline.superres.members import Ensemble

    with torch.inference_mode():
        plain = interpolated(window, system, order, consistency) if _needs_plain(window, system) else None
        ensemble = Ensemble()
        draws = range(members) if members and system.resolver is not None else (None,)
        for member in draws:
            noise = None if member is None else noise_of(member)
            images = generated(window, system, order, noise, state, consistency)
            if plain is not None and window.weight10 is not None:
                images = _mix(images, plain, window.weight10)
            ensemble.add(torch.cat([images[name] for name in order], 1)[0])
        spread = ensemble.spread
        return ensemble.mean.cpu().numpy(), None if spread is None else spread.cpu().numpy()


def _needs_plain(window: WindowInput, system: System) -> bool:
    return system.resolver is not None and window.weight10 is not None


def _mix(images: dict[str, Tensor], plain: dict[str, Tensor], weight10: NDArray[np.float32]) -> dict[str, Tensor]:
    weight = detail_at_2p5m(weight10, images[next(iter(images))])
    return {name: plain[name] + weight * (images[name] - plain[name]) for name in images}


def detail_at_2p5m(weight10: NDArray[np.float32], like: Tensor) -> Tensor:
    """Weight of generated detail interpolated to (1, 1, T, T); 0 and 1 stay exactly 0 and 1 in their interior."""
    import torch
    from torch.nn import functional

    weight = torch.from_numpy(weight10)[None, None].to(like.device)
    return functional.interpolate(weight, scale_factor=4, mode="bilinear", align_corners=False)
