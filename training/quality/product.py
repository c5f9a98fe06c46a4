"""What a run stores of one image, with the pipeline's own windows, masks, blending, consistency and quantisation.

The image is placed in the lattice of the system's windows where it touches the fewest, and padded by reflection on all
sides. Stages whose pixels do not depend on the size of a window get windows that fit the image (`fitted_windows`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional

from pipeline.bands import BLOCK_60M, DN_OFFSET, DN_SCALE, RGB, SCALE_10M, TARGET_GSD_M
from pipeline.grid.grid import Window
from pipeline.grid.native_rasters import NativeRasters, factor_at
from pipeline.superres import masks
from pipeline.superres.chain import groups_of, read_window
from pipeline.superres.options import Options
from pipeline.superres.spec import draws, mean_draws, stochastic
from pipeline.superres.superres import super_resolve
from training.quality.fitted_windows import fitted
from training.quality.pairs import state_windows

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray
    from torch import Tensor

    from pipeline.grid.lattice import Lattice
    from pipeline.superres.layers import Layer
    from pipeline.superres.spec import SceneState
    from pipeline.superres.system import System
    from training.quality.pairs import Pair

MAX_DN = 65535


@dataclass(frozen=True)
class Way:
    """Settings of a product: `estimate` and `consistency` as in a run; `members` is the number of draws averaged."""

    estimate: str = "mean"
    consistency: str = "sensor"
    members: int = 0

    def __str__(self) -> str:
        return f"{self.estimate}{f' of {self.members}' if self.members else ''}, {self.consistency}"

    def options(self, system: System, seed: int = 0, stream: int = 0) -> Options:
        """Return the pipeline's options."""
        members = draws(
            self.estimate, self.members, stochastic=stochastic(system.stages), mean_draws=mean_draws(system.stages)
        )
        return Options(seed=seed, stream=stream, members=members, consistency=self.consistency)


DEFAULT = Way()


@dataclass(frozen=True)
class Stored:
    """Reflectance (bands, H, W), quality (H, W), and the spread of members in reflectance (bands, H, W) or None."""

    rho: Tensor
    quality: NDArray[np.uint8]
    spread: Tensor | None = None


def to_dn(rho: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Convert reflectance to DN. Values are clipped to at least 1, so none becomes nodata."""
    dn: NDArray[np.uint16] = np.rint((rho - DN_OFFSET) / DN_SCALE).clip(1, MAX_DN).astype(np.uint16)
    return dn


def store(
    dn: Mapping[int, NDArray[np.uint16]],
    bands: Mapping[int, tuple[str, ...]],
    system: System,
    options: Options,
    order: tuple[str, ...],
    gsd_m: float = TARGET_GSD_M,
) -> Stored:
    """Compute all bands of `order` from native DN (bands, h, w) by GSD, with names `bands`. 10 m is required.

    `gsd_m` is that of the returned images.
    """
    ny, nx = (max(-(-raster.shape[axis] * gsd // 60) for gsd, raster in dn.items()) * BLOCK_60M for axis in (1, 2))
    reach = replace(options, consistency=DEFAULT.consistency).reach_px(order)  # the same place for every consistency
    fit = fitted(system.stages, order, max(ny, nx), reach)
    system = system if fit is None else replace(system, stages=fit[0])
    groups = groups_of(system.stages, order)
    row, col = (first_of(groups[0].lattice, side, reach) if fit is None else fit[1] for side in (ny, nx))
    window = Window(row, col, ny, nx)
    around = read_window(groups, window.pad(options.reach_px(order)))
    continued = {gsd: _continued(raster, gsd, window, around) for gsd, raster in dn.items()}
    native = NativeRasters(around, continued, dict(bands))
    state = _state(system, dn[10], bands[10])
    result = super_resolve(native, window, system, order, options, lambda _window: state)
    height, width = (SCALE_10M * side for side in dn[10].shape[1:])
    if gsd_m in result.layers and gsd_m < TARGET_GSD_M:
        times = round(TARGET_GSD_M / gsd_m)
        return _cut(result.layers[gsd_m], times * height, times * width)
    return _resampled(_cut(result.first, height, width), gsd_m / TARGET_GSD_M)


def first_of(lattice: Lattice, side: int, reach: int) -> int:
    """Return the first row, a multiple of 24 px, at which an image of `side` px touches the fewest windows.

    `reach`: px around the image that may have to be predicted too. Of several such rows, that of the fewest windows
    without them, then the one that centres the image best in a stride.
    """
    centred = (lattice.stride_px - side) // 2 // BLOCK_60M * BLOCK_60M
    half = lattice.stride_px // 2 // BLOCK_60M * BLOCK_60M

    def cost(first: int) -> tuple[int, int, int]:
        image = Window(first, first, side, side)
        around, alone = (len(lattice.cells_touching(image.pad(px))) for px in (reach, 0))
        return around, alone, abs(first - centred)

    return min(range(centred - half, centred + half + 1, BLOCK_60M), key=cost)


def _continued(raster: NDArray[np.uint16], gsd: int, window: Window, around: Window) -> NDArray[np.uint16]:
    """Pad a raster (bands, h, w), whose corner is that of `window`, by reflection to fill `around`."""
    factor = factor_at(gsd)
    top, left = (window.row - around.row) // factor, (window.col - around.col) // factor
    below, right = around.ny // factor - top - raster.shape[1], around.nx // factor - left - raster.shape[2]
    continued: NDArray[np.uint16] = np.pad(raster, ((0, 0), (top, below), (left, right)), mode="symmetric")
    return continued


def _state(system: System, ten: NDArray[np.uint16], names: tuple[str, ...]) -> SceneState | None:
    """Return the network's scene state from the centre of the image, or None."""
    if system.predictor is None:
        return None
    state: SceneState = {}
    for stage in (stage for stage in system.stages if stage.scene_state):
        wanted = [names.index(name) for name in stage.reads[0].bands]
        windows = state_windows(torch.from_numpy(masks.reflectance(ten[wanted]))[None])
        state |= system.predictor.scene_state(stage, windows)
    return state or None


def _cut(layer: Layer, height: int, width: int) -> Stored:
    rho = torch.from_numpy(masks.reflectance(layer.dn[:, :height, :width]))
    spread = None
    if layer.spread is not None:
        spread = torch.from_numpy(layer.spread[:, :height, :width].astype(np.float32) * np.float32(DN_SCALE))
    return Stored(rho, layer.quality[:height, :width], spread)


def _resampled(stored: Stored, coarser: float) -> Stored:
    """Return block means of `coarser` pixels a side, or below 1 cubic interpolation; `quality` by nearest neighbour."""
    if coarser == 1:
        return stored

    def of(image: Tensor) -> Tensor:
        if coarser > 1:
            return functional.avg_pool2d(image[None], round(coarser))[0]
        return functional.interpolate(image[None], scale_factor=round(1 / coarser), mode="bicubic")[0]

    quality = torch.from_numpy(stored.quality)[None, None]
    near = functional.interpolate(quality, scale_factor=1 / coarser, mode="nearest")[0, 0].numpy()
    return Stored(of(stored.rho), near, None if stored.spread is None else of(stored.spread))


@torch.inference_mode()
def of_image(rho: NDArray[np.float32], bands: tuple[str, ...], system: System, options: Options) -> Stored:
    """Compute 10 m bands at 2.5 m from reflectance (bands, h, w)."""
    return store({10: to_dn(rho)}, {10: bands}, system, options, bands)


def of_rgb(rgb: NDArray[np.float32], system: System, way: Way = DEFAULT, seed: int = 0, stream: int = 0) -> Stored:
    """Compute RGB at 2.5 m from reflectance at 10 m (3, h, w)."""
    return of_image(rgb, RGB, system, way.options(system, seed, stream))


def of_pair(pair: Pair, system: System, way: Way = DEFAULT, seed: int = 0) -> Stored:
    """Compute the bands of a held-out image at its own GSD, 10 m / scale. Noise differs between images.

    What is stored at 2.5 m is averaged to a coarser image; of a finer one the system's own group is taken, and
    interpolated values where it has none.
    """
    options, gsd_m = way.options(system, seed, pair.index), 10 / pair.scale
    dn = {10: to_dn(pair.lr[0].numpy())}
    return store(dn, {10: pair.bands}, system, options, pair.bands, gsd_m)
