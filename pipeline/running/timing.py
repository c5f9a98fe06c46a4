"""Where the seconds of a unit go: laps of one clock, so that its stages sum to what it took.

In: names of stages as they end. Out: seconds by stage. Imports nothing of the project.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


class Stages:
    """A clock that starts when it is made."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, stage: str, within: Mapping[str, float] | None = None) -> float:
        """Count the seconds since the last lap as `stage`, but those `within` it as theirs; returns the stage's."""
        now = time.perf_counter()
        spent, self._last = now - self._last, now
        for name, seconds in (within or {}).items():
            self._add(name, seconds)
            spent -= seconds
        self._add(stage, spent)
        return round(spent, 4)

    def _add(self, stage: str, seconds: float) -> None:
        self._seconds[stage] = self._seconds.get(stage, 0.0) + seconds

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by stage so far, to 0.1 ms."""
        return {name: round(value, 4) for name, value in self._seconds.items()}
