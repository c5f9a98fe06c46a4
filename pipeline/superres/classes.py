"""Quantisation and classes: DN, quality, spread, and why detail is withheld."""

from __future__ import annotations

from functools import reduce
from operator import and_
from typing import TYPE_CHECKING, cast

import numpy as np

from pipeline.bands import DN_SCALE, NODATA_DN, NODATA_SPREAD, RGB, SCALE_10M, TARGET_GSD_M
from pipeline.errors import PipelineError
from pipeline.grid.arrays import cast as of_kind
from pipeline.grid.arrays import divided, is_numpy, namespace, stacked, zeros
from pipeline.grid.grid import Window
from pipeline.grid.native_rasters import factor_of
from pipeline.grid.placed_rasters import at_hand
from pipeline.superres import masks
from pipeline.superres.chain import at_gsd
from pipeline.superres.consistency import project_to_dn, round_to_dn
from pipeline.superres.systems import PLAIN
from pipeline.superres.windows import seen_by

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from numpy.typing import NDArray

    from pipeline.grid.arrays import Array
    from pipeline.grid.finished_rasters import Rasters
    from pipeline.grid.native_rasters import NativeRasters
    from pipeline.superres.chain import Group


def quantised(image: Array, native: Rasters, window: Window, order: tuple[str, ...], consistency: str) -> Array:
    """Return DN (bands, *window) of an image in DN, with exact native block means if the consistency is "box"."""
    to_dn = project_to_dn if consistency == "box" else round_to_dn
    bands = (to_dn(image[i], at_hand(native, name, window), factor_of(name)) for i, name in enumerate(order))
    return stacked(bands, len(order))


def finite(image: Array) -> Array:
    """Return which bands (bands,) of an image (bands, ny, nx) are finite throughout."""
    xp = namespace(image)
    return xp.stack([xp.isfinite(band).all() for band in image])


def require_finite(finite: NDArray[np.bool_], order: tuple[str, ...]) -> None:
    """Raise PipelineError unless all bands are finite."""
    broken = [name for name, whole in zip(order, finite, strict=True) if not whole]
    if broken:
        raise PipelineError(
            f"the networks gave NaN or infinity in {', '.join(broken)}",
            "finite reflectance",
            f"check the weights and, on a GPU, its memory; --sr {PLAIN} runs without networks",
        )


def of_blocks(image: Array, above: Array) -> Array:
    """Return DN (bands, k*h, k*w) of an image in DN whose k x k blocks have the means `above` (bands, h, w) exactly."""
    factor = image.shape[-1] // above.shape[-1]
    return namespace(image).stack(
        [project_to_dn(one, coarse, factor) for one, coarse in zip(image, above, strict=True)]
    )


def quality(dn: Array, order: tuple[str, ...], detail: Array) -> Array:
    """Return quality classes (ny, nx): nodata where a colour is missing, or any band if no colour is stored."""
    rows = [i for i, name in enumerate(order) if name in RGB] or list(range(len(order)))
    return masks.quality(detail, reduce(and_, (dn[row] != NODATA_DN for row in rows)))


def spread_dn(
    spread_of: Callable[[int], Array],
    dn: Array,
    order: tuple[str, ...],
    classes: Array,
    drawn: Collection[str],
) -> Array:
    """Return the spread of draws in DN (bands, ny, nx), 0 where no detail is generated.

    `spread_of(i)` (ny, nx) is that of one band, in reflectance. Bands that are not `drawn` are nodata.
    """
    detail = classes != masks.QUALITY_MEASURED
    kind = "uint16" if is_numpy(dn) else "int32"

    def of_band(i: int, name: str) -> Array:
        if name not in drawn:
            return zeros(dn[i].shape, dn, kind) + NODATA_SPREAD
        spread = spread_of(i)
        deviation = namespace(spread).where(detail, namespace(spread).round(divided(spread, DN_SCALE)), 0.0)
        found = of_kind(deviation.clip(None, NODATA_SPREAD - 1.0), kind)
        found[dn[i] == NODATA_DN] = NODATA_SPREAD
        return found

    return stacked((of_band(i, name) for i, name in enumerate(order)), len(order))


def nearest_causes(
    native: Rasters,
    window: Window,
    classes: NDArray[np.uint8],
    chunks: Sequence[Window],
    groups: Sequence[Group],
) -> NDArray[np.uint8] | None:
    """Return the cause nearest to each pixel of `window` that withholds detail, as an index into `masks.CAUSES`.

    It is searched for each of `chunks`, which make up the window, in the model windows that touch the chunk: their
    masks see nothing else. What is found therefore depends on the chunk alone, not on what is finished together.
    `classes` are the quality over the window. None if no detail is withheld, or none is generated at all.
    """
    group = next((group for group in groups if group.required), None)
    lacking = np.isin(classes, (masks.QUALITY_MEASURED, masks.QUALITY_PARTIAL))
    if group is None or not lacking.any():
        return None
    found = np.zeros(window.shape, np.uint8)
    for chunk in chunks:
        cut = chunk.slices(window)
        if lacking[cut].any():
            found[cut] = _nearest_cause(cast("NativeRasters", native), chunk, group)
    return found


def _nearest_cause(native: NativeRasters, chunk: Window, group: Group) -> NDArray[np.uint8]:
    """Return the nearest cause in the windows of a group that touch a chunk, over the chunk (both px of 2.5 m)."""
    lattice = group.lattice
    cells = lattice.cells_touching(at_gsd(chunk, TARGET_GSD_M, group.gsd_m))
    ground = reduce(Window.union, (lattice.window(*cell) for cell in cells))
    seen = seen_by(native, at_gsd(ground, group.gsd_m, TARGET_GSD_M), group)
    nearest = masks.nearest_cause(seen.dn, seen.scl, seen.bright, seen.colours)
    rows, cols = chunk.coarsen(SCALE_10M).slices(seen.window.coarsen(SCALE_10M))
    return nearest[rows, cols].repeat(SCALE_10M, 0).repeat(SCALE_10M, 1)
