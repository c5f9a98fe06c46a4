"""Temporary folders, so that outputs appear atomically, and checks of output paths.

A lock shows that a temporary folder is in use. The system releases it when the process dies, also in containers, where
process ids are not unique. On file systems without locks, leftovers stay.
"""

from __future__ import annotations

import errno
import os
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

_NAME = b"sen2fine"  # occurs in every text file that this software writes
_BLOCK = 1 << 20
_LOCK = "sen2fine.lock"  # locked file in each temporary folder


def require_parent(path: Path, flag: str = "--out") -> None:
    """Raise UsageError if the output's parent folder does not exist, since a typo might fill another disk.

    Raises StorageError if it is not a folder or cannot be reached.
    """
    parent = path.absolute().parent
    try:
        if parent.is_dir():
            return
        there = parent.exists()
    except OSError as error:
        raise StorageError(f"{flag} {path} cannot be reached ({error.strerror})", "a writable folder") from error
    if there:
        raise StorageError(f"{flag} {path} cannot be written: {parent} is not a folder", "a folder to write into")
    cure = f"mkdir -p {shlex.quote(str(parent))}, if the name is right"
    raise UsageError(f"{flag} {path}: there is no folder {parent}", "one that exists, to write into", cure)


def require_ours(path: Path, flag: str = "--out") -> None:
    """Raise UsageError if an existing file does not contain this software's name and must not be replaced.

    Raises StorageError if it cannot be read.
    """
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
    """Create a folder `parent`/`prefix`..., locked while in use. Raises OSError if it cannot be created.

    Unlocked folders of the same prefix are removed first.
    """
    remove_leftovers(parent, prefix)
    folder, lock = _held(parent, prefix)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        lock.close()


def remove_leftovers(parent: Path, prefix: str) -> int:
    """Remove unlocked temporary folders and return their number."""
    found = [path for path in parent.glob(f"{escape(prefix)}*") if path.is_dir() and not path.is_symlink()]
    return sum(_removed(folder) for folder in found)


def shared_folder(folder: Path) -> BinaryIO:
    """Create a folder that processes of this user share, or join it. Return its lock, held until it is closed.

    `remove_leftovers` removes the folder once no process holds it. Raises OSError if it cannot be created, or belongs
    to another user.
    """
    import fcntl

    while True:
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.is_symlink() or folder.stat().st_uid != os.getuid():
            raise PermissionError(errno.EACCES, "it belongs to another user", str(folder))
        with suppress(FileNotFoundError):  # another process removes it before it is locked: try again
            lock = (folder / _LOCK).open("ab")
            with suppress(OSError):  # a file system without locks
                fcntl.flock(lock, fcntl.LOCK_SH)
            if (folder / _LOCK).exists() and os.path.samestat(os.fstat(lock.fileno()), (folder / _LOCK).stat()):
                return lock
            lock.close()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of a file, which is created, alone."""
    with path.open("ab") as file:
        _lock(file, wait=True)
        yield


def _held(parent: Path, prefix: str) -> tuple[Path, BinaryIO]:
    """Create a folder and its lock. Try again if another process removes it before it is locked."""
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
    except FileNotFoundError:  # no lock: its process was killed before locking, or the folder is foreign
        with suppress(OSError):
            folder.rmdir()
    except OSError:  # another user's
        return False
    return not folder.exists()


def _lock(file: BinaryIO, *, wait: bool) -> bool:
    """Try to lock the file. Return False if another process holds it or the file system has no locks."""
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True
