"""The argument parser of all commands: no abbreviated flags, and `--version`."""

from __future__ import annotations

import argparse
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pipeline.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_called: list[str] = []  # the words by which the user called the command, if not `python -m MODULE`


class CommandParser(argparse.ArgumentParser):
    """Parser that takes whole flags only: an abbreviation may mean another flag in the next version.

    Arguments are those of `argparse.ArgumentParser`.
    """

    def __init__(
        self,
        prog: str | None = None,
        *,
        description: str | None = None,
        epilog: str | None = None,
        parents: Sequence[argparse.ArgumentParser] = (),
        formatter_class: type[argparse.HelpFormatter] = argparse.HelpFormatter,
        conflict_handler: str = "error",
        add_help: bool = True,
    ) -> None:
        super().__init__(
            _called[-1] if _called else prog,
            description=description,
            epilog=epilog,
            parents=list(parents),
            formatter_class=formatter_class,
            conflict_handler=conflict_handler,
            add_help=add_help,
            allow_abbrev=False,
        )
        if add_help and "--version" not in self._option_string_actions:
            self.add_argument("--version", action="version", version=f"sen2fine {VERSION}")


@contextmanager
def called_as(words: str) -> Iterator[None]:
    """Let parsers that are made meanwhile name the command `words`, such as "sen2fine run", in their messages."""
    _called.append(words)
    try:
        yield
    finally:
        _called.pop()
