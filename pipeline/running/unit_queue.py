"""The queue of units: submission to a pool, retries, quarantine of failed units, outages and stops.

It holds unit addresses and receipts, never arrays.
"""

from __future__ import annotations

import logging
import statistics
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pipeline.errors import (
    Interrupted,
    LeaseLost,
    PipelineError,
    StorageError,
    StoreUnreachable,
    Unreachable,
    UsageError,
)
from pipeline.redaction import redact
from pipeline.running.pace import Pace
from pipeline.running.quarantine import Quarantine, allowed, isolated, worth_isolating
from pipeline.store.receipts import Ledger, Receipt

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pipeline.planning.units import Unit
    from pipeline.running.pools import Pool
    from pipeline.running.stop import Stop
    from pipeline.store.lease import Lease
    from pipeline.store.overview_records import Record
    from pipeline.store.place import Where

    Report = Callable[["Summary", int], None]

_log = logging.getLogger(__name__)
ATTEMPTS = 3
_TICK_S = 1.0  # longest wait of the driver between checks
_STRAGGLER_TIMES = 3.0  # a unit that takes this many times the median is also given to an idle worker
_STRAGGLER_AFTER = 10  # number of finished units before the median is used
_FATAL = (UsageError, StorageError, LeaseLost)  # other units would fail too


@dataclass
class Summary:
    """Summary of a run. `seconds` is the wall time of the driver; `stage_seconds` sum over all processes.

    Overviews are added when the store is published, since some are built only then.
    """

    units: int = 0
    resumed: int = 0  # units found done at the start
    computed: int = 0
    seconds: float = 0.0
    stage_seconds: dict[str, float] = field(default_factory=dict)
    cpu_seconds: float | None = 0.0  # processor time of all processes; None if a receipt of an older version lacks it
    pixels: int = 0
    clear_pixels: int | None = None  # None if no scene has SCL
    valid: dict[str, int] = field(default_factory=dict)
    scenes: tuple[str, ...] = ()
    stored_bytes: int = 0  # of all chunks
    objects: int = 0  # that hold data: chunks or shards
    peak_worker_mib: float = 0.0
    quarantined: tuple[str, ...] = ()
    holes: dict[str, int] = field(default_factory=dict)  # band -> native pixels that are 0 although SCL says clear
    # Measured pixels by generated detail (None if a receipt lacks it), and those with partial or no detail by cause.
    detail: dict[str, int] | None = field(default_factory=dict)
    withheld: dict[str, int] = field(default_factory=dict)
    arithmetics: tuple[str, ...] = ()  # processors and number formats that units were computed with

    @property
    def valid_fraction(self) -> float:
        """Share of output pixels with measured values, mean over bands."""
        return sum(self.valid.values()) / (len(self.valid) * self.pixels) if self.valid and self.pixels else 0.0

    @property
    def detail_shares(self) -> dict[str, float]:
        """Shares of measured pixels by generated detail, and by cause of those that lack some or all of it.

        Empty if nothing was measured or an old receipt has no such counts.
        """
        measured = sum(self.detail.values()) if self.detail else 0
        if not self.detail or not measured:
            return {}
        causes = {f"withheld_{cause}": count for cause, count in sorted(self.withheld.items())}
        return {name: round(count / measured, 6) for name, count in (self.detail | causes).items()}

    @property
    def left(self) -> int:
        """Number of units that are neither done nor quarantined."""
        return self.units - self.computed - self.resumed - len(self.quarantined)

    def add(self, receipt: Receipt) -> None:
        """Add one receipt. Pixels count only for the first pass."""
        for stage, seconds in receipt.seconds.items():
            self.stage_seconds[stage] = self.stage_seconds.get(stage, 0.0) + seconds
        if receipt.cpu_seconds is None or self.cpu_seconds is None:
            self.cpu_seconds = None
        else:
            self.cpu_seconds += receipt.cpu_seconds
        self.stored_bytes += sum(size for size, _ in receipt.chunks.values())
        self.objects += len(receipt.chunks)
        self.peak_worker_mib = max(self.peak_worker_mib, receipt.peak_rss_mib)
        if receipt.arithmetic and receipt.chunks:
            self.arithmetics = tuple(sorted({*self.arithmetics, receipt.arithmetic}))
        if receipt.number:
            return
        for total, counts in (
            (self.valid, receipt.valid), (self.holes, receipt.holes), (self.withheld, receipt.withheld)
        ):  # fmt: skip
            _add(total, counts)
        if receipt.detail is None:
            self.detail = None
        elif self.detail is not None:
            _add(self.detail, receipt.detail)
        self.pixels += receipt.pixels
        if receipt.clear is not None:
            self.clear_pixels = (self.clear_pixels or 0) + receipt.clear
        self.scenes = tuple(sorted({*self.scenes, *receipt.scenes}))

    def take_from(self, found: Summary) -> None:
        """Replace the counts of this run by those of the store's ledger."""
        computed = min(self.computed, found.resumed)
        for name in ("units", "stage_seconds", "cpu_seconds", "pixels", "clear_pixels", "valid", "scenes",
                     "stored_bytes", "objects", "peak_worker_mib", "quarantined", "holes", "detail", "withheld",
                     "arithmetics"):  # fmt: skip
            setattr(self, name, getattr(found, name))
        self.computed, self.resumed = computed, found.resumed - computed

    def add_overviews(self, record: Record) -> None:
        """Add the overviews of one record."""
        self.stage_seconds["overviews"] = self.stage_seconds.get("overviews", 0.0) + record.seconds
        if self.cpu_seconds is not None:
            self.cpu_seconds += record.seconds if record.cpu_seconds is None else record.cpu_seconds
        self.stored_bytes += sum(size for size, _ in record.chunks.values())
        self.objects += len(record.chunks)


def _add(total: dict[str, int], counts: Mapping[str, int]) -> None:
    for name, count in counts.items():
        total[name] = total.get(name, 0) + count


@dataclass(frozen=True)
class Patience:
    """Waiting during an outage: seconds between tries, doubling, and seconds until the run gives up."""

    first_pause_s: float = 60.0
    longest_pause_s: float = 600.0
    max_outage_s: float = 1800.0


class Breaker:
    """Pauses the submission of units while an archive or the object store is unreachable."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._since: float | None = None
        self._unanswered = 0
        self._pause_s = patience.first_pause_s
        self._until = 0.0

    def answered(self) -> None:
        """Reset after an answer."""
        self._since, self._unanswered, self._pause_s, self._until = None, 0, self._patience.first_pause_s, 0.0

    def unanswered(self, capacity: int) -> bool:
        """Count one more unit without an answer. Return True if the outage has lasted too long.

        Pauses begin after `capacity` (number of workers) units in a row without an answer.
        """
        now = time.monotonic()
        self._since = now if self._since is None else self._since
        self._unanswered += 1
        if self._unanswered < capacity or now < self._until:
            return False
        if now - self._since >= self._patience.max_outage_s:
            return True
        self._until = now + self._pause_s
        self._pause_s = min(2 * self._pause_s, self._patience.longest_pause_s)
        return False

    @property
    def left_s(self) -> float:
        """Seconds until the next try."""
        return max(0.0, self._until - time.monotonic())


class UnitQueue:
    """Works through the units to do, pass by pass."""

    def __init__(
        self,
        pool: Pool,
        summary: Summary,
        report: Report,
        stop: Stop,
        store: Where,
        plan_digest: str,
        patience: Patience | None = None,
        held: Lease | None = None,
    ) -> None:
        self._pool, self._summary, self._report, self._stop = pool, summary, report, stop
        self._store, self._held = store, held
        self._ledger, self._quarantine = Ledger(store, plan_digest), Quarantine(store, plan_digest)
        self._queue: list[tuple[Unit, int]] = []
        self._running: dict[tuple[Unit, int], float] = {}  # unit and attempt -> when it was submitted
        self._ended: set[Unit] = set()
        self._seconds: list[float] = []  # from submission to receipt
        self._breaker = Breaker(patience or Patience())
        self._failed: dict[Unit, BaseException] = {}
        self._pace = Pace()

    def run(self, todo: list[Unit]) -> None:
        """Keep the pool busy until all of these units have ended or a stop is requested.

        Raises PipelineError if too many units fail for good.
        """
        self._queue, self._ended = [(unit, 1) for unit in reversed(todo)], set()
        self._look()
        self._report(self._summary, 0)
        while self._left(todo):
            if self._held is not None and self._held.lost:
                self._held.require()
            self._submit()
            self._report(self._summary, len(self._running))
            if not self._running:
                time.sleep(min(_TICK_S, self._breaker.left_s))
                continue
            ended = self._pool.next(_TICK_S)
            if ended is not None:
                self._take(*ended)
                self._report(self._summary, len(self._running))
        self._set_aside()

    def _left(self, todo: list[Unit]) -> bool:
        """Return whether to go on. Once all units have ended, a duplicate of a straggler is not waited for."""
        if len(self._ended) == len(todo):
            return False
        return bool(self._running) or (bool(self._queue) and not self._stop.asked)

    def _submit(self) -> None:
        self._pool.set_demand((0 if self._stop.asked else len(self._queue)) + len(self._running))
        while self._queue and not self._stop.asked and not self._breaker.left_s:
            if len(self._running) >= self._pool.capacity:
                return
            self._start(*self._queue.pop())
        if not self._queue and not self._stop.asked and len(self._running) < self._pool.capacity:
            self._reissue()

    def _start(self, unit: Unit, attempt: int) -> None:
        self._running[unit, attempt] = time.monotonic()
        self._stop.running = len(self._running)
        self._pool.submit(unit, attempt)

    def _reissue(self) -> None:
        """Submit a straggling unit to an idle worker as well. Units are idempotent, and the first receipt counts."""
        if len(self._seconds) < _STRAGGLER_AFTER:
            return
        late = time.monotonic() - _STRAGGLER_TIMES * statistics.median(self._seconds)
        units = [unit for unit, _ in self._running]
        for (unit, attempt), since in list(self._running.items()):
            if since < late and units.count(unit) == 1:
                self._start(unit, attempt + ATTEMPTS)
                return

    def _take(self, unit: Unit, attempt: int, outcome: Receipt | BaseException) -> None:
        since = self._running.pop((unit, attempt))
        self._stop.running = len(self._running)
        if unit in self._ended:  # its duplicate was faster
            return
        if isinstance(outcome, Receipt):
            self._seconds.append(time.monotonic() - since)
            self._count(unit, outcome)
        elif isinstance(outcome, _FATAL) and not isinstance(outcome, StoreUnreachable):
            raise outcome
        elif any(other == unit for other, _ in self._running):  # its duplicate may still succeed
            return
        elif isinstance(outcome, Unreachable | StoreUnreachable):  # outages do not count as attempts
            self._queue.insert(0, (unit, attempt))
            self._failing(unit, outcome, "it is tried again when that has passed")
            if self._breaker.unanswered(self._pool.capacity):
                who = "archive" if isinstance(outcome, Unreachable) else "object store"
                self._stop.asked, self._stop.outage = True, f"the {who} does not answer ({outcome.found})"
        elif attempt < ATTEMPTS:
            self._queue.append((unit, attempt + 1))
            self._failing(unit, outcome, f"try {attempt + 1} of {ATTEMPTS} follows")
        else:
            self._give_up(unit, outcome)

    def _count(self, unit: Unit, receipt: Receipt) -> None:
        self._ended.add(unit)
        self._summary.computed += 1
        self._summary.add(receipt)
        self._breaker.answered()
        summary, pace = self._summary, self._look()
        done, spent = summary.computed + summary.resumed, sum(receipt.seconds.values())
        told = f", {pace[0]:.0f} km2/h, {pace[1]:.0f} s left" if pace else ""
        facts = {"stage": "units", "unit": unit.id, "status": receipt.status, "done": done, "units": summary.units,
                 "seconds": round(spent, 3), "stage_seconds": receipt.seconds}  # fmt: skip
        if pace:
            facts |= {"km2_per_h": round(pace[0], 1), "left_s": round(pace[1], 1)}
        text = "unit %s %s in %.1f s: %d of %d%s"
        _log.info(text, unit.id, receipt.status, spent, done, summary.units, told, extra={"facts": facts})

    def _look(self) -> tuple[float, float] | None:
        """Return (km2 per hour, seconds left), if known."""
        summary = self._summary
        return self._pace.look(summary.computed + summary.resumed, summary.left, summary.pixels)

    @staticmethod
    def _failing(unit: Unit, error: BaseException, then: str) -> None:
        """Log a failure that need not be the last word."""
        text = redact(str(error)) or type(error).__name__
        _log.info("unit %s failed, %s: %s", unit.id, then, text, extra={"facts": {"unit": unit.id, "error": text}})

    def _give_up(self, unit: Unit, error: BaseException) -> None:
        """Try once more in a separate process if that may help, then mark the unit as failed."""
        if worth_isolating(error):
            again = isolated(unit, self._store)
            receipt = self._ledger.read(unit.id) if again is None else None
            if receipt is not None:
                self._count(unit, receipt)
                return
            error = again or error
        self._failed[unit] = error
        self._ended.add(unit)
        if len(self._failed) > allowed(self._summary.units):
            self._stop.asked = True

    def _set_aside(self) -> None:
        """Quarantine the units that failed for good. Raises PipelineError if there are too many."""
        summary = self._summary
        done = summary.computed + summary.resumed
        if self._failed and (len(self._failed) > allowed(summary.units) or not done):
            raise _failure(self._failed, summary)
        for unit, error in self._failed.items():
            self._quarantine.add(unit, error, ATTEMPTS)
            text = redact(str(error))
            _log.warning("set aside: %s", text, extra={"facts": {"unit": unit.id, "error": text}})
        summary.quarantined = tuple(sorted({*summary.quarantined, *(unit.id for unit in self._failed)}))

    def raise_unless_whole(self) -> None:
        """Raise Interrupted, with the reason, if units are left after a stop or an outage."""
        summary = self._summary
        if summary.left and self._stop.outage:
            raise Interrupted(
                f"{self._stop.outage}; {summary.left} of {summary.units} units are to do",
                cure="run the same command again later, it continues where it stopped",
            )
        if summary.left:
            raise Interrupted(
                f"stopped with {summary.left} of {summary.units} units to do",
                cure="run the same command again to continue",
            )


def _failure(failed: dict[Unit, BaseException], summary: Summary) -> PipelineError:
    unit, error = next(iter(failed.items()))
    if not isinstance(error, PipelineError):
        error = PipelineError(redact(f"unit {unit.id}: {type(error).__name__}: {error}"))
    others = f", and {len(failed) - 1} more units" if len(failed) > 1 else ""
    done = f"{summary.computed + summary.resumed} of {summary.units} units are done"
    cure = "fix the cause and run the same command again; finished units are kept"
    failure = type(error)(f"{error.found}{others} (tried {ATTEMPTS} times; {done})", error.expected, cure)
    failure.__cause__ = error
    return failure
