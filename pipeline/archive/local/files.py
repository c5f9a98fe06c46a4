"""Raster headers, and the choice of the measured image among several files of one band."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.archive.read import zipped
from pipeline.archive.read.access import Access
from pipeline.archive.read.band_file import gdal_options, has_alpha, sample_types
from pipeline.archive.read.gdal import open_raster
from pipeline.archive.read.image import Image
from pipeline.bands import BAND_NAMES, BY_NAME, SCL
from pipeline.errors import UsageError
from pipeline.grid.native_rasters import SCL_GSD_M

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_WHOLE_M = 1e-3  # pixel sizes and origins closer than this are equal


@dataclass(frozen=True)
class File:
    """Header of one raster file. `bands` does not count an alpha channel; `offset_dn`: by scale and offset tags."""

    path: Path
    bands: int
    dtype: str
    epsg: int | None
    gsd_m: float
    left_m: float
    top_m: float
    ny: int
    nx: int
    offset_dn: int | None = None

    def holds(self, other: File) -> bool:
        """True when the other file's ground lies within this one's."""
        return (
            self.epsg == other.epsg
            and self.left_m <= other.left_m + _WHOLE_M
            and self.top_m >= other.top_m - _WHOLE_M
            and self.left_m + self.nx * self.gsd_m >= other.left_m + other.nx * other.gsd_m - _WHOLE_M
            and self.top_m - self.ny * self.gsd_m <= other.top_m - other.ny * other.gsd_m + _WHOLE_M
        )


def header(path: Path) -> File:
    """Header of a file. UsageError if it is not a raster, is rotated, or declares values that cannot be honoured."""
    import rasterio

    inside = zipped.split(path)
    access = Access(roots=(str((path if inside is None else inside[0]).resolve().parent),))
    try:
        with rasterio.Env(**gdal_options(access)), open_raster(access.href(str(path.resolve()))) as dataset:
            a, b, left_m, d, e, top_m = tuple(dataset.transform)[:6]
            if b or d or abs(a + e) > _WHOLE_M:
                raise UsageError(f"{path} has pixels of ({a:g}, {b:g}, {d:g}, {e:g})", "square, north-up pixels")
            epsg = dataset.crs.to_epsg() if dataset.crs else None
            count = 1 if has_alpha(dataset) else dataset.count
            offset_dn = Image(dataset).declared.offset_dn if count == 1 else None
            dtype, (ny, nx) = dataset.dtypes[0], dataset.shape
    except ValueError as error:
        raise UsageError(f"{path} cannot be used: {error}") from error
    except rasterio.errors.RasterioIOError as error:
        raise UsageError(f"{path} cannot be opened: {error}", "a GeoTIFF or JPEG 2000 file") from error
    return File(path, count, dtype, epsg, a, left_m, top_m, ny, nx, offset_dn)


def chosen(paths: Mapping[str, list[Path]]) -> tuple[dict[str, File], str, list[str]]:
    """({band: its file at native resolution}, remarks on bands at another resolution, remarks on files left out).

    ValueError where several files could be a band.
    """
    files: dict[str, File] = {}
    others: dict[str, list[str]] = defaultdict(list)
    remarks: dict[str, list[str]] = defaultdict(list)
    for band in (*BAND_NAMES, SCL):
        native_m = SCL_GSD_M if band == SCL else BY_NAME[band].gsd_m
        headers = [header(path) for path in paths.get(band, [])]
        fitting = [found for found in headers if abs(found.gsd_m - native_m) < _WHOLE_M]
        if fitting:
            files[band] = _usable(_largest(band, fitting), band)
            for left in fitting:
                if left is not files[band]:
                    remarks[f"{left.path.parent} left out: it covers less than {files[band].path.parent}"].append(band)
        elif headers:
            others[f"{min(found.gsd_m for found in headers):g} m pixels instead of {native_m} m"].append(band)
    said = [f"{', '.join(bands)} in {remark}" for remark, bands in remarks.items()]
    return files, "; ".join(f"{', '.join(bands)}: {size}" for size, bands in others.items()), said


def _largest(band: str, files: list[File]) -> File:
    """The one file whose ground holds that of all others. ValueError naming two where there is no such file."""
    for file in files:
        rest = [other for other in files if other is not file]
        if all(file.holds(other) and not other.holds(file) for other in rest):
            return file
    one, other = files[:2]
    raise ValueError(
        f"{one.path} and {other.path} both could be {band}; expected one file per band: remove one of them"
    )


def _usable(file: File, band: str) -> File:
    expected = sample_types(band)
    if file.bands != 1:
        raise ValueError(f"{file.path.name} holds {file.bands} bands; expected one file per band")
    if file.dtype not in expected:
        raise ValueError(
            f"{file.path.name} is {file.dtype}; expected {' or '.join(expected)} digital numbers of a Level-2A product"
        )
    if file.epsg is None:
        raise ValueError(f"{file.path.name} has no coordinate system with an EPSG number; expected a UTM zone")
    return file
