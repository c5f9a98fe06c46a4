"""`sen2fine COMMAND ...`: the commands of `pipeline` and `training` under one name."""

from __future__ import annotations

import difflib
import importlib
import sys
from typing import TYPE_CHECKING

from pipeline.parsers import called_as
from pipeline.terminal import show
from pipeline.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Sequence

COMMANDS = {
    "run": ("pipeline.run", "from an area to a store of 2.5 m"),
    "index": ("pipeline.index", "list the scenes of a folder, or finished stores"),
    "check": ("pipeline.check", "verify a store, and repair it"),
    "view": ("pipeline.view", "a store as one HTML page"),
    "export": ("pipeline.export", "a store as cloud-optimised GeoTIFFs"),
    "submit": ("pipeline.submit", "a run as a SLURM array or a Kubernetes job"),
    "stack": ("pipeline.archive.stack", "split a file of many dates and bands into scenes"),
    "unit": ("pipeline.running.single", "compute one unit of a store alone, to see why it fails"),
    "train": ("training.train", "train networks"),
    "staged": ("training.staged", "train a system of several networks, stage by stage"),
    "evaluate": ("training.evaluate", "judge weights and baselines"),
    "convert": ("training.convert", "make weights of checkpoints"),
    "harmonise": ("training.harmonise", "learn how images of two sensors differ"),
    "triplets": ("training.triplets", "make triplets of stores, maps and styles"),
    "feed": ("training.feed", "measure how fast training data can be read"),
}
_EXIT_USAGE = 2


def help_text() -> str:
    """Return the list of commands."""
    lines = [f"  {name:<10} {summary}" for name, (_, summary) in COMMANDS.items()]
    return "\n".join(["usage: sen2fine [--version] COMMAND ...", "", *lines, "", "sen2fine COMMAND --help says more."])


def main(argv: Sequence[str]) -> int:
    """Run a command and return its exit code."""
    word, *rest = argv or ["--help"]
    if word in ("--help", "-h"):
        show(help_text())
        return 0
    if word == "--version":
        show(f"sen2fine {VERSION}")
        return 0
    if word not in COMMANDS:
        near = difflib.get_close_matches(word, COMMANDS, 1)
        hint = f"; cure: did you mean {near[0]}?" if near else ""
        print(f"error: no command {word}; expected one of {', '.join(COMMANDS)}{hint}", file=sys.stderr)
        return _EXIT_USAGE
    with called_as(f"sen2fine {word}"):
        found: int | None = importlib.import_module(COMMANDS[word][0]).main(rest)
    return found or 0
