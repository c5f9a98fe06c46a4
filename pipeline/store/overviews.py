"""Overviews: means of measured pixels and nearest classes, computed by block, the coarsest over the whole zone.

Each level is computed from the previous one as stored, so it depends on neither blocks nor the order of work.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.bands import NODATA_DN, NODATA_SPREAD
from pipeline.store import uncertainty
from pipeline.store.layout import RegionWriter
from pipeline.store.nodes import array_at
from pipeline.store.place import place_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    import zarr
    from numpy.typing import NDArray

    from pipeline.store.levels import Level
    from pipeline.store.place import Where

NODATA = {"reflectance": NODATA_DN, "uncertainty": NODATA_SPREAD}  # of the arrays whose overviews are means


def mean_of_valid(values: NDArray[np.uint16], nodata: int) -> NDArray[np.uint16]:
    """Halve (..., y, x): mean of the 2 x 2 pixels that are not `nodata`, `nodata` if all are.

    Halves are rounded to even. Rounded up, every level would be 0.125 DN brighter than the previous one.
    """
    quarters = _quarters(values, fill=nodata)
    if not any((quarter == nodata).any() for quarter in quarters):
        total = sum(quarters[1:], quarters[0].astype(np.uint32))
        return ((total + 1 + (total >> 2 & 1)) >> 2).astype(np.uint16)
    total, count = np.zeros(quarters[0].shape, np.uint32), np.zeros(quarters[0].shape, np.uint32)
    for quarter in quarters:
        valid = quarter != nodata
        total += np.where(valid, quarter, 0)
        count += valid
    whole, rest = np.divmod(total, np.maximum(count, 1))
    whole += (2 * rest > count) | ((2 * rest == count) & (whole % 2 == 1))
    whole[count == 0] = nodata
    return whole.astype(np.uint16)


def nearest_class(classes: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    """Halve classes: take one of 2 x 2 pixels, alternately the lower right and the upper left to prevent a drift.

    `factor` is the pixel size of the result over 2.5 m.
    """
    return _quarters(classes, fill=None)[3 if factor.bit_length() % 2 == 0 else 0]


def _quarters(values: NDArray[Any], fill: int | None) -> list[NDArray[Any]]:
    """Return the four pixels of every 2 x 2 block as four arrays. Odd edges get `fill`, or edge values if None."""
    pad = [(0, 0)] * (values.ndim - 2) + [(0, length % 2) for length in values.shape[-2:]]
    if any(after for _, after in pad):
        values = np.pad(values, pad, mode="edge") if fill is None else np.pad(values, pad, constant_values=fill)
    return [values[..., row::2, col::2] for row in (0, 1) for col in (0, 1)]


def halve(name: str, values: NDArray[Any], factor: int) -> NDArray[Any]:
    """Return the next overview of an array; `factor` is the pixel size of the result over 2.5 m."""
    nodata = NODATA.get(name)
    return nearest_class(values, factor) if nodata is None else mean_of_valid(values, nodata)


def build_block(
    store: Where, group: str, time_index: int, levels: tuple[Level, ...], rows: slice, cols: slice
) -> dict[str, list[int]]:
    """Write the overviews `levels` of one block of 2.5 m pixels. Returns {chunk key: [bytes, crc32]}.

    Writes whole chunks of every level and reads the array in strips. Raises RuntimeError or ValueError if stored bytes
    are damaged.
    """
    import zarr

    place = place_of(store)
    with place.reading():
        source = zarr.open_group(store=place.zarr_store(group), mode="r", zarr_format=3)
        first = levels[0]
        arrays = {name: _first(source, name, first, time_index, rows, cols) for name in first.arrays}
    facts: dict[str, list[int]] = {}
    for level in levels:
        if level is not first:
            arrays = {name: halve(name, values, level.factor) for name, values in arrays.items()}
        facts.update(_write(store, group, time_index, level, arrays, rows, cols))
    return facts


def _first(source: zarr.Group, name: str, level: Level, time_index: int, rows: slice, cols: slice) -> NDArray[Any]:
    """Compute the finest overview of a block from chunk rows of the array itself."""
    array = array_at(source, name)
    step = 2 * (array.shards or array.chunks)[-1]
    stop = min(rows.stop, array.shape[-2])
    strips = [
        halve(name, _stored(source, name, (time_index, ..., slice(top, min(top + step, stop)), cols)), level.factor)
        for top in range(rows.start, stop, step)
    ]
    return np.concatenate(strips, axis=-2)


def _stored(group: zarr.Group, name: str, where: tuple[Any, ...]) -> NDArray[Any]:
    """Read part of an array, with nodata as in `NODATA` for every store format."""
    array = array_at(group, name)
    values = np.asarray(array[where])
    if name == "uncertainty" and array.fill_value != NODATA_SPREAD:
        return uncertainty.decoded(values, np.asarray(array_at(group, "reflectance")[where]))
    return values


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
    """Write the overview `level` over the whole zone from `source`, the previous level, strip by strip."""
    import zarr

    place = place_of(store)
    path = "/".join(part for part in (group, source.path) if part)
    facts: dict[str, list[int]] = {}
    step = 2 * level.chunk_px
    for top in range(0, source.raster.shape[0], step):
        with place.reading():
            found = zarr.open_group(store=place.zarr_store(path), mode="r", zarr_format=3)
            where = (time_index, ..., slice(top, top + step), slice(None))
            strip = {name: _stored(found, name, where) for name in level.arrays}
        halved = {name: halve(name, values, level.factor) for name, values in strip.items()}
        rows = slice(top * source.factor, (top + step) * source.factor)
        facts.update(_write(store, group, time_index, level, halved, rows, slice(0, 0)))
    return facts
