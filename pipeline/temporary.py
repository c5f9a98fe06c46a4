"""Where an output is made: in a folder that exists, and before it is whole in a hidden one beside it.

In: the output's path, or the folder that holds it. Out: a working folder, gone at the end or, after a kill, when the
next one is made there. Imports errors; every room may import it.

Whose a working folder is, a lock tells, which the system gives back when a process dies: process numbers mean nothing
across containers. Where the file system has no locks, leftovers stay.
"""

from __future__ import annotations

import shlex
import shutil
import tempfile
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from pipeline.errors import StorageError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

_NAME = b"sen2fine"  # stands in all that this software writes as text
_BLOCK = 1 << 20
_LOCK = "sen2fine.lock"  # the file within that is held


def require_parent(path: Path, flag: str = "--out") -> None:
    """UsageError where the folder that is to hold the output does not exist: with a slip, another disk fills.

    StorageError where something else is in its place, or it cannot be reached.
    """
    parent = path.absolute().parent
    try:
        if parent.is_dir():
            return
        there = parent.exists()
    except OSError as error:
        raise StorageError(f"{flag} {path} cannot be reached ({error.strerror})", "a writable folder") from error
    if there:
        raise StorageError(f"{flag} {path} cannot be written: {parent} is no folder", "a folder to write into")
    cure = f"mkdir -p {shlex.quote(str(parent))}, if the name is right"
    raise UsageError(f"{flag} {path}: there is no folder {parent}", "one that exists, to write into", cure)


def require_ours(path: Path, flag: str = "--out") -> None:
    """UsageError where there is a file already that does not name this software: it is not ours to replace."""
    try:
        with path.open("rb") as file:
            ours = any(_NAME in block for block in iter(lambda: file.read(_BLOCK), b""))
    except FileNotFoundError:
        return
    except OSError as error:
        raise StorageError(f"{flag} {path} cannot be replaced ({error.strerror})", "a file, or no file") from error
    if not ours:
        raise UsageError(f"{flag} {path} exists and was not written by sen2fine", "a new name", "choose another")


@contextmanager
def working_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """A new folder `parent`/`prefix`..., which others leave alone while this process lives. OSError where it cannot be.

    Those of the same prefix that no process holds any more are removed first.
    """
    remove_leftovers(parent, prefix)
    folder, lock = _held(parent, prefix)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        lock.close()


def remove_leftovers(parent: Path, prefix: str) -> int:
    """Remove working folders that no process holds any more; returns how many."""
    found = [path for path in parent.glob(f"{escape(prefix)}*") if path.is_dir() and not path.is_symlink()]
    return sum(_removed(folder) for folder in found)


def _held(parent: Path, prefix: str) -> tuple[Path, BinaryIO]:
    """A new folder and its lock. Another process may take it for a leftover before it is locked: then once more."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        with suppress(FileNotFoundError):
            lock = (folder / _LOCK).open("wb")
            _lock(lock, wait=True)
            if (folder / _LOCK).exists():
                return folder, lock
            lock.close()


def _removed(folder: Path) -> bool:
    try:
        with (folder / _LOCK).open("r+b") as lock:
            if not _lock(lock, wait=False):
                return False
            shutil.rmtree(folder, ignore_errors=True)
    except FileNotFoundError:  # killed before it had a lock: empty, or not of our making
        with suppress(OSError):
            folder.rmdir()
    except OSError:  # another user's
        return False
    return not folder.exists()


def _lock(file: BinaryIO, *, wait: bool) -> bool:
    """Whether the file is ours now; False where another process holds it, or the file system has no locks."""
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True
