"""The ledger: one receipt per unit, a small JSON file under `_run/receipts`, written after the unit's data.

A unit is done if its receipt names this plan and its chunks still match the receipt. Receipts are written atomically,
so a killed process leaves a valid receipt or none, in which case the unit is redone and writes the same bytes.
"""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import repeat
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from pipeline.errors import StorageError
from pipeline.store import sealed
from pipeline.store.keys import RUN_FOLDER
from pipeline.store.layout import verify_chunks
from pipeline.store.place import place_of
from pipeline.store.place import write_atomic as write_atomic

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pipeline.store.place import Where

_FOLDER = f"{RUN_FOLDER}/receipts"
_GROUP = re.compile(r"(utm\d\d[ns])?")
_CHUNK_KEY = re.compile(r"[A-Za-z0-9_.]+(/[A-Za-z0-9_.]+)*/c(/\d+)+")  # array path, then chunk indices
VERIFY_LEVELS = ("none", "size", "full")


@dataclass(frozen=True)
class Receipt:
    """What happened to one unit."""

    unit: str
    plan_digest: str
    status: str  # "done", or "empty" when no pixel was measured there
    group: str
    chunks: dict[str, list[int]]  # "array/chunk key" -> [bytes, crc32]
    valid: dict[str, int]  # band -> output pixels that are not nodata
    pixels: int  # output pixels of the unit's active chunks
    clear: int | None  # those measured and free of cloud and shadow by SCL; None without SCL
    scenes: tuple[str, ...]
    windows: int = 0
    attempts: int = 1
    seconds: dict[str, float] = field(default_factory=dict)  # stage -> wall seconds
    cpu_seconds: float | None = None  # processor time, of all threads; None in receipts of older versions
    peak_rss_mib: float = 0.0
    holes: dict[str, int] = field(default_factory=dict)  # band -> native pixels that are 0 where SCL says clear
    # measured output pixels by generated detail: "generated", "partial", "none"; None in receipts of older versions
    detail: dict[str, int] | None = None
    # cause -> measured pixels with partial or no detail, whose nearest cause in the model windows of their chunk it is
    withheld: dict[str, int] = field(default_factory=dict)
    number: int = 0  # of its pass
    arithmetic: str = ""  # processor and number format; empty in receipts of older versions


def stored(chunks: object) -> dict[str, list[int]]:
    """Return {chunk key: [bytes, crc32]} from JSON. Raises ValueError if it is malformed or a key leaves the store."""
    if not isinstance(chunks, dict):
        raise ValueError("chunks are no object")
    for key, fact in chunks.items():
        if not _CHUNK_KEY.fullmatch(key) or ".." in key.split("/"):
            raise ValueError(f"{key!r} names no chunk")
        if not isinstance(fact, list) or len(fact) != 2 or not all(type(number) is int for number in fact):
            raise ValueError(f"{key!r} is not described by its size and crc32")
    return chunks


class Ledger:
    """The receipts of one store."""

    def __init__(self, store: Where, plan_digest: str) -> None:
        self._place = place_of(store)
        self._digest = plan_digest

    @staticmethod
    def key(unit: str) -> str:
        """Return the key of the receipt of a unit."""
        return f"{_FOLDER}/{unit}.json"

    def record(self, receipt: Receipt) -> None:
        """Write a receipt; the unit's data must already be in place."""
        if receipt.plan_digest != self._digest:
            raise StorageError(f"receipt of {receipt.unit} names plan {receipt.plan_digest[:12]}", self._digest[:12])
        self._place.write(self.key(receipt.unit), sealed.dump(asdict(receipt)))

    def read(self, unit: str) -> Receipt | None:
        """Return the receipt of `unit`; None if it is missing, damaged or of another plan."""
        try:
            content = sealed.load(self._place.read(self.key(unit)) or b"")
            receipt = Receipt(**{**content, "scenes": tuple(content["scenes"]), "chunks": stored(content["chunks"])})
        except (OSError, ValueError, TypeError, KeyError):
            return None
        ours = (receipt.plan_digest, receipt.unit) == (self._digest, unit) and _GROUP.fullmatch(str(receipt.group))
        return receipt if ours else None

    def read_all(self) -> list[Receipt]:
        """Return all valid receipts of this plan, in the order of unit names."""
        units = [PurePosixPath(key).stem for key in self._place.names(_FOLDER) if key.endswith(".json")]
        return [receipt for receipt, _ in self.survey(units, "none") if receipt is not None]

    def faults(self, unit: str, verify: str = "size") -> list[str]:
        """Return why `unit` does not count as done; empty if it does. `verify` is none, size or full."""
        return self._look(unit, verify)[1]

    def _look(self, unit: str, verify: str) -> tuple[Receipt | None, list[str]]:
        receipt = self.read(unit)
        if receipt is None:
            return None, ["no valid receipt"]
        if verify == "none":
            return receipt, []
        return receipt, verify_chunks(self._place, receipt.chunks, full=verify == "full", group=receipt.group)

    def survey(self, units: Iterable[str], verify: str) -> Iterator[tuple[Receipt | None, list[str]]]:
        """Yield receipt and faults of each unit, in order; concurrently if the place takes several requests at once."""
        if self._place.hands == 1:
            yield from (self._look(unit, verify) for unit in units)
            return
        with ThreadPoolExecutor(self._place.hands) as pool:
            yield from pool.map(self._look, units, repeat(verify))

    def dates(self) -> dict[str, float]:
        """Return {unit: seconds since 1970} of all receipts. They are not read, so some may be of other plans."""
        return {
            PurePosixPath(key).stem: when for key, when in self._place.dates(_FOLDER).items() if key.endswith(".json")
        }

    def sweep(self) -> int:
        """Remove temporary files of killed processes and return how many. Call it only while no run is active."""
        return self._place.sweep()
