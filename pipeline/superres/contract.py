"""The "sensor" consistency: correct a blended image until the simulated sensor would measure the native DN."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from pipeline.bands import NODATA_DN
from pipeline.grid.grid import Window
from pipeline.grid.sensor import NOISE_DN, Sensor, correction, observed, spread
from pipeline.superres.consistency import least_dn

Measured = Callable[[Window], NDArray[np.uint16]]  # native DN of a band over a window of 2.5 m px

# Residual above which a corrected image is scaled to the measurement, and the largest relative change by that.
_LEFT_ALONE_DN = 1.5 * NOISE_DN
_SHARE = 1.0
CELLS = 2  # native pixels of context on each side for the scaling


def reach_px(of: Sensor) -> int:
    """Return the context around an area that the output depends on, in px of 2.5 m."""
    return (of.cells + 1 + CELLS) * of.factor


def agreeing(
    blended: NDArray[np.float32],
    area: Window,
    window: Window,
    sensors: Sequence[Sensor | None],
    measured: Callable[[int, Window], NDArray[np.uint16]],
    void: Sequence[Window],
) -> NDArray[np.float32]:
    """Return bands (bands, *area) in DN corrected to agree with what their sensors measured, cut to `window`.

    `measured(i, window)` is native DN of band i; bands without a sensor are only cut. Parts of `area` that are `void`
    hold no prediction, so native pixels that see any of them are ignored.
    """
    images = np.ascontiguousarray(blended[(slice(None), *window.slices(area))])
    for i, of in enumerate(sensors):
        if of is None:
            continue
        around = window.pad(reach_px(of))
        inner = window.pad(CELLS * of.factor)
        asked = partial(measured, i)
        image = blended[(i, *around.slices(area))]
        corrected = image[inner.slices(around)] + correction(_lacking(image, around, of, asked, void), of)
        images[i] = _in_range(corrected, inner, of, asked, void)
    return images


def _lacking(
    image: NDArray[np.float32], around: Window, of: Sensor, measured: Measured, void: Sequence[Window]
) -> NDArray[np.float32]:
    """Return measured less observed DN of the native pixels that see nothing beyond `around`; 0 where unknown."""
    given = measured(around.pad(-of.factor))
    lacking = given - observed(image, of)
    lacking[given == NODATA_DN] = 0.0
    lacking[_seeing(void, around, of)] = 0.0
    return lacking


def _in_range(
    image: NDArray[np.float32], inner: Window, of: Sensor, measured: Measured, void: Sequence[Window]
) -> NDArray[np.float32]:
    """Return the image without values below the physical range, cut by `CELLS` native pixels.

    Clipping adds to what is observed. Where it does, and where the image differs from the measurement by more than the
    tolerated noise, the part above the lower bound is scaled by the ratio of measured and observed, spread as the
    sensor sees it: one step of Richardson (1972) and Lucy (1974), which keeps sums and sign.
    """
    k = of.factor
    floor = least_dn(measured(inner).astype(np.float32)).repeat(k, 0).repeat(k, 1)
    left_alone = lacking = _lacking(image, inner, of, measured, void)
    if (image < floor).any():
        image = np.maximum(image, floor)
        lacking = _lacking(image, inner, of, measured, void)
    lacking = lacking - np.clip(left_alone, np.float32(-_LEFT_ALONE_DN), np.float32(_LEFT_ALONE_DN))
    inside = (slice(CELLS * k, -CELLS * k),) * 2
    if not lacking.any():
        return image[inside]
    excess = image - floor
    share = np.clip(lacking / np.maximum(observed(excess, of), np.float32(1.0)), -_SHARE, _SHARE).astype(np.float32)
    scaled: NDArray[np.float32] = image[inside] + excess[inside] * spread(share, of)
    return scaled


def _seeing(void: Sequence[Window], around: Window, of: Sensor) -> NDArray[np.bool_]:
    """Return which native pixels see something of `void`, among those that see nothing beyond `around`."""
    blank = np.zeros(around.shape, np.float32)
    for part in void:
        if not (common := part.intersect(around)).empty:
            blank[common.slices(around)] = 1.0
    if not blank.any():
        return np.zeros(around.pad(-of.factor).coarsen(of.factor).shape, np.bool_)
    return observed(blank, of) > 0
