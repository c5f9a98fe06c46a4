"""The ledger: one receipt per unit, written after its data, read back on resume.

In: receipts. Out: small JSON files under `_run/receipts`. Imports errors and layout; nothing of the other stations.

A unit counts as done when its receipt names this plan and its chunks are still what the receipt says. Receipts are
put in place by rename after the data, so a kill at any moment leaves either no receipt (the unit is redone, writing
the same bytes) or a true one.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from pipeline.errors import StorageError
from pipeline.store.layout import RUN_FOLDER, storage_error, verify_chunks

if TYPE_CHECKING:
    from pathlib import Path

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
    clear: int | None  # of them, measured and free of cloud and shadow by SCL; None without SCL
    scenes: tuple[str, ...]
    windows: int = 0
    attempts: int = 1
    seconds: dict[str, float] = field(default_factory=dict)  # stage -> wall seconds
    peak_rss_mib: float = 0.0
    holes: dict[str, int] = field(default_factory=dict)  # band -> native pixels that are 0 where SCL says clear


def write_atomic(path: Path, content: bytes) -> None:
    """Put `content` at `path` whole or not at all. Raises StorageError."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        with suppress(OSError):  # where nothing can be written, nothing can be removed either
            partial.unlink()
        raise storage_error(error, path) from error


class Ledger:
    """Receipts of one store."""

    def __init__(self, store: Path, plan_digest: str) -> None:
        self._store = store
        self._folder = store / RUN_FOLDER / "receipts"
        self._digest = plan_digest

    def _path(self, unit: str) -> Path:
        return self._folder / f"{unit}.json"

    def record(self, receipt: Receipt) -> None:
        """Write a receipt; the unit's data must already be in place."""
        if receipt.plan_digest != self._digest:
            raise StorageError(f"receipt of {receipt.unit} names plan {receipt.plan_digest[:12]}", self._digest[:12])
        content: dict[str, Any] = asdict(receipt)
        write_atomic(self._path(receipt.unit), json.dumps(content, sort_keys=True).encode())

    def read(self, unit: str) -> Receipt | None:
        """The receipt of `unit`, or None when there is none, it is damaged, or it belongs to another plan."""
        try:
            content = json.loads(self._path(unit).read_bytes())
            receipt = Receipt(**{**content, "scenes": tuple(content["scenes"])})
        except (OSError, ValueError, TypeError, KeyError):
            return None
        return receipt if receipt.plan_digest == self._digest and receipt.unit == unit else None

    def faults(self, unit: str, verify: str = "size") -> list[str]:
        """Why `unit` does not count as done; empty when it does. `verify` is none, size or full."""
        receipt = self.read(unit)
        if receipt is None:
            return ["no valid receipt"]
        if verify == "none":
            return []
        return verify_chunks(self._store / receipt.group, receipt.chunks, full=verify == "full")

    def sweep(self) -> int:
        """Remove temporary files that a killed process left in the store; returns how many. Only with no run alive."""
        leftovers = [path for path in self._store.rglob("*.partial") if path.is_file()]
        for path in leftovers:
            path.unlink(missing_ok=True)
        return len(leftovers)
