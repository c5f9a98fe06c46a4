"""Samples stored DN of a scene for the offset audit, away from nodata: an overview, or blocks at full resolution.

Averaged overviews, and the resolutions of JPEG 2000, mix ground with nodata at swath edges and holes. Such pixels are
darker than any ground, so only blocks at full resolution may contradict a record.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from pipeline.archive.read.band_file import BandFile, gdal_options, open_checked
from pipeline.archive.read.image import without_impossible

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from pipeline.archive.read.access import Access
    from pipeline.archive.read.image import Image
    from pipeline.archive.scene import Scene

T = TypeVar("T")

_LOOK_PX = 512  # side of an overview; images up to this side are read whole, at full resolution
_WHOLE_PX = 2048  # images up to this side are decimated where they have no overviews
_BLOCKS = 16
_FINE_GRID = 8  # blocks per side of a second sample of images without overviews, where the first found little
_BLOCK_M = 1280.0
_ENOUGH_PX = 4000  # at 10 m
_MARGIN_M = 30.0  # ground this close to nodata is excluded; lossy compression smears nodata by two or three pixels
_MARGIN_LOOK_PX = 2  # the same in an overview

Place = tuple[float, float]  # of a block's centre, as fractions of the image's height and width


class Look:
    """One file's decimated image: `dn` away from nodata, where ground lies, and the file's declarations.

    `impossible_pct`: share of the stored values that cannot be reflectance and are read as nodata.
    """

    def __init__(self, image: Image, offset_dn: int) -> None:
        ny, nx = image.dataset.shape
        step = max(1, -(-max(ny, nx) // _LOOK_PX))
        self.full = step == 1
        self.offset_dn = image.declared.offset_dn
        self.places: tuple[Place, ...] = ()
        self.impossible_pct = 0.0
        self.dn: NDArray[Any] = np.zeros(0, np.uint16)
        self.thinned = self.full or bool(image.dataset.overviews(1)) or max(ny, nx) <= _WHOLE_PX
        if not self.thinned:
            return
        values = image.thinned(step)
        stored = np.count_nonzero(values)
        values = without_impossible(values, offset_dn)
        self.impossible_pct = 100 * (1 - np.count_nonzero(values) / stored) if stored else 0.0
        margin = round(_MARGIN_M / abs(image.dataset.transform.a)) if self.full else _MARGIN_LOOK_PX
        self.dn = values[away_from_nodata(values != 0, margin)]
        self.places = _places(values != 0)


def look(scene: Scene, bands: Sequence[str], access: Access) -> dict[str, Look]:
    """Decimated image of each band's file. ReadError after retries."""

    def one(file: BandFile) -> Look:
        def attempt() -> Look:
            image = open_checked(file, access)
            try:
                return Look(image, file.offset_dn)
            finally:
                image.close()

        return _reading(file, attempt, access)

    return {band: one(BandFile.of(scene, band)) for band in bands}


def blocks(scene: Scene, looks: dict[str, Look], access: Access) -> dict[str, NDArray[Any]]:
    """Stored DN of about 16 blocks of 1.28 km, the same ground in each band, away from nodata. ReadError."""
    if all(seen.full for seen in looks.values()):
        return {band: seen.dn for band, seen in looks.items()}
    first = next(iter(looks))
    places = looks[first].places
    if not looks[first].thinned:
        places = _grid(int(_BLOCKS**0.5))
        few = _blocks_of(BandFile.of(scene, first), places, access).size < _ENOUGH_PX
        places = _grid(_FINE_GRID) if few else places
    return {band: _blocks_of(BandFile.of(scene, band), places, access) for band in looks}


def away_from_nodata(valid: NDArray[np.bool_], margin_px: int) -> NDArray[np.bool_]:
    """(y, x) True where everything within `margin_px` rows and columns is valid; the image's own edge counts as valid.

    >>> away_from_nodata(np.array([[True, True, True, False]]), 1).tolist()
    [[True, True, False, False]]
    """
    out = valid
    for axis in (0, 1):
        padding = [(margin_px, margin_px) if at == axis else (0, 0) for at in (0, 1)]
        padded = np.pad(out, padding, constant_values=True)
        count = out.shape[axis]
        out = np.logical_and.reduce([padded.take(range(i, i + count), axis) for i in range(2 * margin_px + 1)])
    return out


def _places(ground: NDArray[np.bool_]) -> tuple[Place, ...]:
    """Up to 16 places on the ground of a thinned image, as far inside it as there are enough of them; fixed by it."""
    for margin in (_MARGIN_LOOK_PX, 1, 0):
        rows, cols = np.nonzero(away_from_nodata(ground, margin))
        if rows.size >= _BLOCKS or margin == 0:
            break
    picked = np.random.default_rng(0).permutation(rows.size)[:_BLOCKS]
    return tuple(((rows[i] + 0.5) / ground.shape[0], (cols[i] + 0.5) / ground.shape[1]) for i in picked)


def _grid(side: int) -> tuple[Place, ...]:
    return tuple(((row + 0.5) / side, (col + 0.5) / side) for row in range(side) for col in range(side))


def _blocks_of(file: BandFile, places: Sequence[Place], access: Access) -> NDArray[Any]:
    def attempt() -> NDArray[Any]:
        image = open_checked(file, access)
        try:
            ny, nx = image.dataset.shape
            side = min(round(_BLOCK_M / file.gsd_m), ny, nx)
            margin = max(1, round(_MARGIN_M / file.gsd_m))
            found = [np.zeros(0, image.dataset.dtypes[0])]
            for down, right in places:
                row = min(max(round(down * ny) - side // 2, 0), ny - side)
                col = min(max(round(right * nx) - side // 2, 0), nx - side)
                values = without_impossible(image.read(row, col, side, side), file.offset_dn)
                found.append(values[away_from_nodata(values != 0, margin)])
            return np.concatenate(found)
        finally:
            image.close()

    return _reading(file, attempt, access)


def _reading(file: BandFile, attempt: Callable[[], T], access: Access) -> T:
    import rasterio

    def within() -> T:
        with rasterio.Env(**gdal_options(access)):
            return attempt()

    return access.reading(file.href, within, what=f"{file.band} of scene {file.scene_id}")
