"""Local files put in place whole or not at all, and a disk's refusals in words."""

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
    """Where a file is written before it is whole. Process numbers would not tell containers apart."""
    return path.with_name(f"{path.name}.{uuid4().hex}.partial")


def is_temporary(name: str) -> bool:
    """True for names of files that are not whole yet: ours, zarr's, and ours of versions before."""
    return _TEMPORARY.search(name) is not None


def put_file(path: Path, content: bytes) -> None:
    """Write a file and bring it to disk; its folder is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def write_atomic(path: Path, content: bytes) -> None:
    """Put `content` at a local `path` whole or not at all. Raises StorageError."""
    partial = partial_path(path)
    try:
        put_file(partial, content)
        partial.replace(path)
    except OSError as error:
        with suppress(OSError):  # where nothing can be written, nothing can be removed either
            partial.unlink()
        raise storage_error(error, path) from error


def storage_error(error: OSError, where: Path) -> StorageError:
    """Put an operating system's refusal into words."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageError(f"no space left while writing {where}", cure="free space and run the same command again")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return StorageError(f"may not write to {where}", cure="choose another --out, or fix its permissions")
    return StorageError(
        f"writing {where} failed: {error.strerror or error}",
        cure="mend it or choose another --out, and run the command again",
    )
