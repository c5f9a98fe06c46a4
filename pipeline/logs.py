"""What a command says while it works: a progress line in a terminal, log lines anywhere else.

The rooms write to loggers named after their modules ("pipeline.running.driver"). A record may carry `facts`, a dict of
plain values. In a JSON log they are keys of their own; in a terminal they decide what the progress line shows:
`stage` names a stage of the run, `doing` what is done within a unit, and `keep` marks a line that stays.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pipeline.plain import plain
from pipeline.redaction import redact
from pipeline.terminal import Progress

if TYPE_CHECKING:
    from collections.abc import Iterator

FORMATS = ("text", "json")
_package = logging.getLogger("pipeline")


@contextmanager
def spoken(log_format: str | None = None, *, quiet: bool = False, bar: bool = True) -> Iterator[Progress]:
    """Show what the package logs while the block runs. Yields the progress line, which is silent beside log lines.

    Without `log_format` a terminal gets the progress line (unless `bar` is false), and any other stderr log lines.
    With `quiet` only warnings are shown.
    """
    lines = log_format is not None or not sys.stderr.isatty()
    progress = Progress(quiet=quiet or lines or not bar)
    handler: logging.Handler = _Lines(log_format or "text") if lines else _Terminal(progress)
    with _handled(handler, logging.WARNING if quiet else logging.INFO if lines else logging.DEBUG, progress):
        yield progress


@contextmanager
def through(progress: Progress) -> Iterator[Progress]:
    """Show what the package logs in a progress line of the caller's while the block runs, and clear it at the end."""
    with _handled(_Terminal(progress), logging.DEBUG, progress):
        yield progress


@contextmanager
def _handled(handler: logging.Handler, level: int, progress: Progress) -> Iterator[None]:
    before = _package.level, _package.propagate
    _package.addHandler(handler)
    _package.setLevel(level)
    _package.propagate = False  # or handlers of the root, such as dask's, print it twice
    try:
        yield
    finally:
        progress.clear()
        _package.removeHandler(handler)
        _package.setLevel(before[0])
        _package.propagate = before[1]


class _Lines(logging.Handler):
    """Writes each record to what is stderr at that moment, as one line of text or one JSON object."""

    def __init__(self, log_format: str) -> None:
        super().__init__()
        self.structured = log_format == "json"
        self.setFormatter(_Json() if self.structured else _Text())

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        try:
            sys.stderr.write(f"{self.format(record)}\n")
            sys.stderr.flush()
        except (OSError, ValueError):  # stderr is closed: the run goes on without
            return


class _Terminal(logging.Handler):
    """Shows stages and activities in the progress line, and warnings above it."""

    def __init__(self, progress: Progress) -> None:
        super().__init__()
        self._progress = progress

    def emit(self, record: logging.LogRecord) -> None:
        """Show a record."""
        facts, text = facts_of(record), record.getMessage()
        if record.levelno >= logging.WARNING or facts.get("keep"):
            self._progress.line(text)
        elif "doing" in facts:
            self._progress.doing(text)
        elif "stage" in facts and "unit" not in facts:
            self._progress.say(text)


class _Text(logging.Formatter):
    """A line with time (UTC), level, logger and message."""

    converter = staticmethod(time.gmtime)

    def __init__(self) -> None:
        super().__init__("%(asctime)sZ %(levelname)s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        """Return one line, whatever the record holds."""
        return plain(super().format(record).replace("\n", "\\n"))


class _Json(logging.Formatter):
    """A JSON object with time, level, logger, message, and the facts of the record."""

    converter = staticmethod(time.gmtime)

    def format(self, record: logging.LogRecord) -> str:
        """Return one line."""
        said: dict[str, Any] = {
            "time": f"{self.formatTime(record, '%Y-%m-%dT%H:%M:%S')}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            said["trace"] = record.exc_text or self.formatException(record.exc_info)
        for name, value in facts_of(record).items():
            said.setdefault(name, redact(value) if isinstance(value, str) else value)
        return json.dumps(said, default=str)


def facts_of(record: logging.LogRecord) -> dict[str, Any]:
    """Return the facts of a record; empty for records of other code."""
    facts = getattr(record, "facts", None)
    return facts if isinstance(facts, dict) else {}
