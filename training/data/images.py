"""Training images: lazy rasters with their bands, georeference, value encoding and split.

Headers are read when a source is listed, pixels only when a patch is read.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from pipeline.bands import RGB
from training.data.headers import gsd_of, local_header
from training.data.places import Georeference, SplitMap, split_map, split_of
from training.data.rasters import area_average, check_reflectance, open_raster, reading, unplaced
from training.data.training_file import glob_root
from training.data.validity import constant_frames

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from rasterio.io import DatasetReader
    from xarray import DataArray

    from training.data.headers import Header
    from training.data.places import Split
    from training.data.rasters import Stored
    from training.data.training_file import Source

SUFFIXES = (".tif", ".tiff", ".jp2", ".png", ".jpg", ".jpeg")  # of images in a folder
COARSER_BY = 1.01  # tolerance of the target GSD: files of 2.0 m state 2.0000004
OPEN_FILES = 256  # per process
GDAL_CACHE_BYTES = 64_000_000  # per process; GDAL's default is 5 % of memory, and `patches` has its own cache


class Reader(Protocol):
    """Reader of an image's stored values. Picklable; opens its file in the process that reads."""

    @property
    def shape(self) -> tuple[int, int]:
        """(ny, nx)."""
        ...

    @property
    def itemsize(self) -> int:
        """Bytes per stored value."""
        ...

    def read(self, y: int, x: int, ny: int, nx: int) -> Stored:
        """Return the stored values (bands, ny, nx) of a window inside the image."""
        ...

    def mask(self, y: int, x: int, ny: int, nx: int) -> NDArray[np.bool_] | None:
        """Return the validity mask (ny, nx) of a window, from a mask or alpha band; None if the file has neither."""
        ...

    def selecting(self, places: Sequence[int]) -> Reader:
        """Return a reader of a subset of the bands, by index."""
        ...


@dataclass(frozen=True)
class Values:
    """Encoding of stored values: 8-bit brightness to harmonise (`encoded`), or reflectance by scale and offset."""

    encoded: bool
    scale: float = 1.0
    offset: float = 0.0
    nodata: float | None = None

    def valid(self, stored: Stored, mask: NDArray[np.bool_] | None = None) -> NDArray[np.bool_]:
        """Return the valid pixels (h, w). `mask` is the validity mask of the file, if it has one.

        8-bit brightness is nodata only if all bands are: a single band of a dark colour may have that value.
        """
        found = ~constant_frames(stored)
        if mask is not None:
            found &= mask
        if stored.dtype.kind == "f":
            found &= np.isfinite(stored).all(axis=0)
        if self.nodata is not None:
            same = stored == self.nodata
            found &= ~(same.all(axis=0) if self.encoded else same.any(axis=0))
        return found

    def decode(self, stored: Stored) -> NDArray[np.float32]:
        """Return brightness 0..1 or reflectance, (bands, h, w) float32. Undefined where pixels are not `valid`."""
        return self._scaled(stored.astype(np.float32))

    def averaged(self, stored: Stored, ratio_y: float, ratio_x: float) -> NDArray[np.float32]:
        """Return decoded values averaged by area. Averages first: there are fewer values to decode.

        For 8-bit brightness that is not the same as averaging reflectance. It shapes the sharp image alone: its coarse
        form is made from it in reflectance, so the relation between both, which is learned, stays that of a sensor.
        """
        if ratio_y == ratio_x == 1:
            return self.decode(stored)
        return self._scaled(area_average(stored, ratio_y, ratio_x))

    def _scaled(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        if self.encoded:
            return pixels / np.float32(255.0)
        return pixels * np.float32(self.scale) + np.float32(self.offset)


@dataclass(frozen=True, eq=False)
class Image:
    """One image of `bands`. Its split is that of its place, or varies within the image as `ground` says."""

    source: str
    label: str
    place: str
    split: Split | None  # None: as in `ground`
    ground: SplitMap | None
    reader: Reader
    values: Values
    gsd_m: tuple[float, float]  # (y, x) of stored pixels
    target_gsd_m: tuple[float, float]
    evaluate_gsd_m: float
    weight: float
    bands: tuple[str, ...] = RGB
    georeference: Georeference | None = None  # None: not georeferenced
    coarse_px: int = 0  # of a pair: pixels per coarse pixel; its reader gives the coarse bands behind the sharp ones

    def of(self, bands: tuple[str, ...]) -> Image | None:
        """Return the image with only these bands, in this order, or None if it lacks one."""
        if bands == self.bands:
            return self
        if not set(bands) <= set(self.bands):
            return None
        return replace(self, bands=bands, reader=self.reader.selecting([self.bands.index(band) for band in bands]))

    @property
    def extent_m(self) -> tuple[float, float]:
        """Height and width on the ground in metres."""
        (ny, nx), (gsd_y, gsd_x) = self.reader.shape, self.gsd_m
        return ny * gsd_y, nx * gsd_x

    def check(self, pixels: NDArray[np.float32]) -> None:
        """Raise UsageError if decoded reflectance is implausible."""
        if not self.values.encoded:
            check_reflectance(f"source {self.source!r}: {self.label}", pixels)

    def share(self, split: Split) -> float:
        """Return the share of the image in `split`."""
        if self.ground is not None and self.split is None:
            return self.ground.share(split)
        return float(self.split == split)


@dataclass(frozen=True)
class FileReader:
    """Reader of bands (1-based) of a local raster file."""

    path: str
    bands: tuple[int, ...]
    shape: tuple[int, int]
    itemsize: int
    masked: bool = False

    def read(self, y: int, x: int, ny: int, nx: int) -> Stored:
        """Read a window as `Reader.read`. Raises ReadError if the file is damaged."""
        import rasterio

        with reading(self.path), rasterio.Env(GDAL_CACHEMAX=GDAL_CACHE_BYTES):
            return self.read_here(y, x, ny, nx)

    def mask(self, y: int, x: int, ny: int, nx: int) -> NDArray[np.bool_] | None:
        """Read a mask as `Reader.mask`. Raises ReadError for a damaged file."""
        import rasterio

        if not self.masked:
            return None
        with reading(self.path), rasterio.Env(GDAL_CACHEMAX=GDAL_CACHE_BYTES):
            return self.mask_here(y, x, ny, nx)

    def selecting(self, places: Sequence[int]) -> FileReader:
        """As `Reader.selecting`."""
        return replace(self, bands=tuple(self.bands[place] for place in places))

    def read_here(self, y: int, x: int, ny: int, nx: int) -> Stored:
        """Read a window within the caller's rasterio.Env."""
        lazy = opened(self.path).isel(band=[band - 1 for band in self.bands], y=slice(y, y + ny), x=slice(x, x + nx))
        with unplaced():
            stored: Stored = lazy.data.compute(scheduler="synchronous")
        return stored

    def mask_here(self, y: int, x: int, ny: int, nx: int) -> NDArray[np.bool_]:
        """Read a mask in the caller's rasterio.Env."""
        from rasterio.windows import Window

        found: NDArray[np.bool_] = _opened_mask(self.path, os.getpid()).dataset_mask(window=Window(x, y, nx, ny)) > 0
        return found


def opened(path: str) -> DataArray:
    """Return a file or address as a lazy array (band, y, x). It is opened once per process."""
    return _opened(path, os.getpid())


@lru_cache(maxsize=OPEN_FILES)
def _opened(path: str, pid: int) -> DataArray:
    """Open a raster. Cached by process: after a fork, a file opened before shares its position with the parent."""
    return open_raster(path)


@lru_cache(maxsize=OPEN_FILES)
def _opened_mask(path: str, pid: int) -> DatasetReader:
    import rasterio

    with unplaced():
        return rasterio.open(path)


def close_files() -> None:
    """Close all cached files of this process, so that a failed file is reopened."""
    _opened.cache_clear()
    _opened_mask.cache_clear()


def files_of(source: Source) -> list[Path]:
    """Return the raster files of a source, sorted by path: one file, the matches of a glob, or a folder's images.

    Folders are searched recursively. Raises UsageError if a folder holds no image.
    """
    path = Path(source.path)
    if path.is_file():
        return [path]
    if path.is_dir():
        found = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES)
        if not found:
            raise source.fault(f"{path} holds no image", f"files such as {', '.join(SUFFIXES)}")
        return found
    root = glob_root(path)
    return sorted(p for p in root.glob(str(path.relative_to(root))) if p.is_file())


def file_images(source: Source) -> list[Image]:
    """Return the images of a source's files.

    Raises UsageError for missing bands, an unknown GSD or an image coarser than its target.
    """
    return [
        image
        for path in files_of(source)
        for image in header_images(source, str(path), path, local_header(source, path))
    ]


def header_images(source: Source, label: str, path: Path, header: Header) -> list[Image]:
    """Return one image per date of a local file with a known header."""
    readers = file_readers(source, label, path, header)
    return [make_image(source, label, path, header, reader) for reader in readers]


def file_readers(source: Source, label: str, path: Path, header: Header) -> list[FileReader]:
    """Return the readers of `source.offers` of a local file, one per date."""
    itemsize = np.dtype(header.dtype).itemsize
    numbers = band_numbers(source, label, header)
    return [FileReader(str(path), bands, header.shape, itemsize, header.masked) for bands in numbers]


def band_numbers(source: Source, label: str, header: Header) -> list[tuple[int, ...]]:
    """Return the raster bands (1-based) of `source.offers` per date. Raises UsageError if the file lacks one."""
    per_date = bands_per_date(source, label, header)
    if header.palette:
        raise source.fault(f"{label} holds indices into a palette", "colours", "gdal_translate -expand rgb")
    if per_date < len(RGB) and not source.bands:
        held = f"{per_date} band{'' if per_date == 1 else 's'}" + (" per date" if source.dates > 1 else "")
        grey = "leave it out; or, to learn edges from one band, bands = { B04 = 1, B03 = 1, B02 = 1 }"
        raise source.fault(f"{label} holds {held}", "red, green and blue", grey)
    stated = dict(source.bands) or {band: index for index, band in enumerate(RGB, 1)}
    wanted = [stated[band] for band in source.offers]
    if not all(isinstance(band, int) for band in wanted):
        raise source.fault(f"bands by name for {label}", "1-based numbers of its bands")
    absent = [band for band in wanted if not 1 <= int(band) <= per_date]
    if absent:
        held = f"{header.bands} bands" + (f", {per_date} per date" if source.dates > 1 else "")
        raise source.fault(f"band {absent[0]} of {label}, which holds {held}", f"1 to {per_date}", "correct bands")
    return [tuple(int(band) + n * per_date for band in wanted) for n in range(source.dates)]


def bands_per_date(source: Source, label: str, header: Header) -> int:
    """Return the number of bands per date. Raises UsageError if the bands do not divide evenly."""
    if header.bands % source.dates:
        found = f"{label} holds {header.bands} bands and dates = {source.dates}"
        raise source.fault(found, "as many bands for each date")
    return header.bands // source.dates


def make_image(
    source: Source, label: str, path: Path, header: Header, reader: Reader, bands: tuple[str, ...] = ()
) -> Image:
    """Return the image of a reader of `bands` (default: the source's). Raises UsageError if file and source differ."""
    values = values_of(source, label, header)
    gsd_m = gsd_of(source, label, header)
    low, high = source.target_gsd_m
    native = max(gsd_m)
    if source.role == "hr" and native > low * COARSER_BY:
        if source.target_stated:
            raise source.fault(
                f"{label} has pixels of {native:.3g} m and target_gsd_m = [{low:g}, {high:g}]",
                f"images at least as fine as {low:g} m",
                f"target_gsd_m = [{native:.3g}, {max(high, native):.3g}], or leave it out",
            )
        if native > high * COARSER_BY:
            raise source.fault(
                f"{label} has pixels of {native:.3g} m",
                f"at most {high:g} m, for a network of that GSD",
                f"leave it out, or state target_gsd_m = {native:.3g} to learn from that scale too",
            )
        low = native
    evaluate = max(source.evaluate_gsd_m, native)
    place, split, ground = _placed(source, path, header, native)
    targets = (max(low, native), max(high, native))
    return Image(
        source.name, label, place, split, ground, reader, values, gsd_m, targets, evaluate, source.weight,
        bands or source.offers, Georeference(header.crs, header.affine, header.shape) if header.crs else None,
    )  # fmt: skip


def values_of(source: Source, label: str, header: Header) -> Values:
    """Return the value encoding of an image. Raises UsageError if the dtype contradicts the source."""
    if source.role in ("hr", "pair") and source.values == "8-bit":
        if header.dtype != "uint8":
            raise source.fault(
                f"{label} holds {header.dtype} and values = '8-bit'", "uint8", 'values = "reflectance" with its scale'
            )
        return Values(encoded=True, nodata=header.nodata or None)  # nodata 0 is black anyway
    return Values(False, source.scale, source.offset, header.nodata)


def _placed(source: Source, path: Path, header: Header, gsd_m: float) -> tuple[str, Split | None, SplitMap | None]:
    """Return (place, split, split map) from the source's regex, else the georeference, else the file name."""
    forced: Split | None = None if source.split == "by-place" else source.split
    if source.place:
        place = named_place(source, path)
        return place, forced or split_of(place), None
    if header.crs and forced is None:
        ground = split_map(Georeference(header.crs, header.affine, header.shape), gsd_m)
        if len(ground.places) == 1:
            return ground.places[0], split_of(ground.places[0]), None
        return "", None, ground
    place = f"{source.family or source.name}/{short_name(source, path)}"
    return place, forced or split_of(place), None


def named_place(source: Source, path: Path) -> str:
    """Return the place that the source's regex finds in the file name, or in the path if the regex has a slash."""
    text = str(path) if "/" in source.place else path.name
    found = re.search(source.place, text)
    if found is None or found[1] is None:
        raise source.fault(f"{text} names no place", f"a match of {source.place!r}", "correct place")
    return f"{source.family or source.name}/{found[1]}"


def short_name(source: Source, path: Path) -> str:
    """Return the file's path relative to the source's path, without suffix."""
    root = glob_root(Path(source.path)) if source.path else path.parent
    inside = path.relative_to(root) if path.is_relative_to(root) and path != root else Path(path.name)
    return str(inside.with_suffix(""))
