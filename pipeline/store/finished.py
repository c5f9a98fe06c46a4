"""Read the stored output of an earlier pass on the grid of a level."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.store.nodes import array_at
from pipeline.store.place import place_of

if TYPE_CHECKING:
    import zarr
    from numpy.typing import NDArray

    from pipeline.grid.grid import Window
    from pipeline.store.place import Where
    from pipeline.store.template import Template


def read_level(
    store: Where, group: str, template: Template, gsd_m: float, time_index: int, window: Window, bands: tuple[str, ...]
) -> tuple[NDArray[np.uint16], NDArray[np.uint8]]:
    """Read DN (band, y, x) of `bands` and quality (y, x) over `window` (px of `gsd_m`), nodata beyond the level.

    Raises KeyError if the store lacks the level, ValueError if it lacks a band, RuntimeError and the like for damaged
    chunks.
    """
    import zarr

    place, level = place_of(store), template.level(gsd_m)
    path = "/".join(part for part in (group, level.path) if part)
    with place.reading():
        opened = zarr.open_group(store=place.zarr_store(path), mode="r", zarr_format=3)
        whole = template.grid.at_gsd(gsd_m).window
        dn = _over(array_at(opened, "reflectance"), whole, window, time_index)
        quality = _over(array_at(opened, "quality"), whole, window, time_index)
    return dn[[level.bands.index(name) for name in bands]], quality


def _over(array: zarr.Array[Any], whole: Window, window: Window, time_index: int) -> NDArray[Any]:
    """Read (..., y, x) of one time step over `window`, 0 beyond `whole`."""
    found = np.zeros((*array.shape[1:-2], *window.shape), array.dtype)
    there = window.intersect(whole)
    if not there.empty:
        found[(..., *there.slices(window))] = array[(time_index, ..., *there.slices(whole))]
    return found
