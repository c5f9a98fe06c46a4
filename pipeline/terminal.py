"""Terminal output: the progress line, plain text on stdout and stderr, and formatters."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import TYPE_CHECKING, TextIO

from pipeline.bands import TARGET_GSD_M
from pipeline.plain import plain

if TYPE_CHECKING:
    from pipeline.errors import PipelineError
    from pipeline.running.unit_queue import Summary

_WIDTH = 100


class Progress:
    """A progress line, rewritten on a terminal. Silent elsewhere and if `quiet`."""

    def __init__(self, *, quiet: bool = False, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._shown = not quiet and self._stream.isatty()
        self._started = time.monotonic()
        self._first: tuple[int, int] | None = None

    def say(self, text: str) -> None:
        """Show the current activity."""
        if self._shown:
            self._stream.write(f"\r{plain(text)[:_WIDTH]:<{_WIDTH}}")
            self._stream.flush()

    def units(self, summary: Summary, running: int) -> None:
        """Show finished units, speed and remaining time."""
        done = summary.resumed + summary.computed
        if self._first is None:
            self._first = (done, summary.pixels)
            self._started = time.monotonic()
        elapsed = time.monotonic() - self._started
        words = [f"units {done}/{summary.units}"]
        new_pixels = summary.pixels - self._first[1]
        if new_pixels and elapsed > 0:
            km2_per_h = new_pixels * TARGET_GSD_M**2 / 1e6 / elapsed * 3600
            left_s = elapsed * (summary.units - done) / max(1, done - self._first[0])
            words += [f"{km2_per_h:.0f} km2/h", f"{duration(left_s)} left"]
        stage = f"{running} at work" if running else "starting workers" if done < summary.units else "publishing"
        self.say(" · ".join([*words, stage]))

    def clear(self) -> None:
        """Clear the line."""
        if self._shown:
            self._stream.write("\r" + " " * _WIDTH + "\r")
            self._stream.flush()


def show(text: str) -> None:
    """Print with control characters escaped. A closed pipe (`| head`) is not an error."""
    try:
        print(plain(text, lines=True), flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # prevent a second failure at exit


def tell(text: str) -> None:
    """Print a note or warning, which may quote external text, as one line on stderr."""
    print(plain(text), file=sys.stderr)


def refuse(error: PipelineError, *, as_json: bool = False) -> int:
    """Print an error as one line on stderr, with `as_json` also as JSON on stdout. Return its exit code."""
    if as_json:
        parts = {"found": error.found, "expected": error.expected, "cure": error.cure}
        show(json.dumps({"status": "error", "exit_code": error.exit_code, **parts}))
    print(f"error: {error}", file=sys.stderr)
    return error.exit_code


def duration(seconds: float) -> str:
    """Format seconds as text: "42 s", "3 min", "2.5 h"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def counted(number: int, thing: str) -> str:
    """Format a number with its noun: "1 unit", "2 units"."""
    return f"{number} {thing}{'' if number == 1 else 's'}"
