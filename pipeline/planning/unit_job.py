"""The complete description of one unit's work, derived from the plan."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING

import numpy as np

from pipeline.bands import TARGET_GSD_M
from pipeline.errors import PipelineError
from pipeline.grid.grid import Window
from pipeline.planning.noise_stream import noise_stream
from pipeline.planning.store_template import plan_has_scl, template_of
from pipeline.planning.touched import painted
from pipeline.superres.chain import at_gsd, bands_read
from pipeline.superres.passes import passes_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from pipeline.archive.read.access import Access
    from pipeline.archive.scene import Scene
    from pipeline.grid.grid import Grid
    from pipeline.planning.plan import Plan
    from pipeline.planning.units import MapLayout, Unit, Zone
    from pipeline.store.template import Template
    from pipeline.superres.options import Options
    from pipeline.superres.passes import Pass
    from pipeline.superres.spec import SceneState
    from pipeline.superres.system import System


# Width of what is finished at once. What is held of a row of chunks grows with the width of the unit, what finishing
# takes with the width of a block: about twice as much for each px.
_WIDEST_BLOCK_PX, _NARROWEST_BLOCK_PX = 1920, 960
_HELD_PX = 5840  # of the unit and twice of the block


def block_px(unit_px: int, chunk_px: int) -> int:
    """Return the width of what is finished at once of a unit of some width: whole chunks.

    >>> [block_px(wide, 480) for wide in (480, 1920, 2880, 4320)]
    [1920, 1920, 1440, 960]
    """
    most = min(_WIDEST_BLOCK_PX, max(_NARROWEST_BLOCK_PX, (_HELD_PX - unit_px) // 2))
    return max(1, most // chunk_px) * chunk_px


@dataclass(frozen=True)
class Strip:
    """Some chunk rows of a unit, which are computed and written before the next. All windows count px of the pass."""

    chunks: tuple[Window, ...]
    window: Window  # smallest that holds the chunks
    read: Window  # input window of `window`, with halo
    parts: tuple[Window, ...]  # what is computed of the chunks

    @property
    def blocks(self) -> list[tuple[Window, ...]]:
        """The chunks in blocks that lie side by side."""
        width = block_px(self.window.nx, max(chunk.nx for chunk in self.chunks))
        found: dict[int, list[Window]] = {}
        for chunk in self.chunks:
            found.setdefault((chunk.col - self.window.col) // width, []).append(chunk)
        return [tuple(found[place]) for place in sorted(found)]

    def parts_of(self, block: Sequence[Window]) -> list[Window]:
        """Return what is computed of a block."""
        return [part for part in self.parts if any(not part.intersect(chunk).empty for chunk in block)]


@dataclass(frozen=True)
class UnitJob:
    """One unit: its window and chunks, its input, how to compute it, and where to write it.

    Windows are in px of `gsd_m`. `source_gsd_m` is the GSD of the finished group to read, or 0 to read the scenes.
    """

    unit: Unit
    plan_digest: str
    gsd_m: float
    source_gsd_m: float
    window: Window  # smallest that holds the chunks
    chunks: tuple[Window, ...]
    parts: tuple[Window, ...]  # what is computed and stored of the chunks
    zone: Zone
    group: str
    template: Template
    read: Window  # input window of `window`, with halo
    strips: tuple[Strip, ...]  # from the top
    scenes: tuple[Scene, ...]  # scenes that may intersect `read`, best first
    composite: str
    bands_read: tuple[str, ...]
    order: tuple[str, ...]  # band order of the run
    bands: tuple[str, ...]  # stored at `gsd_m`
    with_scl: bool
    access: Access
    options: Options
    states: Mapping[str, SceneState]  # by scene
    clip: bool
    precision: str
    map_stored: MapLayout | None = None

    @property
    def grid(self) -> Grid:
        """The zone's grid in px of the pass."""
        return self.zone.grid.at_gsd(self.gsd_m)

    @property
    def layout(self) -> Window:
        """Window that the zone's arrays at `gsd_m` cover."""
        return self.grid.window

    def state(self, window: Window) -> SceneState | None:
        """Return the scene state for a lattice window (2.5 m px): the mean over the scenes that reach the window.

        It depends on the window but not on the unit, so units that compute the same window agree.
        """
        found = _reaching(self.scenes, self.zone, window)
        states = [self.states[scene.id] for scene in found if scene.id in self.states]
        if not states:
            return None
        return {name: np.mean([one[name] for one in states], axis=0).tolist() for name in states[0]}

    def inside(self, gsd_m: float, window: Window) -> NDArray[np.bool_] | None:
        """Return a mask (ny, nx) at a GSD of the pixels of `window` that are stored; None for all.

        With --clip these are the pixels whose centre is in the AOI.
        """
        if not self.clip:
            here = at_gsd(window, self.gsd_m, gsd_m)
            parts = [at_gsd(part, self.gsd_m, gsd_m) for part in self.parts]
            return None if self.parts == self.chunks else painted(parts, here)
        from affine import Affine
        from rasterio.features import geometry_mask

        grid = self.zone.grid.at_gsd(gsd_m).of(at_gsd(window, self.gsd_m, gsd_m))
        mask: NDArray[np.bool_] = geometry_mask([self.zone.area], grid.shape, Affine(*grid.transform), invert=True)
        return mask


def job_of(plan: Plan, unit: Unit, system: System) -> UnitJob:
    """Return the job of `unit`, for the loaded system of the plan."""
    zone, chunks, window = plan.zone(unit.epsg), tuple(plan.chunks(unit)), plan.window(unit)
    of, parts = _pass_of(plan, unit, system), tuple(plan.parts(unit))
    reach = of.reach_px(plan.options())
    read = of.read_window(window.pad(reach))
    scenes = _reaching(plan.period_scenes(unit.epsg, unit.period), zone, at_gsd(read, of.gsd_m, TARGET_GSD_M))
    period = zone.periods[unit.period]
    dated = plan.config.composite == "none"  # composites of several passes have no date of their own
    return UnitJob(
        unit=unit,
        plan_digest=plan.digest,
        gsd_m=of.gsd_m,
        source_gsd_m=of.source_gsd_m,
        window=window,
        chunks=chunks,
        parts=parts,
        zone=zone,
        group=plan.group(unit.epsg),
        template=template_of(plan, zone),
        read=read,
        strips=_strips(chunks, parts, of, reach),
        scenes=scenes,
        composite=period.composite,
        bands_read=bands_to_read(plan, system, len(scenes)) if not of.source_gsd_m else of.natives,
        order=plan.config.band_names,
        bands=of.outputs[0].bands,
        with_scl=plan_has_scl(plan) and not of.source_gsd_m,
        access=plan.access,
        # Images of one time step have the same noise, so that they differ by what they vary alone.
        options=plan.options(noise_stream(unit.epsg, period.datetime_utc if dated else ""), period.variant or 0),
        states=plan.states,
        clip=plan.config.clip,
        precision=plan.config.precision,
        map_stored=plan.map_stored,
    )


def _strips(chunks: Sequence[Window], parts: Sequence[Window], of: Pass, reach_px: int) -> tuple[Strip, ...]:
    """Return the chunks in strips, with their parts: rows of chunks that the same rows of windows complete."""
    rows: dict[int, list[Window]] = {}
    for chunk in chunks:
        rows.setdefault(chunk.row, []).append(chunk)
    together: dict[tuple[int, ...], list[Window]] = {}
    for row in sorted(rows):
        last = Window(reduce(Window.union, rows[row]).row_end - of.source_px, 0, of.source_px, of.source_px)
        completed_by = tuple(max(cells)[0] for cells in of.cells([last.pad(reach_px)]) if cells)
        together.setdefault(completed_by, []).extend(rows[row])
    strips = []
    for some in together.values():
        whole = reduce(Window.union, some)
        inside = tuple(part for part in parts if whole.row <= part.row < whole.row_end)
        strips.append(Strip(tuple(some), whole, of.read_window(whole.pad(reach_px)), inside))
    return tuple(strips)


def _pass_of(plan: Plan, unit: Unit, system: System) -> Pass:
    """Return the pass of a unit. Raises PipelineError if the system's passes differ from those of the plan."""
    passes = passes_of(system.stages, plan.config.band_names)
    found = [(one.gsd_m, tuple((output.gsd_m, output.bands) for output in one.finer)) for one in passes]
    if found != [(layout.gsd_m, layout.finer) for layout in plan.passes]:
        raise PipelineError(
            f"{system.name} works in {len(passes)} passes that give {found}",
            f"what the plan was made for: {[(layout.gsd_m, layout.finer) for layout in plan.passes]}",
            "install the version of the system that made the plan, or start a new store",
        )
    return passes[unit.number]


def bands_to_read(plan: Plan, system: System, scenes: int) -> tuple[str, ...]:
    """Return the bands that decide the pixels of the stored bands, in instrument order.

    With several scenes these are all input bands, since gaps in any band decide which scene is used.
    """
    if scenes > 1:
        return plan.inputs
    read = bands_read(system.stages, plan.config.band_names)
    return tuple(name for name in plan.inputs if name in read)


def with_scene(plan: Plan, unit: Unit, windows: Sequence[Window]) -> int:
    """Return how many of the windows (2.5 m px) a scene of the unit's time step reaches.

    Others are not computed. Nodata within scenes is not known before they are read.
    """
    zone, scenes = plan.zone(unit.epsg), plan.period_scenes(unit.epsg, unit.period)
    if not windows:
        return 0
    left, bottom, right, top = zone.grid.of(reduce(Window.union, windows)).bounds_m
    for scene in scenes:
        if scene.rasters and scene.epsg == zone.epsg:
            west, south, east, north = _extent(scene)
            if west <= left and south <= bottom and right <= east and top <= north:
                return len(windows)
    return sum(bool(_reaching(scenes, zone, window)) for window in windows)


def _reaching(scenes: Sequence[Scene], zone: Zone, window: Window) -> tuple[Scene, ...]:
    """Return the scenes that may intersect `window`, in the given order."""
    left, bottom, right, top = zone.grid.of(window).bounds_m
    kept = []
    for scene in scenes:
        if not scene.rasters or scene.epsg != zone.epsg:
            kept.append(scene)
            continue
        west, south, east, north = _extent(scene)
        if west < right and east > left and north > bottom and south < top:
            kept.append(scene)
    return tuple(kept)


def _extent(scene: Scene) -> tuple[float, float, float, float]:
    """Return (left, bottom, right, top) of a scene's largest raster in metres."""
    raster = max(scene.rasters, key=lambda r: r.gsd_m * r.nx)
    right, bottom = raster.left_m + raster.gsd_m * raster.nx, raster.top_m - raster.gsd_m * raster.ny
    return raster.left_m, bottom, right, raster.top_m
