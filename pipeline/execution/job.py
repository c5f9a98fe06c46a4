"""All that one unit needs, worked out of the plan once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.execution.noise_stream import noise_stream
from pipeline.execution.outline import plan_has_scl, template_of
from pipeline.superres.chain import bands_read, groups_of, read_window

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from pipeline.archive.read.access import Access
    from pipeline.archive.scene import Scene
    from pipeline.execution.plan import Plan, Unit, Zone
    from pipeline.grid.grid import Grid, Window
    from pipeline.store.template import Template
    from pipeline.superres.options import Options
    from pipeline.superres.spec import SceneState
    from pipeline.superres.system import System


@dataclass(frozen=True)
class UnitJob:
    """One unit: its ground and chunks, what to read, how to compute it, and where it goes. Windows in 2.5 m px."""

    unit: Unit
    plan_digest: str
    window: Window  # the smallest that holds the chunks
    chunks: tuple[Window, ...]
    zone: Zone
    group: str
    template: Template
    read: Window  # what the pixels of `window` depend on
    scenes: tuple[Scene, ...]  # that may reach into `read`, best first
    composite: str
    bands_read: tuple[str, ...]
    bands: tuple[str, ...]  # that are stored
    with_scl: bool
    access: Access
    options: Options
    states: Mapping[str, SceneState]  # by scene
    clip: bool

    @property
    def grid(self) -> Grid:
        """The grid of what is to be read."""
        return self.zone.grid.of(self.read)

    def state(self, window: Window) -> SceneState | None:
        """Scene state for a lattice window: the mean over the scenes that reach into that window.

        It follows from the window alone, not from the unit, so that two units computing one window agree.
        """
        found = _reaching(self.scenes, self.zone, window)
        states = [self.states[scene.id] for scene in found if scene.id in self.states]
        if not states:
            return None
        return {name: np.mean([one[name] for one in states], axis=0).tolist() for name in states[0]}

    def inside(self) -> NDArray[np.bool_] | None:
        """Pixels of `window` whose centre lies within the AOI, (ny, nx); None unless the run clips."""
        if not self.clip:
            return None
        from affine import Affine
        from rasterio.features import geometry_mask

        grid = self.zone.grid.of(self.window)
        mask: NDArray[np.bool_] = geometry_mask([self.zone.area], grid.shape, Affine(*grid.transform), invert=True)
        return mask


def job_of(plan: Plan, unit: Unit, system: System) -> UnitJob:
    """The job of `unit`, for a loaded system of the plan."""
    zone, chunks = plan.zone(unit.epsg), tuple(plan.chunks(unit))
    window = plan.window(unit)
    read = read_window(groups_of(system.stages, plan.config.band_names), window.pad(plan.reach_px))
    scenes = _reaching(plan.period_scenes(unit.epsg, unit.period), zone, read)
    period = zone.periods[unit.period]
    dated = plan.config.composite == "none"  # composites of several passes have no date of their own
    return UnitJob(
        unit=unit,
        plan_digest=plan.digest,
        window=window,
        chunks=chunks,
        zone=zone,
        group=plan.group(unit.epsg),
        template=template_of(plan, zone),
        read=read,
        scenes=scenes,
        composite=period.composite,
        bands_read=bands_to_read(plan, system, len(scenes)),
        bands=plan.config.band_names,
        with_scl=plan_has_scl(plan),
        access=plan.access,
        options=plan.options(noise_stream(unit.epsg, period.datetime_utc if dated else "")),
        states=plan.states,
        clip=plan.config.clip,
    )


def bands_to_read(plan: Plan, system: System, scenes: int) -> tuple[str, ...]:
    """Bands that decide the pixels of those that are stored, in the order of the instrument.

    All there are where several scenes meet, whose gaps in any band decide which scene is taken.
    """
    if scenes > 1:
        return plan.inputs
    read = bands_read(system.stages, plan.config.band_names)
    return tuple(name for name in plan.inputs if name in read)


def _reaching(scenes: Sequence[Scene], zone: Zone, window: Window) -> tuple[Scene, ...]:
    """Those of `scenes` that may reach into `window`, in their order."""
    left, bottom, right, top = zone.grid.of(window).bounds_m
    kept = []
    for scene in scenes:
        if not scene.rasters or scene.epsg != zone.epsg:
            kept.append(scene)
            continue
        raster = max(scene.rasters, key=lambda r: r.gsd_m * r.nx)
        reach_x, reach_y = raster.gsd_m * raster.nx, raster.gsd_m * raster.ny
        if raster.left_m < right and raster.left_m + reach_x > left and raster.top_m > bottom and (
            raster.top_m - reach_y < top
        ):  # fmt: skip
            kept.append(scene)
    return tuple(kept)
