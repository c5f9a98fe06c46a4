"""Stores of triplets: chips of sharp images, coarse images of the same ground, and maps of it (`training.triplets`).

A Zarr group with `sharp` (chip, band, y, x) and `coarse` (chip, band, y / scale, x / scale), reflectance times 10 000,
`map` (chip, y, x), 0 for other ground and else the number of a class from 1, and where each chip lies: `epsg`,
`left_m` and `top_m` (chip). Its attributes name bands, classes, scale, GSD, and who made imagery and map.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import UsageError
from pipeline.superres.map_classes import map_classes
from training.data.headers import Header
from training.data.images import Values, make_image
from training.data.rasters import reading

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import zarr
    from numpy.typing import NDArray

    from pipeline.grid.grid import Grid
    from training.data.images import Image
    from training.data.training_file import Source

CLASSES = tuple(one.name for one in map_classes())
FORMAT, VERSION = "triplets", 1
UNITS = 10_000  # of stored reflectance
_PLACE = {"epsg": "int32", "left_m": "float64", "top_m": "float64"}


@dataclass(frozen=True)
class Triplet:
    """One chip: reflectance (bands, n, n) and (bands, n / scale, n / scale), classes (n, n), and its grid."""

    sharp: NDArray[np.float32]
    coarse: NDArray[np.float32]
    of_map: NDArray[np.uint8]
    grid: Grid


class Writer:
    """A new store, to which chips are appended."""

    def __init__(self, path: Path, attributes: Mapping[str, Any], bands: int, side_px: int, scale: int) -> None:
        import zarr

        self.group = zarr.open_group(
            str(path), mode="w-", attributes={"format": FORMAT, "version": VERSION, **attributes}
        )
        small = side_px // scale
        self._add("sharp", "uint16", (bands, side_px, side_px), ("band", "y", "x"))
        self._add("coarse", "uint16", (bands, small, small), ("band", "y_coarse", "x_coarse"))
        self._add("map", "uint8", (side_px, side_px), ("y", "x"))
        for name, dtype in _PLACE.items():
            self._add(name, dtype, (), ())
        self.count = 0
        self.shown = np.zeros(len(attributes["classes"]) + 1, np.int64)  # pixels by class, other ground first

    def _add(self, name: str, dtype: str, shape: tuple[int, ...], names: tuple[str, ...]) -> None:
        chunks = (1, *shape) if shape else (1024,)
        self.group.create_array(name, shape=(0, *shape), dtype=dtype, chunks=chunks, dimension_names=("chip", *names))

    def add(self, chip: Triplet) -> None:
        """Append a chip."""
        place = {"epsg": chip.grid.epsg, "left_m": chip.grid.left_m, "top_m": chip.grid.top_m}
        images = {"sharp": _stored(chip.sharp), "coarse": _stored(chip.coarse), "map": chip.of_map}
        for name, values in {**images, **place}.items():
            array = array_of(self.group, name)
            array.append(np.asarray(values, array.dtype)[None])
        self.shown += np.bincount(chip.of_map.ravel(), minlength=len(self.shown))
        self.count += 1

    def finish(self) -> None:
        """Write which classes the maps show, as shares of their pixels."""
        classes = self.group.attrs["classes"]
        assert isinstance(classes, list)
        shares = (self.shown[1:] / max(int(self.shown.sum()), 1)).tolist()
        self.group.attrs["shown"] = dict(zip(map(str, classes), shares, strict=True))


def _stored(reflectance: NDArray[np.float32]) -> NDArray[np.uint16]:
    return np.clip(np.round(UNITS * reflectance), 0, np.iinfo(np.uint16).max).astype(np.uint16)


@dataclass(frozen=True)
class TripletReader:
    """Reader of one chip: sharp bands, coarse bands, repeated, and the number of the class, 0 for other ground."""

    store: str
    chip: int
    bands: tuple[int, ...]
    scale: int
    shape: tuple[int, int]
    numbers: tuple[int, ...]  # of our classes, by the store's
    itemsize: int = 4

    def read(self, y: int, x: int, ny: int, nx: int) -> NDArray[np.float32]:
        """Return (2 * bands + 1, ny, nx) of a window. Raises ReadError if the store is damaged."""
        s = self.scale
        top, left, bottom, right = y // s, x // s, -(-(y + ny) // s), -(-(x + nx) // s)
        with reading(self.store):
            group = opened(self.store)
            sharp = np.asarray(array_of(group, "sharp")[self.chip, :, y : y + ny, x : x + nx])[list(self.bands)]
            coarse = np.asarray(array_of(group, "coarse")[self.chip, :, top:bottom, left:right])[list(self.bands)]
            of_map = np.asarray(array_of(group, "map")[self.chip, y : y + ny, x : x + nx])
        fine = coarse.repeat(s, axis=1).repeat(s, axis=2)[:, y - s * top :, x - s * left :][:, :ny, :nx]
        classes = np.array(self.numbers, np.float32)[of_map][None]
        return np.concatenate([sharp / np.float32(UNITS), fine / np.float32(UNITS), classes])

    def mask(self, y: int, x: int, ny: int, nx: int) -> None:
        """Return None: all of a chip is valid."""
        del y, x, ny, nx

    def selecting(self, places: Sequence[int]) -> TripletReader:
        """As `Reader.selecting`."""
        return replace(self, bands=tuple(self.bands[place] for place in places))


def array_of(group: zarr.Group, name: str) -> zarr.Array[Any]:
    """Return an array of a store of triplets. Raises TypeError if it holds a group of that name."""
    import zarr

    found = group[name]
    if not isinstance(found, zarr.Array):
        msg = f"{name} is a group; expected an array"
        raise TypeError(msg)
    return found


def opened(store: str) -> zarr.Group:
    """Return a store of triplets, opened once per process."""
    return _opened(store, os.getpid())


@lru_cache(maxsize=8)
def _opened(store: str, pid: int) -> zarr.Group:
    import zarr

    del pid
    return zarr.open_group(store, mode="r")


def described(source: Source) -> dict[str, Any]:
    """Return the attributes of a source's store. Raises UsageError if it is no finished store of triplets."""
    try:
        found = dict(opened(source.zarr).attrs)
    except (OSError, ValueError, KeyError) as error:
        raise source.fault(f"{source.zarr} cannot be opened as a Zarr store ({error})", "a store of triplets") from None
    if found.get("format") != FORMAT or found.get("version") != VERSION or "shown" not in found:
        raise source.fault(f"{source.zarr} is no finished store of triplets", "one of training.triplets")
    return found


def credits_of(source: Source) -> str:
    """Return who made imagery and map of a store, and their licences, as the store says."""
    found = described(source)
    return "; ".join(str(found[name]) for name in ("licence", "credit") if found.get(name))


def shown_classes(source: Source) -> tuple[str, ...]:
    """Return the classes that the maps of a store show."""
    return tuple(name for name, share in described(source)["shown"].items() if share > 0)


def triplet_images(source: Source, scale: int) -> list[Image]:
    """Return the chips of a source of role "triplets" as images with coarse images and maps.

    Raises UsageError for a store of another scale, or of classes that ours are not.
    """
    found = described(source)
    if found["scale"] != scale:
        raise source.fault(f"{source.zarr} holds triplets of x{found['scale']}", f"x{scale}, as the network")
    if unknown := [name for name in found["classes"] if name not in CLASSES]:
        raise source.fault(f"{source.zarr} has maps with the class {unknown[0]!r}", f"some of {', '.join(CLASSES)}")
    numbers = (0, *(CLASSES.index(name) + 1 for name in found["classes"]))
    bands, gsd_m = tuple(found["bands"]), float(found["gsd_m"])
    group = opened(source.zarr)
    side = int(array_of(group, "sharp").shape[-1])
    places = [np.asarray(array_of(group, name)[:]).tolist() for name in _PLACE]
    weight = source.weight / max(len(places[0]), 1) ** 0.5  # together as one image of their area
    stated = replace(
        source, target_gsd_m=(gsd_m, gsd_m), evaluate_gsd_m=gsd_m, gsd_m=gsd_m, weight=weight, values="reflectance"
    )
    images = []
    for chip, (epsg, left_m, top_m) in enumerate(zip(*places, strict=True)):
        affine = (gsd_m, 0.0, left_m, 0.0, -gsd_m, top_m)
        header = Header((side, side), 2 * len(bands) + 1, "float32", None, f"EPSG:{epsg}", affine)
        reader = TripletReader(source.zarr, chip, tuple(range(len(bands))), scale, (side, side), numbers)
        image = make_image(stated, f"chip {chip} of {source.zarr}", Path(source.zarr), header, reader, bands)
        images.append(replace(image, values=Values(encoded=False), coarse_px=scale))
    if not images:
        raise source.fault(f"{source.zarr} holds no chip", "at least one")
    return images


def one_hot(of_map: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a channel of 0 or 1 per class (classes, n, m) of numbers (n, m), 0 for other ground."""
    numbers = np.arange(1, len(CLASSES) + 1, dtype=np.uint8)[:, None, None]
    found: NDArray[np.uint8] = (of_map[None] == numbers).astype(np.uint8)
    return found


def numbered(channels: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return the numbers (n, m) of classes that exclude each other, given as channels (classes, n, m)."""
    there = channels > 0.5
    found: NDArray[np.uint8] = np.where(there.any(0), there.argmax(0) + 1, 0).astype(np.uint8)
    return found


def require_new(path: Path) -> None:
    """Raise UsageError if something is there already."""
    if path.exists():
        raise UsageError(f"{path} exists", "a new store", "another --out, or remove it")
