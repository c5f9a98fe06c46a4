"""GeoParquet files (version 1, geometry as WKB), read with pyarrow: GDAL in the wheels of pyogrio lacks Parquet."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import ReadError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray
    from pyarrow.parquet import ParquetFile

_CRS84 = "OGC:CRS84"  # of columns that name none
_SIDES = ("xmin", "ymin", "xmax", "ymax")


def described(path: Path | str) -> tuple[str, tuple[str, ...]]:
    """Return the CRS of the geometry, and the attributes.

    Raises UsageError if the file is not GeoParquet with WKB or pyarrow is missing, ReadError if it cannot be read.
    """
    file, primary, column = _opened(path)
    crs = column.get("crs", _CRS84)
    if crs is None:
        raise UsageError(f"{path} has no CRS", "a file with a CRS")
    fields = tuple(name for name in file.schema_arrow.names if name != primary)
    return (crs if isinstance(crs, str) else json.dumps(crs)), fields


def bounds(path: Path | str) -> tuple[float, float, float, float] | None:
    """Return left, bottom, right and top as the file states them, in its CRS, or None."""
    box = _opened(path)[2].get("bbox")
    if not isinstance(box, list) or len(box) not in (4, 6):
        return None
    half = len(box) // 2
    return float(box[0]), float(box[1]), float(box[half]), float(box[half + 1])


def features(
    path: Path | str, box: tuple[float, float, float, float]
) -> tuple[NDArray[np.object_], NDArray[np.int64], dict[str, NDArray[Any]]]:
    """Return WKB, row numbers and attributes of the features whose bounds touch a box in the file's CRS.

    Groups of rows beyond the box are skipped where the file has a column of bounds ("covering").
    """
    import shapely

    file, primary, column = _opened(path)
    names = [primary, *(name for name in file.schema_arrow.names if name != primary and _is_plain(file, name))]
    wkb, rows, parts = [], [], []
    try:
        starts = np.cumsum([0, *(file.metadata.row_group(one).num_rows for one in range(file.num_row_groups))])
        for group, first in enumerate(starts[:-1].tolist()):
            if not _may_touch(file, group, column, box):
                continue
            table = file.read_row_group(group, columns=names)
            found = np.array(table.column(primary).to_pylist(), dtype=object)
            shapes = shapely.from_wkb(found, on_invalid="ignore")
            left, bottom, right, top = shapely.bounds(shapes).T
            touches = (left <= box[2]) & (right >= box[0]) & (bottom <= box[3]) & (top >= box[1])
            given = np.array([one is not None for one in found], bool)
            kept = np.flatnonzero(touches | (shapely.is_missing(shapes) & given))
            wkb.append(found[kept])
            rows.append(first + kept)
            parts.append([np.array(table.column(name).to_pylist(), dtype=object)[kept] for name in names[1:]])
    except (OSError, ValueError) as error:  # pyarrow's own errors are kinds of these
        raise ReadError(f"{path} cannot be read ({error})", "a whole GeoParquet file", "fetch it anew") from error
    empty = np.zeros(0, object)
    columns = {name: np.concatenate([empty, *(part[at] for part in parts)]) for at, name in enumerate(names[1:])}
    return np.concatenate([empty, *wkb]), np.concatenate([np.zeros(0, np.int64), *rows]), columns


def _opened(path: Path | str) -> tuple[ParquetFile, str, dict[str, Any]]:
    """Return the open file, the name of the geometry column, and what the file states about it."""
    try:
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise UsageError(
            f"{path} is Parquet, and pyarrow is not installed", "pyarrow", "pip install sen2fine[maps]"
        ) from error
    try:
        file = ParquetFile(path)
        stated = json.loads((file.schema_arrow.metadata or {}).get(b"geo", b"null"))
    except (OSError, ValueError) as error:
        raise ReadError(f"{path} cannot be read ({error})", "a whole GeoParquet file", "fetch it anew") from error
    try:
        primary = stated["primary_column"]
        column = stated["columns"][primary]
        encoding = str(column["encoding"])
    except (KeyError, TypeError) as error:
        raise UsageError(f"{path} does not say where its geometry is", "GeoParquet") from error
    if encoding.upper() != "WKB":
        raise UsageError(f"{path} encodes geometry as {encoding}", "WKB", "write it with geometry_encoding='WKB'")
    return file, primary, column


def _is_plain(file: ParquetFile, name: str) -> bool:
    """Return whether a column holds text, numbers or truth values."""
    import pyarrow.types as kinds

    kind = file.schema_arrow.field(name).type
    kind = kind.value_type if kinds.is_dictionary(kind) else kind
    tests = (kinds.is_string, kinds.is_large_string, kinds.is_integer, kinds.is_floating, kinds.is_boolean)
    return any(test(kind) for test in tests)


def _may_touch(file: ParquetFile, group: int, column: dict[str, Any], box: tuple[float, float, float, float]) -> bool:
    """Return False if the statistics of a group of rows say that all of its features are beyond the box."""
    covering = (column.get("covering") or {}).get("bbox") or {}
    paths = {".".join(covering[side]): side for side in _SIDES if side in covering}
    about = file.metadata.row_group(group)
    limits = {}
    for at in range(about.num_columns):
        one = about.column(at)
        if (side := paths.get(one.path_in_schema)) and one.statistics is not None and one.statistics.has_min_max:
            limits[side] = one.statistics.min if side.endswith("min") else one.statistics.max
    left, bottom, right, top = box
    return not (
        limits.get("xmin", left) > right
        or limits.get("ymin", bottom) > top
        or limits.get("xmax", right) < left
        or limits.get("ymax", top) < bottom
    )
