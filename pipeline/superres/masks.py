"""Masks where no detail may be generated (nodata, clouds, saturation), and gap filling."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pipeline.bands import BRIGHT_REFLECTANCE, CANONICAL_OFFSET_DN, DN_SCALE, NODATA_DN
from pipeline.grid.arrays import cast, zeros

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from pipeline.grid.arrays import Array

# Scene classification (Sen2Cor ATBD, SCL): saturated or defective 1, cloud medium 8, cloud high 9, thin cirrus 10.
_SCL_CAUSES: dict[str, tuple[int, ...]] = {"cloud": (8, 9, 10), "saturated": (1,)}
NOT_CLEAR_SCL: tuple[int, ...] = (0, 1, 3, 8, 9, 10)  # those above, no data 0, and cloud shadow 3
# Without SCL, ground counts as cloud if it is bright, white, and wider than roofs.
CLOUD_REFLECTANCE = 0.4  # lower bound of the darkest of the three colours
CLOUD_TINT = 0.2  # upper bound of (brightest - darkest) / brightest
CLOUD_PX = 31  # 10 m px; 310 m
# 10 m px around clouds where a network does worse than interpolation. On images of known truth with a step to
# reflectance 0.9, its RMSE is 13 and 15 % worse in the two nearest pixels and 13 % better from the third on. Beside
# nodata, which is filled, it is better from the first pixel on.
_GUARD_PX = 2
_RAMP_PX = 2  # half width of the fade-in of detail beyond that, 10 m px

NODATA_CAUSE = "nodata"
CAUSES = ("cloud", "like_cloud", "saturated", "bright", NODATA_CAUSE)  # why detail is withheld at or near a pixel

QUALITY_NODATA, QUALITY_MEASURED, QUALITY_PARTIAL, QUALITY_GENERATED = 0, 1, 2, 3
QUALITY_MEANINGS = "nodata no_generated_detail partly_generated_detail generated_detail"


def reflectance(dn: Array) -> Array:
    """Return surface reflectance (1) of canonical DN. Nodata gives -0.1 and must be filled or masked."""
    return (cast(dn, "float32") + np.float32(CANONICAL_OFFSET_DN)) * np.float32(DN_SCALE)


def fill_nearest(values: NDArray[np.float32], valid: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return `values` (y, x) with invalid pixels set to their nearest valid one; all zero if none is valid."""
    if valid.all():
        return values
    if not valid.any():
        return np.zeros_like(values)
    filled: NDArray[np.float32] = values[nearest_valid(valid)]
    return filled


def nearest_valid(valid: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return row and column (y, x) of the valid pixel nearest to each, of which there must be one."""
    from scipy.ndimage import distance_transform_edt

    rows, cols = distance_transform_edt(~valid, return_distances=False, return_indices=True)
    return rows.astype(np.int64), cols.astype(np.int64)


def filled_reflectance(dn: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Return the reflectance of (band, y, x) DN, each band filled from its own nearest valid pixels."""
    rho: NDArray[np.float32] = reflectance(dn)
    valid = dn != NODATA_DN
    if valid.all():
        return rho
    return np.stack([fill_nearest(band, ok) for band, ok in zip(rho, valid, strict=True)])


def _spread(mask: NDArray[np.bool_], px: int) -> NDArray[np.bool_]:
    from scipy.ndimage import maximum_filter

    spread: NDArray[np.bool_] = maximum_filter(mask, size=2 * px + 1, mode="nearest")
    return spread


def _like_cloud(rho: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return where reflectance (band, y, x) of visible bands is bright and white over at least `CLOUD_PX` each way."""
    from scipy.ndimage import maximum_filter, minimum_filter

    darkest, brightest = rho.min(0), rho.max(0)
    white: NDArray[np.bool_] = (darkest > CLOUD_REFLECTANCE) & (brightest - darkest < CLOUD_TINT * brightest)
    if not white.any():
        return white
    core = minimum_filter(white, size=CLOUD_PX, mode="nearest")
    cloud: NDArray[np.bool_] = maximum_filter(core, size=CLOUD_PX, mode="nearest")
    return cloud


def measured(dn: NDArray[np.uint16]) -> NDArray[np.bool_]:
    """Return where all bands of (band, y, x) have data."""
    there: NDArray[np.bool_] = (dn != NODATA_DN).all(0)
    return there


def _causes(
    dn10: NDArray[np.uint16], scl: NDArray[np.uint8] | None, bright: float, colours: Sequence[int] | None
) -> dict[str, NDArray[np.bool_]]:
    """Return where no detail may be generated, on the 10 m grid (y, x), by cause; arguments as for `detail_weight`."""
    rho = reflectance(dn10)
    found = {NODATA_CAUSE: ~measured(dn10), "bright": rho.max(0) > bright}
    if scl is None:
        visible = rho if colours is None else rho[list(colours)]
        return {**found, "like_cloud": _like_cloud(visible)} if len(visible) else found
    for cause, classes in _SCL_CAUSES.items():
        found[cause] = np.isin(scl, classes).repeat(2, 0).repeat(2, 1)
    return found


def detail_weight(
    dn10: NDArray[np.uint16],
    scl: NDArray[np.uint8] | None,
    bright: float = BRIGHT_REFLECTANCE,
    colours: Sequence[int] | None = None,
) -> NDArray[np.float32] | None:
    """Return the weight 0..1 of generated detail on the 10 m grid, shape (y, x); None if it is 1 everywhere.

    `dn10` is (band, y, x) of the network's input bands, at least one, of which `colours` (all if None) are visible.
    `scl` is the 20 m classification (y/2, x/2) or None, in which case clouds are detected by brightness. The weight is
    0 at nodata, at clouds and saturated pixels, above the reflectance `bright`, and 2 px around these except nodata;
    from there it rises linearly over 4 px.
    """
    causes = _causes(dn10, scl, bright, colours)
    missing = causes.pop(NODATA_CAUSE)
    blocked = np.logical_or.reduce(list(causes.values()))
    if not (blocked | missing).any():
        return None
    weight = np.ones(missing.shape, np.float32)
    if blocked.any():
        from scipy.ndimage import uniform_filter

        kept = (~_spread(blocked, _GUARD_PX + _RAMP_PX)).astype(np.float32)
        weight = uniform_filter(kept, size=2 * _RAMP_PX + 1, mode="nearest")
    weight[blocked | missing] = 0.0
    return np.clip(weight, 0.0, 1.0)


def finished_weight(classes: NDArray[np.uint8]) -> NDArray[np.float32] | None:
    """Return the weight 0..1 of detail that a later pass may generate, on the grid of a finished group (y, x).

    None if it is 1 everywhere. `classes` are the group's quality. The weight is 0 where the group has no generated
    detail, and rises over the pixels next to that.
    """
    if (classes == QUALITY_GENERATED).all():
        return None
    from scipy.ndimage import uniform_filter

    share = np.zeros(len(QUALITY_MEANINGS.split()), np.float32)
    share[QUALITY_PARTIAL], share[QUALITY_GENERATED] = 0.5, 1.0
    weight: NDArray[np.float32] = uniform_filter(share[classes], size=2 * _RAMP_PX + 1, mode="nearest")
    weight[share[classes] == 0] = 0.0
    return np.clip(weight, 0.0, 1.0)


def nearest_cause(
    dn10: NDArray[np.uint16],
    scl: NDArray[np.uint8] | None,
    bright: float = BRIGHT_REFLECTANCE,
    colours: Sequence[int] | None = None,
) -> NDArray[np.uint8]:
    """Return an index into `CAUSES` of what withholds detail nearest to each 10 m pixel, (y, x).

    Arguments as for `detail_weight`. Where causes overlap, the first one counts. If nothing withholds detail, the
    result is "like_cloud": model windows see only part of the ground and may detect a cloud where the whole shows none.
    """
    nearest = np.full(dn10.shape[1:], len(CAUSES), np.uint8)
    causes = _causes(dn10, scl, bright, colours)
    for i, cause in reversed(list(enumerate(CAUSES))):
        if cause in causes:
            nearest[causes[cause]] = i
    if (nearest == len(CAUSES)).all():
        return np.full_like(nearest, CAUSES.index("like_cloud"))
    from scipy.ndimage import distance_transform_edt

    rows, cols = distance_transform_edt(nearest == len(CAUSES), return_distances=False, return_indices=True)
    found: NDArray[np.uint8] = nearest[rows, cols]
    return found


def quality(weight: Array, valid: Array) -> Array:
    """Return quality classes at 2.5 m from the blended weight of generated detail and validity, both (ny, nx)."""
    classes = zeros(weight.shape, weight, "uint8")
    classes[:] = QUALITY_PARTIAL
    classes[weight <= 1e-3] = QUALITY_MEASURED
    classes[weight >= 1 - 1e-3] = QUALITY_GENERATED
    classes[~valid] = QUALITY_NODATA
    return classes
