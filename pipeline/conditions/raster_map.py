"""Raster maps, resampled onto the grid of a window."""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from pipeline.archive.read.gdal import open_raster
from pipeline.conditions.vector_map import require_same
from pipeline.errors import ReadError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray
    from rasterio import DatasetReader
    from rasterio.enums import Resampling
    from rasterio.vrt import WarpedVRT

    from pipeline.conditions.frozen import Frozen
    from pipeline.grid.grid import Grid
    from pipeline.superres.declared import Condition

_TILES_KEPT = 64
_EDGE_POINTS = 21  # along each side of a projected box
_TOLERANCE_PX = 1e-6  # of approximated coordinates, small enough that tiles meet


@lru_cache(maxsize=_TILES_KEPT)
def channels(declared: Condition, frozen: Frozen, grid: Grid) -> NDArray[np.float32]:
    """Read the file's bands (bands, ny, nx) over `grid`, resampled as declared; `declared.nodata` where it has none.

    Raises UsageError if the file has changed since planning, lacks bands or has no CRS, and ReadError if it cannot be
    read.
    """
    from affine import Affine
    from rasterio.enums import MaskFlags
    from rasterio.errors import RasterioError
    from rasterio.vrt import WarpedVRT

    path = require_same(frozen)
    try:
        with opened(str(path), declared.name) as source:
            require_fit(declared, str(path), source.count, bool(source.crs))
            with WarpedVRT(
                source,
                crs=grid.epsg,
                transform=Affine(*grid.transform),
                height=grid.shape[0],
                width=grid.shape[1],
                resampling=_resampling(declared, pixel_m(frozen, grid.epsg), grid.gsd_m),
                tolerance=_TOLERANCE_PX,
                dtype="float32",
                add_alpha=source.nodata is None and MaskFlags.alpha not in source.mask_flag_enums[0],
            ) as warped:
                values = warped.read(list(range(1, 1 + len(declared.bands))), masked=True)
                known = _known(warped)
    except (RasterioError, OSError) as error:
        raise ReadError(f"the map {path} cannot be read ({error})", "a GeoTIFF", "write it anew") from error
    found = np.where(known, values.filled(declared.nodata), declared.nodata).astype(np.float32)
    found.flags.writeable = False
    return found


@lru_cache(maxsize=_TILES_KEPT)
def pixel_m(frozen: Frozen, epsg: int) -> float:
    """Return the larger side of the file's pixels in metres of a UTM zone. Raises ReadError if it cannot be read."""
    from rasterio.vrt import WarpedVRT

    with open_raster(frozen.where, f"the map {frozen.name}") as source, WarpedVRT(source, crs=epsg) as warped:
        return float(max(warped.res))


@contextmanager
def opened(path: str, name: str, *, placed: bool = True) -> Iterator[DatasetReader]:
    """Open the file of a condition by name. If it need not be `placed` on the ground, no warning says that it is not.

    Raises as `open_raster`.
    """
    from rasterio.errors import NotGeoreferencedWarning

    with warnings.catch_warnings():
        if not placed:
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
        source = open_raster(path, f"the map {name}")
    with source:
        yield source


def bounds_lonlat(path: Path) -> tuple[float, float, float, float]:
    """Return west, south, east and north of a file with a CRS, EPSG:4326. Raises ReadError if it cannot be read."""
    from rasterio.warp import transform_bounds

    with open_raster(str(path), "the map") as source:
        west, south, east, north = transform_bounds(source.crs, "EPSG:4326", *source.bounds, densify_pts=_EDGE_POINTS)
    return west, south, east, north


def _known(warped: WarpedVRT) -> NDArray[np.bool_]:
    """Return where a warped file has data (ny, nx), by its alpha band if there is one.

    GDAL masks by alpha bands of integers only. Without it, ground beyond a file without nodata would be 0.
    """
    from rasterio.enums import ColorInterp

    if ColorInterp.alpha not in warped.colorinterp:
        return np.asarray(warped.dataset_mask() > 0)
    return np.asarray(warped.read(1 + warped.colorinterp.index(ColorInterp.alpha)) > 0)


def _resampling(declared: Condition, pixel_m: float, gsd_m: float) -> Resampling:
    from rasterio.enums import Resampling

    if declared.resampling == "area":
        return Resampling.average if pixel_m <= gsd_m else Resampling.cubic
    return Resampling[declared.resampling]


def require_fit(declared: Condition, path: str, count: int, has_crs: bool) -> None:
    """Raise UsageError unless a file has the bands that a condition declares, and a CRS."""
    if count < len(declared.bands):
        raise UsageError(f"{path} has {count} bands", f"{len(declared.bands)}: {', '.join(declared.bands)}")
    if not has_crs:
        raise UsageError(f"{path} has no CRS", "a file with a CRS", "set it, such as with gdal_edit -a_srs")
