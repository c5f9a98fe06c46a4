"""The state of a run as an onlooker sees it: from receipts, leases and records in the store. Writes nothing."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from pipeline.bands import TARGET_GSD_M
from pipeline.planning.parts import Part
from pipeline.running.part_records import BEGUN, FAILED, STOPPED, planned_parts, read_records
from pipeline.running.quarantine import Quarantine
from pipeline.store import layout
from pipeline.store.layout import STATUS_COMPLETE, STATUS_QUARANTINE
from pipeline.store.lease import sightings
from pipeline.store.receipts import Ledger

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from pipeline.planning.plan import Plan
    from pipeline.planning.units import Unit
    from pipeline.running.part_records import PartRecord
    from pipeline.store.lease import Sighting
    from pipeline.store.place import Place

FINISHED = (STATUS_COMPLETE, STATUS_QUARANTINE)
WINDOW_S = 1800.0  # speed is that of this long until now
WAITING, WORKING, DONE, LOST = "waiting", "working", "done", "lost"
STATES = (DONE, WORKING, WAITING, STOPPED, LOST, FAILED)


@dataclass(frozen=True)
class PartState:
    """One part of an array. `lost`: it was begun and its process no longer renews its lease."""

    number: int
    state: str
    units: int
    done: int
    begun: int = 0  # times
    holder: str = ""
    error: str = ""


@dataclass(frozen=True)
class State:
    """A run at one moment. Speed and time left are None while no unit has ended lately."""

    store: str
    status: str
    units: int
    done: int
    set_aside: dict[str, str]  # unit -> error
    km2_per_h: float | None
    units_per_h: float | None
    left_s: float | None
    run: str = ""  # process that computes the whole run, if one does
    parts: tuple[PartState, ...] = ()
    at: float = field(default=0.0, compare=False)  # seconds since 1970

    @property
    def finished(self) -> bool:
        """Whether the store is published."""
        return self.status in FINISHED

    def to_json(self) -> dict[str, Any]:
        """Return all of it."""
        return asdict(self)


class Watch:
    """Looks at the store of a plan again and again. The plan is read and cut into parts once."""

    def __init__(self, plan: Plan, place: Place, parts: int = 0) -> None:
        """Watch an array of `parts` parts; 0: as many as were planned for, or as those that were begun say."""
        self._plan, self._place, self._asked = plan, place, parts
        self._units = {unit.id: unit for unit in plan.units()}
        self._cut: dict[int, list[list[str]]] = {}

    def look(self) -> State:
        """Return the state now."""
        now, digest = time.time(), self._plan.digest
        leases, records = sightings(self._place), read_records(self._place, digest)
        dates = Ledger(self._place, digest).dates()
        done = {unit: when for unit, when in dates.items() if unit in self._units}
        aside = {unit: one.error for unit, one in Quarantine(self._place, digest).read().items() if unit not in done}
        units_per_h, km2_per_h = self._speed(done, now)
        left = len(self._units) - len(done) - len(aside)
        whole = [str(one.holder) for one in leases if not one.shard and one.lives(now)]
        of = self._asked or planned_parts(self._place, digest) or _number_of_parts(leases, records)
        return State(
            store=str(self._place),
            status=layout.status(self._place) or "incomplete",
            units=len(self._units),
            done=len(done),
            set_aside=aside,
            km2_per_h=km2_per_h,
            units_per_h=units_per_h,
            left_s=3600 * left / units_per_h if units_per_h else 0.0 if not left else None,
            run="".join(whole[:1]),
            parts=tuple(self._parts(of, done.keys() | aside.keys(), leases, records, now)) if of else (),
            at=now,
        )

    def _speed(self, done: Mapping[str, float], now: float) -> tuple[float | None, float | None]:
        """Return (units per hour, km2 per hour) since the first unit of the window ended, without that unit."""
        recent = sorted((when, unit) for unit, when in done.items() if now - when < WINDOW_S)
        if len(recent) < 2:
            return None, None
        hours = max(now - recent[0][0], 1e-3) / 3600
        km2 = sum(self._area_km2(self._units[unit]) for _, unit in recent[1:])
        return round((len(recent) - 1) / hours, 1), round(km2 / hours, 1)

    def _area_km2(self, unit: Unit) -> float:
        """Return the area of what is computed of a unit; 0 below 2.5 m, since that ground was counted before."""
        if unit.number:
            return 0.0
        return sum(chunk.ny * chunk.nx for chunk in self._plan.parts(unit)) * TARGET_GSD_M**2 / 1e6

    def _parts(
        self,
        of: int,
        ended: Collection[str],
        leases: Sequence[Sighting],
        records: Sequence[PartRecord],
        now: float,
    ) -> list[PartState]:
        if of not in self._cut:
            self._cut[of] = [[unit.id for unit in Part(n, of).units(self._plan)] for n in range(1, of + 1)]
        held = {one.shard: one for one in leases}
        known = {record.number: record for record in records if record.of == of}
        states = []
        for number, units in enumerate(self._cut[of], 1):
            lease, record = held.get(Part(number, of).label), known.get(number)
            count = sum(unit in ended for unit in units)
            state = _state(whole=count == len(units), lives=lease is not None and lease.lives(now), record=record)
            holder = str(lease.holder) if lease is not None and state == WORKING else ""
            error = record.error if record is not None and state in (FAILED, STOPPED) else ""
            states.append(PartState(number, state, len(units), count, record.begun if record else 0, holder, error))
        return states


def _state(*, whole: bool, lives: bool, record: PartRecord | None) -> str:
    if whole:
        return DONE
    if lives:
        return WORKING
    if record is None:
        return WAITING
    # An ended part whose units are not all there has lost some since, or computed one pass of several.
    return {BEGUN: LOST, FAILED: FAILED, STOPPED: STOPPED}.get(record.state, WAITING)


def _number_of_parts(leases: Sequence[Sighting], records: Sequence[PartRecord]) -> int:
    """Return into how many parts the plan is cut by most of those that were begun; 0 if none was."""
    found = Counter(record.of for record in records)
    found.update(int(one.shard.rpartition("-")[2]) for one in leases if one.shard.rpartition("-")[2].isdecimal())
    return max(found, key=lambda of: (found[of], of), default=0)
