"""Seconds of a unit by stage: laps of one clock, which add up to the total time."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


class Stages:
    """A clock that starts when it is created."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._last = self._began = time.perf_counter()
        self._cpu_last = self._cpu_began = time.process_time()

    def lap(self, stage: str, within: Mapping[str, float] | None = None) -> float:
        """Add the seconds since the last lap to `stage`, except those of stages `within`. Return the stage's share."""
        now, self._cpu_last = time.perf_counter(), time.process_time()
        spent, self._last = now - self._last, now
        for name, seconds in (within or {}).items():
            self._add(name, seconds)
            spent -= seconds
        self._add(stage, spent)
        return round(spent, 4)

    def lap_of_one(self, stage: str) -> tuple[float, float]:
        """As `lap`, for work of one thread. Return the stage's share, and its processor time, at most as long."""
        before = self._cpu_last
        spent = self.lap(stage)
        return spent, round(min(self._cpu_last - before, spent), 4)

    def _add(self, stage: str, seconds: float) -> None:
        self._seconds[stage] = self._seconds.get(stage, 0.0) + seconds

    def cpu_seconds(self, threads: int) -> float:
        """Return the processor time of this process so far, at most that of `threads` threads until the last lap.

        The limit holds where other units run in the same process.
        """
        most = (self._last - self._began) * threads
        return round(min(time.process_time() - self._cpu_began, most), 4)

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by stage so far, rounded to 0.1 ms."""
        return {name: round(value, 4) for name, value in self._seconds.items()}
