"""Turns at what computes the networks, a GPU as a rule, for the threads of a process: the earliest strip goes first.

Units that run in threads of one process need the device in turn. If every strip got every second turn, all of them
would come to its last window at the same time, and the device would stand idle while they are finished and written. The
earliest strip therefore gets every turn that it asks for, and later ones get those in between.
"""

from __future__ import annotations

import heapq
from contextlib import contextmanager
from itertools import count
from threading import Condition
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


class Turns:
    """One caller at a time. Of those that wait, the one with the lowest number is next."""

    def __init__(self) -> None:
        self._changed = Condition()
        self._waiting: list[tuple[int, int]] = []  # a heap of (number, order of arrival)
        self._arrivals, self._numbers = count(), count()
        self._taken = False

    def number(self) -> int:
        """Return the next number, greater than those before."""
        return next(self._numbers)

    @contextmanager
    def taken(self, number: int) -> Iterator[None]:
        """Wait for a turn, and hold it in this context."""
        with self._changed:
            mine = (number, next(self._arrivals))
            heapq.heappush(self._waiting, mine)
            try:
                self._changed.wait_for(lambda: not self._taken and self._waiting[0] == mine)
                self._taken = True
            finally:
                self._waiting.remove(mine)
                heapq.heapify(self._waiting)
                self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._taken = False
                self._changed.notify_all()
