"""Progress of runs from Python: the command's line in a terminal, one updating line in Jupyter, else logging alone.

All that a run says goes to the loggers of the package, below "pipeline", as it does in commands.
"""

from __future__ import annotations

import importlib
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from pipeline.logs import spoken, through
from pipeline.plain import plain
from pipeline.terminal import Progress

if TYPE_CHECKING:
    from collections.abc import Iterator


class Handle(Protocol):
    """What IPython's `display` returns, by which the output below a cell is replaced."""

    def update(self, content: dict[str, str], *, raw: bool) -> object:
        """Show something else in its place."""
        ...


class Display(Protocol):
    """IPython's function `display`."""

    def __call__(self, content: dict[str, str], *, raw: bool, display_id: bool) -> Handle:
        """Show content by its media types."""
        ...


class NotebookProgress(Progress):
    """One line of text below the cell, rewritten in place."""

    def __init__(self, display: Display) -> None:
        super().__init__(quiet=True)
        self._display = display
        self._handle: Handle | None = None

    def line(self, text: str) -> None:
        """Print a line of its own below the cell."""
        print(plain(text))

    def clear(self) -> None:
        """Clear the line."""
        if self._handle is not None:
            self._update("")

    def _show(self, words: list[str], *, anew: bool) -> None:
        if words != self._words:
            self._words = words
            self._update(", ".join(words))

    def _update(self, text: str) -> None:
        content = {"text/plain": text}
        if self._handle is None:
            self._handle = self._display(content, raw=True, display_id=True)
        else:
            self._handle.update(content, raw=True)


def in_notebook() -> bool:
    """Return True in a Jupyter kernel."""
    python = sys.modules.get("IPython")
    shell = None if python is None else python.get_ipython()
    return shell is not None and hasattr(shell, "kernel")


@contextmanager
def progress_of(*, shown: bool) -> Iterator[Progress]:
    """Yield the progress that fits the surroundings, and clear its line at the end. It is silent unless `shown`."""
    if shown and in_notebook():
        display: Display = importlib.import_module("IPython.display").display  # a kernel has it
        with through(NotebookProgress(display)) as progress:
            yield progress
    elif shown and sys.stderr.isatty():
        with spoken() as progress:
            yield progress
    else:
        yield Progress(quiet=True)
