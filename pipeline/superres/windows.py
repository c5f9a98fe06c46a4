"""One model window: from rasters, maps and earlier stages to the bands that a group of stages gives."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, cast

from pipeline.bands import BY_NAME, NODATA_DN, TARGET_GSD_M
from pipeline.grid.arrays import blank, on_device, settled
from pipeline.grid.native_rasters import factor_at
from pipeline.grid.placed_rasters import PlacedRasters
from pipeline.superres import masks
from pipeline.superres.chain import at_gsd
from pipeline.superres.consistency import approach, bicubic_up, block_mean
from pipeline.superres.spec import StageInput

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor

    from pipeline.grid.arrays import Array
    from pipeline.grid.finished_rasters import FinishedRasters, Rasters
    from pipeline.grid.grid import Window
    from pipeline.grid.native_rasters import NativeRasters
    from pipeline.superres.batches import Steps
    from pipeline.superres.chain import Group, Output
    from pipeline.superres.passes import Pass
    from pipeline.superres.spec import Input, NoiseSource, SceneState, Stage
    from pipeline.superres.system import System

Made = dict[tuple[str, str], "Tensor"]  # (stage, band) -> (1, 1, T, T) reflectance
MASK_GSD_M = 10  # of the weight of generated detail, if derived from the native rasters
_MASK_NEST_M = 20  # masks begin and end on whole pixels of the scene classification


@dataclass(frozen=True)
class WindowInput:
    """Input of one window of a group, on the grids on which it is read, and the weight of generated detail.

    `natives[band]` (1, 1, h, w) is filled reflectance; it extends `context_px` beyond the window on every side, so that
    interpolation sees real neighbours at the window's edge. Networks get the window alone. `valid` (h, w), at
    `mask_gsd_m`, is where every required band was measured. `weight` (h, w), likewise, is that of generated detail;
    None means 1 everywhere. `maps[name]` (1, channels, h, w) are conditions over the window, by input.
    """

    natives: Mapping[str, Tensor]
    valid: NDArray[np.bool_]
    weight: NDArray[np.float32] | None
    group: Group
    device: torch.device
    mask_gsd_m: float = MASK_GSD_M
    maps: Mapping[str, Tensor] = field(default_factory=dict)

    def factor(self, band: str) -> int:
        """Return the pixels of the window per pixel of a band as it is read, along one axis."""
        return self.group.source_factor(band)

    def within(self, band: str) -> Tensor:
        """Return the raster of a band over the window alone, (1, 1, T / factor, T / factor)."""
        return _crop(self.natives[band], self.group.context_px // self.factor(band))


class Maps(Protocol):
    """The conditions of a run over a zone."""

    def over(
        self, condition: str, channels: tuple[str, ...], window: Window, gsd_m: float
    ) -> NDArray[np.float32] | None:
        """Return (channels, h, w) over `window` (px of `gsd_m`); None for a condition that was not given."""
        ...


def window_input(
    native: Rasters, window: Window, group: Group, of: Pass, device: torch.device, maps: Maps | None = None
) -> WindowInput | None:
    """Return the filled rasters of one window (px of the group's GSD); None if nothing was measured in it."""
    ground = at_gsd(window, group.gsd_m, of.gsd_m)
    if not native.measured(ground):
        return None
    around = at_gsd(window.pad(group.context_px), group.gsd_m, of.gsd_m)
    held = [band for band in group.natives if native.holds(band)]
    valid, weight = _detail(native, ground, group)
    return WindowInput(
        natives={band: _filled(native, band, around, device) for band in held},
        valid=valid,
        weight=weight,
        group=group,
        device=device,
        mask_gsd_m=group.source_gsd_m or MASK_GSD_M,
        maps={} if maps is None else _maps(maps, window, group, device),
    )


def _filled(native: Rasters, band: str, around: Window, device: torch.device) -> Tensor:
    """Return the filled reflectance (1, 1, h, w) of a band on a device. Gaps are filled before it goes there."""
    dn = native.band(band, around)
    if isinstance(native, PlacedRasters) and bool((dn != NODATA_DN).all()):
        whole: Tensor = masks.reflectance(native.placed(band, around))[None, None]
        return whole
    return cast("Tensor", on_device(masks.filled_reflectance(dn[None]), device)[None])


def _maps(maps: Maps, window: Window, group: Group, device: torch.device) -> dict[str, Tensor]:
    """Return the conditions over a window (px of the group), by input."""
    found = {}
    for given in (one for stage in group.stages for one in stage.reads if one.condition):
        here = at_gsd(window, group.gsd_m, given.gsd_m)
        values = maps.over(given.condition, given.bands, here, given.gsd_m)
        if values is not None:
            found[given.name] = on_device(values, device)[None]
    return found


def _detail(native: Rasters, ground: Window, group: Group) -> tuple[NDArray[np.bool_], NDArray[np.float32] | None]:
    """Return where all required bands were measured, and the weight of generated detail.

    Both cover `ground` (px of the pass).
    """
    if group.source_gsd_m:
        finished = cast("FinishedRasters", native)
        quality = finished.quality_over(ground.snap_out(finished.factor))
        return quality != masks.QUALITY_NODATA, masks.finished_weight(quality)
    seen = seen_by(cast("NativeRasters", native), ground, group)
    rows, cols = at_gsd(ground, TARGET_GSD_M, MASK_GSD_M).slices(at_gsd(seen.window, TARGET_GSD_M, MASK_GSD_M))
    weight = masks.detail_weight(seen.dn, seen.scl, seen.bright, seen.colours) if group.required else None
    return masks.measured(seen.dn)[rows, cols], None if weight is None else weight[rows, cols]


@dataclass(frozen=True)
class Seen:
    """Input of the masks: the required bands at 10 m over `window` (2.5 m px)."""

    window: Window
    dn: NDArray[np.uint16]  # (bands, y, x); coarser bands are repeated
    colours: list[int]  # rows of the visible bands in `dn`
    scl: NDArray[np.uint8] | None  # (y / 2, x / 2)
    bright: float


def seen_by(native: NativeRasters, window: Window, group: Group) -> Seen:
    """Return the input of a group's masks over `window`, grown to whole pixels of 20 m, or of 60 m if needed."""
    import numpy as np

    required = group.required
    coarsest = max([_MASK_NEST_M, *(BY_NAME[band].gsd_m for band in required)])
    grown = window.snap_out(factor_at(coarsest))
    factors = {band: BY_NAME[band].gsd_m // MASK_GSD_M for band in required}
    rasters = [native.band(band, grown).repeat(k, 0).repeat(k, 1) for band, k in factors.items()]
    shape = at_gsd(grown, TARGET_GSD_M, MASK_GSD_M).shape
    dn = np.stack(rasters) if rasters else np.zeros((0, *shape), np.uint16)
    colours = [i for i, band in enumerate(required) if BY_NAME[band].visible]
    return Seen(grown, dn, colours, native.scl_over(grown), group.bright_reflectance)


def _crop(image: Tensor, px: int) -> Tensor:
    return image[..., px:-px, px:-px] if px else image


def interpolated(window: WindowInput, bands: tuple[str, ...], consistency: str) -> dict[str, Tensor]:
    """Return bands by bicubic interpolation made consistent, (1, 1, T, T) each."""
    images = {}
    for band in bands:
        native, factor = window.natives[band], window.factor(band)
        up = approach(bicubic_up(native, factor), native, factor, consistency)
        images[band] = _crop(up, window.group.context_px)
    return images


@dataclass(frozen=True)
class Draw:
    """One run of a group's networks: its noise by stage (None: the conditional mean) and the scenes' state."""

    noise_of: Callable[[Stage], NoiseSource | None]
    state: SceneState | None
    consistency: str
    variant: int = 0


def generated(window: WindowInput, system: System, group: Group, draw: Draw, earlier: Made, kept: Made) -> Steps[Made]:
    """Return the output of the group's stages, made consistent with the native rasters; asks for their predictions.

    `earlier` are images of other groups' stages over this window. `kept` caches images of stages that do not depend on
    the draw: those in it are reused, new ones are added.
    """
    made: Made = dict(kept)
    for stage in group.stages:
        if (stage.name, stage.gives[0]) in kept:
            continue
        given = StageInput(
            images={one.name: _image(one, window, stage, {**earlier, **made}) for one in stage.reads},
            present=frozenset((*window.natives, *window.maps)),
            valid=on_device(window.valid, window.device)[None, None],
            noise=draw.noise_of(stage) if stage.stochastic else None,
            state=draw.state if stage.scene_state or stage.whole else None,
            options=system.options,
            variant=draw.variant,
        )
        images = _consistent((yield stage, given), stage, window, draw.consistency)
        made |= images
        if stage.name not in group.varying:
            kept |= images
    return made


def _image(given: Input, window: WindowInput, stage: Stage, made: Made) -> Tensor:
    """Return (1, bands, h, w) of one input. Measured bands that the product lacks and maps not given are zeros."""
    import torch

    if given.stage:
        return torch.cat([made[given.source, band] for band in given.bands], 1)
    side = round(stage.lattice.window_px * stage.gsd_m / given.gsd_m)
    if given.condition:
        empty = torch.zeros((1, len(given.bands), side, side), device=window.device)
        return window.maps.get(given.name, empty)
    absent = torch.zeros((1, 1, side, side), device=window.device)
    return torch.cat([window.within(band) if band in window.natives else absent for band in given.bands], 1)


def _consistent(image: Tensor, stage: Stage, window: WindowInput, consistency: str) -> Made:
    """Return the bands of a stage's output, brought close to the measurement; other channels are left as they are."""
    source = "other" if stage.follows else "network"
    made: Made = {}
    for i, band in enumerate(stage.gives):
        one = image[:, i : i + 1]
        if band in window.natives:
            one = approach(one, window.within(band), window.factor(band), consistency, source)
        made[stage.name, band] = one
    return made


@dataclass
class WindowResult:
    """One window of a group, by GSD of its outputs: mean over draws, and spread of one draw or None, (bands, T, T).

    `handed[draw]` (handed bands, T, T) is what later groups read of every draw.
    """

    mean: dict[float, Array]
    spread: dict[float, Array | None]
    handed: list[Array]


def run_window(
    window: WindowInput,
    system: System,
    group: Group,
    draws: list[Draw],
    earlier_of: Callable[[int], Made],
) -> Steps[WindowResult]:
    """Compute all draws of one window; asks for predictions, to be run by `batches.run`.

    `earlier_of(i)` are images of other groups' stages that draw i reads.
    """
    import torch

    from pipeline.superres.members import Ensemble

    bands, consistency = group.bands, draws[0].consistency
    if not group.stages:
        plain = interpolated(window, bands, consistency)
        whole = settled(torch.cat([plain[band] for band in bands], 1)[0])
        return WindowResult({group.gsd_m: whole}, {}, [])
    weight = None if window.weight is None else detail_at(window.weight, window)
    plain = {} if weight is None else interpolated(window, bands, consistency)
    handed = []
    ensembles = {output.gsd_m: Ensemble() for output in group.outputs}
    last = {band: stage.name for stage in group.stages for band in stage.gives}
    kept: Made = {}
    for i, draw in enumerate(draws):
        made = yield from generated(window, system, group, draw, earlier_of(i), kept)
        images = {band: made[last[band], band] for band in bands}
        if weight is not None:
            images = {band: plain[band] + weight * (images[band] - plain[band]) for band in bands}
        for output in group.outputs:
            ensembles[output.gsd_m].add(_at_gsd(images, output, group))
        if group.handed:
            handed.append(torch.cat([made[key] for key in group.handed], 1)[0])
        del made, images  # while the next draw is computed
    spreads = {gsd_m: ensemble.spread for gsd_m, ensemble in ensembles.items()}
    return WindowResult(
        {gsd_m: settled(ensemble.mean) for gsd_m, ensemble in ensembles.items()},
        {gsd_m: None if spread is None else settled(spread) for gsd_m, spread in spreads.items()},
        [settled(one) for one in handed],
    )


def _at_gsd(images: Mapping[str, Tensor], output: Output, group: Group) -> Tensor:
    """Return the bands of an output of a group, (bands, T, T) at its GSD, from images at the group's."""
    import torch

    image = torch.cat([images[band] for band in output.bands], 1)
    factor = round(output.gsd_m / group.gsd_m)
    return (image if factor == 1 else block_mean(image, factor))[0]


def detail_at(weight: NDArray[np.float32], window: WindowInput) -> Tensor:
    """Return the weight of generated detail (1, 1, T, T), interpolated from `mask_gsd_m`; 0 and 1 stay exact inside."""
    from torch.nn import functional

    coarse = on_device(weight, window.device)[None, None]
    scale = window.mask_gsd_m / window.group.gsd_m
    return functional.interpolate(coarse, scale_factor=scale, mode="bilinear", align_corners=False)


def detail_of(window: WindowInput, side: int) -> Array:
    """Return the weight of generated detail (T, T) of one window, `side` px a side."""
    if window.weight is None:
        return blank((side, side), window.device, 1.0)
    return settled(detail_at(window.weight, window)[0, 0])
