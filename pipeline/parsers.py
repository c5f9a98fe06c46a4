"""The argument parser of all commands: no abbreviated flags, errors in one line, and `--version`."""

from __future__ import annotations

import argparse
import difflib
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

from pipeline.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_EXIT_USAGE = 2
_UNKNOWN = "unrecognized arguments: "  # argparse's words
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

    def error(self, message: str) -> NoReturn:
        """Exit with one line. argparse's own shows the whole usage, in which the error is lost."""
        self.exit(_EXIT_USAGE, f"error: {message}; cure: {self.cure(message)}\n")

    def cure(self, message: str) -> str:
        """Return what helps against an error of the parser: the nearest flag to an unknown one, else the help."""
        words = message.removeprefix(_UNKNOWN).split() if message.startswith(_UNKNOWN) else []
        unknown = [word.partition("=")[0] for word in words if word.startswith("-")]
        near = difflib.get_close_matches(unknown[0], self._option_string_actions, 1) if unknown else []
        return f"did you mean {near[0]}?" if near else f"{self.prog} --help lists all flags"


@contextmanager
def called_as(words: str) -> Iterator[None]:
    """Let parsers that are made meanwhile name the command `words`, such as "sen2fine run", in their messages."""
    _called.append(words)
    try:
        yield
    finally:
        _called.pop()
