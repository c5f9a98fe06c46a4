"""`python -m pipeline.export`: export a finished store as cloud-optimised GeoTIFFs."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import bbox
from pipeline.bands import BAND_NAMES, TARGET_GSD_M
from pipeline.errors import EXIT_INTERRUPTED, EXIT_OK, PipelineError, UsageError
from pipeline.help_text import Help, example, exit_codes
from pipeline.parsers import CommandParser
from pipeline.report import show_report
from pipeline.terminal import Progress, counted, refuse, tell

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from pipeline.products.cog import Export
    from pipeline.store.selection import Request

_VARIABLES = "reflectance, quality, scl, uncertainty, map_class"
_SHOWN = 12


def parser() -> argparse.ArgumentParser:
    """Return the parser."""
    p = CommandParser(
        "python -m pipeline.export",
        description="Export a finished store as GeoTIFFs.",
        epilog=exit_codes(0, 2, 3, 5, 6, 7, 130),
        formatter_class=Help,
    )
    p.add_argument("store", help="folder or URL")
    what = p.add_argument_group("what", example("lyon.zarr --bands B04,B08 --bbox 4.8,45.7,4.9,45.8 --time 2024-06"))
    what.add_argument("--bands", help="comma-separated, in this order (default: all of the store)")
    what.add_argument(bbox.FLAG, metavar=bbox.FORMS, help="degrees, or W S E N: only this box (default: all)")
    what.add_argument(
        "--time", default="all", help="time steps: 2024-06-17, 2024-06, an index from 0 (default: %(default)s)"
    )
    what.add_argument(
        "--variable", default="reflectance", metavar="NAMES", help=f"of {_VARIABLES} (default: %(default)s)"
    )
    what.add_argument(
        "--gsd",
        type=float,
        default=TARGET_GSD_M,
        metavar="M",
        help="2.5, or below where the store has it, at 4 times the size for each half (default: %(default)g)",
    )
    what.add_argument("--allow-incomplete", action="store_true", help="export what an unfinished store holds")
    files = p.add_argument_group("files", example("lyon.zarr --out lyon_tifs --single-file --compress zstd"))
    files.add_argument("--to", choices=("cog",), default="cog", help="cloud-optimised GeoTIFF (default: %(default)s)")
    files.add_argument("--out", metavar="FOLDER", help="where to (default: the store's name + _tifs)")
    how = files.add_mutually_exclusive_group()
    how.add_argument(
        "--per-band", dest="single_file", action="store_false", default=False, help="a file per band (default)"
    )
    how.add_argument("--single-file", action="store_true", help="all bands of a time step in one file")
    files.add_argument(
        "--compress",
        choices=("deflate", "zstd"),
        default="deflate",
        help="zstd is smaller and faster, and older programs do not read it (default: %(default)s)",
    )
    files.add_argument("--overwrite", action="store_true", help="replace what is there: files of the same names")
    p.add_argument("--json", action="store_true", help="one JSON object on stdout instead of words")
    p.add_argument(
        "--quiet",
        action="store_true",
        help="no progress line; warnings, errors and the list of files are still printed",
    )
    return p


def request_of(arguments: argparse.Namespace) -> Request:
    """Return the request from the flags. Raises UsageError for empty lists."""
    from pipeline.store.selection import Request

    bands = (
        _listed(arguments.bands, "--bands", f"some of {','.join(BAND_NAMES)}") if arguments.bands is not None else ()
    )
    variables = _listed(arguments.variable, "--variable", f"some of {_VARIABLES}")
    box = bbox.degrees_of(arguments.bbox) if arguments.bbox is not None else None
    return Request(bands, box, arguments.time, variables, arguments.gsd)


def _listed(text: str, flag: str, expected: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise UsageError(f"{flag} names nothing", expected)
    return names


def _folder(arguments: argparse.Namespace) -> Path:
    from pipeline.store.place import place_of
    from pipeline.store.selection import store_name

    if arguments.out is None:
        return Path(f"{store_name(place_of(arguments.store))}_tifs")
    if "://" in arguments.out:
        raise UsageError(
            f"--out {arguments.out} is not a folder", "a local folder", "export, then copy the files there"
        )
    return Path(arguments.out)


@dataclass(frozen=True)
class ExportReport:
    """The files written by an export."""

    made: Export

    def to_json(self) -> dict[str, Any]:
        """Return paths, sizes and notes."""
        return {
            "files": [{"path": str(path), "bytes": path.stat().st_size} for path in self.made.files],
            "items": [str(path) for path in self.made.items],
            "notes": list(self.made.notes),
        }

    def text(self) -> str:
        """Return the folder and the first files. Notes go to stderr."""
        files, items = self.made.files, self.made.items
        total_mib = sum(path.stat().st_size for path in files) / 2**20
        lines = [f"  {path.name}  {path.stat().st_size / 2**20:.1f} MiB" for path in files[:_SHOWN]]
        if len(files) > _SHOWN:
            lines.append(f"  and {len(files) - _SHOWN} more")
        lines.append(f"{counted(len(items), 'STAC item')}: {', '.join(path.name for path in items[:_SHOWN])}")
        return "\n".join([f"{counted(len(files), 'file')} in {files[0].parent}, {total_mib:.1f} MiB", *lines])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return the exit code."""
    from pipeline.products.cog import export_cogs

    arguments = parser().parse_args(bbox.joined(sys.argv[1:] if argv is None else argv))
    progress = Progress(quiet=arguments.quiet)
    try:
        made = export_cogs(
            arguments.store,
            _folder(arguments),
            request_of(arguments),
            single_file=arguments.single_file,
            compress=arguments.compress,
            overwrite=arguments.overwrite,
            allow_incomplete=arguments.allow_incomplete,
            report=progress.say,
        )
    except PipelineError as error:
        progress.clear()
        return refuse(error)
    except KeyboardInterrupt:
        progress.clear()
        tell("stopped at once; the files that are there are complete, and --overwrite replaces them")
        return EXIT_INTERRUPTED
    progress.clear()
    for note in made.notes:
        tell(f"note: {note}")
    show_report(ExportReport(made), as_json=arguments.json)
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
