"""What was stored of overviews: a record per block of them, as receipts are for units.

In: records. Out: small JSON files under `_run/overviews`. Imports keys and place.
"""

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
    """What a block's overviews rest on: the units that had receipts, what was stored, and how long it took."""

    plan_digest: str
    units: tuple[str, ...]
    chunks: dict[str, list[int]]  # as in a receipt: "array/chunk key" within the zone's group -> [bytes, crc32]
    seconds: float = 0.0


def write(store: Place, name: str, record: Record) -> None:
    """Put the record of the block `name`; its overviews must already be in place."""
    store.write(key_of(name), sealed.dump(asdict(record)))


def forget(store: Place, name: str) -> None:
    """Take a record away, so that its overviews are made again."""
    store.delete(key_of(name))


def read(store: Place, digest: str, name: str) -> Record | None:
    """The record of that name; None when there is none, it is damaged, or it belongs to another plan."""
    try:
        content = sealed.load(store.read(key_of(name)) or b"")
        record = Record(**{**content, "units": tuple(content["units"]), "chunks": stored(content["chunks"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return record if record.plan_digest == digest else None


def read_many(store: Place, digest: str, names: list[str]) -> list[Record | None]:
    """The same of many names, in their order."""
    with ThreadPoolExecutor(store.hands) as pool:
        return list(pool.map(read, repeat(store), repeat(digest), names))


def read_all(store: Place, digest: str) -> dict[str, Record]:
    """{name: record} of all that belong to this plan."""
    keys = (key for key in store.names(FOLDER) if key.endswith(".json"))
    names = [key.removeprefix(f"{FOLDER}/").removesuffix(".json") for key in keys]
    found = zip(names, read_many(store, digest, names), strict=True)
    return {name: record for name, record in found if record is not None}


def key_of(name: str) -> str:
    """Where the record of that name lies."""
    return f"{FOLDER}/{name}.json"
