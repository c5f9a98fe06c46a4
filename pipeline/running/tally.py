"""Pixel counts of a unit for its receipt: measured, clear, with generated detail, and without it by cause."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.bands import NODATA_DN
from pipeline.superres import masks
from pipeline.superres.masks import NOT_CLEAR_SCL

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from pipeline.grid.native_rasters import NativeRasters

_UNCLASSIFIED_SCL = 7  # also used where a scene has no classification
_DETAIL = {
    "generated": masks.QUALITY_GENERATED,
    "partial": masks.QUALITY_PARTIAL,
    "none": masks.QUALITY_MEASURED,
}


class Tally:
    """Counts of the output pixels of a unit, chunk by chunk, as in `Receipt`."""

    def __init__(self, bands: tuple[str, ...]) -> None:
        self.valid = dict.fromkeys(bands, 0)
        self.pixels = 0
        self.clear: int | None = None
        self.detail = dict.fromkeys(_DETAIL, 0)
        self.withheld: dict[str, int] = {}

    def add(self, part: Mapping[str, NDArray[Any]], pixels: int, causes: NDArray[np.uint8] | None) -> None:
        """Add the stored arrays of one chunk, which has `pixels` within the AOI.

        `causes` (y, x) index `masks.CAUSES`, as in `superres.Result`.
        """
        dn, quality = part["reflectance"], part["quality"]
        for band, plane in zip(self.valid, dn, strict=True):
            self.valid[band] += int(np.count_nonzero(plane != NODATA_DN))
        self.pixels += pixels
        if "scl" in part:
            clear = ~np.isin(part["scl"], NOT_CLEAR_SCL) & (dn != NODATA_DN).all(0)
            self.clear = (self.clear or 0) + int(np.count_nonzero(clear))
        for name, value in _DETAIL.items():
            self.detail[name] += int(np.count_nonzero(quality == value))
        if causes is not None:
            lacking = (quality == masks.QUALITY_MEASURED) | (quality == masks.QUALITY_PARTIAL)
            for index in np.unique(causes[lacking]):
                name = masks.CAUSES[index]
                self.withheld[name] = self.withheld.get(name, 0) + int(np.count_nonzero(causes[lacking] == index))


def holes(pixels: NativeRasters, bands: tuple[str, ...]) -> dict[str, int]:
    """Return {band of `bands`: number of native 10 or 20 m pixels that are nodata although SCL says clear}.

    GDAL does not detect damage to an uncompressed file, but zeros that SCL contradicts reveal it. Dark pixels clipped
    to 0 look the same, so this is reported and not an error.
    """
    if pixels.scl is None:
        return {}
    clear = ~np.isin(pixels.scl, (*NOT_CLEAR_SCL, _UNCLASSIFIED_SCL))
    found = {}
    for gsd, repeat in ((10, 2), (20, 1)):
        for name, raster in zip(pixels.bands.get(gsd, ()), pixels.dn.get(gsd, ()), strict=True):
            seen = clear.repeat(repeat, 0).repeat(repeat, 1)
            count = int(np.count_nonzero(seen & (raster == NODATA_DN)))
            if count and name in bands:
                found[name] = count
    return found
