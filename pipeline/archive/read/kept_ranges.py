"""Bytes of files that readers of one machine share, so that a block where units touch is fetched once."""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import OrderedDict
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_PATIENCE_S = 10.0  # below GDAL_HTTP_LOW_SPEED_TIME, after which GDAL gives up


class KeptRanges:
    """Ranges of bytes by file, at most `most_bytes` of them; those not used for longest are dropped first.

    Ranges of one file never overlap. Safe to use from several threads.
    """

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self._ranges: OrderedDict[tuple[str, int], bytes] = OrderedDict()  # by file and first byte, oldest use first
        self._firsts: dict[str, list[int]] = {}
        self._bytes = 0
        self._lock = threading.Lock()

    def known(self, file: str, first: int, last: int) -> tuple[bytes, bytes]:
        """Return what is known at the beginning and at the end of a range; (all of it, b"") if nothing is missing."""
        with self._lock:
            head = b"".join(self._from(file, first, last))
            if len(head) > last - first:
                return head, b""
            tail: list[bytes] = []
            while last >= first + len(head) and (part := self._ending(file, first + len(head), last)):
                tail.insert(0, part)
                last -= len(part)
            return head, b"".join(tail)

    def put(self, file: str, first: int, data: bytes) -> None:
        """Keep bytes of a file from `first` on, in place of ranges that they touch."""
        if not 0 < len(data) <= self.most_bytes:
            return
        with self._lock:
            firsts = self._firsts.setdefault(file, [])
            last = first + len(data) - 1
            for start in [s for s in firsts if s <= last and s + len(self._ranges[file, s]) > first]:
                self._drop(file, start)
            firsts = self._firsts.setdefault(file, [])
            firsts.insert(bisect_right(firsts, first), first)
            self._ranges[file, first] = data
            self._bytes += len(data)
            while self._bytes > self.most_bytes:
                self._drop(*next(iter(self._ranges)))

    def forget(self, file: str) -> None:
        """Drop what is known of a file."""
        with self._lock:
            for start in list(self._firsts.get(file, ())):
                self._drop(file, start)

    def _drop(self, file: str, start: int) -> None:
        self._bytes -= len(self._ranges.pop((file, start)))
        self._firsts[file].remove(start)
        if not self._firsts[file]:
            del self._firsts[file]

    def _holding(self, file: str, place: int) -> int | None:
        """Return the first byte of the range that holds `place`, which counts as used; None if there is none."""
        firsts = self._firsts.get(file, [])
        i = bisect_right(firsts, place) - 1
        if i < 0 or firsts[i] + len(self._ranges[file, firsts[i]]) <= place:
            return None
        self._ranges.move_to_end((file, firsts[i]))
        return firsts[i]

    def _from(self, file: str, first: int, last: int) -> Iterator[bytes]:
        while first <= last and (start := self._holding(file, first)) is not None:
            part = self._ranges[file, start][first - start : last + 1 - start]
            first += len(part)
            yield part

    def _ending(self, file: str, first: int, last: int) -> bytes:
        start = self._holding(file, last)
        return b"" if start is None else self._ranges[file, start][max(0, first - start) : last + 1 - start]


class UnderWay:
    """Ranges of one file that are being fetched. Who wants bytes of one of them waits for it."""

    def __init__(self) -> None:
        self._ranges: list[tuple[int, int]] = []
        self._turn = threading.Condition()

    @contextmanager
    def alone(self, first: int, last: int) -> Iterator[None]:
        """Wait until no range that is under way overlaps this one, which is then under way; no longer than 10 s.

        On a slow link both are then fetched, since GDAL gives up on an answer of which nothing comes.
        """
        with self._turn:
            self._turn.wait_for(lambda: all(low > last or high < first for low, high in self._ranges), _PATIENCE_S)
            self._ranges.append((first, last))
        try:
            yield
        finally:
            with self._turn:
                self._ranges.remove((first, last))
                self._turn.notify_all()
