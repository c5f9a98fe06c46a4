"""Writes the chunks of one unit, at 2.5 m and on the native grids."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.store.layout import RegionWriter

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from pipeline.grid.grid import Window
    from pipeline.grid.native_rasters import NativeRasters
    from pipeline.store.place import Place
    from pipeline.store.template import Template


class UnitWriter:
    """Writes whole chunks (absolute windows of 2.5 m px) of one time step of a zone's group.

    `stored`: {chunk key, relative to the group: [bytes, crc32]} of all that was written.
    """

    def __init__(self, store: Place, group: str, time_index: int, template: Template) -> None:
        self._store, self._group, self._time, self._template = store, group, time_index, template
        self._fine = RegionWriter(store, group, time_index)
        self.stored: dict[str, list[int]] = {}

    def write(
        self, chunk: Window, arrays: Mapping[str, NDArray[Any]], inside: NDArray[np.bool_] | None = None
    ) -> dict[str, NDArray[Any]]:
        """Write `arrays` (..., ny, nx) of one chunk, as nodata where not `inside`; returns them as written."""
        if inside is not None:
            arrays = {
                name: np.where(inside, values, values.dtype.type(self._template.fill(name)))
                for name, values in arrays.items()
            }
        self.stored.update(self._fine.write(*chunk.slices(self._template.grid.window), arrays))
        return dict(arrays)

    def write_measured(self, chunks: Sequence[Window], rasters: NativeRasters) -> None:
        """Write what was read over `chunks` into the levels of the native grids."""
        whole = self._template.grid.window
        for level in self._template.measured:
            gsd_m = round(level.raster.gsd_m)
            names = [rasters.bands[gsd_m].index(name) for name in level.bands]
            writer = RegionWriter(self._store, self._group, self._time, level.path)
            for chunk in chunks:
                part = {"reflectance": rasters.over(chunk, gsd_m)[names]}
                place = chunk.coarsen(level.factor).slices(whole.coarsen(level.factor))
                self.stored.update(writer.write(*place, part))
