"""Write whole-chunk regions of a store, verify stored chunks, and finish the store with a status.

Every chunk carries a zstd checksum, so damaged bytes raise on read. All-nodata chunks are not written, so receipts,
not chunks, tell which units are done.
"""

from __future__ import annotations

import json
import warnings
import zlib
from typing import TYPE_CHECKING, Any

from pipeline.errors import IntegrityError
from pipeline.store import sealed, uncertainty
from pipeline.store.keys import PLAN_KEY
from pipeline.store.nodes import array_at
from pipeline.store.place import place_of
from pipeline.store.place import storage_error as storage_error

if TYPE_CHECKING:
    from collections.abc import Mapping

    import zarr
    from numpy.typing import NDArray

    from pipeline.store.place import Place, Where

STATUS_INCOMPLETE, STATUS_COMPLETE = "incomplete", "complete"
STATUS_QUARANTINE = "complete_with_quarantine"


def group_name(epsg: int, zones: int) -> str:
    """Return the path of a zone's group within the store: the root if there is one zone, else "utm32n"."""
    return "" if zones == 1 else f"utm{epsg % 100:02d}{'n' if epsg // 100 == 326 else 's'}"


def band_parts(array: zarr.Array[Any]) -> list[str]:
    """Return the part of a chunk's key that numbers the chunks along `band`: ["0/"] if a chunk holds all bands.

    [""] for an array without bands.
    """
    if array.ndim < 4:
        return [""]
    return [f"{part}/" for part in range(-(-array.shape[1] // (array.shards or array.chunks)[1]))]


class RegionWriter:
    """Write whole chunks of one time step of one group; refuse regions that would cut a chunk.

    `level` is the path of one of the zone's levels, empty for 2.5 m.
    """

    def __init__(self, store: Where, group: str, time_index: int, level: str = "") -> None:
        import zarr

        self._place, self._prefix = place_of(store), f"{group}/" if group else ""
        self._level = f"{level}/" if level else ""
        path = "/".join(part for part in (group, level) if part)
        with self._place.reading():
            self._group = zarr.open_group(store=self._place.zarr_store(path), mode="r+", zarr_format=3)
        self._time = time_index

    def write(self, rows: slice, cols: slice, arrays: Mapping[str, NDArray[Any]]) -> dict[str, list[int]]:
        """Write `arrays` (..., ny, nx) at `rows`, `cols` of the level. Returns {chunk key: [bytes, crc32]} as stored.

        Keys are relative to the zone's group. Raises ValueError if the region is not made of whole chunks (or shards),
        StorageError if the write fails.
        """
        stored: dict[str, list[int]] = {}
        for name, values in arrays.items():
            with self._place.reading():
                array = array_at(self._group, name)
            self._check(array, rows, cols)
            lead = (self._time,) if values.ndim == 2 else (self._time, slice(None))
            stated = uncertainty.encoded(values, int(array.fill_value)) if name == "uncertainty" else values
            with self._place.writing():
                array[(*lead, rows, cols)] = stated
            keys = self._keys(array, rows, cols)
            stored.update(_chunk_facts(self._place, self._prefix, self._level + name, keys))
        return stored

    def _check(self, array: zarr.Array[Any], rows: slice, cols: slice) -> None:
        step = (array.shards or array.chunks)[-1]
        for part, length in ((rows, array.shape[-2]), (cols, array.shape[-1])):
            if part.start % step or (part.stop % step and part.stop != length):
                msg = f"region {rows}, {cols} cuts chunks of {step} px in two; a neighbour's pixels would be lost"
                raise ValueError(msg)

    def _keys(self, array: zarr.Array[Any], rows: slice, cols: slice) -> list[str]:
        step = (array.shards or array.chunks)[-1]
        return [
            f"c/{self._time}/{middle}{row}/{col}"
            for middle in band_parts(array)
            for row in range(rows.start // step, -(-rows.stop // step))
            for col in range(cols.start // step, -(-cols.stop // step))
        ]


def _chunk_facts(place: Place, prefix: str, array: str, keys: list[str]) -> dict[str, list[int]]:
    """Return {"array/key": [bytes, crc32]} of the chunks that exist; all-nodata chunks do not.

    Chunks are read back, so that a receipt describes what the store holds.
    """
    facts = {}
    for key in keys:
        content = place.read(f"{prefix}{array}/{key}")
        if content is not None:
            facts[f"{array}/{key}"] = [len(content), zlib.crc32(content)]
    return facts


def verify_chunks(store: Where, facts: Mapping[str, list[int]], *, full: bool, group: str = "") -> list[str]:
    """Return a fault for each recorded chunk that is missing, has the wrong size or (full) other bytes."""
    place, prefix = place_of(store), f"{group}/" if group else ""
    faults = []
    for key, (size, crc) in facts.items():
        content = place.read(prefix + key) if full else None
        found = len(content) if content is not None else None if full else place.size(prefix + key)
        if found is None:
            faults.append(f"{key} is missing")
        elif found != size:
            faults.append(f"{key} has {found} bytes, expected {size}")
        elif content is not None and zlib.crc32(content) != crc:
            faults.append(f"{key} has a different checksum than was recorded")
    return faults


def finish(store: Where, groups: list[str], attributes: Mapping[str, Any], status: str = STATUS_COMPLETE) -> None:
    """Set `status` on every group, the root last, and consolidate metadata. Raises StorageError."""
    import zarr

    place = place_of(store)
    with place.writing():
        for group in sorted(groups, key=len, reverse=True):
            folder = zarr.open_group(store=place.zarr_store(group), mode="r+", zarr_format=3)
            folder.attrs.update({**attributes, "status": status})
        if "" not in groups:
            root = zarr.open_group(store=place.zarr_store(), mode="r+", zarr_format=3)
            root.attrs.update({**attributes, "status": status})
        consolidate(place)


def consolidate(store: Where) -> None:
    """Write consolidated metadata, so that one request opens the store. Raises StorageError."""
    import zarr
    from zarr.errors import ZarrUserWarning

    place = place_of(store)
    with warnings.catch_warnings(), place.writing():
        # zarr warns that v3 does not specify consolidated metadata, and that the run folder is not a Zarr node
        warnings.simplefilter("ignore", ZarrUserWarning)
        zarr.consolidate_metadata(place.zarr_store())


def plan_content(store: Where) -> dict[str, Any] | None:
    """Read the frozen plan of a store; None if there is none. Raises ValueError if it is damaged.

    `pipeline.planning.plan` interprets it; this module only quotes it.
    """
    found = place_of(store).read(PLAN_KEY)
    return None if found is None else sealed.load(found)


def status(store: Where) -> str:
    """Return the status of a store. Raises IntegrityError if its root metadata cannot be read."""
    try:
        attributes = json.loads(place_of(store).read("zarr.json") or b"")["attributes"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IntegrityError(
            f"{store} has no readable zarr.json",
            "a store written by this pipeline",
            f"python -m pipeline.check {store} --verify full --repair writes it anew from the plan",
        ) from error
    return str(attributes.get("status", ""))
