"""Cloud-optimised GeoTIFFs of a finished store, written in constant memory.

A window is read block by block, all bands of a block at once, into tiled, compressed temporary files. GDAL's COG driver
then builds the overviews and the final layout. A file appears under its name only when it is complete and its sums have
been compared with those of the pixels read. No VRT is used, because that driver is disabled (`archive/read/gdal.py`).
"""

from __future__ import annotations

import shutil
from collections import Counter, defaultdict
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.bands import TARGET_GSD_M
from pipeline.errors import StorageError, UsageError
from pipeline.products.blocks import Stored
from pipeline.products.cog_item import Written, item_of, may_extend, write_item
from pipeline.products.geotiff import date_image, describe, profile
from pipeline.products.tiff_overviews import write_means
from pipeline.store.current import unchanged
from pipeline.store.gdal_names import of_classes, of_file
from pipeline.store.layout import STATUS_COMPLETE
from pipeline.store.levels import gsd_name
from pipeline.store.place import place_of, storage_error, write_atomic
from pipeline.store.selection import CLASSES, Request, Slab, require_finished, root_attributes, select, store_name
from pipeline.temporary import require_parent, working_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import zarr
    from rasterio.io import DatasetWriter

from pipeline.store.place import Place, Where

COMPRESSIONS = ("deflate", "zstd")
_BLOCK_PX = 512  # of the finished files
_TIFF_STEP_PX = 16  # tiles of a TIFF are multiples of it
_CACHE_MIB = 128  # of GDAL, over all files of a process
_WORKING = {"driver": "GTiff", "tiled": True, "compress": "deflate", "zlevel": 1, "predictor": 2,
            "interleave": "band", "bigtiff": "if_safer", "sparse_ok": True}  # fmt: skip


@dataclass(frozen=True)
class Cog:
    """One file to write: `bands` of a slab, empty for classes."""

    path: Path
    slab: Slab
    bands: tuple[str, ...]

    @property
    def planes(self) -> list[int]:
        """Indices of the bands in the store."""
        where = dict(zip(self.slab.bands, self.slab.band_indices, strict=True))
        return [where[name] for name in self.bands]


@dataclass(frozen=True)
class Export:
    """The files written, and notes for the user."""

    files: tuple[Path, ...]
    notes: tuple[str, ...] = ()
    items: tuple[Path, ...] = ()  # STAC items that describe the files


def export_cogs(
    store: Where,
    out: Path,
    request: Request,
    *,
    single_file: bool = False,
    compress: str = COMPRESSIONS[0],
    overwrite: bool = False,
    allow_incomplete: bool = False,
    report: Callable[[str], None] = lambda _text: None,
) -> Export:
    """Write the COGs of a request into the folder `out`, which is created if its parent exists.

    Complete files are moved into place, those of one slab together. Raises UsageError if the store lacks the request or
    files exist, IntegrityError for damaged chunks, and StorageError if writing fails.
    """
    require_parent(out)
    place = place_of(store)
    attributes = root_attributes(place)
    notes = require_finished(place, attributes, allow_incomplete=allow_incomplete)
    slabs = select(place, attributes, request)
    names = _names(place, slabs)
    wanted = [_cogs(slab, out, name, single_file) for slab, name in zip(slabs, names, strict=True)]
    items = {out / f"{name}.json": slab for name, slab in zip(names, slabs, strict=True)}
    taken = [path for path, slab in items.items() if not may_extend(path, slab)]
    _require_free([*(cog.path for cogs in wanted for cog in cogs), *taken], overwrite=overwrite)
    complete = attributes.get("status") == STATUS_COMPLETE
    stored = Stored(place, str(attributes["plan_digest"]), complete=complete)
    made = not out.exists()
    written: dict[str, list[Written]] = defaultdict(list)
    with _gdal(), _folder(out), unchanged(place) as require_unchanged:
        try:
            with working_folder(out, ".export-") as working:
                for number, cogs in enumerate(wanted, start=1):
                    report(f"{cogs[0].slab.variable} {cogs[0].slab.zone} {cogs[0].slab.date} ({number}/{len(wanted)})")
                    written[names[number - 1]] += _write_slab(stored, cogs, working, compress, require_unchanged)
            for path, slab in items.items():
                write_item(path, item_of(path.stem, written[path.stem]), slab)
        finally:
            if made:
                with suppress(OSError):  # the folder is not empty
                    out.rmdir()
    if stored.hidden:
        notes.append(f"{len(stored.hidden)} chunk(s) that no receipt names were left out as nodata")
    return Export(tuple(cog.path for cogs in wanted for cog in cogs), tuple(notes), tuple(items))


def _names(place: Place, slabs: list[Slab]) -> list[str]:
    """Return slab names without the variable: store, zone, GSD below 2.5 m, and day, with the time if days repeat."""
    store = store_name(place)
    days = Counter((slab.zone, slab.variable, slab.date) for slab in slabs)
    moments = [
        slab.date if days[slab.zone, slab.variable, slab.date] == 1 else slab.time_utc.replace(":", "")
        for slab in slabs
    ]
    finer = [f"_{gsd_name(slab.gsd_m)}" if slab.gsd_m < TARGET_GSD_M else "" for slab in slabs]
    return [f"{store}_{slab.zone}{gsd}_{moment}" for slab, gsd, moment in zip(slabs, finer, moments, strict=True)]


def _cogs(slab: Slab, out: Path, name: str, single_file: bool) -> list[Cog]:
    if single_file or not slab.bands:
        return [Cog(out / f"{name}_{slab.variable}.tif", slab, slab.bands)]
    suffix = "" if slab.variable == "reflectance" else f"_{slab.variable}"
    return [Cog(out / f"{name}_{band}{suffix}.tif", slab, (band,)) for band in slab.bands]


def _require_free(paths: list[Path], *, overwrite: bool) -> None:
    taken = [path for path in paths if path.exists()]
    if taken and not overwrite:
        more = f" and {len(taken) - 1} more" if len(taken) > 1 else ""
        raise UsageError(f"{taken[0]} exists{more}", "a folder without files of these names", "--overwrite")


@contextmanager
def _folder(out: Path) -> Iterator[None]:
    """Create the folder. Write errors of the system and of GDAL become StorageErrors."""
    from rasterio._err import CPLE_BaseError
    from rasterio.errors import RasterioError

    try:
        out.mkdir(exist_ok=True)
        yield
    except FileExistsError as error:
        raise StorageError(f"{out} is a file", "a folder, which may be new", "choose another --out") from error
    except (RasterioError, CPLE_BaseError) as error:
        raise StorageError(f"writing into {out} failed: {error}", cure="free space or choose another --out") from error
    except OSError as error:
        raise storage_error(error, out) from error


@contextmanager
def _gdal() -> Iterator[None]:
    import rasterio

    with rasterio.Env(GDAL_CACHEMAX=_CACHE_MIB, GDAL_PAM_ENABLED="NO", GDAL_NUM_THREADS="ALL_CPUS"):
        yield


def _write_slab(
    stored: Stored, cogs: list[Cog], working: Path, compress: str, require_unchanged: Callable[[], None]
) -> list[Written]:
    """Write the files of one slab, move them into place together if the store has not changed, and return them."""
    slab = cogs[0].slab
    array = stored.array(slab)
    raws = [working / f"{number}.raw.tif" for number in range(len(cogs))]
    sums = _stream(stored, array, cogs, raws)
    for cog, raw, expected in zip(cogs, raws, sums, strict=True):
        finished = working / cog.path.name
        _require_room(working, 2 * raw.stat().st_size)
        _translate(raw, finished, slab, compress)
        raw.unlink()
        if _sums(finished) != expected:
            raise StorageError(f"{cog.path} was not written as it should be", "the sums of what was read", "try again")
    meanings = tuple(str(array.attrs.get("flag_meanings", "")).split()) if slab.variable in CLASSES else ()
    require_unchanged()
    for cog in cogs:
        if meanings:
            _name_classes(cog, meanings)
        (working / cog.path.name).replace(cog.path)
    return [Written(cog.path, slab, cog.bands, meanings) for cog in cogs]


def _name_classes(cog: Cog, meanings: tuple[str, ...]) -> None:
    """Write class names to the `.aux.xml`, the only place where GDAL reads them. QGIS uses them as labels."""
    names = of_file(of_classes(cog.slab.variable, " ".join(meanings), (cog.slab.time_utc,)))
    write_atomic(cog.path.with_name(f"{cog.path.name}.aux.xml"), names)


def _stream(stored: Stored, array: zarr.Array[Any], cogs: list[Cog], raws: list[Path]) -> list[list[int]]:
    """Copy the slab into the temporary files, block by block. Return the sums of DN per file and band.

    Blocks are tiles of the files. Without a bounding box they are also chunks; with one they touch up to four chunks.
    """
    import rasterio
    from rasterio.windows import Window as TiffWindow

    slab, window = cogs[0].slab, cogs[0].slab.window
    step = array.chunks[-1] * (1 if array.chunks[-1] % _TIFF_STEP_PX == 0 else 2)  # chunks are multiples of 24 px
    flags = _flags(array) if slab.variable in CLASSES else {}
    sums = [[0] * max(1, len(cog.bands)) for cog in cogs]
    with ExitStack() as stack:
        files: list[DatasetWriter] = []
        for cog, raw in zip(cogs, raws, strict=True):
            options = {**profile(slab, cog.bands), **_WORKING, "blockxsize": step, "blockysize": step}
            files.append(stack.enter_context(rasterio.open(raw, "w", **options)))
            describe(files[-1], slab, cog.bands, flags)
        for block, values in stored.blocks(array, slab, step):
            _require_room(raws[0].parent, values[0].nbytes * sum(map(len, sums)))
            place = TiffWindow(block.col - window.col, block.row - window.row, block.nx, block.ny)
            for file, cog, total in zip(files, cogs, sums, strict=True):
                planes = values[cog.planes] if cog.bands else values
                file.write(planes, window=place)
                for number, plane in enumerate(planes):
                    total[number] += int(plane.sum(dtype=np.uint64))
    return sums


def _require_room(folder: Path, size: int) -> None:
    """Raise StorageError before the disk is full. libtiff reports that only at the end, after many messages."""
    free = shutil.disk_usage(folder).free
    if free < size:
        raise StorageError(
            f"{free / 2**20:.1f} MiB are left in {folder.parent}", f"{size / 2**20:.1f} MiB or more", "free space"
        )


def _flags(array: zarr.Array[Any]) -> dict[str, str]:
    """Return the class names, such as "class_4": "vegetation", and the array's long name."""
    stated = dict(array.attrs)
    meanings, values = str(stated.get("flag_meanings", "")).split(), stated.get("flag_values", [])
    pairs = zip(values, meanings, strict=True) if isinstance(values, list) and len(values) == len(meanings) else ()
    named = {f"class_{value}": meaning for value, meaning in pairs}
    return {"long_name": str(stated.get("long_name", "")), **named}


def _translate(raw: Path, finished: Path, slab: Slab, compress: str) -> None:
    """Convert a temporary file to a COG. GDAL builds the overviews of classes; those of numbers are supplied."""
    import rasterio.shutil

    means: list[Path] = []
    made = {"overview_resampling": "MODE", "overviews": "IGNORE_EXISTING"}
    if slab.variable not in CLASSES:
        with rasterio.open(raw) as file:
            options = {"count": file.count, "dtype": file.dtypes[0], "nodata": file.nodata, **_WORKING,
                       "blockxsize": _BLOCK_PX, "blockysize": _BLOCK_PX}  # fmt: skip
        means = write_means(raw, int(options["nodata"]), _BLOCK_PX, options)
        made = {"overviews": "AUTO" if means else "NONE"}
    rasterio.shutil.copy(
        raw, finished, driver="COG", compress=compress, predictor="YES", blocksize=_BLOCK_PX,
        bigtiff="IF_SAFER", num_threads="ALL_CPUS", **made,
    )  # fmt: skip
    for path in means:
        path.unlink()
    date_image(finished)


def _sums(path: Path) -> list[int]:
    """Return the sum of DN per band, read block by block, all bands of a block at once."""
    import rasterio

    with rasterio.open(path) as file:
        totals = np.zeros(file.count, np.uint64)
        for _, block in file.block_windows(1):
            totals += file.read(window=block).sum(axis=(1, 2), dtype=np.uint64)
    return [int(total) for total in totals]
