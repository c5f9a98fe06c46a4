"""Raster headers and the GSD of an image in metres, from its header or its source. Reads no pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from training.data.rasters import unplaced

if TYPE_CHECKING:
    from pathlib import Path

    from training.data.training_file import Source

GSD_AGREES = 1.2  # maximum ratio of stated and georeferenced GSD; allows for map scale and rounding
_METRES_PER_DEGREE = 111_320.0
_MERCATOR_RADIUS_M = 6_378_137.0


@dataclass(frozen=True)
class Header:
    """Header of a raster."""

    shape: tuple[int, int]
    bands: int
    dtype: str
    nodata: float | None
    crs: str  # WKT; "" without georeferencing
    affine: tuple[float, float, float, float, float, float]
    driver: str = ""
    masked: bool = False  # an alpha band, or a mask of its own
    palette: bool = False  # one band of indices into a colour table
    block: tuple[int, int] = (0, 0)  # shape of the pieces that can be read alone


def read_header(path: str) -> Header:
    """Read the header of a file or GDAL address. Raises RasterioIOError if it is not a raster."""
    import rasterio
    from rasterio.enums import ColorInterp, MaskFlags

    with unplaced(), rasterio.open(path) as dataset:
        crs = dataset.crs.to_wkt() if dataset.crs and not dataset.transform.is_identity else ""
        affine = tuple(dataset.transform)[:6]
        masked = any({MaskFlags.alpha, MaskFlags.per_dataset} & {*flags} for flags in dataset.mask_flag_enums)
        palette = dataset.colorinterp[0] == ColorInterp.palette
        return Header(
            dataset.shape, dataset.count, dataset.dtypes[0], dataset.nodata, crs, affine, dataset.driver,
            masked and MaskFlags.all_valid not in dataset.mask_flag_enums[0], palette, dataset.block_shapes[0],
        )  # fmt: skip


def local_header(source: Source, path: Path) -> Header:
    """Read the header of a source's file. Raises UsageError if it is not a raster."""
    from rasterio.errors import RasterioIOError

    try:
        return read_header(str(path))
    except RasterioIOError as error:
        raise source.fault(f"{path} cannot be opened ({error})", "an image that GDAL reads") from None


def ground_gsd_m(header: Header) -> tuple[float, float]:
    """Return the GSD (y, x) in metres of a georeferenced raster in a geographic, Web Mercator or projected CRS."""
    from pyproj import CRS

    a, b, _, d, e, top = header.affine
    dy, dx = float(np.hypot(b, e)), float(np.hypot(a, d))
    crs = CRS.from_user_input(header.crs)
    y = top + d * header.shape[1] / 2 + e * header.shape[0] / 2  # at the centre
    if crs.is_geographic:
        return dy * _METRES_PER_DEGREE, dx * _METRES_PER_DEGREE * float(np.cos(np.radians(y)))
    if crs.to_epsg() == 3857:
        shrink = float(1 / np.cosh(y / _MERCATOR_RADIUS_M))  # cos(latitude) from Mercator northing
        return dy * shrink, dx * shrink
    unit_m = crs.axis_info[0].unit_conversion_factor if crs.axis_info else 1.0
    return dy * unit_m, dx * unit_m


def gsd_of(source: Source, label: str, header: Header) -> tuple[float, float]:
    """Return the GSD (y, x) in metres stated by the source, else by the file.

    Raises UsageError if neither states it or if they disagree.
    """
    if not header.crs:
        if source.gsd_m is None:
            raise source.fault(f"{label} is not georeferenced and gsd_m is not given", "gsd_m = metres per pixel")
        return source.gsd_m, source.gsd_m
    found = ground_gsd_m(header)
    if source.gsd_m is None:
        return found
    if not min(found) / GSD_AGREES <= source.gsd_m <= max(found) * GSD_AGREES:
        raise source.fault(
            f"{label} has pixels of {max(found):.3g} m by its georeferencing and gsd_m = {source.gsd_m:g}",
            "one size of pixels",
            "leave gsd_m out, or take wrong georeferencing off the file: gdal_edit -a_srs None -unsetgt",
        )
    return source.gsd_m, source.gsd_m
