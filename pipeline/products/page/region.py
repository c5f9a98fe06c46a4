"""Choice of the part of a store that the report page shows at 2.5 m, and of the place where its map opens."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from pipeline.bands import BLOCK_60M, NODATA_DN, TARGET_GSD_M, bands_at
from pipeline.errors import UsageError
from pipeline.grid.grid import Window, align_down
from pipeline.products.page.source import factor_of, nothing, overviews, undamaged
from pipeline.store.nodes import array_at

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.products.page.source import Part, Zone

WHOLE_PX = 5_000_000  # largest store that is shown whole: 31 km2
_DETAIL_PX = 1584  # side of the part shown of larger stores: 3.96 km
_FOCUS_M = 900.0  # side of the place where the map opens
_CANDIDATES = 6  # chunks sampled along each axis of a store without overviews


def choose_window(zone: Zone, at: tuple[float, float] | None = None) -> Window:
    """Return the part to show: all of a small store, else a square around `at` (longitude, latitude).

    Without `at`, the square is where contrast is largest. Raises UsageError if `at` is outside the store, and
    NoDataError if nothing is measured.
    """
    if zone.ny * zone.nx <= WHOLE_PX:
        if at is not None:
            _pixel(zone, at)
        return zone.whole
    row, col = _pixel(zone, at) if at is not None else _contrast(zone)
    side_y, side_x = min(_DETAIL_PX, zone.ny), min(_DETAIL_PX, zone.nx)
    top = align_down(int(np.clip(row - side_y // 2, 0, zone.ny - side_y)), BLOCK_60M)
    left = align_down(int(np.clip(col - side_x // 2, 0, zone.nx - side_x)), BLOCK_60M)
    return Window(top, left, side_y, side_x)


def _pixel(zone: Zone, at: tuple[float, float]) -> tuple[int, int]:
    """Return row and column of a place (degrees). Raises UsageError if it is outside the zone."""
    import pyproj

    turn = pyproj.Transformer.from_crs(4326, zone.epsg, always_xy=True)
    x, y = turn.transform(*at)
    row, col = (zone.top_m - y) / TARGET_GSD_M, (x - zone.left_m) / TARGET_GSD_M
    if not (math.isfinite(row) and math.isfinite(col) and 0 <= row < zone.ny and 0 <= col < zone.nx):
        west, south, east, north = turn.transform_bounds(*zone.bounds_m(zone.whole), direction="INVERSE")
        raise UsageError(
            f"{at[0]:g} {at[1]:g} lies outside the store",
            f"a longitude from {west:.4f} to {east:.4f} and a latitude from {south:.4f} to {north:.4f}",
        )
    return int(row), int(col)


def _contrast(zone: Zone) -> tuple[int, int]:
    """Return row and column of the middle of the place with the most contrast."""
    band = zone.bands.index("B03") if "B03" in zone.bands else 0
    coarsest = overviews(zone)[-1:]
    if coarsest:
        gsd, array = coarsest[0]
        with undamaged(zone.place, f"the overview of {gsd} m"):
            dn = np.asarray(array[zone.time, band])
        place = _most_contrast(dn, max(2, round(_DETAIL_PX * TARGET_GSD_M / gsd)))
        if place is None:
            raise nothing(zone)
        return place[0] * factor_of(gsd), place[1] * factor_of(gsd)
    return _most_contrast_of_chunks(zone, band)


def focus_m(zone: Zone, part: Part) -> tuple[float, float]:
    """Return easting and northing of the place in the part to show first."""
    gsd = min(part.measured)
    names = bands_at(gsd, zone.bands)
    step = factor_of(gsd)
    known = part.quality[step // 2 :: step, step // 2 :: step] != 0  # prefer places with RGB
    dn = np.where(known, part.measured[gsd][names.index("B03") if "B03" in names else 0], np.uint16(NODATA_DN))
    row, col = _most_contrast(dn, max(2, round(_FOCUS_M / gsd))) or (dn.shape[0] // 2, dn.shape[1] // 2)
    left, _, _, top = zone.bounds_m(part.window)
    return left + col * gsd, top - row * gsd


def _most_contrast(dn: NDArray[np.uint16], side: int) -> tuple[int, int] | None:
    """Return row and column of the middle of the square with the most contrast; None if nothing is measured."""
    side_y, side_x = min(side, dn.shape[0]), min(side, dn.shape[1])
    best: tuple[float, int, int] | None = None
    for row in _spread(dn.shape[0], side_y):
        for col in _spread(dn.shape[1], side_x):
            score = _score(dn[row : row + side_y, col : col + side_x])
            if score > 0 and (best is None or score > best[0]):
                best = (score, row, col)
    return None if best is None else (best[1] + side_y // 2, best[2] + side_x // 2)


def _most_contrast_of_chunks(zone: Zone, band: int) -> tuple[int, int]:
    """Do the same for stores without overviews, with evenly spread chunks."""
    array = array_at(zone.group, "reflectance")
    chunk = array.chunks[-1]
    best: tuple[float, int, int] | None = None
    for row in _some(math.ceil(zone.ny / chunk)):
        for col in _some(math.ceil(zone.nx / chunk)):
            rows, cols = slice(row * chunk, (row + 1) * chunk), slice(col * chunk, (col + 1) * chunk)
            with undamaged(zone.place, "reflectance"):
                score = _score(np.asarray(array[zone.time, band, rows, cols]))
            if score > 0 and (best is None or score > best[0]):
                best = (score, row, col)
    if best is None:
        raise nothing(zone)
    return best[1] * chunk + chunk // 2, best[2] * chunk + chunk // 2


def _score(dn: NDArray[np.uint16]) -> float:
    """Return the standard deviation of measured pixels times their share. It is above 0 if any pixel is measured."""
    measured = dn[dn != NODATA_DN]
    return float(measured.std() + 1e-3) * measured.size / dn.size if measured.size else 0.0


def _spread(length: int, side: int) -> list[int]:
    return sorted({*range(0, max(1, length - side + 1), max(1, side // 2)), max(0, length - side)})


def _some(count: int) -> list[int]:
    return sorted({(count - 1) * i // max(1, _CANDIDATES - 1) for i in range(_CANDIDATES)})
