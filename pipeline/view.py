"""`python -m pipeline.view`: a store as one self-contained HTML page."""

from __future__ import annotations

import sys
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import EXIT_OK, PipelineError, UsageError
from pipeline.help_text import Help, example, exit_codes
from pipeline.parsers import CommandParser
from pipeline.terminal import refuse, show

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from pipeline.products.page.document import Page


def parser() -> argparse.ArgumentParser:
    """Return the parser."""
    p = CommandParser(
        "python -m pipeline.view",
        description="Make a report page of a store: one HTML file that needs no network.",
        epilog=exit_codes(0, 2, 3, 6, 7),
        formatter_class=Help,
    )
    p.add_argument("store", help="folder or URL")
    shown = p.add_argument_group("what it shows", example("lyon.zarr --time 2024-06-17 --at 4.85 45.75"))
    shown.add_argument(
        "--time", metavar="DATE", help="time step: 2024-06-17, 2024-06, an index from 0 (default: the first)"
    )
    shown.add_argument("--zone", help="UTM zone, e.g. utm31n, of a store with several (default: the first)")
    shown.add_argument("--at", nargs=2, type=float, metavar=("LON", "LAT"),
                       help="place at 2.5 m of a large store (default: where contrast is largest)")  # fmt: skip
    page = p.add_argument_group("the page", example("lyon.zarr --out lyon.html --open"))
    page.add_argument("--out", metavar="FILE", help="page to write (default: the store's name + .html, beside it)")
    page.add_argument("--open", action="store_true", help="open it in the browser")
    page.add_argument("--overwrite", action="store_true", help="replace what is there: a file that is no report page")
    return p


def place_asked(degrees: list[float] | None) -> tuple[float, float] | None:
    """Return (longitude, latitude) of --at. Raises UsageError if out of range."""
    if degrees is None:
        return None
    lon, lat = degrees
    if not (-180 <= lon <= 180 and -90 <= lat <= 90):
        raise UsageError(f"--at {lon:g} {lat:g}", "longitude and latitude in degrees, such as 4.835 45.764")
    return lon, lat


def page_file(arguments: argparse.Namespace) -> Path:
    """Return the file to write. Raises UsageError if a foreign file exists there."""
    from pipeline.products.page.document import GENERATOR
    from pipeline.store.place import place_of
    from pipeline.temporary import require_parent

    path = Path(arguments.out) if arguments.out else place_of(arguments.store).picture.with_suffix(".html")
    if path.is_dir():
        raise UsageError(f"{path} is a folder", "a file name for the page, such as lyon.html")
    if arguments.out:
        require_parent(path)
    if path.is_file() and not arguments.overwrite:
        with path.open("rb") as file:
            ours = GENERATOR.encode() in file.read(4096)
        if not ours:
            raise UsageError(f"{path} exists and is not a report page", cure="another --out, or --overwrite")
    return path


def described(page: Page, path: Path) -> str:
    """Describe a page in one line."""
    what = f"{page.shown_km2:.3g} km2 at 2.5 m"
    if not page.whole:
        around = f"the rest at {page.context_gsd_m} m" if page.context_gsd_m else "the rest not shown"
        what += f" ({around})"
    how = "numbers exact" if page.exact else "8-bit images, precision stated on the page"
    return f"{path}: {page.label}, {what}, {len(page.content) / 1e6:.1f} MB, {how}; {page.check}"


def written(arguments: argparse.Namespace) -> tuple[Page, Path]:
    """Write the page asked for. Return it and its path. Raises UsageError."""
    at = place_asked(arguments.at)
    path = page_file(arguments)
    from pipeline.products.page.document import make_page
    from pipeline.store.current import unchanged
    from pipeline.store.place import write_atomic

    with unchanged(arguments.store):
        page = make_page(arguments.store, arguments.zone, arguments.time, at)
    write_atomic(path, page.content)
    return page, path


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return the exit code."""
    arguments = parser().parse_args(argv)
    try:
        page, path = written(arguments)
    except PipelineError as error:
        return refuse(error)
    show(described(page, path))
    if arguments.open:
        webbrowser.open(path.resolve().as_uri())
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
