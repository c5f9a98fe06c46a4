"""Raster maps, resampled onto the grid of a window."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from pipeline.archive.read.gdal import open_raster
from pipeline.conditions.vector_map import require_same
from pipeline.errors import ReadError, UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.conditions.frozen import Frozen
    from pipeline.grid.grid import Grid
    from pipeline.superres.declared import Condition

_TILES_KEPT = 64
_TOLERANCE_PX = 1e-6  # of approximated coordinates, small enough that tiles meet


@lru_cache(maxsize=_TILES_KEPT)
def channels(declared: Condition, frozen: Frozen, grid: Grid) -> NDArray[np.float32]:
    """Read the file's bands (bands, ny, nx) over `grid`, resampled as the condition declares; 0 for no data.

    Raises UsageError if the file has changed since planning, lacks bands or has no CRS, and ReadError if it cannot be
    read.
    """
    from affine import Affine
    from rasterio.enums import Resampling
    from rasterio.errors import RasterioError
    from rasterio.vrt import WarpedVRT

    path = require_same(frozen)
    try:
        with open_raster(str(path), f"the map {declared.name}") as source:
            require_fit(declared, str(path), source.count, bool(source.crs))
            with WarpedVRT(
                source,
                crs=grid.epsg,
                transform=Affine(*grid.transform),
                height=grid.shape[0],
                width=grid.shape[1],
                resampling=Resampling[declared.resampling],
                tolerance=_TOLERANCE_PX,
                dtype="float32",
            ) as warped:
                values = warped.read(list(range(1, 1 + len(declared.bands))), masked=True)
    except (RasterioError, OSError) as error:
        raise ReadError(f"the map {path} cannot be read ({error})", "a GeoTIFF", "write it anew") from error
    found = np.asarray(values.filled(0.0), np.float32)
    found.flags.writeable = False
    return found


def require_fit(declared: Condition, path: str, count: int, has_crs: bool) -> None:
    """Raise UsageError unless a file has the bands that a condition declares, and a CRS."""
    if count < len(declared.bands):
        raise UsageError(f"{path} has {count} bands", f"{len(declared.bands)}: {', '.join(declared.bands)}")
    if not has_crs:
        raise UsageError(f"{path} has no CRS", "a file with a CRS", "set it, such as with gdal_edit -a_srs")
