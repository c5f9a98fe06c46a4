"""The layout of a plan's ground: UTM zones with their grids and units, and the passes over them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.bands import TARGET_GSD_M
from pipeline.errors import NoDataError, UsageError
from pipeline.grid.grid import Grid, Phase, Window
from pipeline.planning.scene_selection import over
from pipeline.planning.touched import is_sparse
from pipeline.planning.units import PassLayout, Zone

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shapely import Geometry

    from pipeline.aoi.aoi import Aoi
    from pipeline.archive.scene import Period, Scene
    from pipeline.config import RunConfig
    from pipeline.planning.shaping import Shaping
    from pipeline.superres.options import Options
    from pipeline.superres.passes import Pass

_BOW_M = 0.05
_FULL_SHARE = 0.4  # of chunks that touch the AOI; with fewer, large units would read much ground in vain
_SLIVER_DEG2 = 1e-9  # about ten square metres
_SLIVER_SHARE = 1e-3  # share of the AOI part, which keeps very small AOIs


def layouts_of(passes: Sequence[Pass], config: RunConfig, options: Options) -> tuple[PassLayout, ...]:
    """Return the layouts of the passes of a run. Raises UsageError for a chunk size or flags that do not fit."""
    for one in passes:
        if config.chunk_px % (24 if not one.source_gsd_m else math.lcm(24, one.source_px)):
            raise UsageError(
                f"chunk_px = {config.chunk_px} with --sr {config.sr}", f"a multiple of {math.lcm(24, one.source_px)}"
            )
    if config.clip and len(passes) > 1:
        raise UsageError(
            f"--clip with --sr {config.sr}, which works in {len(passes)} passes",
            "pixels beyond the polygon, which the later passes read",
            "leave --clip out, and clip what is opened or exported",
        )
    return tuple(
        PassLayout(
            one.gsd_m,
            finer=tuple((output.gsd_m, output.bands) for output in one.finer),
            reach_m=round(one.reach_m(options), 3) if one.source_gsd_m else 0.0,
        )
        for one in passes
    )


def most_m(layouts: Sequence[PassLayout], config: RunConfig) -> float:
    """Return how far beyond the AOI the first pass may have to be computed, along one axis, in metres.

    In whole chunks or shards of it, so that those of all passes begin where the AOI does.
    """
    stored_px = config.chunk_px * (config.shard_chunks or 1)
    most, stored_m = sum(layout.reach_m + stored_px * layout.gsd_m for layout in layouts[1:]), stored_px * TARGET_GSD_M
    return math.ceil(most / stored_m) * stored_m


def zones_of(
    config: RunConfig,
    aoi: Aoi,
    around: Aoi,
    scenes: tuple[Scene, ...],
    workers: int,
    layouts: Sequence[PassLayout],
    shaping: Shaping | None = None,
) -> tuple[tuple[Zone, ...], list[str]]:
    """Return the zones of the AOI with their scenes, as large as the passes need, and notes.

    `around` is the AOI and what may be read around it. `shaping` decides the units, if any.

    Raises NoDataError if there are none.
    """
    from pipeline.aoi.aoi import to_utm, utm_parts
    from pipeline.archive.passes import periods

    parts, notes = assign(utm_parts(aoi), scenes)
    zones = []
    for epsg, part in parts.items():
        mine = [scene for scene in scenes if scene.epsg == epsg]
        inside = {scene.id for scene in over(part, mine)}
        steps = periods(over(around.shape, mine), config.composite, over_area=inside)
        zone, note = _zone(config, epsg, to_utm(part, epsg), mine, steps, workers, layouts, shaping)
        zones.append(zone)
        notes += note
    if len(zones) > 1:
        names = ", ".join(f"EPSG:{zone.epsg}" for zone in zones)
        notes.append(f"the area lies in {len(zones)} UTM zones ({names}): one group of the store for each")
    if not zones:
        raise NoDataError(f"the scenes found do not reach into {aoi.name}", cure="look at the AOI's coordinates")
    return tuple(zones), notes


def assign(parts: dict[int, Geometry], scenes: tuple[Scene, ...]) -> tuple[dict[int, Geometry], list[str]]:
    """Return the AOI parts (degrees) by the zone whose scenes cover them, and notes. Nothing is warped between zones.

    Ground stays in its own zone where a scene of that zone covers it. The rest goes to the nearest zone whose scenes
    cover it, since tiles overlap across zone borders. Ground without a scene stays in its own zone as nodata.
    """
    import shapely

    from pipeline.aoi.footprints import footprint_shape

    covered = {
        epsg: shapely.union_all([footprint_shape(scene.footprint) for scene in scenes if scene.epsg == epsg])
        for epsg in sorted({scene.epsg for scene in scenes})
    }
    assigned: dict[int, list[Geometry]] = {}
    notes: list[str] = []
    for epsg, part in parts.items():
        left, sliver_deg2 = part, min(_SLIVER_DEG2, _SLIVER_SHARE * part.area)
        for home in [epsg, *sorted(covered.keys() - {epsg}, key=lambda other: (abs(other - epsg), other))]:
            mine = left.intersection(covered[home]) if home in covered else shapely.Polygon()
            if mine.area <= sliver_deg2:
                continue
            if home != epsg:
                notes.append(f"part of the AOI in EPSG:{epsg} is processed in EPSG:{home}, where its scenes are")
            assigned.setdefault(home, []).append(mine)
            left = left.difference(mine)
        if left.area > sliver_deg2:
            notes.append(_uncovered(epsg, left.area / part.area, stored=epsg in assigned))
            if epsg in assigned:
                assigned[epsg].append(left)
    return {epsg: _polygons(shapely.union_all(pieces)) for epsg, pieces in sorted(assigned.items())}, notes


def _uncovered(epsg: int, share: float, *, stored: bool) -> str:
    """Say which share of the AOI's part in a zone has no scene, and what becomes of it.

    >>> _uncovered(32631, 1.0, stored=False)
    "no scene covers the AOI's part in EPSG:32631, so it is not in the store"
    """
    percent = 100 * share
    which = "" if percent > 99.95 else f"{percent:.3g} % of "
    fate = "it is nodata" if stored else "it is not in the store"
    return f"no scene covers {which}the AOI's part in EPSG:{epsg}, so {fate}"


def _polygons(geometry: Geometry) -> Geometry:
    """Return the polygons of a geometry, without points and lines left over from cutting."""
    import shapely

    flat = shapely.get_parts(shapely.get_parts(geometry))
    return shapely.union_all([part for part in flat if part.geom_type == "Polygon" and part.area > 0])


def _zone(
    config: RunConfig,
    epsg: int,
    area: Geometry,
    scenes: list[Scene],
    steps: tuple[Period, ...],
    workers: int,
    layouts: Sequence[PassLayout],
    shaping: Shaping | None = None,
) -> tuple[Zone, list[str]]:
    from shapely.geometry import mapping

    used = {name for step in steps for name in step.scene_ids}
    phase, resample, notes = _phase(epsg, [scene for scene in scenes if scene.id in used])
    left, bottom, right, top = area.bounds
    # Edges straight in degrees bow by centimetres in UTM. The tolerance keeps an AOI drawn along 60 m lines on them.
    bow_x, bow_y = min(_BOW_M, (right - left) / 4), min(_BOW_M, (top - bottom) / 4)
    rim_m = most_m(layouts, config)
    bounds_m = (left + bow_x - rim_m, bottom + bow_y - rim_m, right - bow_x + rim_m, top - bow_y + rim_m)
    grid = Grid.covering(epsg, bounds_m, phase)
    if rim_m:
        whole = Zone(epsg, grid, _plain(mapping(area)), steps, (), ())
        grid = _needed(whole, layouts, config)
    ny, nx = (-(-length // config.chunk_px) for length in grid.shape)
    rows, cols = _breaks(ny, nx, config, workers)
    zone = Zone(epsg, grid, _plain(mapping(area)), steps, rows, cols, resample)
    active = zone.cut(PassLayout(), config.chunk_px).active
    if len(layouts) == 1 and is_sparse(
        area, grid, config.chunk_px, active
    ):  # later passes would read beyond the blocks
        notes.append(
            f"EPSG:{epsg}: the area fills less than a quarter of its chunks, so that only blocks of 60 m that touch it "
            "are computed; elsewhere chunks are nodata"
        )
        return replace(zone, blocks=True), notes
    if shaping is not None and active.mean() >= _FULL_SHARE:
        rows, cols = shaping.breaks(grid, config.chunk_px)
        zone = replace(zone, row_breaks=rows, col_breaks=cols)
    return zone, notes


def _needed(zone: Zone, layouts: Sequence[PassLayout], config: RunConfig) -> Grid:
    """Return the part of the zone's grid, in whole chunks or shards from its first pixel, that any pass computes."""
    active = zone.cuts(layouts, config.chunk_px, config.shard_chunks)[0].active
    step, whole = config.shard_chunks or 1, zone.grid.window
    spans = []
    for axis in (1, 0):
        places = np.flatnonzero(active.any(axis))
        spans.append((places[0] // step * step * config.chunk_px, (places[-1] // step + 1) * step * config.chunk_px))
    (top, bottom), (left, right) = spans
    rows = Window(whole.row + int(top), whole.col + int(left), int(bottom - top), int(right - left))
    return zone.grid.of(rows.intersect(whole))


def _plain(geometry: dict[str, Any]) -> dict[str, Any]:
    """Return GeoJSON rounded to millimetres, with lists instead of tuples, as after a JSON round trip."""

    def rounded(value: object) -> object:
        return [rounded(v) for v in value] if isinstance(value, list | tuple) else round(float(str(value)), 3)

    return {"type": geometry["type"], "coordinates": rounded(geometry["coordinates"])}


def _phase(epsg: int, scenes: list[Scene]) -> tuple[Phase, bool, list[str]]:
    """Return the grid phase of a zone, whether to resample, and notes.

    The phase is that of the scenes if they share one, else the official one, with nearest-neighbour resampling.
    """
    try:
        phases = {scene.id: scene.phase for scene in scenes}
    except ValueError as error:
        raise UsageError(
            f"a scene of EPSG:{epsg} cannot be gridded: {error}", "bands that nest on one 60 m grid"
        ) from error
    distinct, official = set(phases.values()), Phase.official(epsg)
    if len(distinct) == 1:
        phase = distinct.pop()
        if phase == official:
            return phase, False, []
        where = f"{phase.x_m - official.x_m:+g} m east, {phase.y_m - official.y_m:+g} m north"
        return phase, False, [f"EPSG:{epsg}: pixels keep their own grid, {where} of the official one"]
    moved = sum(phase != official for phase in phases.values())
    return official, True, [f"EPSG:{epsg}: {moved} scenes are off the official grid and are resampled, nearest"]


def _breaks(ny: int, nx: int, config: RunConfig, workers: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the unit breaks in chunk rows and columns: even parts, at least one per worker where the area allows."""
    limit = config.block_chunks
    if config.shard:  # shards have equal size, whatever the number of workers
        return _steps(ny, limit), _steps(nx, limit)
    rows, cols = -(-ny // limit), -(-nx // limit)
    while rows * cols < workers and (rows < ny or cols < nx):
        if cols < nx and (nx / cols >= ny / rows or rows >= ny):
            cols += 1
        else:
            rows += 1
    return _even(ny, rows), _even(nx, cols)


def _steps(count: int, step: int) -> tuple[int, ...]:
    return (*range(0, count, step), count)


def _even(count: int, parts: int) -> tuple[int, ...]:
    return tuple(count * i // parts for i in range(parts + 1))
