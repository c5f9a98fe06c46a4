"""`python -m training.triplets --hr 'naip/*.tif' --map region.osm.pbf --out triplets.zarr`: imagery with maps.

Chips of georeferenced sharp images, coarse images of the same ground, and a raster of a vector map. With `--lr degrade`
a sensor's image is made of each chip; with `--lr s2` it is that of Sentinel-2 beside each sharp image (`--coarse`),
registered as real pairs are. A training file takes the store as a source: role = "triplets", zarr = "triplets.zarr".
"""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from pipeline.bands import BY_NAME, RGB
from pipeline.conditions.credit import credit_of
from pipeline.conditions.frozen import freeze
from pipeline.conditions.vector_map import channels
from pipeline.errors import PipelineError, UsageError
from pipeline.grid.grid import Grid, Phase, Window
from pipeline.parsers import CommandParser
from pipeline.superres.declared import Condition
from pipeline.superres.map_classes import map_classes
from pipeline.terminal import show
from training.data.headers import ground_gsd_m, local_header
from training.data.images import file_readers, files_of, values_of
from training.data.pair_reader import PairReader, Part
from training.data.places import Georeference, zone_of
from training.data.real_pairs import real_pairs_of
from training.data.training_file import Source, ordered
from training.data.triplets import CLASSES, Triplet, Writer, numbered, require_new
from training.degradation.degrade import Degradation, degrade
from training.degradation.sensor import relative_widths

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence

    from pipeline.conditions.frozen import Frozen

    Bounds = tuple[float, float, float, float]

MAP = Condition("map", "a vector map", classes=map_classes(), exclusive=True)
PARTIAL = ".partial"  # in the name of a store that is being written
DEGRADE, SENTINEL2 = "degrade", "s2"


def parser() -> argparse.ArgumentParser:
    """Return the parser of `python -m training.triplets`."""
    p = CommandParser(prog="python -m training.triplets", description=__doc__)
    p.add_argument("--hr", nargs="+", required=True, metavar="PATH", help="folders, files or globs of sharp images")
    p.add_argument("--map", type=Path, required=True, help="vector file: GeoPackage, GeoJSON, OSM PBF ...")
    p.add_argument("--out", type=Path, required=True, help="Zarr store to write")
    p.add_argument("--lr", choices=(DEGRADE, SENTINEL2), default=DEGRADE, help="coarse images (default: %(default)s)")
    p.add_argument("--coarse", default="", metavar="GLOB", help="of the Sentinel-2 images beside each sharp one")
    p.add_argument("--coarse-offset", type=float, default=0.0, help="their reflectance = 1e-4 * DN + this")
    p.add_argument(
        "--bands", default=",".join(RGB), help="comma-separated, of the files, in their order (default: %(default)s)"
    )
    p.add_argument("--reflectance", type=float, metavar="SCALE", help="files hold reflectance / SCALE, not brightness")
    p.add_argument("--scale", type=int, default=8, help="sharp pixels per coarse pixel (default: %(default)s)")
    p.add_argument("--side", type=int, default=256, help="of a chip, in sharp pixels (default: %(default)s)")
    p.add_argument("--licence", default="", help="of the imagery, and whom to name")
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. Return the exit code."""
    args = parser().parse_args(arguments)
    try:
        show("\n".join(write(args)))
    except PipelineError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


def write(args: argparse.Namespace) -> list[str]:
    """Write the store. Return what it holds, in lines. Raises PipelineError."""
    require_new(args.out)
    if args.scale < 2 or args.side % args.scale or args.side < args.scale:
        raise UsageError(f"--side {args.side} with --scale {args.scale}", "a multiple of the scale, which is 2 or more")
    sources = _sources(args)
    frozen = freeze(MAP, str(args.map))
    frozen = replace(frozen, credit=credit_of(Path(frozen.where), MAP.kind))
    bands = sources[0].offers
    attributes = {
        "bands": list(bands),
        "classes": list(CLASSES),
        "scale": args.scale,
        "gsd_m": BY_NAME[bands[0]].gsd_m / args.scale,
        "coarse": "Sentinel-2" if args.lr == SENTINEL2 else repr(Degradation().of_scale(args.scale)),
        "licence": args.licence,
        "credit": frozen.credit,
        "map": {"name": Path(frozen.where).name, "sha256": frozen.sha256},
    }
    partial = args.out.with_name(args.out.name + PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)
    writer = Writer(partial, attributes, len(bands), args.side, args.scale)
    try:
        for piece in _pieces(sources, args):
            for chip in piece.chips(args.side, frozen):
                writer.add(chip)
        _check(writer, args)
        writer.finish()
        partial.rename(args.out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    total = max(int(writer.shown.sum()), 1)
    shares = ", ".join(f"{name} {n / total:.1%}" for name, n in zip(CLASSES, writer.shown[1:], strict=True) if n)
    named = [f"map: {frozen.credit}"] if frozen.credit else ["the map states no credit: name its makers yourself"]
    return [f"wrote {args.out}: {writer.count} chips of {args.side} px, {shares}", *named]


def _check(writer: Writer, args: argparse.Namespace) -> None:
    """Raise UsageError for a store without chips, or whose maps show nothing."""
    if not writer.count:
        side_m = args.side * 10 / args.scale
        raise UsageError(f"no image holds a valid chip of {side_m:g} m", "larger images", "a smaller --side")
    if not writer.shown[1:].any():
        raise UsageError(f"{args.map} shows nothing on the {writer.count} chips", "a map of the ground that they show")


def _sources(args: argparse.Namespace) -> list[Source]:
    """Return a source for each of the given paths. Raises UsageError for arguments that do not fit together."""
    if bool(args.coarse) != (args.lr == SENTINEL2):
        raise UsageError(f"--lr {args.lr} and --coarse {args.coarse!r}", "--coarse with --lr s2, and only then")
    names = tuple(args.bands.split(","))
    if unknown := [name for name in names if name not in BY_NAME]:
        raise UsageError(f"--bands {args.bands}: {unknown[0]}", f"names of {', '.join(BY_NAME)}")
    found = []
    for number, path in enumerate(args.hr):
        source = Source(
            name=f"--hr {path}",
            role="pair" if args.coarse else "hr",
            path=str(Path(path).expanduser().absolute()),
            bands=tuple((name, place) for place, name in enumerate(names, 1)),
            values="8-bit" if args.reflectance is None else "reflectance",
            scale=args.reflectance or 1.0,
            coarse=args.coarse,
            coarse_offset=args.coarse_offset,
            label=f"--hr {path}" if number or len(args.hr) > 1 else "--hr",
        )
        if not files_of(source):
            raise UsageError(f"--hr {path} matches no file", "georeferenced images")
        found.append(source)
    assert all(source.offers == ordered(names) for source in found)
    return found


@dataclass(frozen=True)
class Piece:
    """One sharp image on the grid of a UTM zone, with or without a coarse one."""

    reader: PairReader
    paired: bool
    epsg: int

    def chips(self, side: int, frozen: Frozen) -> Iterator[Triplet]:
        """Yield the chips that are valid throughout."""
        height, width = self.reader.shape
        for row in range(0, height - side + 1, side):
            for col in range(0, width - side + 1, side):
                found = self._chip(row, col, side)
                if found is not None:
                    sharp, coarse = found
                    grid = self._grid(row, col, side)
                    yield Triplet(sharp, coarse, numbered(channels(MAP, frozen, grid)), grid)

    def _chip(self, row: int, col: int, side: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Return the sharp (bands, side, side) and coarse reflectance of a chip, or None where data are missing."""
        s = self.reader.scale
        if self.paired:
            both = self.reader.read(row, col, side, side)
            sharp, coarse = both[: len(both) // 2], both[len(both) // 2 :, ::s, ::s]
            return (sharp, coarse) if np.isfinite(both).all() else None
        sharp = self.reader.sharpened(row, col, side, side)
        if not np.isfinite(sharp).all():
            return None
        grid = self._grid(row, col, side)
        seed = np.random.SeedSequence([grid.epsg, *(abs(part) for part in (grid.window.row, grid.window.col))])
        generator = torch.Generator().manual_seed(int(seed.generate_state(1)[0]))
        widths = relative_widths(self.reader.sharp.bands)
        made = degrade(torch.from_numpy(sharp)[None], Degradation().of_scale(s), generator, widths)
        return sharp, made[0].numpy()

    def _grid(self, row: int, col: int, side: int) -> Grid:
        """Return the grid of a chip, by its first row and column in sharp pixels of the image."""
        a, _, left, _, _, top = self.reader.coarse.place.at(0, 0, self.reader.scale)
        step = a * self.reader.scale
        phase = Phase(left % step, top % step)
        first = round((phase.y_m - top) / a), round((left - phase.x_m) / a)
        return Grid(self.epsg, Window(first[0] + row, first[1] + col, side, side), a, phase)


def _pieces(sources: Sequence[Source], args: argparse.Namespace) -> Iterator[Piece]:
    """Yield the images of all sources. Raises UsageError for one that cannot be placed."""
    for source in sources:
        if args.lr == SENTINEL2:
            yield from _paired(source, args.scale)
        else:
            for path in files_of(source):
                yield _alone(source, path, args.scale)


def _paired(source: Source, scale: int) -> Iterator[Piece]:
    """Yield the registered pairs of a source. Raises UsageError unless the coarse images lie in UTM."""
    from pyproj import CRS

    found = real_pairs_of(source, scale)
    show("\n".join(found.words(source)))
    for image in found.images:
        assert isinstance(image.reader, PairReader)
        place = image.reader.coarse.place
        epsg = CRS.from_user_input(place.crs).to_epsg() or 0
        if epsg // 100 not in (326, 327) or place.affine[1] or place.affine[3]:
            raise source.fault(f"{image.label} lies in EPSG:{epsg}", "Sentinel-2 images in UTM, north up")
        yield Piece(image.reader, True, epsg)


def _alone(source: Source, path: Path, scale: int) -> Piece:
    """Return a sharp image on the grid of its zone, whose pixels lie at multiples of their size.

    Raises UsageError if it is not georeferenced, or coarser than the grid.
    """
    from rasterio.warp import transform_bounds

    header = local_header(source, path)
    if not header.crs:
        raise source.fault(f"{path} is not georeferenced", "images with a CRS")
    gsd_m = BY_NAME[source.offers[0]].gsd_m / scale
    native = max(ground_gsd_m(header))
    if native > gsd_m * 1.05:
        raise source.fault(f"{path} has pixels of {native:.3g} m", f"at most {gsd_m:g} m", "a smaller --scale")
    place = Georeference(header.crs, header.affine, header.shape)
    rows, cols = np.meshgrid([0.0, header.shape[0]], [0.0, header.shape[1]], indexing="ij")
    x, y = place.ground(rows, cols)
    bounds: Bounds = (float(x.min()), float(y.min()), float(x.max()), float(y.max()))
    west, south, east, north = transform_bounds(header.crs, "EPSG:4326", *bounds)
    epsg = int(zone_of(np.array([(west + east) / 2]), np.array([(south + north) / 2]))[0])
    left, bottom, right, top = transform_bounds(header.crs, f"EPSG:{epsg}", *bounds)
    coarse_m = gsd_m * scale
    origin = coarse_m * np.floor(left / coarse_m), coarse_m * np.ceil(top / coarse_m)
    shape = int(np.ceil((origin[1] - bottom) / coarse_m)), int(np.ceil((right - origin[0]) / coarse_m))
    sharp = Part(
        file_readers(source, str(path), path, header)[0], values_of(source, str(path), header), place, source.offers
    )
    affine = (coarse_m, 0.0, float(origin[0]), 0.0, -coarse_m, float(origin[1]))
    coarse = replace(sharp, place=Georeference(f"EPSG:{epsg}", affine, shape))
    return Piece(PairReader(sharp, coarse, scale), False, epsg)


if __name__ == "__main__":
    sys.exit(main())
