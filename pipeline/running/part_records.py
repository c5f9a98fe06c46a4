"""Records of the parts of a plan that were begun, so that a watcher elsewhere sees what became of each.

A part that ends releases its lease, so leases alone cannot tell a failed part from one that has not begun.
"""

from __future__ import annotations

import time
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from pipeline.errors import Interrupted, PipelineError
from pipeline.redaction import redact
from pipeline.store import layout, sealed
from pipeline.store.keys import RUN_FOLDER
from pipeline.store.lease import sightings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.planning.parts import Part
    from pipeline.store.place import Place

_FOLDER = f"{RUN_FOLDER}/parts"
_PLANNED = f"{_FOLDER}/planned.json"
BEGUN, ENDED, STOPPED, FAILED = "begun", "ended", "stopped", "failed"


@dataclass(frozen=True)
class PartRecord:
    """What is known of part `number` of `of`: its state, the number of times it was begun, and its last error."""

    plan_digest: str
    number: int
    of: int
    state: str
    begun: int = 1
    error: str = ""
    seconds: float = 0.0


@contextmanager
def recorded(place: Place, plan_digest: str, part: Part | None) -> Iterator[None]:
    """Record that a part begins, and how it ends. Does nothing without a part.

    Errors of writing the last record are left out, since the first error is what matters.
    """
    if part is None:
        yield
        return
    key = f"{_FOLDER}/{part.label}.json"
    before = _read(place, key, plan_digest)
    times = before.begun + 1 if before is not None and before.of == part.of else 1
    record = PartRecord(plan_digest, part.number, part.of, BEGUN, times)
    _write(place, key, record)
    started = time.perf_counter()
    try:
        yield
    except BaseException as error:
        state = STOPPED if isinstance(error, Interrupted | KeyboardInterrupt) else FAILED
        text = redact(str(error)) or type(error).__name__
        with suppress(OSError, PipelineError):
            _write(place, key, replace(record, state=state, error=text, seconds=_since(started)))
        raise
    _write(place, key, replace(record, state=ENDED, seconds=_since(started)))


def plan_parts(place: Place, plan_digest: str, of: int) -> None:
    """Record that a plan is computed in `of` parts. Does nothing in a finished store.

    Raises Interrupted while parts of another number are at work, whose units would be computed twice.
    """
    if layout.status(place) in (layout.STATUS_COMPLETE, layout.STATUS_QUARANTINE):
        return
    now = time.time()
    for one in sightings(place):
        if one.shard and not one.shard.endswith(f"-of-{of}") and one.lives(now):
            raise Interrupted(
                f"part {one.shard.replace('-of-', ' of ')} of {place} is at work",
                f"no part of another number than {of}",
                "stop it or wait for it, then run the same command again",
            )
    place.write(_PLANNED, sealed.dump({"plan_digest": plan_digest, "parts": of}))


def planned_parts(place: Place, plan_digest: str) -> int:
    """Return the number of parts in which a plan is computed; 0 if none is recorded, as in a finished store."""
    try:
        found = sealed.load(place.read(_PLANNED) or b"")
        return int(found["parts"]) if found["plan_digest"] == plan_digest else 0
    except (OSError, ValueError, TypeError, KeyError):
        return 0


def read_records(place: Place, plan_digest: str) -> list[PartRecord]:
    """Return the records of a plan's parts. Damaged records are left out."""
    found = (
        _read(place, key, plan_digest) for key in place.names(_FOLDER) if key.endswith(".json") and key != _PLANNED
    )
    return [record for record in found if record is not None]


def forget(place: Place) -> None:
    """Delete all records, once their parts are published: a store is then the same however it was computed."""
    for key in place.names(_FOLDER):
        place.delete(key)


def _since(started: float) -> float:
    return round(time.perf_counter() - started, 3)


def _write(place: Place, key: str, record: PartRecord) -> None:
    place.write(key, sealed.dump(asdict(record)))


def _read(place: Place, key: str, plan_digest: str) -> PartRecord | None:
    try:
        record = PartRecord(**sealed.load(place.read(key) or b""))
    except (OSError, ValueError, TypeError):
        return None
    return record if record.plan_digest == plan_digest else None
