"""Marks that authenticate a user's own indexes.

An index names files anywhere on this machine and may hold an offset set by hand. Any document could claim to be one, so
each item carries an HMAC-SHA-256 under a key kept in the user's state folder. An item without a valid mark is not
trusted: its paths must lie below the folder of the file that lists it, or below folders named in SEN2FINE_ROOTS, and
its offset is checked against baseline and pixels like any other declaration.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline.archive.scene import MARK_KEY

ROOTS_VARIABLE = "SEN2FINE_ROOTS"
_KEY_BYTES = 32


def named_roots() -> tuple[str, ...]:
    """Folders in which catalogues on disk may name files: SEN2FINE_ROOTS, separated as in PATH."""
    return tuple(root for root in os.environ.get(ROOTS_VARIABLE, "").split(os.pathsep) if os.path.isabs(root))


def marked(item: dict[str, Any]) -> dict[str, Any]:
    """The item with this user's mark; unmarked where no key can be kept (no home, read-only)."""
    key = _key(create=True)
    if key is None:
        return item
    return {**item, "properties": {**item["properties"], MARK_KEY: _mark(key, item)}}


def is_ours(item: dict[str, Any]) -> bool:
    """True where this user's `pipeline.index` wrote the item, as it stands."""
    properties = item.get("properties")
    stated = properties.get(MARK_KEY) if isinstance(properties, dict) else None
    if not isinstance(stated, str):
        return False
    key = _key(create=False)
    try:
        return key is not None and hmac.compare_digest(stated.encode(), _mark(key, item).encode())
    except (ValueError, RecursionError):  # text that is not valid Unicode
        return False


def _mark(key: bytes, item: dict[str, Any]) -> str:
    properties = {name: value for name, value in item["properties"].items() if name != MARK_KEY}
    text = json.dumps({**item, "properties": properties}, sort_keys=True, separators=(",", ":"))
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()


def _key(*, create: bool) -> bytes | None:
    """The user's key; None where there is none, or it cannot be kept."""
    with suppress(OSError, RuntimeError):  # RuntimeError: no home folder
        state = os.environ.get("XDG_STATE_HOME") or ""
        folder = (Path(state) if os.path.isabs(state) else Path.home() / ".local" / "state") / "sen2fine"
        path = folder / "index.key"
        if create and not path.exists():
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            _create(path)
        key = path.read_bytes()
        return key if len(key) == _KEY_BYTES else None
    return None


def _create(path: Path) -> None:
    """Write a new key in one step; of two processes the first wins."""
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(_KEY_BYTES))
        with suppress(FileExistsError):
            os.link(partial, path)
    finally:
        partial.unlink(missing_ok=True)
