"""The contract "sensor": a blended image changed until the sensor would measure of it what it has measured.

In: blended images of an area in DN, native DN. Out: images of a smaller window. Imports bands and sensor; no I/O.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pipeline.bands import NODATA_DN
from pipeline.superres.sensor import correction, observed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from pipeline.grid.grid import Window
    from pipeline.superres.sensor import Sensor
    from pipeline.superres.superres import Native, Options


def agreeing(
    native: Native,
    window: Window,
    area: Window,
    order: tuple[str, ...],
    options: Options,
    blended: NDArray[np.float32],
    void: Sequence[Window],
) -> NDArray[np.float32]:
    """Bands (bands, *area) in DN made to agree with what the sensor measured, cut to `window`."""
    images = np.ascontiguousarray(blended[(slice(None), *window.slices(area))])
    for i, name in enumerate(order):
        of = options.sensor(name)
        if of is None:
            continue
        around = window.pad(of.reach_px)
        measured = native.band(name, window.pad(of.cells * of.factor))
        lacking = measured - observed(blended[(i, *around.slices(area))], of)
        lacking[measured == NODATA_DN] = 0.0
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
