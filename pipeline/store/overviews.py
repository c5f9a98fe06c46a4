"""Overviews: the mean of measured pixels, the nearest class; block by block, then the coarsest over the whole zone.

In: stored arrays. Out: coarser ones, written by `RegionWriter`. Imports levels and layout.

Every level is made from the one before it as stored, so an overview depends on neither blocks nor the order of work.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.bands import NODATA_DN
from pipeline.store.layout import RegionWriter
from pipeline.store.place import place_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    import zarr
    from numpy.typing import NDArray

    from pipeline.store.levels import Level
    from pipeline.store.place import Where


def mean_of_measured(dn: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """Half the size: rounded mean of the 2 x 2 pixels that are not nodata, nodata where none is. (..., y, x)."""
    quarters = _quarters(dn, fill=NODATA_DN)
    total, count = np.zeros(quarters[0].shape, np.uint32), np.zeros(quarters[0].shape, np.uint8)
    for quarter in quarters:
        total += quarter
        count += quarter != NODATA_DN
    divisor = np.maximum(count, 1)
    mean: NDArray[np.uint16] = ((total + divisor // 2) // divisor).astype(np.uint16)
    return mean


def mean_of_all(values: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """Half the size: rounded mean of 2 x 2 pixels; 0 counts, pixels beyond the edge do not. (..., y, x)."""
    total = np.zeros(_quarters(values, fill=None)[0].shape, np.uint32)
    for quarter in _quarters(values, fill=None):
        total += quarter
    mean: NDArray[np.uint16] = ((total + 2) // 4).astype(np.uint16)
    return mean


def nearest_class(classes: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    """Half the size, one of 2 x 2 pixels: alternately the lower right and the upper left, so that levels do not drift.

    `factor` is that of the result over 2.5 m.
    """
    return _quarters(classes, fill=None)[3 if factor.bit_length() % 2 == 0 else 0]


def _quarters(values: NDArray[Any], fill: int | None) -> list[NDArray[Any]]:
    """The four pixels of every 2 x 2 block, as four arrays; odd edges continue with `fill`, or None: themselves."""
    pad = [(0, 0)] * (values.ndim - 2) + [(0, length % 2) for length in values.shape[-2:]]
    if any(after for _, after in pad):
        values = np.pad(values, pad, mode="edge") if fill is None else np.pad(values, pad, constant_values=fill)
    return [values[..., row::2, col::2] for row in (0, 1) for col in (0, 1)]


def halve(name: str, values: NDArray[Any], factor: int) -> NDArray[Any]:
    """The next overview of an array of the store; `factor` is that of the result over 2.5 m."""
    if name == "reflectance":
        return mean_of_measured(values)
    return mean_of_all(values) if name == "uncertainty" else nearest_class(values, factor)


def build_block(
    store: Where, group: str, time_index: int, levels: tuple[Level, ...], rows: slice, cols: slice
) -> dict[str, list[int]]:
    """Write the overviews `levels` of one block of 2.5 m pixels. Returns {chunk key: [bytes, crc32]}.

    Whole chunks of every level, read in strips. RuntimeError or ValueError where stored bytes are damaged.
    """
    import zarr

    place = place_of(store)
    with place.reading():
        source = zarr.open_group(store=place.zarr_store(group), mode="r", zarr_format=3)
        first = levels[0]
        arrays = {name: _first(source[name], name, first, time_index, rows, cols) for name in first.arrays}
    facts: dict[str, list[int]] = {}
    for level in levels:
        if level is not first:
            arrays = {name: halve(name, values, level.factor) for name, values in arrays.items()}
        facts.update(_write(store, group, time_index, level, arrays, rows, cols))
    return facts


def _first(source: zarr.Array, name: str, level: Level, time_index: int, rows: slice, cols: slice) -> NDArray[Any]:
    """The finest overview of a block, from chunk rows of the array itself."""
    step = 2 * (source.shards or source.chunks)[-1]
    stop = min(rows.stop, source.shape[-2])
    strips = [
        halve(name, np.asarray(source[time_index, ..., top : min(top + step, stop), cols]), level.factor)
        for top in range(rows.start, stop, step)
    ]
    return np.concatenate(strips, axis=-2)


def _write(
    store: Where,
    group: str,
    time_index: int,
    level: Level,
    arrays: Mapping[str, NDArray[Any]],
    rows: slice,
    cols: slice,
) -> dict[str, list[int]]:
    """Write one level over a block given in 2.5 m pixels."""
    top, left = rows.start // level.factor, cols.start // level.factor
    ny, nx = arrays["reflectance"].shape[-2:]
    writer = RegionWriter(store, group, time_index, level.path)
    return writer.write(slice(top, top + ny), slice(left, left + nx), arrays)


def build_late(store: Where, group: str, time_index: int, source: Level, level: Level) -> dict[str, list[int]]:
    """Write the overview `level` over the whole zone from `source`, the level before it, strip by strip."""
    import zarr

    place = place_of(store)
    path = "/".join(part for part in (group, source.path) if part)
    facts: dict[str, list[int]] = {}
    step = 2 * level.chunk_px
    for top in range(0, source.raster.shape[0], step):
        with place.reading():
            found = zarr.open_group(store=place.zarr_store(path), mode="r", zarr_format=3)
            strip = {name: np.asarray(found[name][time_index, ..., top : top + step, :]) for name in level.arrays}
        halved = {name: halve(name, values, level.factor) for name, values in strip.items()}
        rows = slice(top * source.factor, (top + step) * source.factor)
        facts.update(_write(store, group, time_index, level, halved, rows, slice(0, 0)))
    return facts
