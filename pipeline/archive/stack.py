"""`python -m pipeline.archive.stack`: split a multi-layer file (dates by bands) into scenes for `pipeline.index`.

Level-3 syntheses and teaching material come as such stacks, in which each 20 m pixel is copied into 2 x 2 pixels of
10 m. Copies are undone where all of them are equal. Interpolated bands are refused, since the measured values are lost.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.archive.local.metadata import to_utc
from pipeline.archive.local.scan import footprint_of
from pipeline.bands import BAND_NAMES, BY_NAME, DN_OFFSET, DN_SCALE, NODATA_DN
from pipeline.errors import EXIT_OK, PipelineError, StorageError, UsageError
from pipeline.grid.grid import Phase
from pipeline.parsers import CommandParser
from pipeline.temporary import require_parent, working_folder

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from rasterio import DatasetReader

_WHOLE_M = 1e-3
_LAST_DN = np.iinfo(np.uint16).max


@dataclass(frozen=True)
class Stack:
    """What the layers of a file mean: reflectance = value * scale + offset, `nodata` a value (None: the file's own)."""

    path: Path
    bands: tuple[str, ...]  # of one date, in the order of the layers
    datetimes_utc: tuple[str, ...]
    scale: float = DN_SCALE
    offset: float = 0.0
    nodata: float | None = None

    def __post_init__(self) -> None:
        unknown = [name for name in self.bands if name not in BAND_NAMES]
        if unknown or not self.bands or len(set(self.bands)) != len(self.bands):
            raise UsageError(f"bands {', '.join(self.bands)}", f"each once, of {', '.join(BAND_NAMES)}")
        if not self.datetimes_utc or len(set(self.datetimes_utc)) != len(self.datetimes_utc):
            raise UsageError(f"dates {', '.join(self.datetimes_utc)}", "each once, such as 2018-04-29")
        if not self.scale > 0:
            raise UsageError(f"scale {self.scale:g}", "a positive number, such as 0.0001")


def split_stack(stack: Stack, out: Path) -> tuple[str, ...]:
    """Write the scenes of `stack` into the new folder `out`, whole or not at all; returns their ids.

    DN are those of the store (reflectance = DN * 1e-4 - 0.1), so that negative reflectance survives. UsageError for a
    file with other layers or grid, or a band that is not made of whole native pixels; StorageError.
    """
    if out.exists():
        raise UsageError(f"{out} exists", "a new folder")
    require_parent(out)
    moments = {to_utc(text): text for text in stack.datetimes_utc}
    ids = tuple(f"{stack.path.stem}_{moment[:10]}" for moment in moments)
    if len(set(ids)) != len(ids):
        raise UsageError(f"dates {', '.join(stack.datetimes_utc)}", "one layer per band and day")
    try:
        with working_folder(out.resolve().parent, f".{out.name}.split-") as working:
            scenes = working / "scenes"
            scenes.mkdir()
            with _opened(stack) as dataset:
                for order, (scene_id, moment) in enumerate(zip(ids, moments, strict=True)):
                    _write_date(stack, dataset, order, scenes / scene_id, moment)
            scenes.rename(out)
    except OSError as error:
        raise StorageError(
            f"{out} cannot be written: {error.strerror or error}", "a writable folder with space"
        ) from error
    return ids


def native(image: NDArray[np.generic], factor: int, row: int, col: int) -> NDArray[np.generic]:
    """Undo copies of `factor` x `factor` pixels: (y, x) -> whole cells from `row`, `col` on. ValueError if they differ.

    >>> native(np.array([[9, 1, 1], [9, 1, 1]]), 2, 0, 1)
    array([[1]])
    """
    ny, nx = (image.shape[0] - row) // factor, (image.shape[1] - col) // factor
    whole = image[row : row + ny * factor, col : col + nx * factor]
    cells: NDArray[np.generic] = whole[::factor, ::factor]
    differ = (whole.reshape(ny, factor, nx, factor) != cells[:, None, :, None]).any((1, 3))
    if differ.any():
        raise ValueError(f"{np.count_nonzero(differ)} of {differ.size} cells hold different values")
    return cells


def _opened(stack: Stack) -> DatasetReader:
    """The file, checked. UsageError."""
    import rasterio

    try:
        dataset = rasterio.open(stack.path)
    except rasterio.errors.RasterioIOError as error:
        raise UsageError(f"{stack.path} cannot be opened: {error}", "a raster file such as a GeoTIFF") from error
    expected = len(stack.bands) * len(stack.datetimes_utc)
    a, b, _, d, e, _ = tuple(dataset.transform)[:6]
    epsg = dataset.crs.to_epsg() if dataset.crs else None
    fault = None
    if dataset.count != expected:
        counted = f"{expected}: {len(stack.bands)} bands of {len(stack.datetimes_utc)} dates"
        fault = (f"{stack.path} holds {dataset.count} layers", counted)
    elif b or d or max(abs(a - 10), abs(e + 10)) > _WHOLE_M:
        fault = (f"{stack.path} has pixels of ({a:g}, {e:g}) m", "north-up pixels of 10 m")
    elif epsg is None or epsg // 100 not in (326, 327):
        fault = (f"{stack.path} lies in EPSG:{epsg}", "a UTM zone")
    if fault:
        dataset.close()
        raise UsageError(*fault)
    return dataset


def _write_date(stack: Stack, dataset: DatasetReader, order: int, folder: Path, moment: str) -> None:
    """The files of one date and the item beside them."""
    folder.mkdir()
    nodata = dataset.nodata if stack.nodata is None else stack.nodata
    for layer, band in enumerate(stack.bands, 1 + order * len(stack.bands)):
        values = dataset.read(layer)
        empty = ~np.isfinite(values) if nodata is None else ~np.isfinite(values) | (values == nodata)
        dn = np.rint((values.astype(np.float64) * stack.scale + stack.offset - DN_OFFSET) / DN_SCALE)
        shown = np.where(empty, NODATA_DN, np.clip(np.nan_to_num(dn), 1, _LAST_DN)).astype(np.uint16)
        _write_band(stack, dataset, band, shown, folder)
    assets = {
        band: {"href": f"{band}.tif", "raster:bands": [{"scale": DN_SCALE, "offset": DN_OFFSET, "nodata": NODATA_DN}]}
        for band in stack.bands
    }
    item = {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": folder.name,
        "geometry": footprint_of(dataset.crs.to_epsg(), tuple(dataset.bounds)),
        "properties": {"datetime": moment},
        "assets": assets,
        "links": [],
    }
    (folder / "item.json").write_text(json.dumps(item, indent=1))


def _write_band(stack: Stack, dataset: DatasetReader, band: str, dn: NDArray[np.uint16], folder: Path) -> None:
    """One band at its native GSD, on the grid of official products. UsageError where it is not made of copies."""
    import rasterio
    from affine import Affine

    gsd_m = BY_NAME[band].gsd_m
    factor, phase = gsd_m // 10, Phase.official(dataset.crs.to_epsg())
    left_m, top_m = dataset.transform.c, dataset.transform.f
    col, row = round((phase.x_m - left_m) % gsd_m / 10) % factor, round((top_m - phase.y_m) % gsd_m / 10) % factor
    try:
        cells = native(dn, factor, row, col)
    except ValueError as error:
        raise UsageError(
            f"{band} of {stack.path} is not made of {gsd_m} m pixels: {error}",
            f"{factor} x {factor} equal values per pixel, on multiples of {gsd_m} m",
            "leave the band out; if it was interpolated, the measured values are lost",
        ) from None
    transform = Affine(gsd_m, 0, left_m + 10 * col, 0, -gsd_m, top_m - 10 * row)
    with rasterio.open(
        folder / f"{band}.tif", "w", driver="GTiff", dtype="uint16", count=1, nodata=NODATA_DN, crs=dataset.crs,
        height=cells.shape[0], width=cells.shape[1], transform=transform, compress="deflate",
    ) as target:  # fmt: skip
        target.write(cells, 1)


def parser() -> argparse.ArgumentParser:
    """Return the parser."""
    p = CommandParser(
        "python -m pipeline.archive.stack",
        description="Split a file of dates by bands into scenes of native pixels.",
        epilog="example: python -m pipeline.archive.stack series.tif --bands B02,B03,B04,B08 "
        "--dates 2018-04-29,2018-05-13 --out scenes",
    )
    p.add_argument(
        "file", type=Path, help="raster on the 10 m grid: all bands of the first date, then of the second ..."
    )
    p.add_argument(
        "--bands", required=True, help="comma-separated, of one date, in their order: B02,B03,B04,B08,B05 ..."
    )
    p.add_argument("--dates", required=True, help="comma-separated, in their order: 2018-04-29,2018-05-13 ...")
    p.add_argument(
        "--scale-factor", type=float, default=DN_SCALE, help="reflectance per unit of the file (default: %(default)g)"
    )
    p.add_argument("--add-offset", type=float, default=0.0, help="reflectance at 0 of the file (default: %(default)g)")
    p.add_argument("--nodata", type=float, help="value without data (default: as the file says)")
    p.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="new folder")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    given = parser().parse_args(argv)
    bands, dates = (tuple(part.strip() for part in text.split(",")) for text in (given.bands, given.dates))
    try:
        ids = split_stack(
            Stack(given.file, bands, dates, given.scale_factor, given.add_offset, given.nodata), given.out
        )
    except PipelineError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    for scene_id in ids:
        print(scene_id)
    print(f"{len(ids)} scenes in {given.out}; next: python -m pipeline.index {given.out} --out archive.json")
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
