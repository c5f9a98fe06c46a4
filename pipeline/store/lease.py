"""Leases that allow one run per store at a time and lapse if their holder does not renew them."""

from __future__ import annotations

import json
import math
import os
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.errors import LeaseLost, PipelineError, StoreHeld, StoreUnreachable, UsageError
from pipeline.store.holder import Holder, clock_s, done_with, read_holder, this_process
from pipeline.store.keys import LEASES
from pipeline.store.place import place_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pipeline.store.place import Place, Where

    Say = Callable[[str], None]

LAPSE_ENV = "SEN2FINE_LEASE_S"
_LAPSE_S = 75.0
_OLD_LAPSE_S = 600.0  # for leases of older versions, which do not state it
_RENEWALS = 3  # per lapse time
_VALID = 5 / 6  # share of the lapse time for which the last renewal is trusted
_POLL_S = 1.0
_DATED_S = 1.0  # resolution of object store timestamps
_TICK_S = 0.05  # resolution of file system timestamps
_GOODBYE_S = 5.0  # longest wait for a renewal that hangs on a dead server
_WHOLE = f"{LEASES}.json"


class Lease:
    """A lease that this process holds.

    A conditional write makes `_run/lease.json`, or `_run/lease-J-of-N.json` for a part, which then never changes. Only
    the holder writes its renewals, to `_run/lease.beat-OWNER`, so a late renewal cannot undo a takeover. Ages are
    measured by the clock of the storage, so the clocks of machines need not agree.

    A process that finds a lapsed lease announces itself (`_run/lease.heir-OWNER`) and checks the age again before it
    deletes the lease. A holder writes its renewal first and looks for an heir afterwards. If both act at once, at least
    one sees the other. A holder that could not renew in time writes nothing until it has renewed.
    """

    def __init__(self, place: Place, key: str, mine: Holder) -> None:
        self._place, self._key, self._mine = place, key, mine
        self._content = mine.content()
        self._count = 0
        self._valid_until = -math.inf
        self._taken = ""  # who took it
        self._lock = threading.Lock()

    @property
    def owner(self) -> str:
        """Unique to this lease."""
        return self._mine.owner

    @property
    def place(self) -> Place:
        """The store, guarded so that writes require the lease."""
        return self._place.guarded(self.require)

    @property
    def lost(self) -> bool:
        """True once another run has taken the lease."""
        return bool(self._taken)

    def require(self) -> None:
        """Raise LeaseLost unless the lease is ours now. Reads the storage only if the last renewal is too old."""
        if self._taken or clock_s() >= self._valid_until:
            self.renew()

    def renew(self) -> None:
        """Write a renewal, then check that nobody has taken the lease. Raises LeaseLost, permanently, if taken."""
        with self._lock:
            if not self._taken:
                at = clock_s()
                self._show_life()
                heir = _heir_left(self._place, self._mine)
                found = self._place.read(self._key)
                if found == self._content and heir is None:
                    self._valid_until = at + _VALID * self._mine.lapse_s
                    return
                taker = heir if found == self._content else found
                self._taken = "somebody deleted it" if taker is None else str(read_holder(taker, _OLD_LAPSE_S))
            raise LeaseLost(
                f"{self._place} no longer belongs to this run: its lease was lost ({self._taken})",
                "one run per store at a time",
                "run the same command again when the other run has ended, if this run is still wanted",
            )

    def take(self, rivals: Callable[[], list[str]], say: Say) -> None:
        """Acquire the lease, and delete lapsed ones that are in the way. Raises StoreHeld while another run lives."""
        for rival in rivals():  # before our lease is visible
            _clear(self._place, rival, self._mine, say)
        self._show_life()
        while not self._place.create(self._key, self._content):
            _clear(self._place, self._key, self._mine, say)
            self._show_life()
        self.renew()

    def require_alone(self, rivals: Callable[[], list[str]], say: Say) -> None:
        """Raise StoreHeld if a rival acquired its lease at the same time; both create theirs before they look."""
        for rival in rivals():
            _clear(self._place, rival, self._mine, say)

    def sweep(self) -> None:
        """Delete old lease files of killed runs. Live runs renew theirs more often."""
        for key in self._place.names(LEASES.rpartition("/")[0]):
            if not key.startswith(f"{LEASES}.") or key in (_WHOLE, _beat(self._mine)):
                continue
            if (self._place.age_s(key) or 0.0) > 2 * max(self._mine.lapse_s, _LAPSE_S):
                self._place.delete(key)

    def keep(self, done: threading.Event) -> None:
        """Renew until `done`, or until the lease is lost."""
        pause_s = self._mine.lapse_s / _RENEWALS
        while not self._taken and not done.wait(pause_s):
            pause_s = self._mine.lapse_s / (5 * _RENEWALS)
            with suppress(OSError, PipelineError):
                self.renew()
                pause_s = self._mine.lapse_s / _RENEWALS

    def release(self) -> None:
        """Delete the renewals, and the lease if it is still ours."""
        with suppress(OSError, PipelineError):
            if not self._taken and clock_s() < self._valid_until and self._place.read(self._key) == self._content:
                self._place.delete(self._key)
            self._place.delete(_beat(self._mine))

    def _show_life(self) -> None:
        self._count += 1
        self._place.write(_beat(self._mine), json.dumps({"renewals": self._count}).encode())


@contextmanager
def lease(store: Where, shard: str = "", say: Say = lambda _: None) -> Iterator[Lease]:
    """Hold a store for one run, or one part of it. Raises StoreHeld if another live run holds the same.

    Different parts may run at the same time, a whole run and a part may not. If the holder may be gone, wait for its
    lease to lapse, which takes about a minute, and report that through `say`.
    """
    place = place_of(store)
    mine = this_process(_lapse_s())
    held = Lease(place, f"{LEASES}-{shard}.json" if shard else _WHOLE, mine)
    rivals = (lambda: [_WHOLE]) if shard else (lambda: _parts(place))
    done = threading.Event()
    beat = threading.Thread(target=held.keep, args=(done,), daemon=True)
    away = False
    existed = place.exists()
    try:
        held.take(rivals, say)
        beat.start()
        held.require_alone(rivals, say)
        if not shard:
            held.sweep()
        yield held
    except StoreUnreachable:
        away = True  # a release would fail too; the lease lapses instead
        raise
    finally:
        done.set()
        if beat.ident is not None:
            beat.join(_GOODBYE_S)
        if not away:
            held.release()
        done_with(mine)
        if not away:
            place.tidy(whole=not existed)


@dataclass(frozen=True)
class Sighting:
    """A lease as an onlooker sees it: `shard` is "J-of-N", or "" for a whole run."""

    shard: str
    holder: Holder
    seen: float  # when it was last renewed, in seconds since 1970 by the storage's clock

    def lives(self, now: float) -> bool:
        """Return whether the holder is at work, as far as can be seen `now` (seconds since 1970)."""
        return not self.holder.has_ended and now - self.seen < self.holder.lapse_s


def sightings(place: Place) -> list[Sighting]:
    """Return the leases on a store. Writes nothing, so that any reader of the store may watch."""
    dates = place.dates(LEASES.rpartition("/")[0])
    found = []
    for key in dates:
        if key != _WHOLE and not (key.startswith(f"{LEASES}-") and key.endswith(".json")):
            continue
        content = place.read(key)
        if content is not None:
            holder = read_holder(content, _OLD_LAPSE_S)
            seen = max(dates[key], dates.get(_beat(holder), 0.0))
            found.append(Sighting(key.removeprefix(LEASES).removeprefix("-").removesuffix(".json"), holder, seen))
    return found


def _lapse_s() -> float:
    text = os.environ.get(LAPSE_ENV, "")
    try:
        seconds = float(text or _LAPSE_S)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < math.inf:
        raise UsageError(f"{LAPSE_ENV}={text}", f"seconds, more than 0, such as {_LAPSE_S:g}")
    return seconds


def _parts(place: Place) -> list[str]:
    """Return the keys of the leases of parts."""
    found = place.names(LEASES.rpartition("/")[0])
    return [key for key in found if key.startswith(f"{LEASES}-") and key.endswith(".json")]


def _beat(holder: Holder) -> str:
    return f"{LEASES}.beat-{holder.owner}"


def _heir(holder: Holder) -> str:
    return f"{LEASES}.heir-{holder.owner}"


def _clear(place: Place, key: str, mine: Holder, say: Say) -> None:
    """Wait until the lease `key` is gone, or delete it once it has lapsed. Raises StoreHeld if its holder lives."""
    while (content := place.read(key)) is not None:
        held = read_holder(content, _OLD_LAPSE_S)
        if not held.has_ended:
            _wait_for_lapse(place, key, content, held, say)
        _depose(place, key, content, held, mine)


def _wait_for_lapse(place: Place, key: str, content: bytes, held: Holder, say: Say) -> None:
    """Wait until a lease has lapsed or is gone. Raises StoreHeld at the first sign of life."""
    age_s = _age_s(place, key, held)
    if age_s is None or age_s >= held.lapse_s:
        return
    if held.is_here:  # and has not ended
        raise _held(place, held, age_s)
    left_s = held.lapse_s - age_s + (_DATED_S if place.hands > 1 else _TICK_S)
    seen_s, wait = f"last seen {age_s:.0f} s ago", f"waiting {left_s:.0f} s for its lease to lapse"
    say(f"{place} is being written by {held}, {seen_s}; {wait}")
    seen, until = place.read(_beat(held)), clock_s() + left_s
    while clock_s() < until:
        time.sleep(min(_POLL_S, held.lapse_s / 10))
        if place.read(key) != content:
            return
        if place.read(_beat(held)) != seen:
            break
    age_s = _age_s(place, key, held)
    if age_s is not None and age_s < held.lapse_s:
        raise _held(place, held, age_s)


def _held(place: Place, held: Holder, age_s: float) -> StoreHeld:
    return StoreHeld(
        f"{place} is being written by {held}, last seen {max(0.0, age_s):.0f} s ago",
        "one run per store at a time",
        "run the same command again when that run has ended; "
        f"if it has died, its lease lapses in {max(0.0, held.lapse_s - age_s):.0f} s",
    )


def _age_s(place: Place, key: str, held: Holder) -> float | None:
    """Return seconds since a holder last renewed; None if its lease is gone."""
    made = place.age_s(key)
    if made is None:
        return None
    renewed = place.age_s(_beat(held))
    return made if renewed is None else min(made, renewed)


def _depose(place: Place, key: str, content: bytes, held: Holder, mine: Holder) -> None:
    """Delete a lease that has lapsed, unless its holder has renewed meanwhile."""
    heir = _heir(held)
    if not place.create(heir, mine.content()):  # another process is deleting it
        age_s = place.age_s(heir)
        if age_s is not None and age_s > held.lapse_s:
            place.delete(heir)
        time.sleep(min(_POLL_S, held.lapse_s / 10))
        return
    try:
        age_s = _age_s(place, key, held)
        lapsed = held.has_ended or (age_s is not None and age_s >= held.lapse_s)
        if lapsed and place.read(key) == content:
            place.delete(key)
            place.delete(_beat(held))
    finally:
        place.delete(heir)


def _heir_left(place: Place, mine: Holder) -> bytes | None:
    """Return the announcement of an heir that still wants our lease, or None.

    Waits first, since an heir that sees our renewal withdraws.
    """
    until = clock_s() + mine.lapse_s / 2
    while (found := place.read(_heir(mine))) is not None and clock_s() < until:
        time.sleep(min(_POLL_S, mine.lapse_s / 20))
    if found is not None and (place.age_s(_heir(mine)) or 0.0) > mine.lapse_s:  # the heir has died
        place.delete(_heir(mine))
        return None
    return found
