"""Records of stored overviews, one small JSON file per block under `_run/overviews`."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import repeat
from typing import TYPE_CHECKING

from pipeline.store import sealed
from pipeline.store.keys import RUN_FOLDER
from pipeline.store.receipts import stored

if TYPE_CHECKING:
    from pipeline.store.place import Place

FOLDER = f"{RUN_FOLDER}/overviews"


@dataclass(frozen=True)
class Record:
    """The units with receipts that a block's overviews were made from, what was stored, and how long it took.

    `cpu_seconds` is None in stores of versions that did not measure it.
    """

    plan_digest: str
    units: tuple[str, ...]
    chunks: dict[str, list[int]]  # as in a receipt: "array/chunk key" within the zone's group -> [bytes, crc32]
    seconds: float = 0.0
    cpu_seconds: float | None = None


def write(store: Place, name: str, record: Record) -> None:
    """Write the record of the block `name`; its overviews must already be in place."""
    store.write(key_of(name), sealed.dump(asdict(record)))


def forget(store: Place, name: str) -> None:
    """Delete a record, so that its overviews are made again."""
    store.delete(key_of(name))


def read(store: Place, digest: str, name: str) -> Record | None:
    """Read the record of that name; None if it is missing, damaged or of another plan."""
    try:
        content = sealed.load(store.read(key_of(name)) or b"")
        record = Record(**{**content, "units": tuple(content["units"]), "chunks": stored(content["chunks"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return record if record.plan_digest == digest else None


def read_many(store: Place, digest: str, names: list[str]) -> list[Record | None]:
    """Read the records of many names, in their order."""
    with ThreadPoolExecutor(store.hands) as pool:
        return list(pool.map(read, repeat(store), repeat(digest), names))


def read_all(store: Place, digest: str) -> dict[str, Record]:
    """Return {name: record} of all records of this plan."""
    keys = (key for key in store.names(FOLDER) if key.endswith(".json"))
    names = [key.removeprefix(f"{FOLDER}/").removesuffix(".json") for key in keys]
    found = zip(names, read_many(store, digest, names), strict=True)
    return {name: record for name, record in found if record is not None}


def key_of(name: str) -> str:
    """Return the key of the record of that name."""
    return f"{FOLDER}/{name}.json"
