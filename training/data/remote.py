"""Sources in STAC catalogues: images of any collection, and Sentinel-2 scenes.

Host allow-list, URL signing and retries are those of `pipeline.archive`.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from training.data.headers import read_header
from training.data.images import FileReader, band_numbers, close_files, make_image

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from pipeline.aoi.aoi import Aoi
    from pipeline.archive.catalog import Catalog
    from pipeline.archive.image_search import RasterItem
    from pipeline.archive.read.access import Access
    from pipeline.archive.scene import Scene
    from training.data.headers import Header
    from training.data.images import Image
    from training.data.rasters import Stored
    from training.data.training_file import Source

T = TypeVar("T")


@dataclass(frozen=True)
class RemoteReader:
    """Reader of bands (1-based) of a remote item. URLs are signed in the process that reads."""

    item: str
    href: str
    access: Access
    bands: tuple[int, ...]
    shape: tuple[int, int]
    itemsize: int
    masked: bool = False

    def mask(self, y: int, x: int, ny: int, nx: int) -> NDArray[np.bool_] | None:
        """Read a mask as `Reader.mask`. Raises ReadError after retries."""
        if not self.masked:
            return None
        return _reached(self.access, self.item, self.href, lambda path: self._local(path).mask_here(y, x, ny, nx))

    def read(self, y: int, x: int, ny: int, nx: int) -> Stored:
        """Read a window as `Reader.read`. Raises ReadError after retries."""
        return _reached(self.access, self.item, self.href, lambda path: self._local(path).read_here(y, x, ny, nx))

    def _local(self, path: str) -> FileReader:
        return FileReader(path, self.bands, self.shape, self.itemsize, self.masked)

    def selecting(self, places: Sequence[int]) -> RemoteReader:
        """As `Reader.selecting`."""
        return replace(self, bands=tuple(self.bands[place] for place in places))


def _reached(access: Access, item: str, href: str, use: Callable[[str], T]) -> T:
    """Call `use` with the file's GDAL path, with the retries of `Access`. Raises ReadError."""
    import rasterio

    from pipeline.archive.read.band_file import gdal_options

    def attempt() -> T:
        try:
            with rasterio.Env(**gdal_options(access)):
                return use(access.href(href))
        except BaseException:
            close_files()
            raise

    return access.reading(href, attempt, what=item)


def remote_images(source: Source) -> list[Image]:
    """Return the images of the items that intersect the source's area.

    Raises UsageError if there is none or if one does not fit the source.
    """
    from pipeline.archive.image_search import search_rasters
    from pipeline.archive.read.gdal import ALLOWED_DRIVERS
    from pipeline.archive.search import summarised

    catalog, aoi, start, end = _asked(source)
    found = search_rasters(catalog, aoi, start, end, asset=source.asset, collection=source.collection)
    if not found.items:
        reasons = "; ".join([*found.notes, *summarised(found.rejected)][:3])
        raise source.fault(
            f"no item of {source.catalog} {source.collection} with {source.asset!r} in {source.aoi}"
            + (f" ({reasons})" if reasons else ""),
            "at least one",
            "widen aoi or period",
        )
    access = catalog.access()

    def header(item: RasterItem) -> Header:
        return _reached(access, item.id, item.href, read_header)

    with ThreadPoolExecutor(catalog.limits.connections) as pool:
        headers = list(pool.map(header, found.items))
    for item, read in zip(found.items, headers, strict=True):
        if read.driver not in ALLOWED_DRIVERS:  # GDAL detects the format from the content, not the name
            raise source.fault(f"{item.id} is a file of format {read.driver}", " or ".join(ALLOWED_DRIVERS))
    return [
        image
        for item, header in zip(found.items, headers, strict=True)
        for image in _item_images(source, item, header, access)
    ]


def _item_images(source: Source, item: RasterItem, header: Header, access: Access) -> list[Image]:
    itemsize = np.dtype(header.dtype).itemsize
    return [
        make_image(
            source, item.id, Path(item.id), header,
            RemoteReader(item.id, item.href, access, bands, header.shape, itemsize, header.masked),
        )
        for bands in band_numbers(source, item.id, header)
    ]  # fmt: skip


def remote_scenes(source: Source) -> tuple[list[Scene], Access, Aoi]:
    """Return the Sentinel-2 scenes of the source's area and period, their access, and the area.

    Raises UsageError if there is no scene.
    """
    from pipeline.archive.scene import OPEN
    from pipeline.archive.search import search, summarised
    from pipeline.bands import RGB

    catalog, aoi, start, end = _asked(source)
    catalog = replace(catalog, collection=source.collection or catalog.collection)
    if source.offset_dn is not None:
        catalog = catalog.with_offset(source.offset_dn)
    found = search(catalog, aoi, start, end, source.max_cloud, bands=(*RGB, "B08"))
    told = [scene for scene in found.scenes if scene.offset.standing != OPEN]
    placed = [scene for scene in told if scene.rasters]
    if not placed:
        unknown = (
            [f"the BOA offset of {len(found.scenes) - len(told)} is unknown"] if len(told) < len(found.scenes) else []
        )
        reasons = (
            "; ".join([*unknown, *found.notes, *summarised(found.rejected)][:3]) or "none says where its pixels lie"
        )
        raise source.fault(f"no scene in {source.aoi} ({reasons})", "at least one", "widen aoi, period or max_cloud")
    return placed, catalog.access(), aoi


def _asked(source: Source) -> tuple[Catalog, Aoi, str | None, str | None]:
    """Return catalogue, area and period (first and last day) of a source. Raises UsageError that names the source."""
    from pipeline.aoi.aoi import read_aoi
    from pipeline.aoi.period import FIRST_DAY, parse_period
    from pipeline.archive.catalog import load_catalog
    from pipeline.errors import UsageError

    try:
        start, _, end = source.period.partition("/")
        since = FIRST_DAY if source.role == "sentinel2" else None
        first, last = parse_period(start or None, (end if "/" in source.period else start) or None, since=since)
        return load_catalog(source.catalog), read_aoi(source.aoi), first, last
    except UsageError as error:
        raise source.fault(error.found, error.expected, error.cure) from None
