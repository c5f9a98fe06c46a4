"""Files that a run leaves out because they cannot be read: named once, counted, too many of them an error."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.errors import ReadError
from pipeline.terminal import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

SKIPPED = 10  # unreadable files that do not end a run


class Skipped:
    """Unreadable files of one process: {label: error}."""

    def __init__(self, limit: int = SKIPPED) -> None:
        self.limit = limit
        self.found: dict[str, str] = {}

    def add(self, found: Mapping[str, str], say: Callable[[str], None]) -> None:
        """Name those that are new. ReadError where they are more than the limit."""
        new = {label: words for label, words in found.items() if label not in self.found}
        for words in new.values():
            say(f"left out: {words}")
        self.found |= new
        if new and len(self.found) > self.limit:
            raise ReadError(
                f"{counted(len(self.found), 'file')} cannot be read, among them {next(iter(new))}",
                f"at most {self.limit}",
                "--check lists them all; --skip allows for more",
            )
