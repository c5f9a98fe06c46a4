"""One unit of a plan, start to end in the calling thread: read, infer, write, record."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import PipelineError
from pipeline.execution import pyramid
from pipeline.execution.job import job_of
from pipeline.execution.plan import Plan, Unit, load_plan
from pipeline.execution.stages import Stages
from pipeline.execution.tally import Tally, holes
from pipeline.execution.worker_process import device_name, peak_rss_mib, prepare_process
from pipeline.grid.native_rasters import SCL_GSD_M, factor_at
from pipeline.store.current import Fence
from pipeline.store.place import place_of
from pipeline.store.receipts import Ledger, Receipt
from pipeline.store.unit_writer import UnitWriter
from pipeline.superres import superres
from pipeline.superres.system import load

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.execution.job import UnitJob
    from pipeline.grid.native_rasters import NativeRasters
    from pipeline.store.place import Place


@lru_cache(maxsize=4)
def _plan(store: str, digest: str) -> Plan:
    """A store's plan, read once per process."""
    plan = load_plan(store)
    if plan.digest != digest:
        msg = f"the plan of {store} is {plan.digest[:12]}, not {digest[:12]} as the driver said"
        raise PipelineError(msg, cure="run the command again")
    return plan


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
    system = load(plan.system, device_name())
    job = job_of(plan, unit, system)
    stages.lap("load")
    if not job.scenes:
        return _record(store, job, _empty(job, attempt), stages)

    rasters = _read(job)
    stages.lap("read")

    result = superres.super_resolve(rasters, job.window, system, job.bands, job.options, job.state, job.chunks)
    stages.lap("superres", within=result.seconds)

    receipt = _write(job, store, rasters, result)
    stages.lap("write")
    return _record(store, job, replace(receipt, attempts=attempt), stages)


def _read(job: UnitJob) -> NativeRasters:
    from pipeline.archive.read.cube import read_period

    return read_period(
        job.scenes,
        job.composite,
        job.grid,
        job.bands_read,
        job.access,
        resample=job.zone.resample,
        with_scl=job.with_scl,
    )


def _write(job: UnitJob, store: Place, rasters: NativeRasters, result: superres.Result) -> Receipt:
    """Write the active chunks; the receipt holds what was stored."""
    writer = UnitWriter(store, job.group, job.unit.period, job.template)
    inside, arrays, tally = job.inside(), _arrays(job, rasters, result), Tally(job.bands)
    for chunk in job.chunks:
        cut = chunk.slices(job.window)
        part = {name: values[(..., *cut)] for name, values in arrays.items()}
        part = writer.write(chunk, part, None if inside is None else inside[cut])
        pixels_there = chunk.ny * chunk.nx if inside is None else int(np.count_nonzero(inside[cut]))
        tally.add(part, pixels_there, None if result.causes is None else result.causes[cut])
    writer.write_measured(job.chunks, rasters)
    return Receipt(
        unit=job.unit.id,
        plan_digest=job.plan_digest,
        status="done" if any(tally.valid.values()) else "empty",
        group=job.group,
        chunks=writer.stored,
        valid=tally.valid,
        pixels=tally.pixels,
        clear=tally.clear,
        scenes=rasters.scenes,
        windows=result.windows,
        holes=holes(rasters, job.bands),
        detail=tally.detail,
        withheld=tally.withheld,
    )


def _arrays(job: UnitJob, rasters: NativeRasters, result: superres.Result) -> dict[str, NDArray[Any]]:
    """What is stored over `job.window`, by array."""
    arrays: dict[str, NDArray[Any]] = {"reflectance": result.dn, "quality": result.quality}
    if result.spread is not None:
        arrays["uncertainty"] = result.spread
    if job.with_scl and (classes := rasters.scl_over(job.window)) is not None:
        factor = factor_at(SCL_GSD_M)
        arrays["scl"] = classes.repeat(factor, 0).repeat(factor, 1)
    return arrays


def _empty(job: UnitJob, attempt: int) -> Receipt:
    """The receipt of a unit that no scene reaches."""
    return Receipt(
        unit=job.unit.id,
        plan_digest=job.plan_digest,
        status="empty",
        group=job.group,
        chunks={},
        valid=dict.fromkeys(job.bands, 0),
        pixels=sum(chunk.ny * chunk.nx for chunk in job.chunks),
        clear=None,
        scenes=(),
        windows=0,
        attempts=attempt,
        detail={},
    )


def _record(store: Place, job: UnitJob, receipt: Receipt, stages: Stages) -> Receipt:
    """Write the receipt, with time and memory up to here; overviews are made after it and have records of their own."""
    receipt = replace(receipt, seconds=stages.seconds, peak_rss_mib=peak_rss_mib())
    Ledger(store, job.plan_digest).record(receipt)
    return receipt
