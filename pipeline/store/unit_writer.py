"""Write the chunks of one unit at 2.5 m, at finer GSDs, and on the native grids."""

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
    """Write whole chunks (absolute windows) of one time step of a zone's group.

    `stored`: {chunk key, relative to the group: [bytes, crc32]} of all that was written.
    """

    def __init__(self, store: Place, group: str, time_index: int, template: Template) -> None:
        self._store, self._group, self._time, self._template = store, group, time_index, template
        self._writers: dict[str, RegionWriter] = {}
        self.stored: dict[str, list[int]] = {}

    def write(
        self, gsd_m: float, chunk: Window, arrays: Mapping[str, NDArray[Any]], inside: NDArray[np.bool_] | None = None
    ) -> dict[str, NDArray[Any]]:
        """Write `arrays` (..., ny, nx) of one or several whole chunks into the level of a GSD, and return them.

        `chunk` counts px of that GSD, 2.5 m or finer. Pixels that are not `inside` are returned and stored as nodata.
        """
        if inside is not None:
            arrays = {
                name: np.where(inside, values, values.dtype.type(self._template.fill(name)))
                for name, values in arrays.items()
            }
        whole = self._template.grid.at_gsd(gsd_m).window
        writer = self._writer(self._template.level(gsd_m).path)
        self.stored.update(writer.write(*chunk.slices(whole), arrays))
        return dict(arrays)

    def write_measured(self, chunks: Sequence[Window], rasters: NativeRasters) -> None:
        """Write the rasters read over `chunks` into the levels of the native grids."""
        whole = self._template.grid.window
        for level in self._template.measured:
            gsd_m = round(level.raster.gsd_m)
            names = [rasters.bands[gsd_m].index(name) for name in level.bands]
            writer = self._writer(level.path)
            for chunk in chunks:
                part = {"reflectance": rasters.over(chunk, gsd_m)[names]}
                place = chunk.coarsen(level.factor).slices(whole.coarsen(level.factor))
                self.stored.update(writer.write(*place, part))

    def _writer(self, level: str) -> RegionWriter:
        if level not in self._writers:
            self._writers[level] = RegionWriter(self._store, self._group, self._time, level)
        return self._writers[level]
