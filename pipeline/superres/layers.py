"""From blended images to stored layers: made consistent, from the coarsest GSD to the finest, and quantised."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from pipeline.bands import NODATA_DN
from pipeline.grid import arrays
from pipeline.grid.arrays import (
    cast,
    compact,
    fetched,
    fetched_uint16,
    is_numpy,
    namespace,
    settled,
    tensor_of,
)
from pipeline.grid.placed_rasters import at_hand
from pipeline.superres import classes
from pipeline.superres.chain import at_gsd
from pipeline.superres.consistency import bicubic_up, block_mean
from pipeline.superres.contract import agreed, agreeing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import NDArray

    from pipeline.grid.arrays import Array
    from pipeline.grid.finished_rasters import Rasters
    from pipeline.grid.grid import Window
    from pipeline.superres.canvas import Canvas, Canvases
    from pipeline.superres.options import Options
    from pipeline.superres.passes import Pass

    _OfBand = tuple[NDArray[np.uint16], Array | None]  # DN, and the image if finer outputs follow it
    Each = Callable[[Callable[[int], _OfBand], Iterable[int]], Iterable[_OfBand]]


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
    image: Array
    dn: Array


def finished(
    canvases: Canvases, native: Rasters, window: Window, options: Options, of: Pass, each: Each = map
) -> dict[float, Layer]:
    """Return the layers of a pass over `window` (px of the pass), coarsest first. `each`: a form of `map`, over bands.

    At 2.5 m the image is made to agree with the measurement, each finer one with the one above it, whose DN are its
    block means. In a pass over a finished group, the first layer is made to agree with that group.
    """
    found: dict[float, _Made] = {}
    drawn = {band for group in of.groups if group.varying for band in group.bands}
    above = _source(native, window, of) if of.source_gsd_m else None
    for gsd_m, canvas in canvases.by_gsd.items():
        part = at_gsd(window, of.gsd_m, gsd_m)
        if above is None:
            dn, finite, above = _measured(canvas, native, window, options, of, each)
        else:
            tied, area = _tied(canvas, above, at_gsd(window.pad(_left(of, len(found))), of.gsd_m, gsd_m))
            finite = classes.finite(tied[(..., *part.slices(area))])
            if is_numpy(finite):  # a device is not waited for: it says so at the end (`landed`)
                classes.require_finite(finite, canvas.order)
            dn = classes.of_blocks(tied[(..., *part.slices(area))], _rows(above.dn, above.bands, canvas.order))
            above = _Above(gsd_m, canvas.order, area, tied, dn)
        quality = classes.quality(dn, canvas.order, canvas.detail_over(part))
        spread_of = partial(canvas.spread_of, part)
        spread = classes.spread_dn(spread_of, dn, canvas.order, quality, drawn) if canvas.spread else None
        found[gsd_m] = _Made(canvas.order, dn, quality, spread, finite)
    return {gsd_m: landed(made) for gsd_m, made in found.items()}


class _Made(NamedTuple):
    """A layer where it was computed, and which of its bands are finite."""

    bands: tuple[str, ...]
    dn: Array
    quality: Array
    spread: Array | None
    finite: Array


def landed(made: _Made) -> Layer:
    """Return a layer as it is stored. Only here does the host wait for a device, which hands over 16 bits per DN.

    Raises PipelineError for values that are not finite.
    """
    classes.require_finite(fetched(made.finite), made.bands)
    spread = None if made.spread is None else fetched_uint16(made.spread)
    return Layer(made.bands, fetched_uint16(made.dn), fetched(made.quality), spread)


def _left(of: Pass, done: int) -> int:
    """Return the px of the pass around a window over which the next layer must be known, after `done` layers."""
    ties = done if not of.source_gsd_m else done + 1
    return of.margin_px - ties * of.tie_px


def _measured(
    canvas: Canvas, native: Rasters, window: Window, options: Options, of: Pass, each: Each
) -> tuple[Array, Array, _Above | None]:
    """Return DN at 2.5 m that agree with the measurement, which bands are finite, and the image for finer ones.

    The latter is None if the pass gives none. Raises PipelineError for values that are not finite, if the host has
    them; a device is not waited for, it says so at the end (`landed`).
    """
    order, area = canvas.order, window.pad(of.margin_px)
    sensors = [options.sensor(name) for name in order]

    def measured(i: int, part: Window) -> Array:
        return at_hand(native, order[i], part)

    def of_band(i: int) -> _OfBand:
        image = agreed(canvas.dn, i, area, sensors[i], measured, canvas.void)
        inside = image[window.slices(area)][None]
        classes.require_finite(classes.finite(inside), order[i : i + 1])
        (dn,) = classes.quantised(inside, native, window, order[i : i + 1], options.consistency)
        return dn, image if of.finer else None

    if arrays.takes_numpy(canvas.image.device):
        dn, image = _band_by_band(each(of_band, range(len(order))), len(order))
        finite: Array = np.ones(len(order), np.bool_)
    else:
        image = agreeing(canvas.dn, area, sensors, measured, canvas.void)
        inside = image[(..., *window.slices(area))]
        dn, finite = classes.quantised(inside, native, window, order, options.consistency), classes.finite(inside)
    return dn, finite, _Above(canvas.gsd_m, order, area, image, dn) if of.finer else None


def _band_by_band(found: Iterable[_OfBand], count: int) -> tuple[NDArray[np.uint16], NDArray[np.float32] | None]:
    """Return DN (bands, ny, nx) and, where they are there, images (bands, *area), put together while they come."""
    dn = image = None
    for i, (one, fine) in enumerate(found):
        if dn is None:
            dn = np.empty((count, *one.shape), np.uint16)
            image = None if fine is None else np.empty((count, *fine.shape), np.float32)
        dn[i] = one
        if image is not None:
            image[i] = fine
    assert dn is not None
    return dn, image


def _source(native: Rasters, window: Window, of: Pass) -> _Above:
    """Return the finished group that a pass reads, as the image that its first layer has to agree with."""
    area, bands = window.pad(of.margin_px), of.outputs[0].bands
    given = [at_hand(native, name, area) for name in bands]
    dn = namespace(given[0]).stack(given)
    image = namespace(dn).where(dn == NODATA_DN, np.nan, cast(dn, "float32"))
    factor = of.source_px
    inside = window.coarsen(factor).slices(area.coarsen(factor))
    return _Above(of.source_gsd_m, bands, area.coarsen(factor), image, dn[(..., *inside)])


def _tied(canvas: Canvas, above: _Above, area: Window) -> tuple[Array, Window]:
    """Return the canvas over `area` (its px) plus the bicubic-upsampled residual of its block means, and `area`.

    Nothing is added where the image above is unknown.
    """
    import torch

    factor = round(above.gsd_m / canvas.gsd_m)
    around = above.area.refine(factor)
    fine = tensor_of(canvas.dn(slice(0, len(canvas.order)), around))[None]
    wanted = tensor_of(_rows(above.image, above.bands, canvas.order))[None]
    lacking = torch.where(wanted.isnan(), 0.0, wanted - block_mean(fine, factor))
    tied = settled((fine + bicubic_up(lacking, factor))[0])
    return compact(tied[(..., *area.slices(around))]), area


def _rows(image: Array, bands: Sequence[str], order: Sequence[str]) -> Array:
    return namespace(image).stack([image[bands.index(name)] for name in order])
