"""When a run reports, and when it writes a checkpoint only."""

from __future__ import annotations

REST = 10  # a report that took 6 s is followed by at least 60 s of training


class Intervals:
    """Intervals of reports and checkpoints, in seconds of training.

    Process 0 validates while the others wait. Held-out images could be spread over the processes instead, but every
    task scores its own way, and their scores are not all means over images. So reports are at most one part in
    `REST + 1` of the time, whatever a task measures and however many GPUs wait: after a report that took long, the next
    comes later than `every_s`. Checkpoints do not stall training (`Writer`) and are written every `every_s`
    nevertheless. With `every_s` of 0 there is a report after every step.
    """

    def __init__(self, every_s: float, now_s: float) -> None:
        self.every_s = every_s
        self._report_s = self._save_s = now_s + every_s

    def report_due(self, now_s: float) -> bool:
        """Return whether a report, with its checkpoint, is due."""
        return now_s >= self._report_s

    def save_due(self, now_s: float) -> bool:
        """Return whether a checkpoint is due before the next report."""
        return now_s >= self._save_s

    def reported(self, now_s: float, took_s: float) -> None:
        """Take note of a report that took `took_s`, the same number in all processes."""
        self.saved(now_s)
        self._report_s = now_s + (max(self.every_s, REST * took_s) if self.every_s else 0.0)

    def saved(self, now_s: float) -> None:
        """Take note of a checkpoint."""
        self._save_s = now_s + self.every_s
