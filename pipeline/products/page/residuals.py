"""The radiometric check on the report page: block means of the stored output against the stored input.

In: a `Part`. Out: one `Residual` per band. Imports bands and source only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.bands import BY_NAME, NODATA_DN, bands_at
from pipeline.products.page.source import factor_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.products.page.source import Part

PROMISE_DN = 0.5  # of `consistency = box`, after rounding to whole DN


@dataclass(frozen=True)
class Residual:
    """How far block means of one band are from the native pixels, in DN; None where none could be compared."""

    band: str
    gsd_m: int
    compared: int  # native pixels
    left_out: int  # measured, but the output is nodata in at least one pixel of the block
    largest_dn: float | None
    mean_dn: float | None

    @property
    def kept(self) -> bool:
        """True when the promise of `consistency = box` holds here."""
        return self.largest_dn is not None and self.largest_dn <= PROMISE_DN


def residuals(part: Part, bands: tuple[str, ...]) -> list[Residual]:
    """One per band, in the store's order; empty when the store keeps no input to compare with."""
    if not part.measured_kept:
        return []
    found = []
    for index, name in enumerate(bands):
        gsd = BY_NAME[name].gsd_m
        native = part.measured[gsd][bands_at(gsd, bands).index(name)]
        found.append(_residual(name, gsd, part.dn[index], native))
    return found


def _residual(name: str, gsd_m: int, dn: NDArray[np.uint16], native: NDArray[np.uint16]) -> Residual:
    factor = factor_of(gsd_m)
    ny, nx = native.shape
    blocks = dn.reshape(ny, factor, nx, factor)
    whole = (blocks != NODATA_DN).all((1, 3))
    measured = native != NODATA_DN
    compared = whole & measured
    count = int(compared.sum())
    sums = blocks.sum((1, 3), dtype=np.int64)
    off = np.abs(sums[compared] - native[compared].astype(np.int64) * factor**2) / factor**2
    return Residual(
        name, gsd_m, count, int((measured & ~whole).sum()),
        round(float(off.max()), 4) if count else None, round(float(off.mean()), 4) if count else None,
    )  # fmt: skip
