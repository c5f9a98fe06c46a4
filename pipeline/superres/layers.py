"""From blended images to stored layers: made consistent, from the coarsest GSD to the finest, and quantised."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from pipeline.bands import NODATA_DN
from pipeline.superres import classes
from pipeline.superres.chain import at_gsd
from pipeline.superres.consistency import bicubic_up, block_mean
from pipeline.superres.contract import agreeing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from pipeline.grid.finished_rasters import Rasters
    from pipeline.grid.grid import Window
    from pipeline.superres.canvas import Canvas, Canvases
    from pipeline.superres.options import Options
    from pipeline.superres.passes import Pass

T = TypeVar("T", bound=np.generic)


@dataclass
class Layer:
    """Output at one GSD: `dn` (bands, ny, nx), `quality` (ny, nx), `spread` in DN or None.

    Nodata is 0 in `dn` and 65535 in `spread`.
    """

    bands: tuple[str, ...]
    dn: NDArray[np.uint16]
    quality: NDArray[np.uint8]
    spread: NDArray[np.uint16] | None


@dataclass(frozen=True)
class _Above:
    """The image that a finer one has to agree with: float DN over `area`, NaN where unknown, and DN as stored.

    `bands` are the rows of `image` (bands, *area); `dn` (bands, ny, nx) covers the window only. Windows count px of
    `gsd_m`.
    """

    gsd_m: float
    bands: tuple[str, ...]
    area: Window
    image: NDArray[np.float32]
    dn: NDArray[np.uint16]


def finished(canvases: Canvases, native: Rasters, window: Window, options: Options, of: Pass) -> dict[float, Layer]:
    """Return the layers of a pass over `window` (px of the pass), coarsest first.

    At 2.5 m the image is made to agree with the measurement, each finer one with the one above it, whose DN are its
    block means. In a pass over a finished group, the first layer is made to agree with that group.
    """
    found: dict[float, Layer] = {}
    drawn = {band for group in of.groups if group.varying for band in group.bands}
    above = _source(native, window, of) if of.source_gsd_m else None
    for gsd_m, canvas in canvases.by_gsd.items():
        part = at_gsd(window, of.gsd_m, gsd_m)
        if above is None:
            dn, above = _measured(canvas, native, window, options, of)
        else:
            tied, area = _tied(canvas, above, at_gsd(window.pad(_left(of, len(found))), of.gsd_m, gsd_m))
            classes.require_finite(tied, canvas.order)
            dn = classes.of_blocks(tied[(..., *part.slices(area))], _rows(above.dn, above.bands, canvas.order))
            above = _Above(gsd_m, canvas.order, area, tied, dn)
        inside = part.slices(canvas.area)
        quality = classes.quality(dn, canvas.order, canvas.detail[inside])
        spread = canvas.spread
        found[gsd_m] = Layer(
            canvas.order,
            dn,
            quality,
            None if spread is None else classes.spread_dn(spread[(..., *inside)], dn, canvas.order, quality, drawn),
        )
    return found


def _left(of: Pass, done: int) -> int:
    """Return the px of the pass around a window over which the next layer must be known, after `done` layers."""
    ties = done if not of.source_gsd_m else done + 1
    return of.margin_px - ties * of.tie_px


def _measured(
    canvas: Canvas, native: Rasters, window: Window, options: Options, of: Pass
) -> tuple[NDArray[np.uint16], _Above]:
    """Return DN at 2.5 m that agree with the measurement, and the image that finer ones have to agree with."""
    order, area = canvas.order, window.pad(of.margin_px)
    sensors = [options.sensor(name) for name in order]
    images = agreeing(
        canvas.image, canvas.area, area, sensors, lambda i, part: native.band(order[i], part), canvas.void
    )
    inside = images[(..., *window.slices(area))]
    dn = classes.quantised(inside, native, window, order, options.consistency)
    return dn, _Above(canvas.gsd_m, order, area, images, dn)


def _source(native: Rasters, window: Window, of: Pass) -> _Above:
    """Return the finished group that a pass reads, as the image that its first layer has to agree with."""
    area, bands = window.pad(of.margin_px), of.outputs[0].bands
    dn = np.stack([native.band(name, area) for name in bands])
    image = np.where(dn == NODATA_DN, np.float32(np.nan), dn.astype(np.float32))
    factor = of.source_px
    inside = window.coarsen(factor).slices(area.coarsen(factor))
    return _Above(of.source_gsd_m, bands, area.coarsen(factor), image, dn[(..., *inside)])


def _tied(canvas: Canvas, above: _Above, area: Window) -> tuple[NDArray[np.float32], Window]:
    """Return the canvas over `area` (its px) plus the bicubic-upsampled residual of its block means, and `area`.

    Nothing is added where the image above is unknown.
    """
    import torch

    factor = round(above.gsd_m / canvas.gsd_m)
    around = above.area.refine(factor)
    image = np.ascontiguousarray(canvas.image[(..., *around.slices(canvas.area))])
    wanted = _rows(above.image, above.bands, canvas.order)
    fine = torch.from_numpy(image)[None]
    lacking = torch.from_numpy(wanted)[None] - block_mean(fine, factor)
    lacking = torch.nan_to_num(lacking, nan=0.0) if np.isnan(wanted).any() else lacking
    tied = (fine + bicubic_up(lacking, factor))[0].numpy()
    return np.ascontiguousarray(tied[(..., *area.slices(around))]), area


def _rows(image: NDArray[T], bands: Sequence[str], order: Sequence[str]) -> NDArray[T]:
    return image[[bands.index(name) for name in order]]
