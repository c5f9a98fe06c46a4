"""Terminal output: the progress line, plain text on stdout and stderr, and formatters."""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
import unicodedata
from typing import TYPE_CHECKING, TextIO

from pipeline.plain import counted as counted
from pipeline.plain import plain
from pipeline.running.pace import Pace

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.errors import PipelineError
    from pipeline.running.unit_queue import Summary

LEAST = 0.001  # hours, or money, below which no number is told
_COLUMNS = 80  # of a terminal that does not tell its width
_TICK_S = 0.25  # between two positions of the spinner
_SPINNER = "|/-\\"
_package = logging.getLogger("pipeline")
_active: list[Progress] = []  # progress lines that are shown


class Progress:
    """A progress line, rewritten on a terminal as long as the work lasts. Silent elsewhere and if `quiet`.

    A thread moves it, since one unit may take minutes. It never is wider than the terminal.
    """

    def __init__(self, *, quiet: bool = False, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._shown = not quiet and self._stream.isatty()
        self._pace = Pace()
        self._words: list[str] = []  # most important first
        self._running, self._doing = 0, ""
        self._counting = False  # units are counted, not one activity shown
        self._began_s = self._since_s = time.monotonic()
        self._width = 0  # of what is on the screen
        self._lock = threading.RLock()
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    def writes_to(self, stream: TextIO) -> bool:
        """Return whether the line is shown on that stream."""
        return self._stream is stream

    def say(self, text: str) -> None:
        """Show the current activity."""
        self._running = 0
        self._show([plain(text)], anew=True)
        self._counting = False

    def doing(self, text: str) -> None:
        """Say what is done within the current unit, in this process."""
        self._doing = plain(text)

    def units(self, summary: Summary, running: int) -> None:
        """Show finished units, speed, remaining time, and what is being done."""
        done = summary.resumed + summary.computed
        words = [f"units {done}/{summary.units}"]
        if (pace := self._pace.look(done, summary.left, summary.pixels)) is not None:
            words += [f"{pace[0]:.0f} km2/h", f"{duration(pace[1])} left"]
        self._running = running
        if running:
            words.append(f"{running} at work")
            self._doing = self._doing if running == 1 else ""
        else:
            self._doing = ""  # what the next unit does is not known yet
            if not summary.left:
                words.append("finishing")
            elif pace is None:
                words.append("starting workers")
        self._show(words, anew=not self._counting)
        self._counting = True

    def line(self, text: str) -> None:
        """Print a line of its own above the progress line."""
        with self._lock:
            self._erase()
            self._stream.write(f"{plain(text)}\n")
            self._draw()

    def clear(self) -> None:
        """Clear the line, until the next activity."""
        with self._lock:
            self._words = []
            self._erase()
            if self in _active:
                _active.remove(self)
        self._done.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        self._thread = None

    def _show(self, words: list[str], *, anew: bool) -> None:
        if not self._shown:
            return
        with self._lock:
            if words != self._words:
                self._words = words
                self._since_s = time.monotonic() if anew else self._since_s
                self._draw()
            if self._thread is None:
                _active.append(self)
                self._done.clear()
                self._thread = threading.Thread(target=self._move, name="progress", daemon=True)
                self._thread.start()

    def _move(self) -> None:
        while not self._done.wait(_TICK_S):
            with self._lock:
                self._draw()

    def _draw(self) -> None:
        """Write the line, with the time that the activity, or all units, have taken so far."""
        if not self._words:
            return
        now = time.monotonic()
        turn = _SPINNER[int((now - self._began_s) / _TICK_S) % len(_SPINNER)]
        waited = [duration(now - self._since_s)] if now - self._since_s >= 1 else []
        words = [*self._words[:-1], self._doing] if self._running == 1 and self._doing else self._words
        text = fitted([*words, *waited], self._columns() - 3)  # spinner, space, and the last column
        self._write(f"{turn} {text}")

    def _write(self, text: str) -> None:
        width = shown_width(text)
        self._stream.write(f"\r{text}{' ' * min(max(0, self._width - width), max(0, self._columns() - 1 - width))}")
        self._stream.flush()
        self._width = width

    def _erase(self) -> None:
        if self._width:
            self._write("")
            self._stream.write("\r")
            self._stream.flush()

    def _columns(self) -> int:
        try:
            return max(10, os.get_terminal_size(self._stream.fileno()).columns or _COLUMNS)
        except (OSError, ValueError, AttributeError):  # no file behind the stream
            return _COLUMNS


def fitted(words: Sequence[str], columns: int, between: str = ", ") -> str:
    """Return as many of the words, from the first on, as fit into `columns`; the first is shortened if need be.

    >>> fitted(["units 3/16", "420 km2/h", "3 min left"], 22)
    'units 3/16, 420 km2/h'
    >>> fitted(["a very long activity"], 12)
    'a very lo...'
    """
    text = ""
    for word in words:
        longer = f"{text}{between}{word}" if text else word
        if shown_width(longer) > columns:
            break
        text = longer
    if text or not words:
        return text
    short = words[0]
    while short and shown_width(short) > columns - 3:
        short = short[:-1]
    return f"{short}..."


def shown_width(text: str) -> int:
    """Return the number of columns that text takes on a terminal: two for wide characters, none for combining ones."""
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text
    )


def show(text: str) -> None:
    """Print with control characters escaped. A closed pipe (`| head`) is not an error."""
    try:
        print(plain(text, lines=True), flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # prevent a second failure at exit


def tell(text: str) -> None:
    """Print a note or warning, which may quote external text, as one line on stderr, or as a record of a JSON log."""
    if structured():
        _package.warning(plain(text.removeprefix("warning: ")))
    elif (progress := _on_screen()) is not None:
        progress.line(text)
    else:
        print(plain(text), file=sys.stderr)


def _on_screen() -> Progress | None:
    """Return the progress line that is shown on what is stderr now. A line elsewhere must not swallow what is told."""
    return next((progress for progress in reversed(_active) if progress.writes_to(sys.stderr)), None)


def refuse(error: PipelineError, *, as_json: bool = False) -> int:
    """Print an error as one line on stderr, with `as_json` also as JSON on stdout. Return its exit code."""
    parts = {"found": error.found, "expected": error.expected, "cure": error.cure}
    if as_json:
        show(json.dumps({"status": "error", "exit_code": error.exit_code, **parts}))
    if structured():
        _package.error("%s", error, extra={"facts": {"exit_code": error.exit_code, **parts}})
    else:
        print(f"error: {error}", file=sys.stderr)
    return error.exit_code


def structured() -> bool:
    """Return whether this process logs JSON, among whose lines there must be no others."""
    return any(getattr(handler, "structured", False) for handler in _package.handlers)


def duration(seconds: float) -> str:
    """Format seconds as text: "42 s", "3 min", "2.5 h"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def number(value: float) -> str:
    """Return a number of at least 0 with three digits, never with an exponent."""
    if 0 < value < LEAST:
        return f"less than {LEAST:g}"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
