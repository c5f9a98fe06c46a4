"""Vector maps, rasterised to one channel per class of features."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.conditions.frozen import content_digest
from pipeline.conditions.indexed_copy import layers_over
from pipeline.conditions.map_rules import may_have, widths
from pipeline.conditions.shapes import drawn
from pipeline.conditions.vector_layers import features, turned
from pipeline.errors import ReadError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from pipeline.conditions.frozen import Frozen
    from pipeline.conditions.vector_layers import Box, Features, Layer
    from pipeline.grid.grid import Grid
    from pipeline.superres.declared import Condition, MapClass

_TILES_KEPT = 64
_PADDING_M = 1.0  # of boxes, whose projected edges are not straight


@dataclass
class Drawn:
    """Features of the classes within a box, as valid polygons in metres of a zone.

    `polygons` has one list per class. A feature is named by layer and number: `repaired` had invalid polygons; of those
    in `lost` nothing can be drawn.
    """

    polygons: list[list[Any]]
    repaired: set[tuple[str, int]] = field(default_factory=set)
    lost: set[tuple[str, int]] = field(default_factory=set)
    fields: dict[str, tuple[str, ...]] = field(default_factory=dict)  # attributes by layer


@lru_cache(maxsize=_TILES_KEPT)
def channels(declared: Condition, frozen: Frozen, grid: Grid, area: Grid | None = None) -> NDArray[np.float32]:
    """Rasterise the classes (classes, ny, nx) over `grid`: 1 if a pixel's centre is in a feature of the class, else 0.

    By its centre, because every touched pixel would widen roads and buildings by most of a pixel. If the classes are
    exclusive, a pixel belongs to the first one only. `area` is the ground that is going to be asked for.

    Raises UsageError if the file has changed since planning or lacks a CRS or attributes, and ReadError if it cannot be
    read.
    """
    require_same(frozen)
    around = area or grid
    found = draw(declared, frozen, grid.epsg, grid.bounds_m, turned(around.bounds_m, around.epsg, "EPSG:4326"))
    burnt = np.stack([_rasterised(polygons, grid) for polygons in found.polygons])
    if declared.exclusive:
        burnt[1:] &= ~np.logical_or.accumulate(burnt, axis=0)[:-1]
    values = burnt.astype(np.float32)
    values.flags.writeable = False
    return values


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


def draw(declared: Condition, frozen: Frozen, epsg: int, box_m: Box, area: Box) -> Drawn:
    """Return the features of all classes that touch a box (metres of a zone).

    `area` (degrees) is the ground that is going to be asked for. Raises as `channels`.
    """
    pad_m = max(one.widest_m for one in declared.classes) / 2 + _PADDING_M
    left, bottom, right, top = box_m
    padded = (left - pad_m, bottom - pad_m, right + pad_m, top + pad_m)
    box = turned(padded, epsg, "EPSG:4326")
    layers = layers_over(frozen, box, area)
    found = Drawn([[] for _ in declared.classes], fields={layer.name: layer.fields for layer in layers})
    for where in dict.fromkeys(one.where for one in declared.classes):
        classes = [(at, one) for at, one in enumerate(declared.classes) if one.where == where]
        useful = [layer for layer in layers if may_have([one for _, one in classes], layer)]
        for layer, read in _read(useful, box, where):
            for at, one in classes:
                _add(found, at, one, layer, read, epsg, padded)
    return found


def _read(layers: Sequence[Layer], box: Box, where: str) -> list[tuple[Layer, Features]]:
    """Read layers. Those without the attributes of `where` are left out, unless all lack them."""
    found, faults = [], []
    for layer in layers:
        if not layer.path:
            continue
        try:
            found.append((layer, features(layer, box, where)))
        except ReadError as error:
            if not where:
                raise
            faults.append(error)
    if faults and not found:
        raise faults[0]
    return found


def _add(found: Drawn, at: int, one: MapClass, layer: Layer, read: Features, epsg: int, box_m: Box) -> None:
    """Add the features of a layer that belong to a class."""
    wide = widths(one, layer, read)
    mine = ~np.isnan(wide)
    if not mine.any():
        return
    result = drawn(read.wkb[mine], wide[mine], layer.crs, epsg, box_m)
    found.polygons[at] += result.polygons
    fids = read.fids[mine]
    found.repaired |= {(layer.name, int(fid)) for fid in fids[result.repaired]}
    found.lost |= {(layer.name, int(fid)) for fid in fids[result.lost]}


def _rasterised(shapes: list[Any], grid: Grid) -> NDArray[np.bool_]:
    from affine import Affine
    from rasterio.features import rasterize

    if not shapes:
        return np.zeros(grid.shape, bool)
    burnt = rasterize(shapes, out_shape=grid.shape, transform=Affine(*grid.transform), dtype="uint8")
    return np.asarray(burnt > 0)
