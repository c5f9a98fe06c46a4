"""The layers of a vector file, and their features within a box."""

from __future__ import annotations

import os
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.conditions import parquet
from pipeline.conditions.vector_format import OSM, PARQUET, driver_of
from pipeline.errors import ReadError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path
    from types import ModuleType

    from numpy.typing import NDArray
    from pyproj import Transformer

Box = tuple[float, float, float, float]  # left, bottom, right, top

_EDGE_POINTS = 21  # along each side of a projected box
_OSM_LAYERS = ("lines", "multipolygons")  # of the five that GDAL gives; each is a pass over the whole file


@dataclass(frozen=True)
class Layer:
    """A layer of a vector file with geometry. `fields` are its attributes; `crs` is any text that pyproj reads."""

    path: str
    name: str
    crs: str
    fields: tuple[str, ...]
    driver: str


@dataclass(frozen=True)
class Features:
    """Features of a layer: `wkb` and `fids` (n,), and their attributes by name, each (n,)."""

    wkb: NDArray[np.object_]
    fids: NDArray[np.int64]
    columns: Mapping[str, NDArray[Any]]

    def __len__(self) -> int:
        return len(self.fids)


def layers_of(path: Path) -> tuple[Layer, ...]:
    """Return the layers of a file that have geometry and a CRS.

    Raises UsageError if there is none or the content does not fit the suffix, and ReadError if it cannot be read.
    """
    driver = driver_of(path)
    if driver == PARQUET:
        crs, fields = parquet.described(path)
        return (Layer(str(path), path.stem, crs, fields, driver),)
    pyogrio = library()
    with _reading(path):
        names = [str(name) for name, geometry in pyogrio.list_layers(path) if geometry]
        wanted = [name for name in names if driver != OSM or name in _OSM_LAYERS]
        about = {name: pyogrio.read_info(path, layer=name) for name in wanted}
    if not about:
        raise UsageError(f"{path} has no layer with geometry", "a file with polygons or lines")
    for found in about.values():
        if found["driver"] != driver:
            raise UsageError(f"{path} was opened as {found['driver']}", driver)
    placed = {name: found for name, found in about.items() if found["crs"]}
    if not placed:
        raise UsageError(f"{path} has no CRS", "a file with a CRS", "set it, such as with ogr2ogr -a_srs")
    return tuple(
        Layer(str(path), name, found["crs"], tuple(map(str, found["fields"])), driver) for name, found in placed.items()
    )


def metadata_of(layer: Layer) -> dict[str, str]:
    """Return what a file says about itself and the layer, as {name in lower case: text}."""
    if layer.driver == PARQUET:
        return {}
    with _reading(layer.path):
        about = library().read_info(layer.path, layer=layer.name)
    both = (about.get("dataset_metadata") or {}) | (about.get("layer_metadata") or {})
    return {str(name).lower(): str(value) for name, value in both.items()}


def bounds_lonlat(path: Path) -> Box | None:
    """Return west, south, east and north, EPSG:4326, or None if only reading the whole file would tell.

    West is greater than east across the antimeridian. Raises as `layers_of`.
    """
    found = []
    for layer in layers_of(path):
        bounds = _bounds(layer)
        if bounds is None:
            return None
        if all(map(np.isfinite, bounds)):
            found.append(turned(bounds, layer.crs, "EPSG:4326"))
    if len(found) < 2:
        return found[0] if found else None
    west, south, east, north = zip(*(part for box in found for part in boxes(box)), strict=True)
    return min(west), min(south), max(east), max(north)


def _bounds(layer: Layer) -> Box | None:
    if layer.driver == PARQUET:
        return parquet.bounds(layer.path)
    with _reading(layer.path):
        found = library().read_info(layer.path, layer=layer.name, force_total_bounds=layer.driver != OSM)
    bounds = found["total_bounds"]
    return None if bounds is None else tuple(bounds)


@lru_cache(maxsize=64)
def transformer(source: int | str, target: int | str) -> Transformer:
    """Return the transformation between two CRS, x before y."""
    from pyproj import Transformer

    return Transformer.from_crs(source, target, always_xy=True)


def turned(box: Box, source: int | str, target: int | str) -> Box:
    """Return the smallest box in the target's coordinates that holds a box of the source's."""
    found = transformer(source, target).transform_bounds(*box, densify_pts=_EDGE_POINTS)
    return found[0], found[1], found[2], found[3]


def features(layer: Layer, box: Box, where: str = "") -> Features:
    """Read the features whose geometry touches a box in degrees (EPSG:4326), in the layer's own coordinates.

    `where` is an OGR SQL expression. Raises ReadError if the file cannot be read, such as for unknown attributes.
    """
    parts = [_features(layer, part, where) for part in boxes(box)]
    if len(parts) == 1:
        return parts[0]
    fids, first = np.unique(np.concatenate([part.fids for part in parts]), return_index=True)
    wkb = np.concatenate([part.wkb for part in parts])[first]
    columns = {name: np.concatenate([part.columns[name] for part in parts])[first] for name in parts[0].columns}
    return Features(wkb, fids, columns)


def _features(layer: Layer, box: Box, where: str) -> Features:
    there = turned(box, "EPSG:4326", layer.crs)
    if layer.driver == PARQUET:
        return Features(*parquet.features(layer.path, there))
    with _reading(layer.path, f"features with the attributes of {where!r}" if where else ""):
        meta, fids, wkb, values = library().raw.read(
            layer.path, layer=layer.name, where=where or None, bbox=there, force_2d=True, return_fids=True
        )
    return Features(wkb, fids, dict(zip(map(str, meta["fields"]), values, strict=True)))


def boxes(box: Box) -> list[Box]:
    """Return the parts of a box in degrees: two if it crosses the antimeridian, where its west is beyond its east."""
    west, south, east, north = box
    ends = [(west, east)] if west <= east else [(west, 180.0), (-180.0, east)]
    return [(left, south, right, north) for left, right in ends]


@contextmanager
def _reading(path: Path | str, expected: str = "") -> Iterator[None]:
    """Turn GDAL's errors, which have many types, into ReadError, and drop its warnings of odd geometries."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:
        cure = "give a map with these attributes" if expected else "fetch or write it anew"
        raise ReadError(f"{path} cannot be read ({error})", expected or "a whole vector file", cure) from error


@lru_cache(maxsize=1)
def library() -> ModuleType:
    """Import pyogrio without GDAL_SKIP. Its own GDAL would complain about the drivers that `restrict_drivers` names."""
    kept = os.environ.pop("GDAL_SKIP", None)
    try:
        import pyogrio.raw
    finally:
        if kept is not None:
            os.environ["GDAL_SKIP"] = kept
    module: ModuleType = pyogrio
    return module
