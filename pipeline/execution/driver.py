"""Driving a plan to its end: template, sliding window of units, receipts, publish.

In: a `Plan` and a store path. Out: a `Summary`, and a store that is complete or can be continued. Imports every room.

The driver holds addresses and receipts, never arrays. At most as many units are in flight as there are workers, so that
stopping means waiting for those alone.
"""

from __future__ import annotations

import json
import signal
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pipeline.errors import Interrupted, PipelineError, StorageError, Unreachable, UsageError
from pipeline.execution.cluster import Pool, open_pool
from pipeline.execution.plan import Plan, Unit, Zone, plan_path
from pipeline.execution.unit import plan_has_scl
from pipeline.store import layout
from pipeline.store.lease import lease
from pipeline.store.receipts import Ledger, Receipt, write_atomic
from pipeline.superres.masks import QUALITY_MEANINGS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from types import FrameType

_ATTEMPTS = 3
_UNANSWERED_PER_WORKER = 3
_FATAL = (UsageError, StorageError)  # no other unit would fare better


@dataclass
class Summary:
    """How a run went. Counts of units; seconds are wall time of the driver and, per stage, summed over workers."""

    units: int = 0
    resumed: int = 0  # units found done at the start
    computed: int = 0
    seconds: float = 0.0
    stage_seconds: dict[str, float] = field(default_factory=dict)
    pixels: int = 0
    clear_pixels: int | None = None  # None where no scene carries SCL
    valid: dict[str, int] = field(default_factory=dict)
    scenes: tuple[str, ...] = ()
    stored_bytes: int = 0
    peak_worker_mib: float = 0.0

    @property
    def valid_fraction(self) -> float:
        """Share of output pixels that were measured, mean over bands."""
        return sum(self.valid.values()) / (len(self.valid) * self.pixels) if self.valid and self.pixels else 0.0

    def add(self, receipt: Receipt) -> None:
        """Count one receipt in."""
        for stage, seconds in receipt.seconds.items():
            self.stage_seconds[stage] = self.stage_seconds.get(stage, 0.0) + seconds
        for band, count in receipt.valid.items():
            self.valid[band] = self.valid.get(band, 0) + count
        self.pixels += receipt.pixels
        if receipt.clear is not None:
            self.clear_pixels = (self.clear_pixels or 0) + receipt.clear
        self.scenes = tuple(sorted({*self.scenes, *receipt.scenes}))
        self.stored_bytes += sum(size for size, _ in receipt.chunks.values())
        self.peak_worker_mib = max(self.peak_worker_mib, receipt.peak_rss_mib)


class Stop:
    """Remembers that the user asked to stop; a second request stops at once."""

    def __init__(self) -> None:
        self.asked = False
        self.outage = ""  # what an archive said that stays away

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        del frame
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True


@contextmanager
def _stop_on_signals() -> Iterator[Stop]:
    """SIGINT, SIGTERM and SIGUSR1 (Slurm's warning before its time limit) ask for a stop; main thread only."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def prepare(plan: Plan, store: Path) -> None:
    """Write the frozen plan and the store's template. The store's folder must not exist, or be empty.

    The plan comes last: a store without one was never begun, and is made anew.
    """
    if "" not in {plan.group(zone.epsg) for zone in plan.zones}:
        layout.create_root(store, {"groups": [plan.group(z.epsg) for z in plan.zones], "plan_digest": plan.digest})
    for zone in plan.zones:
        layout.create(store, plan.group(zone.epsg), template(plan, zone))
    layout.consolidate(store)
    write_atomic(plan_path(store), json.dumps(plan.to_json(), indent=1).encode())


def template(plan: Plan, zone: Zone) -> layout.Template:
    """What a zone's group holds before any pixel is written."""
    return layout.Template(
        grid=zone.grid,
        bands=plan.config.band_names,
        times_utc=tuple(period.datetime_utc for period in zone.periods),
        chunk_px=plan.config.chunk_px,
        generated=plan.system.generated_bands,
        with_scl=plan_has_scl(plan),
        with_uncertainty=plan.config.members > 1 and bool(plan.system.sr_weights),
        shard_px=plan.config.chunk_px * plan.config.unit_chunks if plan.config.shard else 0,
        quality_meanings=QUALITY_MEANINGS,
        attributes=_provenance(plan, zone.epsg),
    )


def _provenance(plan: Plan, epsg: int) -> dict[str, Any]:
    zone = plan.zone(epsg)
    used = [plan.scenes[name] for period in zone.periods for name in period.scene_ids]
    return {
        "title": f"Sentinel-2 L2A at 2.5 m over {plan.aoi_name}",
        "plan_digest": plan.digest,
        "groups": [plan.group(z.epsg) for z in plan.zones],
        "source": f"{plan.config.catalog}: {', '.join(dict.fromkeys(s.id for s in used))}",
        "scenes": {
            s.id: {"datetime": s.datetime_utc, "baseline": s.baseline, "offset_dn": s.offset.offset_dn,
                   "offset_evidence": s.offset.evidence, "cloud_pct": s.cloud_pct}
            for s in used
        },
        "periods": [{"label": p.label, "composite": p.composite, "scenes": list(p.scene_ids)} for p in zone.periods],
        "super_resolution": plan.system.name,
        "sr_weights_sha256": plan.system.sr_digest,
        "fusion_weights_sha256": plan.system.fusion_digest,
        "generated_bands": list(plan.system.generated_bands),
        "seed": plan.config.seed,
        "members": plan.config.members,
        "consistency": plan.config.consistency,
        "license": plan.licence,
        "weights_license": plan.system.licence,
        "credit": plan.credit,
        "comment": "Detail finer than a band's native GSD is generated by a network, not measured; with consistency "
        "box, the mean over each native pixel is the measured value.",
        "notes": list(plan.notes),
        "software": f"sen2fine {plan.version}",
    }  # fmt: skip


def pending(plan: Plan, store: Path, verify: str = "size") -> tuple[list[Unit], list[Receipt]]:
    """Units still to do, and receipts of those that are done."""
    ledger = Ledger(store, plan.digest)
    todo, done = [], []
    for unit in plan.units():
        receipt = None if ledger.faults(unit.id, verify) else ledger.read(unit.id)
        if receipt is None:
            todo.append(unit)
        else:
            done.append(receipt)
    return todo, done


def run_plan(
    plan: Plan,
    store: Path,
    *,
    cluster: str,
    workers: int,
    verify: str = "size",
    report: Callable[[Summary, int], None] = lambda _summary, _running: None,
) -> Summary:
    """Compute what the ledger lacks, then publish. Interrupted when asked to stop; PipelineError when units failed."""
    started = time.perf_counter()
    with lease(store):
        Ledger(store, plan.digest).sweep()
        todo, done = pending(plan, store, verify)
        summary = Summary(units=len(todo) + len(done), resumed=len(done))
        for receipt in done:
            summary.add(receipt)
        if todo:
            with _stop_on_signals() as stop, open_pool(cluster, workers, str(store), plan.digest) as pool:
                failed = _work(pool, todo, summary, report, stop)
            _raise_unless_whole(failed, stop, summary)
        if todo or layout.status(store) != layout.STATUS_COMPLETE:
            _publish(plan, store, summary)
    summary.seconds = time.perf_counter() - started
    return summary


def _raise_unless_whole(failed: dict[Unit, BaseException], stop: Stop, summary: Summary) -> None:
    """Say why units are left, if any: they failed, the archive is away, or the user asked to stop."""
    if failed:
        raise _failure(failed, summary)
    left = summary.units - summary.computed - summary.resumed
    if left and stop.outage:
        raise Interrupted(
            f"the archive does not answer ({stop.outage}); {left} of {summary.units} units are to do",
            cure="run the same command again later, it continues where it stopped",
        )
    if left:
        raise Interrupted(
            f"stopped with {left} of {summary.units} units to do", cure="run the same command again to continue"
        )


def _work(
    pool: Pool, todo: list[Unit], summary: Summary, report: Callable[[Summary, int], None], stop: Stop
) -> dict[Unit, BaseException]:
    """Keep the pool busy until all units ended or a stop was asked for. Returns the units that failed for good."""
    queue = [(unit, 1) for unit in reversed(todo)]
    running = 0
    failed: dict[Unit, BaseException] = {}
    report(summary, running)
    unanswered = 0  # failures in a row because an archive is away
    while running or (queue and not stop.asked):
        while queue and running < pool.capacity and not stop.asked:
            pool.submit(*queue.pop())
            running += 1
        report(summary, running)
        unit, attempt, outcome = pool.next()
        running -= 1
        if isinstance(outcome, Receipt):
            summary.computed += 1
            summary.add(outcome)
            unanswered = 0
        elif isinstance(outcome, _FATAL):
            raise outcome
        elif isinstance(outcome, Unreachable):  # an outage costs time, not units
            unanswered += 1
            queue.insert(0, (unit, attempt))
            if unanswered >= _UNANSWERED_PER_WORKER * pool.capacity:
                stop.asked, stop.outage = True, outcome.found
        elif attempt < _ATTEMPTS:
            queue.append((unit, attempt + 1))
        else:
            failed[unit] = outcome
        report(summary, running)
    return failed


def _failure(failed: dict[Unit, BaseException], summary: Summary) -> PipelineError:
    unit, error = next(iter(failed.items()))
    if not isinstance(error, PipelineError):
        error = PipelineError(f"unit {unit.id}: {type(error).__name__}: {error}")
    others = f", and {len(failed) - 1} more units" if len(failed) > 1 else ""
    done = f"{summary.computed + summary.resumed} of {summary.units} units are done"
    cure = "mend the cause and run the same command again; finished units are kept"
    failure = type(error)(f"{error.found}{others} (tried {_ATTEMPTS} times; {done})", error.expected, cure)
    failure.__cause__ = error
    return failure


def _publish(plan: Plan, store: Path, summary: Summary) -> None:
    """Flip the store to complete, last of all."""
    attributes = {
        "valid_fraction": round(summary.valid_fraction, 6),
        "scenes_used": list(summary.scenes),
        "units": summary.units,
    }
    layout.finish(store, [plan.group(zone.epsg) for zone in plan.zones], attributes)
    mark = {"plan_digest": plan.digest, "units": summary.units, **attributes}
    write_atomic(store / layout.RUN_FOLDER / "COMPLETE.json", json.dumps(mark, indent=1, sort_keys=True).encode())
