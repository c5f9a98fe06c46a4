"""Compute one unit of a plan in the calling thread: read, infer, write, record."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import lru_cache, partial, reduce
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.bands import TARGET_GSD_M
from pipeline.conditions.maps import ZoneMaps
from pipeline.errors import IntegrityError, PipelineError
from pipeline.grid.finished_rasters import FinishedRasters
from pipeline.grid.grid import Window
from pipeline.grid.native_rasters import SCL_GSD_M, NativeRasters, factor_at
from pipeline.grid.placed_rasters import placed_on
from pipeline.plain import LOADING
from pipeline.planning.plan import Plan, load_plan
from pipeline.planning.unit_job import job_of
from pipeline.process import (
    arithmetic,
    device_name,
    give_back_heap,
    peak_rss_mib,
    prepare_process,
    processors,
    threads_of_unit,
)
from pipeline.running import build_overviews
from pipeline.running.rolling_read import RollingRead
from pipeline.running.stop import require_wanted
from pipeline.running.tally import Tally
from pipeline.running.timing import Stages
from pipeline.store.current import Fence
from pipeline.store.extras import MAP_CLASS, class_numbers
from pipeline.store.finished import read_level
from pipeline.store.place import place_of
from pipeline.store.receipts import Ledger, Receipt
from pipeline.store.unit_writer import UnitWriter
from pipeline.superres import superres
from pipeline.superres.chain import at_gsd
from pipeline.superres.sweep import Sweep
from pipeline.superres.system import load

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from pipeline.grid.finished_rasters import Rasters
    from pipeline.planning.unit_job import Strip, UnitJob
    from pipeline.planning.units import Unit
    from pipeline.store.place import Place
    from pipeline.superres.layers import Layer
    from pipeline.superres.system import System


_log = logging.getLogger(__name__)


@lru_cache(maxsize=4)
def _plan(store: str, digest: str) -> Plan:
    """Return the plan of a store, read once per process."""
    plan = load_plan(store)
    if plan.digest != digest:
        msg = f"the plan of {store} is {plan.digest[:12]}, not {digest[:12]} as the driver said"
        raise PipelineError(msg, cure="run the command again")
    return plan


def process(unit: Unit, store: str, digest: str, attempt: int = 1) -> Receipt:
    """Compute and store one unit of the plan in `store`. Return its receipt. Errors name the unit."""
    stages = Stages()
    _log.debug("%s", LOADING, extra={"facts": {"doing": "loading", "unit": unit.id}})
    prepare_process()
    fence = Fence(place_of(store), digest)
    plan = _plan(store, digest)
    place = place_of(store).guarded(fence.require)
    stages.lap("start")
    try:
        receipt = _process(unit, plan, place, attempt, stages)
        build_overviews.build_if_last(plan, place, unit, stages)
    except PipelineError as error:
        error.found = f"unit {unit.id}: {error.found}"
        error.args = (f"unit {unit.id}: {error.args[0]}",)
        raise
    return receipt


def _process(unit: Unit, plan: Plan, store: Place, attempt: int, stages: Stages) -> Receipt:
    system = load(plan.system, device_name(), plan.config.precision)
    job = job_of(plan, unit, system)
    stages.lap("load")
    if not job.scenes:
        return _record(store, job, _empty(job, attempt), stages, 1)

    receipt = _computed(job, plan, store, system, stages)
    return _record(store, job, replace(receipt, attempts=attempt), stages, _threads(system))


def _computed(job: UnitJob, plan: Plan, store: Place, system: System, stages: Stages) -> Receipt:
    """Compute and write a unit strip by strip. Return the receipt of what was stored."""
    maps = ZoneMaps.of(plan.conditions, system.name, job.zone.grid)
    work = _Work(job, store, maps)
    rolling = None if job.source_gsd_m else RollingRead(job)
    source = placed_on(_read_finished(job, plan, store), system.device) if rolling is None else None
    with Sweep(_threads(system), require_wanted) as sweep:

        def begin(i: int) -> _Begun:
            """Read the rasters of a strip. Strips begin one after another."""
            strip = job.strips[i]
            _doing(job.unit, "reading", _of(i, job))
            rasters = source if rolling is None else rolling.over(strip.read)
            assert rasters is not None
            stages.lap("read", within=sweep.spent())
            sweep.then = [part for later in job.strips[i + 1 :] for part in later.parts]
            return (
                strip,
                rasters,
                superres.Begun(
                    rasters,
                    [strip.parts_of(block) for block in strip.blocks],
                    system.queued(),
                    job.order,
                    job.options,
                    job.state,
                    job.unit.number,
                    maps,
                    sweep,
                ),
            )

        begun = begin(0)
        for i in range(len(job.strips)):
            begin_next = partial(begin, i + 1) if i + 1 < len(job.strips) else lambda: None
            _doing(job.unit, "super-resolving", _of(i, job))
            begun = _strip(begun, begin_next, job, sweep, work, stages) or begun
        work.windows = sweep.windows
    return work.receipt(rolling)


def _threads(system: System) -> int:
    """Return how many threads compute windows: no more than there are processors, since they wait for nothing else."""
    return system.threads(min(threads_of_unit(), processors()))


_Begun = tuple["Strip", "Rasters", superres.Begun]


def _of(i: int, job: UnitJob) -> str:
    return f", strip {i + 1} of {len(job.strips)}" if len(job.strips) > 1 else ""


def _doing(unit: Unit, what: str, of: str = "") -> None:
    """Log what is done. Only a progress line in this process shows it."""
    _log.debug("%s %s%s", what, unit.id, of, extra={"facts": {"doing": what, "unit": unit.id}})


def _strip(
    begun: _Begun,
    begin_next: Callable[[], _Begun | None],
    job: UnitJob,
    sweep: Sweep,
    work: _Work,
    stages: Stages,
) -> _Begun | None:
    """Compute and write one strip, block by block. Return the next strip, whose first windows are under way.

    It begins before the last windows of this one are computed, so that threads have windows to compute while blocks are
    finished and written.
    """
    strip, rasters, windows = begun
    blended, following = windows.blocks(), None
    for i, chunks in enumerate(strip.blocks):
        if i + 1 == len(strip.blocks) and (following := begin_next()) is not None:
            windows.follow(following[-1])
            _doing(job.unit, "super-resolving")
        complete = next(blended)
        give_back_heap()
        result = complete.finish(reduce(Window.union, chunks), chunks)
        stages.lap("project", within=sweep.spent())
        _doing(job.unit, "writing")
        windows.ahead()
        work.write(chunks, result, rasters)
        stages.lap("write")
        _doing(job.unit, "super-resolving")
        del result  # while the windows of the next block are computed
        give_back_heap()
    next(blended, None)
    stages.lap("superres", within=sweep.spent())
    return following


def _read_finished(job: UnitJob, plan: Plan, store: Place) -> FinishedRasters:
    """Read the output of the previous pass. Raises IntegrityError if it is no longer complete."""
    unit, gsd_m = job.unit, job.source_gsd_m
    here = at_gsd(job.read, job.gsd_m, gsd_m)
    ledger = Ledger(store, job.plan_digest)
    number, counted = plan.pass_of(gsd_m)
    for source in plan.units_over(unit.epsg, unit.period, number, at_gsd(here, gsd_m, counted)):
        if faults := ledger.faults(source.id):
            raise IntegrityError(
                f"unit {source.id}, which it is computed from, is not whole: {'; '.join(faults[:2])}",
                "the complete output of the previous pass",
                f"python -m pipeline.check {store} --repair",
            )
    dn, quality = read_level(store, job.group, job.template, gsd_m, unit.period, here, job.bands_read)
    return FinishedRasters(job.read, round(gsd_m / job.gsd_m), job.bands_read, dn, quality)


class _Work:
    """What a unit has written so far."""

    def __init__(self, job: UnitJob, store: Place, maps: ZoneMaps | None) -> None:
        self._job, self._maps = job, maps
        self._writer = UnitWriter(store, job.group, job.unit.period, job.template)
        self._tally = Tally(job.bands)
        self.windows = 0  # model windows computed

    def write(self, chunks: Sequence[Window], result: superres.Result, rasters: Rasters) -> None:
        """Write these active chunks, which `result` covers, at every GSD of the pass."""
        job, whole = self._job, reduce(Window.union, chunks)
        for gsd_m, layer in result.layers.items():
            inside, arrays = job.inside(gsd_m, whole), _arrays(job, rasters, layer, gsd_m, whole)
            arrays |= self._of_map(gsd_m, at_gsd(whole, job.gsd_m, gsd_m))
            for chunk in chunks:
                here = at_gsd(chunk, job.gsd_m, gsd_m)
                cut = here.slices(at_gsd(whole, job.gsd_m, gsd_m))
                part = {name: values[(..., *cut)] for name, values in arrays.items()}
                part = self._writer.write(gsd_m, here, part, None if inside is None else inside[cut])
                if gsd_m == job.gsd_m:
                    pixels_there = chunk.ny * chunk.nx if inside is None else int(np.count_nonzero(inside[cut]))
                    self._tally.add(part, pixels_there, None if result.causes is None else result.causes[cut])
        if isinstance(rasters, NativeRasters):
            self._writer.write_measured(chunks, rasters)

    def _of_map(self, gsd_m: float, window: Window) -> dict[str, NDArray[np.uint8]]:
        """Return the classes of the map over `window` (px of `gsd_m`), if they are stored at this GSD."""
        layout, raster = self._job.map_stored, self._job.template.map_raster
        if layout is None or raster is None or self._maps is None or gsd_m != layout.gsd_m:
            return {}
        channels = self._maps.over(layout.condition, raster.classes, window, gsd_m)
        return {} if channels is None else {MAP_CLASS: class_numbers(channels)}

    def receipt(self, read: RollingRead | None) -> Receipt:
        """Return the receipt of what was stored."""
        job, tally = self._job, self._tally
        return Receipt(
            unit=job.unit.id,
            plan_digest=job.plan_digest,
            status="done" if any(tally.valid.values()) else "empty",
            group=job.group,
            chunks=self._writer.stored,
            valid=tally.valid,
            pixels=tally.pixels,
            clear=tally.clear,
            scenes=() if read is None else read.scenes,
            windows=self.windows,
            holes={} if read is None else read.holes,
            detail=tally.detail,
            withheld=tally.withheld,
            number=job.unit.number,
        )


def _arrays(job: UnitJob, rasters: Rasters, layer: Layer, gsd_m: float, window: Window) -> dict[str, NDArray[Any]]:
    """Return {array name: values} to store over `window` at a GSD."""
    arrays: dict[str, NDArray[Any]] = {"reflectance": layer.dn, "quality": layer.quality}
    if layer.spread is not None:
        arrays["uncertainty"] = layer.spread
    if not isinstance(rasters, NativeRasters) or not job.with_scl or gsd_m < TARGET_GSD_M:
        return arrays
    if (classes := rasters.scl_over(window)) is not None:
        factor = factor_at(SCL_GSD_M)
        arrays["scl"] = classes.repeat(factor, 0).repeat(factor, 1)
    return arrays


def _empty(job: UnitJob, attempt: int) -> Receipt:
    """Return the receipt of a unit that no scene reaches."""
    return Receipt(
        unit=job.unit.id,
        plan_digest=job.plan_digest,
        status="empty",
        group=job.group,
        chunks={},
        valid=dict.fromkeys(job.bands, 0),
        pixels=sum(part.ny * part.nx for part in job.parts),
        clear=None,
        scenes=(),
        windows=0,
        attempts=attempt,
        detail={},
        number=job.unit.number,
    )


def _record(store: Place, job: UnitJob, receipt: Receipt, stages: Stages, threads: int) -> Receipt:
    """Write the receipt, with time and memory so far. Overviews come later and have their own records."""
    receipt = replace(
        receipt,
        seconds=stages.seconds,
        cpu_seconds=stages.cpu_seconds(threads),
        peak_rss_mib=peak_rss_mib(),
        arithmetic=arithmetic(job.precision),
    )
    Ledger(store, job.plan_digest).record(receipt)
    return receipt
