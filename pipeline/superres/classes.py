"""Quantisation and classes: DN, quality, spread, and why detail is withheld."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np

from pipeline.bands import DN_SCALE, NODATA_DN, NODATA_SPREAD, RGB, SCALE_10M
from pipeline.errors import PipelineError
from pipeline.grid.native_rasters import factor_of
from pipeline.superres import masks
from pipeline.superres.consistency import project_to_dn, round_to_dn
from pipeline.superres.systems import PLAIN
from pipeline.superres.windows import seen_by

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from numpy.typing import NDArray

    from pipeline.grid.finished_rasters import Rasters
    from pipeline.grid.grid import Window
    from pipeline.grid.native_rasters import NativeRasters
    from pipeline.superres.chain import Group


def quantised(
    image: NDArray[np.float32], native: Rasters, window: Window, order: tuple[str, ...], consistency: str
) -> NDArray[np.uint16]:
    """Return DN (bands, *window) of an image in DN, with exact native block means if the consistency is "box".

    Raises PipelineError for values that are not finite.
    """
    require_finite(image, order)
    to_dn = project_to_dn if consistency == "box" else round_to_dn
    dn = np.empty(image.shape, np.uint16)
    for i, name in enumerate(order):
        dn[i] = to_dn(image[i], native.band(name, window), factor_of(name))
    return dn


def require_finite(image: NDArray[np.float32], order: tuple[str, ...]) -> None:
    """Raise PipelineError for values of an image (bands, ny, nx) that are not finite."""
    broken = [name for name, band in zip(order, image, strict=True) if not np.isfinite(band).all()]
    if broken:
        raise PipelineError(
            f"the networks gave NaN or infinity in {', '.join(broken)}",
            "finite reflectance",
            f"check the weights and, on a GPU, its memory; --sr {PLAIN} runs without networks",
        )


def of_blocks(image: NDArray[np.float32], above: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """Return DN (bands, k*h, k*w) of an image in DN whose k x k blocks have the means `above` (bands, h, w) exactly."""
    factor = image.shape[-1] // above.shape[-1]
    return np.stack([project_to_dn(one, coarse, factor) for one, coarse in zip(image, above, strict=True)])


def quality(dn: NDArray[np.uint16], order: tuple[str, ...], detail: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return quality classes (ny, nx): nodata where a colour is missing, or any band if no colour is stored."""
    rows = [i for i, name in enumerate(order) if name in RGB] or list(range(len(order)))
    return masks.quality(detail, (dn[rows] != NODATA_DN).all(0))


def spread_dn(
    spread: NDArray[np.float32],
    dn: NDArray[np.uint16],
    order: tuple[str, ...],
    classes: NDArray[np.uint8],
    drawn: Collection[str],
) -> NDArray[np.uint16]:
    """Return the spread of draws in DN (bands, ny, nx), 0 where no detail is generated.

    Bands that are not `drawn` are nodata.
    """
    generated = (dn != NODATA_DN) & (classes != masks.QUALITY_MEASURED)
    deviation = np.where(generated, np.rint(spread / np.float32(DN_SCALE)), 0)
    found: NDArray[np.uint16] = np.minimum(deviation, NODATA_SPREAD - 1).astype(np.uint16)
    found[dn == NODATA_DN] = NODATA_SPREAD
    found[[i for i, name in enumerate(order) if name not in drawn]] = NODATA_SPREAD
    return found


def nearest_cause(
    native: Rasters, window: Window, classes: NDArray[np.uint8], groups: Sequence[Group], around: Window
) -> NDArray[np.uint8] | None:
    """Return the cause nearest to each pixel of `window` that withholds detail, as an index into `masks.CAUSES`.

    The search covers what was read of `around`. None if no detail is withheld, or none is generated at all.
    """
    group = next((group for group in groups if group.required), None)
    if group is None or not np.isin(classes, (masks.QUALITY_MEASURED, masks.QUALITY_PARTIAL)).any():
        return None
    seen = seen_by(cast("NativeRasters", native), around.intersect(native.window), group)
    nearest = masks.nearest_cause(seen.dn, seen.scl, seen.bright, seen.colours)
    rows, cols = window.coarsen(SCALE_10M).slices(seen.window.coarsen(SCALE_10M))
    return nearest[rows, cols].repeat(SCALE_10M, 0).repeat(SCALE_10M, 1)
