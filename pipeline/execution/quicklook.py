"""The picture beside the store: 10 m input and 2.5 m output of one place, true and false colour, and where it lies.

In: a finished store and its plan. Out: arrays for `products.quicklook`. Reads the true input again through the
archive, so that the picture shows what was measured, not what the output averages to. The picture of a remote store is
written into the working folder.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pipeline.bands import BLOCK_60M, NODATA_DN
from pipeline.grid.grid import Window
from pipeline.store.place import place_of
from pipeline.superres.masks import reflectance

if TYPE_CHECKING:
    from pathlib import Path

    import zarr
    from numpy.typing import NDArray

    from pipeline.execution.plan import Plan, Zone
    from pipeline.store.place import Place, Where

_SIDE_PX = 288  # 720 m: small enough to see single 10 m pixels
_OVERVIEW_PX = 512
_OVERVIEW_CHUNKS = 16
_CANDIDATES = 25
TRUE_COLOUR, FALSE_COLOUR = ("B04", "B03", "B02"), ("B08", "B04", "B03")


def write_quicklook(plan: Plan, store: Where) -> Path | None:
    """Draw the picture for the first zone and time step; None when nothing was measured or RGB is not in the store."""
    from pipeline.products.quicklook import Panel, quicklook

    bands = plan.config.band_names
    rows = [(title, names) for title, names in _ROWS if set(names) <= set(bands)]
    if not rows:
        return None
    zone, home = plan.zones[0], place_of(store)
    with home.reading():
        array = _reflectance_array(plan, home, zone)
        place = _place(array, zone, bands.index(rows[0][1][1]))
        if place is None:
            return None
        fine = _output(array, zone, place)
        whole, box = _overview(array, zone, place)
    coarse = _input(plan, zone, place)
    panels = []
    for title, names in rows:
        index = [bands.index(name) for name in names]
        measured = np.stack([coarse[name] for name in names])
        panels.append(Panel(title, names, reflectance(whole[index]), reflectance(measured), reflectance(fine[index])))
    path = home.picture
    system = plan.system.name
    quicklook(path, panels, box, f"{plan.aoi_name} · {zone.periods[0].label}", system)
    return path


_ROWS = (("true colour", TRUE_COLOUR), ("false colour", FALSE_COLOUR))


def _reflectance_array(plan: Plan, store: Place, zone: Zone) -> zarr.Array:
    import zarr

    return zarr.open_array(store.zarr_store(plan.group(zone.epsg)), path="reflectance", mode="r")


def _place(array: zarr.Array, zone: Zone, band: int) -> Window | None:
    """Window of the store with the most contrast among evenly spread, fully measured candidates."""
    grid = zone.grid.window
    side_y, side_x = (min(_SIDE_PX, length) for length in grid.shape)
    best: tuple[float, Window] | None = None
    for row in _spread(grid.ny - side_y):
        for col in _spread(grid.nx - side_x):
            dn = array[0, band, row : row + side_y : 4, col : col + side_x : 4]
            measured = float((dn != NODATA_DN).mean())
            if measured == 0:
                continue
            score = measured * float(np.std(dn[dn != NODATA_DN]))
            window = Window(grid.row + row, grid.col + col, side_y, side_x)
            if best is None or score > best[0]:
                best = (score, window)
    return best[1] if best else None


def _spread(room: int) -> list[int]:
    steps = round(_CANDIDATES**0.5)
    return sorted({room * i // max(1, steps - 1) // BLOCK_60M * BLOCK_60M for i in range(steps)})


def _output(array: zarr.Array, zone: Zone, place: Window) -> NDArray[np.uint16]:
    rows, cols = place.slices(zone.grid.window)
    values: NDArray[np.uint16] = np.asarray(array[0, :, rows, cols])
    return values


def _input(plan: Plan, zone: Zone, place: Window) -> dict[str, NDArray[np.uint16]]:
    """Native DN of the 10 m bands over `place`, through the same reader as the units."""
    from pipeline.archive.cube import read_period
    from pipeline.execution.trust import require_local_access

    require_local_access(plan)
    period = zone.periods[0]
    window = place.snap_out(BLOCK_60M)
    names = tuple(name for name in plan.config.band_names if name in {*TRUE_COLOUR, *FALSE_COLOUR})
    scenes = plan.period_scenes(zone.epsg, 0)
    pixels = read_period(scenes, period.composite, zone.grid.of(window), names, plan.access, resample=zone.resample)
    rows, cols = place.coarsen(4).slices(window.coarsen(4))
    return {name: pixels.dn[10][i, rows, cols] for i, name in enumerate(pixels.bands[10])}


def _overview(
    array: zarr.Array, zone: Zone, place: Window
) -> tuple[NDArray[np.uint16], tuple[float, float, float, float]]:
    """The zone around `place`, decimated, and where `place` lies in it as fractions (left, top, right, bottom).

    At most _OVERVIEW_CHUNKS chunks a side are read, so that the picture of a country costs no more than one of a town.
    """
    grid, chunk = zone.grid.window, array.chunks[-1]
    reach = _OVERVIEW_CHUNKS * chunk
    row = max(0, min(place.row - grid.row - reach // 2, grid.ny - reach)) // chunk * chunk
    col = max(0, min(place.col - grid.col - reach // 2, grid.nx - reach)) // chunk * chunk
    around = Window(grid.row + row, grid.col + col, reach, reach).intersect(grid)
    step = max(1, -(-max(around.shape) // _OVERVIEW_PX))
    rows, cols = around.slices(grid)
    parts = []
    for top in range(rows.start, rows.stop, chunk * step):  # a band of rows at a time keeps memory flat
        band = array[0, :, top : min(top + chunk * step, rows.stop) : step, cols.start : cols.stop : step]
        parts.append(np.asarray(band))
    whole: NDArray[np.uint16] = np.concatenate(parts, axis=1)
    left, upper = (place.col - around.col) / around.nx, (place.row - around.row) / around.ny
    return whole, (left, upper, left + place.nx / around.nx, upper + place.ny / around.ny)
