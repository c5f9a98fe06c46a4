"""A piece of ground: run every lattice window that touches it, blend, project, quantise.

In: native DN over `read_window`, the output window, a loaded system. Out: DN at 2.5 m with quality and spread.
Imports grid, bands, models; no I/O, no dask. Nothing here depends on how the ground was cut into pieces: windows are
absolute, whole and independent, noise is keyed by position, and blending sums them in ascending order.
"""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from pipeline.bands import (
    BLOCK_60M,
    BY_NAME,
    DN_OFFSET,
    DN_SCALE,
    NODATA_DN,
    NODATA_SPREAD,
    RGB,
    SCALE_10M,
)
from pipeline.errors import PipelineError
from pipeline.grid.grid import align_up
from pipeline.grid.noise import normal_field
from pipeline.grid.sensor import Sensor, sensor
from pipeline.superres import fuse, masks
from pipeline.superres.consistency import project_to_dn, round_to_dn
from pipeline.superres.contract import agreeing, reach_px

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from pipeline.grid.grid import Window
    from pipeline.grid.lattice import Lattice
    from pipeline.grid.native_rasters import NativeRasters
    from pipeline.models.bundle import NoiseSource
    from pipeline.superres.systems import SceneState, System


T = TypeVar("T")


@dataclass(frozen=True)
class Options:
    """What shapes the pixels besides scenes and weights."""

    seed: int = 0
    stream: int = 0  # tells UTM zones and time steps apart
    members: int = 0  # draws that are averaged; none: the system's regression gives the mean
    consistency: str = "sensor"
    mtf: tuple[tuple[str, float], ...] = ()  # by band, where not the published ones

    def sensor(self, name: str) -> Sensor | None:
        """How a band is measured, where the output has to agree with that; else None."""
        if self.consistency != "sensor":
            return None
        return sensor(self.mtf_of(name), fuse.factor_of(name))

    def mtf_of(self, name: str) -> float:
        """MTF of a band at the Nyquist frequency of its own grid."""
        return dict(self.mtf).get(name) or BY_NAME[name].product_mtf

    def reach_px(self, order: tuple[str, ...]) -> int:
        """How far around a piece of ground its bands have to be predicted, a multiple of 24 px."""
        reaches = [reach_px(of) for name in order if (of := self.sensor(name)) is not None]
        return align_up(max(reaches, default=0), BLOCK_60M)


@dataclass
class Result:
    """Output over one window: `dn` (bands, ny, nx), `quality` (ny, nx), `spread` in DN or None, seconds per stage.

    Nodata is 0 in `dn` and 65535 in `spread`. `causes` (ny, nx) index `masks.CAUSES`: what is nearest of that which
    withholds detail; None where none is withheld or none is generated at all.
    """

    dn: NDArray[np.uint16]
    quality: NDArray[np.uint8]
    spread: NDArray[np.uint16] | None
    causes: NDArray[np.uint8] | None = None
    windows: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))


def read_window(lattice: Lattice, window: Window, reach: int = 0) -> Window:
    """What has to be read to compute `window`, for which bands are predicted up to `reach` px around it.

    Every model window that touches those, with context for interpolation.
    """
    return lattice.read_window(window.pad(reach)).pad(fuse.CONTEXT_PX)


def _window_input(native: NativeRasters, window: Window, bright: float) -> fuse.WindowInput | None:
    """The native rasters of one lattice window, filled; None when nothing was measured in it."""
    around, dn = native.cut(window.pad(fuse.CONTEXT_PX)), native.cut(window)
    if not any((raster != NODATA_DN).any() for raster in dn.values()):
        return None
    rgb = _rgb_rows(native)
    scl = native.scl_over(window)
    shape10 = (window.ny // SCALE_10M, window.nx // SCALE_10M)
    valid10 = (dn[10][rgb] != NODATA_DN).all(0) if rgb else np.ones(shape10, bool)
    weight = masks.detail_weight(dn[10][rgb], scl, bright) if rgb else None
    filled = {gsd: masks.filled_reflectance(raster) for gsd, raster in around.items()}
    return fuse.WindowInput(filled, native.bands, valid10, weight)


def _rgb_rows(native: NativeRasters) -> list[int]:
    """Where RGB stands among the 10 m bands."""
    return [native.bands[10].index(name) for name in RGB if name in native.bands.get(10, ())]


def _nearest_cause(
    native: NativeRasters, window: Window, quality: NDArray[np.uint8], bright: float
) -> NDArray[np.uint8] | None:
    """`Result.causes` over `window`, looked for in all that was read."""
    if not ((quality == masks.QUALITY_MEASURED) | (quality == masks.QUALITY_PARTIAL)).any():
        return None
    nearest = masks.nearest_cause(native.dn[10][_rgb_rows(native)], native.scl, bright)
    rows, cols = window.coarsen(SCALE_10M).slices(native.window.coarsen(SCALE_10M))
    return nearest[rows, cols].repeat(SCALE_10M, 0).repeat(SCALE_10M, 1)


def _noise_of(window: Window, options: Options, system: System) -> Callable[[int], NoiseSource]:
    import torch

    def of_member(member: int) -> NoiseSource:
        def noise(step: int, channels: int) -> Tensor:
            values = normal_field(
                window, seed=options.seed, channels=channels, step=step, member=member, stream=options.stream
            )
            return torch.from_numpy(values)[None].to(system.device)

        return noise

    return of_member


def super_resolve(
    native: NativeRasters,
    window: Window,
    system: System,
    order: tuple[str, ...],
    options: Options,
    state_of: Callable[[Window], SceneState | None] = lambda _window: None,
    wanted: Sequence[Window] = (),
) -> Result:
    """All bands of `order` at 2.5 m over `window` (edges multiples of 24 px), from native DN over the lattice's reach.

    `native.window` must hold `read_window(system.lattice, window)`. `wanted`: the parts of `window` that are needed,
    all of it where empty; model windows that touch none of them are not computed, and pixels elsewhere mean nothing.
    """
    seconds: dict[str, float] = defaultdict(float)
    reach = options.reach_px(order)
    area = window.pad(reach)
    blended = np.zeros((len(order), *area.shape), np.float32)
    spread = np.zeros_like(blended) if options.members > 1 and system.resolver is not None else None
    detail = np.zeros(area.shape, np.float32)
    void: list[Window] = []  # where nothing was measured and nothing is predicted
    weight = system.lattice.weight()
    bright = masks.BRIGHT_REFLECTANCE
    if system.resolver is not None:
        bright = float(system.resolver.bundle.normalisation.get("bright_reflectance", bright))
    count = 0
    for cell, part in system.lattice.placements(window, wanted or [window], reach):
        lattice_window = system.lattice.window(*cell)
        started = time.perf_counter()
        given = _window_input(native, lattice_window, bright)
        if given is None:
            void.append(part)
            continue
        noise, state = _noise_of(lattice_window, options, system), state_of(lattice_window)
        draw = partial(fuse.window_bands, given, system, order, noise, state, options.consistency, options.members)
        bands, deviation = _within_memory(draw, system)
        seconds["superres"] += time.perf_counter() - started
        started = time.perf_counter()
        share = weight[part.slices(system.lattice.support(*cell))]
        into, of = part.slices(area), part.slices(lattice_window)
        blended[(slice(None), *into)] += share * bands[(slice(None), *of)]
        if spread is not None and deviation is not None:
            spread[(slice(None), *into)] += share * deviation[(slice(None), *of)]
        if system.resolver is not None:
            detail[into] += share * _detail(given, lattice_window)[of]
        seconds["blend"] += time.perf_counter() - started
        count += 1
    started = time.perf_counter()
    blended -= np.float32(DN_OFFSET)
    blended /= np.float32(DN_SCALE)
    sensors = [options.sensor(name) for name in order]
    images = agreeing(blended, area, window, sensors, lambda i, part: native.band(order[i], part), void)
    inside = (..., *window.slices(area))
    deviation = None if spread is None else spread[inside]
    result = _finish(native, window, order, options, images, deviation, detail[inside])
    if system.resolver is not None:
        result.causes = _nearest_cause(native, window, result.quality, bright)
    seconds["project"] += time.perf_counter() - started
    result.windows, result.seconds = count, seconds
    return result


def _within_memory(compute: Callable[[], T], system: System) -> T:
    """One window's result; where a GPU's memory runs out, once more with all that torch holds in reserve given back.

    Windows go through the networks one by one, so that there is no batch to halve: their pixels are the same whatever
    else is computed. PipelineError when one window does not fit.
    """
    import torch

    try:
        return compute()
    except torch.OutOfMemoryError:
        pass  # what its trace holds is let go first
    torch.cuda.empty_cache()
    try:
        return compute()
    except torch.OutOfMemoryError as error:
        side = system.lattice.window_px
        found = f"a window of {side} x {side} px of {system.name} does not fit into the memory of {system.device}"
        raise PipelineError(
            f"{found} ({str(error).partition('. ')[0]})",
            "free memory for one window",
            "end other processes on that GPU, use one worker per GPU, or another --sr",
        ) from None


def _detail(given: fuse.WindowInput, window: Window) -> NDArray[np.float32]:
    if given.weight10 is None:
        return np.ones(window.shape, np.float32)
    import torch

    return fuse.detail_at_2p5m(given.weight10, torch.zeros(1))[0, 0].numpy()


def _finish(
    native: NativeRasters,
    window: Window,
    order: tuple[str, ...],
    options: Options,
    blended: NDArray[np.float32],
    spread: NDArray[np.float32] | None,
    detail: NDArray[np.float32],
) -> Result:
    """Quantise each band, projected onto its native block means where that is asked for, and classify.

    PipelineError on values that are none.
    """
    broken = [name for name, image in zip(order, blended, strict=True) if not np.isfinite(image).all()]
    if broken:
        raise PipelineError(
            f"the networks gave NaN or infinity in {', '.join(broken)}",
            "finite reflectance",
            "check the weights and, on a GPU, its memory; --sr bicubic runs without networks",
        )
    to_dn = project_to_dn if options.consistency == "box" else round_to_dn
    dn = np.empty(blended.shape, np.uint16)
    for i, name in enumerate(order):
        dn[i] = to_dn(blended[i], native.band(name, window), fuse.factor_of(name))
    measured = [i for i, name in enumerate(order) if name in RGB] or list(range(len(order)))
    valid = (dn[measured] != NODATA_DN).all(0)
    quality, deviation = masks.quality(detail, valid), None
    if spread is not None:
        generated = (dn != NODATA_DN) & (quality != masks.QUALITY_MEASURED)
        deviation = np.where(generated, np.rint(spread / np.float32(DN_SCALE)), 0)
        deviation = np.minimum(deviation, NODATA_SPREAD - 1).astype(np.uint16)
        deviation[dn == NODATA_DN] = NODATA_SPREAD
    return Result(dn, quality, deviation)
