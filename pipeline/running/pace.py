"""Speed of a run and its remaining time, from the units finished since it began."""

from __future__ import annotations

import time

from pipeline.bands import TARGET_GSD_M

_MIN_S = 1e-3


class Pace:
    """Speed since the first look. Units that were found done do not count."""

    def __init__(self) -> None:
        self._first: tuple[int, int] | None = None
        self._began_s = time.monotonic()

    def look(self, done: int, left: int, pixels: int) -> tuple[float, float] | None:
        """Return (km2 per hour, seconds left), or None before the first unit of this run has ended.

        `done` and `left` count units. `pixels` of 2.5 m are those done; passes below 2.5 m add none.
        """
        if self._first is None:
            self._first, self._began_s = (done, pixels), time.monotonic()
        elapsed_s = time.monotonic() - self._began_s
        new, added = done - self._first[0], pixels - self._first[1]
        if new <= 0 or elapsed_s < _MIN_S:
            return None
        return added * TARGET_GSD_M**2 / 1e6 / elapsed_s * 3600, elapsed_s * left / new
