"""Nodata of the stored uncertainty: 65535, but 0 in stores of format 1, where 0 is a value as well."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pipeline.bands import NODATA_DN, NODATA_SPREAD

if TYPE_CHECKING:
    from numpy.typing import NDArray

LEGACY_NODATA = 0  # fill value of the array in stores of format 1


def decoded(spread: NDArray[np.uint16], dn: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """Return the spread in DN, `NODATA_SPREAD` wherever the reflectance `dn` of the same shape is nodata."""
    return np.where(dn == NODATA_DN, np.uint16(NODATA_SPREAD), spread)


def encoded(spread: NDArray[np.uint16], fill_value: int) -> NDArray[np.uint16]:
    """Return the spread in DN as an array with `fill_value` stores it."""
    if fill_value == NODATA_SPREAD:
        return spread
    return np.where(spread == NODATA_SPREAD, np.uint16(fill_value), spread)
