"""Atomic writes of local files, and operating system errors as StorageError."""

from __future__ import annotations

import errno
import os
import re
from contextlib import suppress
from typing import TYPE_CHECKING
from uuid import uuid4

from pipeline.errors import StorageError

if TYPE_CHECKING:
    from pathlib import Path

_TEMPORARY = re.compile(r"\.([0-9a-f]{32}|\d+)\.partial$")


def partial_path(path: Path) -> Path:
    """Return a temporary path beside `path`. It holds a UUID, since containers may share process numbers."""
    return path.with_name(f"{path.name}.{uuid4().hex}.partial")


def is_temporary(name: str) -> bool:
    """Return whether a name is that of a temporary file: zarr's or ours, including older versions."""
    return _TEMPORARY.search(name) is not None


def put_file(path: Path, content: bytes) -> None:
    """Write and fsync a file. Creates its folder if it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def write_atomic(path: Path, content: bytes) -> None:
    """Write `content` to a local `path` atomically. Raises StorageError."""
    partial = partial_path(path)
    try:
        put_file(partial, content)
        partial.replace(path)
    except OSError as error:
        with suppress(OSError):  # may fail for the same reason
            partial.unlink()
        raise storage_error(error, path) from error


def storage_error(error: OSError, where: Path) -> StorageError:
    """Return an operating system error as a StorageError."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageError(f"no space left while writing {where}", cure="free space and run the same command again")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return StorageError(f"may not write to {where}", cure="choose another --out, or fix its permissions")
    return StorageError(
        f"writing {where} failed: {error.strerror or error}",
        cure="fix the problem or choose another --out, then run the command again",
    )
