"""The contract "sensor": a blended image changed until the sensor would measure of it what it has measured.

In: blended images of an area in DN, native DN. Out: images of a smaller window. Imports bands and sensor; no I/O.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pipeline.bands import NODATA_DN
from pipeline.grid.sensor import correction, observed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from pipeline.grid.grid import Window
    from pipeline.grid.sensor import Sensor


def agreeing(
    blended: NDArray[np.float32],
    area: Window,
    window: Window,
    sensors: Sequence[Sensor | None],
    measured: Callable[[int, Window], NDArray[np.uint16]],
    void: Sequence[Window],
) -> NDArray[np.float32]:
    """Bands (bands, *area) in DN made to agree with what their sensors measured, cut to `window`.

    `measured(i, window)` is native DN of band i; bands without a sensor are only cut. Parts of `area` that are `void`
    hold no prediction: native pixels that see something of them are not asked.
    """
    images = np.ascontiguousarray(blended[(slice(None), *window.slices(area))])
    for i, of in enumerate(sensors):
        if of is None:
            continue
        around = window.pad(of.reach_px)
        given = measured(i, window.pad(of.cells * of.factor))
        lacking = given - observed(blended[(i, *around.slices(area))], of)
        lacking[given == NODATA_DN] = 0.0
        lacking[_seeing(void, around, of)] = 0.0
        images[i] += correction(lacking, of)
    return images


def _seeing(void: Sequence[Window], around: Window, of: Sensor) -> NDArray[np.bool_]:
    """Native pixels that see something of `void`, of those that see nothing beyond `around`."""
    blank = np.zeros(around.shape, np.float32)
    for part in void:
        if not (common := part.intersect(around)).empty:
            blank[common.slices(around)] = 1.0
    if not blank.any():
        shape = around.pad(of.cells * of.factor - of.reach_px).coarsen(of.factor).shape
        return np.zeros(shape, np.bool_)
    return observed(blank, of) > 0
