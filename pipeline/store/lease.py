"""One run per store at a time. In: a store. Out: a lease file, held while the run lives. Imports errors, keys, place.

Losing a lease would do no harm, since units are idempotent and their receipts name the plan; two runs at once would
only waste work and trip over each other's temporary files.
"""

from __future__ import annotations

import json
import os
import socket
import threading
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from pipeline.errors import PipelineError, StoreUnreachable, UsageError
from pipeline.store.keys import RUN_FOLDER
from pipeline.store.place import place_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pipeline.store.place import Place, Where

_LEASE_S = 600.0  # a holder elsewhere that has not touched its lease for so long is gone
_GOODBYE_S = 5.0  # a heartbeat that hangs on a dead server is not waited for


_WHOLE = f"{RUN_FOLDER}/lease.json"


@contextmanager
def lease(store: Where, shard: str = "") -> Iterator[None]:
    """Hold a store for one run, or one shard of it. UsageError when another run holds the same and is alive.

    Different shards live side by side; a whole run and a shard do not. A holder on this machine is asked for by its
    process; one elsewhere is alive while it touches the file.
    """
    place = place_of(store)
    key = f"{RUN_FOLDER}/lease-{shard}.json" if shard else _WHOLE
    others = [key, _WHOLE] if shard else sorted({key, *_leases(place)})
    mine = {"host": socket.gethostname(), "pid": os.getpid()}
    content = json.dumps({**mine, "owner": uuid4().hex}).encode()  # unique: it tells whose a created file is
    for other in others:
        _refuse_if_held(place, other, mine)
    if not place.create(key, content):
        _refuse_if_held(place, key, mine)  # somebody may have been quicker; else it is a dead run's
        place.write(key, content)
    done = threading.Event()
    beat = threading.Thread(target=_heartbeat, args=(place, key, content, done), daemon=True)
    beat.start()
    away = False
    try:
        yield
    except StoreUnreachable:
        away = True  # it would not hear the goodbye either; the lease expires
        raise
    finally:
        done.set()
        beat.join(_GOODBYE_S)
        if not away:
            _release(place, key, content)


def _leases(place: Place) -> list[str]:
    return [key for key in place.names(RUN_FOLDER) if key.startswith(f"{RUN_FOLDER}/lease") and key.endswith(".json")]


def _refuse_if_held(place: Place, key: str, mine: dict[str, Any]) -> None:
    held = _holder(place, key)
    if held is not None and held != mine and _alive(held, partial(place.age_s, key)):
        raise UsageError(
            f"{place} is being written by process {held['pid']} on {held['host']}",
            "one run per store at a time",
            f"wait for it, or delete {place.shown(key)} if that run is gone",
        )


def _holder(place: Place, key: str) -> dict[str, Any] | None:
    try:
        held = json.loads(place.read(key) or b"")
        return {"host": str(held["host"]), "pid": int(held["pid"])}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _alive(held: dict[str, Any], age_s: Callable[[], float | None]) -> bool:
    if held["host"] != socket.gethostname():
        age = age_s()
        return age is not None and age < _LEASE_S
    try:
        os.kill(held["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _heartbeat(place: Place, key: str, content: bytes, done: threading.Event) -> None:
    while not done.wait(_LEASE_S / 10):
        with suppress(OSError, PipelineError):
            if place.read(key) != content:  # lost, which does no harm
                return
            if not done.is_set():
                place.write(key, content)


def _release(place: Place, key: str, content: bytes) -> None:
    with suppress(OSError, PipelineError):
        if place.read(key) == content:
            place.delete(key)
