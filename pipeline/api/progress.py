"""Progress of runs from Python: the command's line in a terminal, one updating line in Jupyter, else logging."""

from __future__ import annotations

import logging
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pipeline.plain import plain
from pipeline.terminal import Progress

if TYPE_CHECKING:
    from collections.abc import Iterator

LOG = logging.getLogger("sen2fine")


class NotebookProgress(Progress):
    """One line of text below the cell, rewritten in place."""

    def __init__(self, display: Any) -> None:  # noqa: ANN401 - IPython's function, which may be absent
        super().__init__(quiet=True)
        self._display = display
        self._handle: Any = None

    def say(self, text: str) -> None:
        """Show the current activity."""
        content = {"text/plain": plain(text)}
        if self._handle is None:
            self._handle = self._display(content, raw=True, display_id=True)
        else:
            self._handle.update(content, raw=True)

    def clear(self) -> None:
        """Clear the line."""
        if self._handle is not None:
            self.say("")


class LoggedProgress(Progress):
    """Messages of the logger "sen2fine", at level INFO."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self._last = ""

    def say(self, text: str) -> None:
        """Log an activity that differs from the last one."""
        if text != self._last:
            LOG.info("%s", plain(text))
        self._last = text


def in_notebook() -> bool:
    """Return True in a Jupyter kernel."""
    python = sys.modules.get("IPython")
    shell = None if python is None else python.get_ipython()
    return shell is not None and hasattr(shell, "kernel")


@contextmanager
def progress_of(*, shown: bool) -> Iterator[Progress]:
    """Yield the progress that fits the surroundings, and clear its line at the end. It is silent unless `shown`."""
    progress = _fitting() if shown else Progress(quiet=True)
    try:
        yield progress
    finally:
        progress.clear()


def _fitting() -> Progress:
    if in_notebook():
        from IPython.display import display  # type: ignore[import-not-found, unused-ignore]

        return NotebookProgress(display)
    return Progress() if sys.stderr.isatty() else LoggedProgress()
