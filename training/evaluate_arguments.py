"""The command line of `python -m training.evaluate`."""

from __future__ import annotations

import argparse
from pathlib import Path

from pipeline.parsers import CommandParser

SUFFIX, CSV = ".safetensors", ".csv"
PARTS = ("images", "wald", "scenes")


def parser(description: str | None = None) -> argparse.ArgumentParser:
    """Return the argument parser of `python -m training.evaluate`."""
    p = CommandParser(prog="python -m training.evaluate", description=description)
    p.add_argument(
        "targets", nargs="*", type=Path, metavar="RUN_OR_BUNDLE", help=f"folder of a run, or a {SUFFIX} file"
    )
    p.add_argument("--on", type=Path, help="training file whose held-out places are used (default: the project's)")
    p.add_argument("--shipped", action="store_true", help="evaluate the shipped weights too, for comparison")
    p.add_argument("--out", type=_report, help="write the tables here, and every score beside them as .csv")
    p.add_argument(
        "--picture",
        type=Path,
        metavar="FOLDER",
        help="write sheets here, as PNG, of up to three held-out places per set that differ in land cover: RGB for "
        "super-resolution, false colour for fusion",
    )
    p.add_argument("--steps", type=_numbers, help="only compare these numbers of sampling steps, such as 1,2,4,8,20,50")
    _add_cascade(p)
    p.add_argument(
        "--per-set",
        type=_natural,
        metavar="N",
        help="use only the first N images, scenes and real patches of each set, write at most N sheets of it, and do "
        "not measure the cost of a unit; most of what remains are draws: see --members",
    )
    p.add_argument(
        "--members",
        type=_members,
        default=8,
        metavar="N",
        help="draws per image of the table on what members know of errors; 0 leaves it out, and with --cascade the one "
        "draw of each image (default: %(default)s)",
    )
    p.add_argument(
        "--only",
        choices=PARTS,
        help="only this part: super-resolution of held-out images, Wald's protocol for fusion, or native scenes "
        "through the whole pipeline",
    )
    p.add_argument("--decimator", choices=["box", "bicubic"], default="box", help="decimation of the test degradation")
    p.add_argument("--seed", type=int, default=0, help="random seed of the members")
    p.add_argument("--device", default="cpu", help="where super-resolvers run: cpu, cuda, cuda:1 ...")
    p.add_argument("--threads", type=_natural, default=1, help="of PyTorch on a CPU (default: %(default)s)")
    return p


def _add_cascade(p: argparse.ArgumentParser) -> None:
    """Add how weights that a cascade repeats are judged."""
    p.add_argument(
        "--cascade",
        type=_numbers,
        metavar="SCALES",
        help="only judge weights of x2 that a cascade repeats, at these scales, such as 2,4,8,16,32: against one step, "
        "interpolation and back-projection, on coarse images of a sensor and on block means",
    )
    p.add_argument(
        "--reference",
        action="store_true",
        help="with --cascade: only what a finer image of the ground is worth, right, coarser, shifted or of other "
        "ground",
    )
    p.add_argument(
        "--backbones",
        type=_words,
        metavar="SYSTEMS",
        help="with --cascade: only systems as its steps, beside themselves applied again, such as bicubic,mine=FILE",
    )


def _report(text: str) -> Path:
    if Path(text).suffix == CSV:
        raise argparse.ArgumentTypeError(f"{text!r} is for the tables, such as table.md; {CSV} is written beside them")
    return Path(text)


def _natural(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 1")
    return int(text)


def _members(text: str) -> int:
    if not text.isdecimal() or int(text) == 1:
        raise argparse.ArgumentTypeError(f"{text!r} is neither 0 nor a whole number of at least 2")
    return int(text)


def _words(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part.strip() for part in text.split(",")))


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(dict.fromkeys(_natural(part.strip()) for part in text.split(",")))
