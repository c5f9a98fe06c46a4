"""What the help of all commands has in common: its layout, and the exit codes."""

from __future__ import annotations

import argparse

_CODES = {
    0: "complete",
    1: "a failure that is this software's to mend",
    2: "wrong arguments, area, settings or weights, or a store begun with other settings",
    3: "nothing was measured there: no scene, or none with a pixel in the area",
    4: "complete but for units that were set aside",
    5: "the archive refuses, or a file is missing or damaged",
    6: "the output cannot be written",
    7: "stored bytes are not what was written",
    75: "stopped, another run holds the store, or the archive is away: run the same command again",
    130: "stopped at once by Ctrl-C; run the same command again",
}
Help = argparse.RawDescriptionHelpFormatter  # keeps the lines of examples and exit codes


def example(text: str) -> str:
    """Return the description of a group of flags: an example of them."""
    return f"example: {text}"


def exit_codes(*only: int) -> str:
    """Return the list of exit codes for the end of a help page; all, or `only` these."""
    return "\n".join(
        ["exit codes:", *(f"  {code:<3}  {text}" for code, text in _CODES.items() if code in only or not only)]
    )
