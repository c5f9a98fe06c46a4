"""Reader of a real pair: a sharp image and a coarse one of the same ground, on one grid.

The grid is that of the coarse image, refined by the network's scale. The sharp image is resampled onto it once, moved
by the measured shift, and brought to the coarse image's reflectance band by band.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from training.data.headers import Header, ground_gsd_m, local_header
from training.data.images import Values, file_readers, values_of
from training.data.places import Georeference
from training.data.rasters import harmonise, median_gamma
from training.data.registration import NOTHING, Registration

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from training.data.images import Reader
    from training.data.training_file import Source

    Floats = NDArray[np.float32]

SIZES_AGREE = 0.05  # of the ratios of pixel sizes
MARGIN_PX = 4  # sharp pixels read around a window
AVERAGED_FROM = 1.5  # sharp pixels per pixel of the grid from which on they are averaged
LOCAL_CRS = "EPSG:32631"  # metres, for pairs that are not georeferenced


@dataclass(frozen=True)
class Part:
    """One of the two images of a pair: its reader, the encoding of its values, and where its pixels lie."""

    reader: Reader
    values: Values
    place: Georeference
    bands: tuple[str, ...]

    def window(self, y: int, x: int, ny: int, nx: int) -> Floats:
        """Return reflectance (bands, ny, nx) of a window inside the image, NaN where it is not valid."""
        stored = self.reader.read(y, x, ny, nx)
        valid = self.values.valid(stored, self.reader.mask(y, x, ny, nx))
        rho = self.values.decode(stored)
        if self.values.encoded:
            rho = harmonise(rho, median_gamma(self.bands))
        return np.where(valid, rho, np.float32(np.nan))

    def selecting(self, places: Sequence[int]) -> Part:
        """Return the part with a subset of its bands, by index."""
        bands = tuple(self.bands[place] for place in places)
        return replace(self, reader=self.reader.selecting(places), bands=bands)


@dataclass(frozen=True)
class PairReader:
    """Reader of a pair on the refined grid: reflectance of the sharp bands, then of the coarse bands, repeated."""

    sharp: Part
    coarse: Part
    scale: int
    found: Registration = NOTHING
    itemsize: int = 4

    @property
    def shape(self) -> tuple[int, int]:
        """(ny, nx) of the refined grid."""
        height, width = self.coarse.place.shape
        return self.scale * height, self.scale * width

    def read(self, y: int, x: int, ny: int, nx: int) -> Floats:
        """Return reflectance (2 * bands, ny, nx) of a window, NaN where a part is not valid. Raises ReadError."""
        return np.concatenate([self._matched(self.sharpened(y, x, ny, nx)), self._repeated(y, x, ny, nx)])

    def mask(self, y: int, x: int, ny: int, nx: int) -> None:
        """Return None: what is not valid is NaN."""
        del y, x, ny, nx

    def selecting(self, places: Sequence[int]) -> PairReader:
        """As `Reader.selecting`."""
        found = self.found
        gains, offsets = (tuple(of[place] for place in places) if of else () for of in (found.gains, found.offsets))
        return replace(
            self,
            sharp=self.sharp.selecting(places),
            coarse=self.coarse.selecting(places),
            found=replace(found, gains=gains, offsets=offsets),
        )

    def sharpened(self, y: int, x: int, ny: int, nx: int) -> Floats:
        """Return the sharp image (bands, ny, nx) on a window of the grid, moved, without a match of its radiometry."""
        from rasterio import Affine
        from rasterio.warp import Resampling, reproject

        dy, dx = self.found.shift_px
        corner = y / self.scale + dy, x / self.scale + dx
        target = Georeference(self.coarse.place.crs, self.coarse.place.at(*corner, self.scale), (ny, nx))
        made = np.full((len(self.sharp.bands), ny, nx), np.nan, np.float32)
        window = self._sharp_window(target)
        if window is None:
            return made
        top, left, height, width = window
        finer = self.sharp_px_per_px >= AVERAGED_FROM
        reproject(
            self.sharp.window(top, left, height, width),
            made,
            src_transform=Affine(*self.sharp.place.at(top, left)),
            src_crs=self.sharp.place.crs,
            src_nodata=np.nan,
            dst_transform=Affine(*target.affine),
            dst_crs=target.crs,
            dst_nodata=np.nan,
            resampling=Resampling.average if finer else Resampling.lanczos,
        )
        return made

    @property
    def sharp_px_per_px(self) -> float:
        """Sharp pixels per pixel of the grid, along one axis: the geometric mean of both."""
        sizes = []
        for place in (self.coarse.place, self.sharp.place):
            sizes.append(math.prod(ground_gsd_m(Header(place.shape, 1, "", None, place.crs, place.affine))) ** 0.5)
        return sizes[0] / self.scale / sizes[1]

    def _sharp_window(self, target: Georeference) -> tuple[int, int, int, int] | None:
        """Return (top, left, height, width) of the sharp pixels under a window of the grid, None if there are none."""
        from rasterio.warp import transform

        (ny, nx), steps = target.shape, np.linspace(0, 1, 5)
        x, y = target.ground(*np.meshgrid(steps * ny, steps * nx, indexing="ij"))
        if self.sharp.place.crs != target.crs:
            x, y = map(np.array, transform(target.crs, self.sharp.place.crs, x.ravel(), y.ravel()))
        down, across = self.sharp.place.pixels(x, y)
        height, width = self.sharp.place.shape
        top, left = max(0, int(down.min()) - MARGIN_PX), max(0, int(across.min()) - MARGIN_PX)
        bottom, right = min(height, int(down.max()) + MARGIN_PX + 1), min(width, int(across.max()) + MARGIN_PX + 1)
        return (top, left, bottom - top, right - left) if bottom > top and right > left else None

    def _matched(self, sharp: Floats) -> Floats:
        if not self.found.gains:
            return sharp
        gains, offsets = (np.array(of, np.float32)[:, None, None] for of in (self.found.gains, self.found.offsets))
        return sharp * gains + offsets

    def _repeated(self, y: int, x: int, ny: int, nx: int) -> Floats:
        """Return the coarse image (bands, ny, nx) on a window of the refined grid."""
        s = self.scale
        top, left, bottom, right = y // s, x // s, -(-(y + ny) // s), -(-(x + nx) // s)
        coarse = self.coarse.window(top, left, bottom - top, right - left)
        fine = coarse.repeat(s, axis=1).repeat(s, axis=2)
        return fine[:, y - s * top : y - s * top + ny, x - s * left : x - s * left + nx]


def reader_of(source: Source, sharp: Path, coarse: Path, scale: int) -> PairReader:
    """Return the reader of a pair that is not registered yet. Raises UsageError if its files do not fit together."""
    label = f"{sharp} with {coarse.name}"
    headers = local_header(source, sharp), local_header(source, coarse)
    places = _places(source, label, headers)
    of_coarse = replace(
        source,
        role="sentinel2",
        bands=source.coarse_bands or source.bands,
        values="reflectance",
        scale=source.coarse_scale,
        offset=source.coarse_offset,
    )
    parts = []
    for of, path, header, place in zip((source, of_coarse), (sharp, coarse), headers, places, strict=True):
        values = values_of(of, str(path), header)
        if of is of_coarse and values.nodata is None and np.dtype(header.dtype).kind in "ui":
            values = replace(values, nodata=0.0)  # of Sentinel-2
        parts.append(Part(file_readers(of, str(path), path, header)[0], values, place, source.offers))
    reader = PairReader(parts[0], parts[1], scale)
    if reader.sharp_px_per_px < 1 - SIZES_AGREE:
        raise source.fault(
            f"{label}: {scale} x {reader.sharp_px_per_px:.3g} sharp pixels per coarse pixel",
            f"at least {scale}, the scale of the network",
            "a smaller --set scale, or finer images",
        )
    return reader


def _places(source: Source, label: str, headers: tuple[Header, Header]) -> tuple[Georeference, Georeference]:
    """Return where both images lie: as georeferenced, or both over the same ground if neither is."""
    sharp, coarse = headers
    if bool(sharp.crs) != bool(coarse.crs):
        raise source.fault(f"{label}: one of them is georeferenced", "both or none")
    if sharp.crs:
        return Georeference(sharp.crs, sharp.affine, sharp.shape), Georeference(coarse.crs, coarse.affine, coarse.shape)
    ratios = [fine / rough for fine, rough in zip(sharp.shape, coarse.shape, strict=True)]
    if abs(ratios[0] / ratios[1] - 1) > SIZES_AGREE:
        raise source.fault(
            f"{label}: {sharp.shape} and {coarse.shape} pixels", "images of the same ground, with equal proportions"
        )
    if source.gsd_m is None:
        raise source.fault(f"{label}: neither is georeferenced and gsd_m is not given", "gsd_m of the sharp images")
    px = source.gsd_m
    return (
        Georeference(LOCAL_CRS, (px, 0.0, 0.0, 0.0, -px, 0.0), sharp.shape),
        Georeference(LOCAL_CRS, (px * ratios[1], 0.0, 0.0, 0.0, -px * ratios[0], 0.0), coarse.shape),
    )
