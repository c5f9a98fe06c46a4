"""Vector maps, rasterised to one channel per class of features."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.conditions.frozen import content_digest, driver_of
from pipeline.errors import ReadError, UsageError

if TYPE_CHECKING:
    from types import ModuleType

    from numpy.typing import NDArray
    from pyproj import CRS

    from pipeline.conditions.frozen import Frozen
    from pipeline.grid.grid import Grid
    from pipeline.superres.declared import Condition, MapClass

_TILES_KEPT = 64
_EDGE_POINTS = 21  # along each side of a projected box


@lru_cache(maxsize=_TILES_KEPT)
def channels(declared: Condition, frozen: Frozen, grid: Grid) -> NDArray[np.float32]:
    """Rasterise the classes (classes, ny, nx) over `grid`: 1 if a pixel's centre is in a feature of the class, else 0.

    Raises UsageError if the file has changed since planning or has no CRS, and ReadError if it cannot be read.
    """
    path = require_same(frozen)
    found = np.stack([_rasterised(_geometries(path, one, grid), grid) for one in declared.classes])
    found.flags.writeable = False
    return found


@lru_cache(maxsize=16)
def require_same(frozen: Frozen) -> Path:
    """Return the path of a map. Raises UsageError if its content has changed since planning."""
    path = Path(frozen.where)
    if content_digest(path) != frozen.sha256:
        raise UsageError(
            f"{path} has changed since the plan was made",
            f"a file with sha256 {frozen.sha256[:12]}",
            "bring it back, or start a new store",
        )
    return path


def crs_of(path: Path) -> CRS:
    """Return the CRS of a vector file.

    Raises UsageError if it has none or its content does not fit its suffix, and ReadError if it cannot be read.
    """
    import pyproj

    pyogrio, driver = _pyogrio(), driver_of(path)
    try:
        about = pyogrio.read_info(path)
    except Exception as error:  # GDAL raises many types
        raise ReadError(f"{path} cannot be read ({error})", "a vector file of one layer", "write it anew") from error
    if about["driver"] != driver:
        raise UsageError(f"{path} was opened as {about['driver']}", driver)
    if not about["crs"]:
        raise UsageError(f"{path} has no CRS", "a file with a CRS", "set it, such as with ogr2ogr -a_srs")
    return pyproj.CRS.from_user_input(about["crs"])


def bounds_lonlat(path: Path) -> tuple[float, float, float, float]:
    """Return west, south, east and north of a vector file with a CRS, EPSG:4326. Raises as `crs_of`."""
    from pyproj import Transformer

    crs = crs_of(path)
    left, bottom, right, top = _pyogrio().read_info(path, force_total_bounds=True)["total_bounds"]
    turn = Transformer.from_crs(crs, "EPSG:4326", always_xy=True)
    west, south, east, north = turn.transform_bounds(left, bottom, right, top, densify_pts=_EDGE_POINTS)
    return west, south, east, north


@lru_cache(maxsize=1)
def _pyogrio() -> ModuleType:
    """Import pyogrio without GDAL_SKIP. Its own GDAL would complain about the drivers that `restrict_drivers` names."""
    kept = os.environ.pop("GDAL_SKIP", None)
    try:
        import pyogrio.raw
    finally:
        if kept is not None:
            os.environ["GDAL_SKIP"] = kept
    module: ModuleType = pyogrio
    return module


def _geometries(path: Path, wanted: MapClass, grid: Grid) -> list[Any]:
    """Return the features of a class near a grid, as polygons in metres of its zone."""
    import shapely
    from pyproj import Transformer

    crs = crs_of(path)
    half_m = wanted.width_m / 2
    left, bottom, right, top = grid.bounds_m
    around = (left - half_m, bottom - half_m, right + half_m, top + half_m)
    box = Transformer.from_crs(grid.epsg, crs, always_xy=True).transform_bounds(*around, densify_pts=_EDGE_POINTS)
    try:
        # Some drivers treat an attribute as missing if it is used in the filter but not read.
        columns: list[str] | None = None if wanted.where else []
        found = _pyogrio().raw.read(path, columns=columns, where=wanted.where or None, bbox=box, force_2d=True)
    except Exception as error:  # GDAL raises many types
        raise ReadError(
            f"{path} cannot be read ({error})",
            f"features with the attributes of {wanted.where!r}" if wanted.where else "a vector file",
            "give a map with these attributes",
        ) from error
    shapes = shapely.from_wkb(found[2])
    shapes = shapes[~(shapely.is_missing(shapes) | shapely.is_empty(shapes))]
    turn = Transformer.from_crs(crs, grid.epsg, always_xy=True).transform
    shapes = shapely.transform(shapes, lambda xy: np.column_stack(turn(xy[:, 0], xy[:, 1])))
    flat = shapely.get_dimensions(shapes) < 2
    if half_m:
        shapes[flat] = shapely.buffer(shapes[flat], half_m)
    return list(shapes[~flat] if not half_m else shapes)


def _rasterised(shapes: list[Any], grid: Grid) -> NDArray[np.float32]:
    from affine import Affine
    from rasterio.features import rasterize

    if not shapes:
        return np.zeros(grid.shape, np.float32)
    burnt = rasterize(shapes, out_shape=grid.shape, transform=Affine(*grid.transform), dtype="uint8")
    return np.asarray(burnt, np.float32)
