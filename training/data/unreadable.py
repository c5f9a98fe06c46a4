"""Files that could not be read while batches were made, in this process, so that a run can count and name them."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from pipeline.errors import ReadError, Unreachable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_found: dict[str, ReadError] = {}  # label: the first error
_reported: set[str] = set()


@contextmanager
def skipping(label: str) -> Iterator[None]:
    """Note a ReadError raised inside the block under `label` and go on behind it.

    An archive that does not answer (`Unreachable`) is raised: what it holds is not damaged.
    """
    try:
        yield
    except Unreachable:
        raise
    except ReadError as error:
        _found.setdefault(label, error)


def newly_found() -> dict[str, str]:
    """What has been noted since the last call: {label: error}."""
    found = {label: str(error) for label, error in _found.items() if label not in _reported}
    _reported.update(found)
    return found


def raise_any(labels: Iterable[str]) -> None:
    """Raise what was noted under one of `labels`: for those who have nothing left to go on with."""
    for label in labels:
        if label in _found:
            raise _found[label]


def forget() -> None:
    """Begin with none, as a new run does."""
    _found.clear()
    _reported.clear()
