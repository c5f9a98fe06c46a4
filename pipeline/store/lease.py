"""One run per store at a time. In: a store. Out: a lease file, held while the run lives. Imports errors and receipts.

Losing a lease would do no harm, since units are idempotent and their receipts name the plan; two runs at once would
only waste work and trip over each other's temporary files.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from pipeline.errors import UsageError
from pipeline.store.layout import RUN_FOLDER
from pipeline.store.receipts import write_atomic

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_LEASE_S = 600.0  # a holder elsewhere that has not touched its lease for so long is gone


_WHOLE = "lease.json"


@contextmanager
def lease(store: Path, shard: str = "") -> Iterator[None]:
    """Hold a store for one run, or one shard of it. UsageError when another run holds the same and is alive.

    Different shards live side by side; a whole run and a shard do not. A holder on this machine is asked for by its
    process; one elsewhere is alive while it touches the file.
    """
    folder = store / RUN_FOLDER
    path = folder / (f"lease-{shard}.json" if shard else _WHOLE)
    mine = {"host": socket.gethostname(), "pid": os.getpid()}
    for other in [path, folder / _WHOLE] if shard else sorted({path, *folder.glob("lease*.json")}):
        held = _holder(other)
        if held is not None and held != mine and _alive(held, other):
            raise UsageError(
                f"{store} is being written by process {held['pid']} on {held['host']}",
                "one run per store at a time",
                f"wait for it, or delete {other} if that run is gone",
            )
    write_atomic(path, json.dumps(mine).encode())
    done = threading.Event()
    beat = threading.Thread(target=_heartbeat, args=(path, done), daemon=True)
    beat.start()
    try:
        yield
    finally:
        done.set()
        beat.join()
        path.unlink(missing_ok=True)


def _holder(path: Path) -> dict[str, Any] | None:
    try:
        held = json.loads(path.read_bytes())
        return {"host": str(held["host"]), "pid": int(held["pid"])}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _alive(held: dict[str, Any], path: Path) -> bool:
    if held["host"] != socket.gethostname():
        return time.time() - path.stat().st_mtime < _LEASE_S
    try:
        os.kill(held["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _heartbeat(path: Path, done: threading.Event) -> None:
    while not done.wait(_LEASE_S / 10):
        with suppress(OSError):
            path.touch()
