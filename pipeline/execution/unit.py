"""The work of one unit: read, super-resolve, fuse, blend, project, write, receipt.

In: a unit's address, the store with its frozen plan. Out: chunks in the store and a `Receipt`. The only place, with
plan and cluster, where the three stations meet. Everything runs in the calling thread of the calling process.
`python -m pipeline.execution.unit STORE UNIT` computes one unit alone: what quarantine does, and how to see a failure.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import EXIT_OK, PipelineError, UsageError
from pipeline.execution import pyramid
from pipeline.execution.outline import plan_has_scl, template_of
from pipeline.execution.plan import Plan, Unit, load_plan
from pipeline.execution.stages import Stages
from pipeline.execution.tally import Tally, holes
from pipeline.execution.trust import require_local_access
from pipeline.store.current import Fence
from pipeline.store.layout import RegionWriter
from pipeline.store.place import place_of
from pipeline.store.receipts import Ledger, Receipt
from pipeline.superres import superres, systems

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from pipeline.archive.cube import Pixels
    from pipeline.archive.scene import Scene
    from pipeline.grid.grid import Window
    from pipeline.store.place import Place
    from pipeline.superres.systems import SceneState


_LAUNCH = date(2015, 6, 23)  # Sentinel-2A


def prepare_process(threads: int = 1) -> None:
    """Settings that every working process needs, once: one torch thread, and GDAL kept from indirect drivers."""
    import torch

    from pipeline.archive.access import restrict_drivers

    restrict_drivers()
    torch.set_num_threads(threads)


@lru_cache(maxsize=4)
def _plan(store: str, digest: str) -> Plan:
    """A store's plan, read once per process."""
    plan = load_plan(store)
    if plan.digest != digest:
        msg = f"the plan of {store} is {plan.digest[:12]}, not {digest[:12]} as the driver said"
        raise PipelineError(msg, cure="run the command again")
    return plan


def device_name() -> str:
    """The accelerator of this process: the first CUDA device it sees, else the CPU."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def process(unit: Unit, store: str, digest: str, attempt: int = 1) -> Receipt:
    """Compute and store one unit of the plan in `store`; returns its receipt. Errors name the unit."""
    stages = Stages()
    prepare_process()
    fence = Fence(place_of(store), digest)
    plan = _plan(store, digest)
    place = place_of(store).guarded(fence.require)
    stages.lap("start")
    try:
        receipt = _process(unit, plan, place, attempt, stages)
        pyramid.build_if_last(plan, place, unit, stages)
    except PipelineError as error:
        error.found = f"unit {unit.id}: {error.found}"
        error.args = (f"unit {unit.id}: {error.args[0]}",)
        raise
    return receipt


def _process(unit: Unit, plan: Plan, store: Place, attempt: int, stages: Stages) -> Receipt:
    system = systems.load(plan.system, device_name())
    stages.lap("load")

    window = plan.window(unit)
    reach = superres.read_window(system.lattice, window, plan.reach_px)
    scenes = _scenes_over(plan, unit, reach)
    if not scenes:
        return _record(store, plan, _empty(unit, plan, attempt), stages)
    pixels = _read(plan, unit, scenes, reach, bands_to_read(plan, system, len(scenes)))
    stages.lap("read")

    native = superres.Native(pixels.grid.window, pixels.dn, pixels.bands, pixels.scl)
    options = plan.options(_stream(plan, unit))
    wanted, names = plan.chunks(unit), plan.config.band_names
    result = superres.super_resolve(native, window, system, names, options, _state_of(plan, unit), wanted)
    stages.lap("superres", within=result.seconds)

    receipt = _write(unit, plan, store, window, pixels, result)
    receipt = replace(
        receipt,
        scenes=pixels.scenes,
        windows=result.windows,
        attempts=attempt,
        holes=holes(pixels, plan.config.band_names),
    )
    stages.lap("write")
    return _record(store, plan, receipt, stages)


def _record(store: Place, plan: Plan, receipt: Receipt, stages: Stages) -> Receipt:
    """Write the receipt, with time and memory up to here; overviews are made after it and have records of their own."""
    receipt = replace(receipt, seconds=stages.seconds, peak_rss_mib=peak_rss_mib())
    Ledger(store, plan.digest).record(receipt)
    return receipt


def _stream(plan: Plan, unit: Unit) -> int:
    """Noise stream of a unit. Composites of several passes have no date of their own and share one stream."""
    dated = plan.config.composite == "none"
    return noise_stream(unit.epsg, plan.zone(unit.epsg).periods[unit.period].datetime_utc if dated else "")


def noise_stream(epsg: int, datetime_utc: str) -> int:
    """Noise stream of a zone and a pass (ISO 8601, or empty): 8 bits of zone and hemisphere, 16 of days since launch.

    The day is that of mean solar time at the zone's central meridian. All scenes of a pass have it in common, so the
    stream does not depend on which of them a run found first; nor does it depend on the run's other passes.
    """
    zone = epsg % 100 + (100 if epsg // 100 == 327 else 0)
    days = (_solar_day(epsg, datetime_utc) - _LAUNCH).days if datetime_utc else 0
    return (zone << 16) | (days & 0xFFFF)


def _solar_day(epsg: int, datetime_utc: str) -> date:
    """Date of mean solar time at the zone's central meridian; a time of 00:00:00 is a date without a time."""
    moment = datetime.fromisoformat(datetime_utc)
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    central_deg = 6 * (epsg % 100) - 183
    return moment.date() if moment.time() == time() else (moment + timedelta(hours=central_deg / 15)).date()


def _scenes_over(plan: Plan, unit: Unit, window: Window) -> tuple[Scene, ...]:
    """Scenes of the unit's time step that may reach into `window`, best first."""
    zone = plan.zone(unit.epsg)
    left, bottom, right, top = zone.grid.of(window).bounds_m
    kept = []
    for scene in plan.period_scenes(unit.epsg, unit.period):
        if not scene.rasters or scene.epsg != unit.epsg:
            kept.append(scene)
            continue
        raster = max(scene.rasters, key=lambda r: r.gsd_m * r.nx)
        reach_x, reach_y = raster.gsd_m * raster.nx, raster.gsd_m * raster.ny
        if raster.left_m < right and raster.left_m + reach_x > left and raster.top_m > bottom and (
            raster.top_m - reach_y < top
        ):  # fmt: skip
            kept.append(scene)
    return tuple(kept)


def bands_to_read(plan: Plan, system: systems.System, scenes: int) -> tuple[str, ...]:
    """Bands that decide the pixels of those that are stored, in the order of the instrument.

    All there are where the fusion network is asked for, which looks at every band, and where several scenes meet,
    whose gaps in any band decide which scene is taken.
    """
    stored = plan.config.band_names
    if system.resolver is None or system.fuser is None:
        fused, guides = False, tuple[str, ...]()
    else:
        fused = bool({*stored} & {*system.fuser.out_bands} - {*system.resolver.out_bands})
        guides = system.resolver.in_bands
    if fused or scenes > 1:
        return plan.inputs
    return tuple(name for name in plan.inputs if name in stored or name in guides)


def _read(plan: Plan, unit: Unit, scenes: tuple[Scene, ...], window: Window, bands: tuple[str, ...]) -> Pixels:
    from pipeline.archive.cube import read_period

    zone = plan.zone(unit.epsg)
    composite = zone.periods[unit.period].composite
    return read_period(
        scenes,
        composite,
        zone.grid.of(window),
        bands,
        plan.access,
        resample=zone.resample,
        with_scl=plan_has_scl(plan),
    )


def _state_of(plan: Plan, unit: Unit) -> Callable[[Window], SceneState | None]:
    """Scene state for a lattice window: the mean over the scenes that reach into that window.

    It follows from the window alone, not from the unit, so that two units computing one window agree.
    """

    def state(window: Window) -> SceneState | None:
        scenes = _scenes_over(plan, unit, window)
        states = [plan.states[scene.id] for scene in scenes if scene.id in plan.states]
        if not states:
            return None
        return {name: np.mean([one[name] for one in states], axis=0).tolist() for name in states[0]}

    return state


def _write(unit: Unit, plan: Plan, store: Place, window: Window, pixels: Pixels, result: superres.Result) -> Receipt:
    """Write the active chunks of a unit; the receipt holds what was stored."""
    group = plan.group(unit.epsg)
    writer = RegionWriter(store, group, unit.period)
    zone = plan.zone(unit.epsg)
    grid, template = zone.grid, template_of(plan, zone)
    inside = _clip_mask(plan, unit, window)
    arrays = _arrays(plan, window, pixels, result)
    stored: dict[str, list[int]] = {}
    tally = Tally(plan.config.band_names)
    for chunk in plan.chunks(unit):
        cut = chunk.slices(window)
        part = {name: values[(..., *cut)] for name, values in arrays.items()}
        if inside is not None:
            part = {
                name: np.where(inside[cut], values, values.dtype.type(template.fill(name)))
                for name, values in part.items()
            }
        stored.update(writer.write(*chunk.slices(grid.window), part))
        pixels_there = chunk.ny * chunk.nx if inside is None else int(np.count_nonzero(inside[cut]))
        tally.add(part, pixels_there, None if result.causes is None else result.causes[cut])
    stored.update(_write_measured(unit, plan, store, pixels))
    status = "done" if any(tally.valid.values()) else "empty"
    return Receipt(
        unit.id, plan.digest, status, group, stored, tally.valid, tally.pixels, tally.clear, (),
        detail=tally.detail, withheld=tally.withheld,
    )  # fmt: skip


def _write_measured(unit: Unit, plan: Plan, store: Place, pixels: Pixels) -> dict[str, list[int]]:
    """Write what was read, on its native grids, over the active chunks; {chunk key: [bytes, crc32]}."""
    zone, stored = plan.zone(unit.epsg), {}
    for level in template_of(plan, zone).measured:
        gsd_m = round(level.raster.gsd_m)
        names = [pixels.bands[gsd_m].index(name) for name in level.bands]
        writer = RegionWriter(store, plan.group(unit.epsg), unit.period, level.path)
        for chunk in plan.chunks(unit):
            rows, cols = chunk.coarsen(level.factor).slices(pixels.grid.window.coarsen(level.factor))
            part = {"reflectance": pixels.dn[gsd_m][names, rows, cols]}
            place = chunk.coarsen(level.factor).slices(zone.grid.window.coarsen(level.factor))
            stored.update(writer.write(*place, part))
    return stored


def _arrays(plan: Plan, window: Window, pixels: Pixels, result: superres.Result) -> dict[str, NDArray[Any]]:
    arrays: dict[str, NDArray[Any]] = {"reflectance": result.dn, "quality": result.quality}
    if result.spread is not None:
        arrays["uncertainty"] = result.spread
    if plan_has_scl(plan) and pixels.scl is not None:
        rows, cols = window.coarsen(8).slices(pixels.grid.window.coarsen(8))
        arrays["scl"] = pixels.scl[rows, cols].repeat(8, 0).repeat(8, 1)
    return arrays


def _clip_mask(plan: Plan, unit: Unit, window: Window) -> NDArray[np.bool_] | None:
    """Pixels whose centre lies within the AOI, (ny, nx); None unless the run clips."""
    if not plan.config.clip:
        return None
    from affine import Affine
    from rasterio.features import geometry_mask

    zone = plan.zone(unit.epsg)
    grid = zone.grid.of(window)
    mask: NDArray[np.bool_] = geometry_mask([zone.area], grid.shape, Affine(*grid.transform), invert=True)
    return mask


def _empty(unit: Unit, plan: Plan, attempt: int) -> Receipt:
    pixels = sum(chunk.ny * chunk.nx for chunk in plan.chunks(unit))
    valid = dict.fromkeys(plan.config.band_names, 0)
    group = plan.group(unit.epsg)
    return Receipt(unit.id, plan.digest, "empty", group, {}, valid, pixels, None, (), 0, attempt, detail={})


def peak_rss_mib() -> float:
    """Largest resident set of this process so far, in MiB (Linux counts KiB, macOS bytes)."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)


def main(argv: Sequence[str] | None = None) -> int:
    """Compute one unit of a store and say how it went; returns the exit code."""
    parser = argparse.ArgumentParser(
        "python -m pipeline.execution.unit", description="Compute one unit of a store alone."
    )
    parser.add_argument("store", help="folder or URL")
    parser.add_argument("unit", help="its id, such as z32631-r2-c0-t0")
    arguments = parser.parse_args(argv)
    try:
        place = place_of(arguments.store).absolute()
        plan = load_plan(arguments.store)
        unit = next((unit for unit in plan.units() if unit.id == arguments.unit), None)
        if unit is None:
            raise UsageError(f"{arguments.store} has no unit {arguments.unit}", "an id as pipeline.check lists them")
        require_local_access(plan)
        receipt = process(unit, str(place), plan.digest)
    except PipelineError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"{unit.id}: {receipt.status}, {receipt.windows} windows, {sum(receipt.seconds.values()):.1f} s")
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
