"""The `--bbox` option of all commands: W,S,E,N in one word, or W S E N in four."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

FLAG = "--bbox"
FORMS = "W,S,E,N"  # as --help shows it
_SIDES = 4


def joined(argv: Sequence[str]) -> list[str]:
    """Join the words of --bbox into one, since argparse takes a word such as -1.5,44 for a flag.

    A box ends with its fourth number. Anything may follow.

    >>> joined(["--bbox", "-1.5", "44", "-1", "45", "lake.zarr"])
    ['--bbox=-1.5,44,-1,45', 'lake.zarr']
    """
    words, rest = [], list(argv)
    while rest:
        word = rest.pop(0)
        box: list[str] = []
        while word == FLAG and rest and len(box) < _SIDES and not _is_flag(rest[0]):
            box += [part for part in rest.pop(0).split(",") if part.strip()]
        words.append(f"{FLAG}={','.join(box)}" if box else word)
    return words


def _is_flag(word: str) -> bool:
    """Return True for a word that begins with a minus and is not a number or a list of numbers."""
    if not word.startswith("-"):
        return False
    try:
        degrees = [float(part) for part in word.split(",") if part.strip()]
    except ValueError:
        return True
    return not degrees


def degrees_of(text: str) -> tuple[float, float, float, float]:
    """Parse "W,S,E,N" to west, south, east, north in degrees. Raises UsageError unless these are four numbers."""
    try:
        west, south, east, north = (float(word) for word in text.split(","))
    except ValueError as error:
        expected = "four degrees, W,S,E,N or W S E N"
        raise UsageError(f"{FLAG} {text}", expected, "e.g. --bbox 4.8,45.7,4.9,45.8") from error
    return west, south, east, north
