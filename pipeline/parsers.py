"""The argument parser of all commands: no abbreviated flags, and `--version`."""

from __future__ import annotations

import argparse
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pipeline.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Iterator

_called: list[str] = []  # the words by which the user called the command, if not `python -m MODULE`


class CommandParser(argparse.ArgumentParser):
    """Parser that takes whole flags only: an abbreviation may mean another flag in the next version.

    It takes the arguments of `argparse.ArgumentParser`, but `allow_abbrev`.
    """

    def __init__(self, prog: str | None = None, **settings: Any) -> None:  # noqa: ANN401 - those of argparse
        settings["allow_abbrev"] = False
        super().__init__(_called[-1] if _called else prog, **settings)
        if settings.get("add_help", True) and "--version" not in self._option_string_actions:
            self.add_argument("--version", action="version", version=f"sen2fine {VERSION}")


@contextmanager
def called_as(words: str) -> Iterator[None]:
    """Let parsers that are made meanwhile name the command `words`, such as "sen2fine run", in their messages."""
    _called.append(words)
    try:
        yield
    finally:
        _called.pop()
