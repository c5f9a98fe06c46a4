"""The plan that a store belongs to, in one small file that every process reads before it writes.

It keeps a worker from mixing pixels of two plans after another run has recreated the store.
"""

from __future__ import annotations

import socket
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from pipeline.errors import Interrupted, LeaseLost, UsageError
from pipeline.store import sealed
from pipeline.store.holder import clock_s
from pipeline.store.keys import CURRENT_KEY
from pipeline.store.place import place_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pipeline.store.place import Place, Where

TRUSTED_S = 0.5  # shortest interval between checks of an object store


@dataclass(frozen=True)
class Current:
    """The plan and the run that currently write a store."""

    plan_digest: str
    begun: str  # unique to one beginning of the store; "" in files of older versions
    run: str = ""  # owner of the lease of a whole run; "" for parts

    def put(self, place: Place) -> None:
        """Write this to the store."""
        place.write(CURRENT_KEY, sealed.dump(asdict(self)))


def read_current(place: Place) -> Current | None:
    """Read the current plan of a store; None if it is missing or damaged, as while the store is being recreated."""
    return _parsed(place.read(CURRENT_KEY))


def _parsed(content: bytes | None) -> Current | None:
    try:
        found = sealed.load(content or b"")
        return Current(str(found["plan_digest"]), str(found["begun"]), str(found.get("run", "")))
    except (ValueError, KeyError, TypeError):
        return None


class Fence:
    """Allow writes only while the store stays what it was when the process began.

    Raises LeaseLost at once if the store belongs to another plan, UsageError if this process sees no store.
    """

    def __init__(self, place: Place, plan_digest: str) -> None:
        self._place, self._asked_s = place, clock_s()
        self._content = place.read(CURRENT_KEY)
        found = _parsed(self._content)
        if self._content is None and not place.exists():
            raise UsageError(f"{place} does not exist on {socket.gethostname()}", "a path that all workers see")
        if self._content is None:
            raise LeaseLost(
                f"{place} is being recreated by another run, or was written by an older version",
                cure=f"python -m pipeline.run --plan {place} goes on with it",
            )
        if found is None or found.plan_digest != plan_digest:
            raise self._taken()

    def require(self) -> None:
        """Raise LeaseLost if another run has taken over or recreated the store."""
        now_s = clock_s()
        if self._place.hands > 1 and now_s < self._asked_s + TRUSTED_S:
            return
        if self._place.read(CURRENT_KEY) != self._content:
            raise self._taken()
        self._asked_s = now_s

    def _taken(self) -> LeaseLost:
        return LeaseLost(
            f"{self._place} was taken over or recreated by another run",
            "one run per store at a time",
            "run the same command again when the other run has ended, if this run is still wanted",
        )


@contextmanager
def unchanged(store: Where) -> Iterator[Callable[[], None]]:
    """Raise Interrupted if a store is recreated while it is read.

    The check runs at the end, and whenever the yielded function is called.
    """
    place = place_of(store)
    before = read_current(place)

    def require() -> None:
        after = read_current(place)
        if (before and (before.plan_digest, before.begun)) != (after and (after.plan_digest, after.begun)):
            cure = "run the same command again when it is finished"
            raise Interrupted(f"{place} was recreated while it was being read", "the store of one plan", cure)

    yield require
    require()
