"""Where a store lives: a folder, or a prefix of an object store; small files are read and put there whole.

In: a path or URL. Out: a `Place`, which the rest of this room and execution ask instead of the file system. Imports
errors, and objects.py for URLs. Keys are relative, with slashes: "_run/plan.json".
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import time
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from urllib.parse import unquote, urlsplit

from pipeline.errors import StorageError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from zarr.storage import ObjectStore

_SCHEMES = ("s3", "s3a", "gs", "az", "adl", "azure", "abfs", "abfss", "http", "https")
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)", re.DOTALL)  # one letter is a Windows drive
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


class Place(Protocol):
    """Home of one store. Immutable and picklable; str() shows it as the user named it, without credentials.

    Writing raises StorageError; where an object store does not answer, every method raises StoreUnreachable.
    """

    @property
    def hands(self) -> int:
        """How many questions at once make sense."""
        ...

    @property
    def picture(self) -> Path:
        """The local file of the store's quicklook."""
        ...

    def absolute(self) -> Place:
        """The same place, whatever the working folder."""
        ...

    def shown(self, key: str) -> str:
        """Name of one file, for people."""
        ...

    def exists(self) -> bool:
        """True when anything is there."""
        ...

    def empty(self) -> bool:
        """True when it is there, or may be made there, and holds nothing."""
        ...

    def read(self, key: str) -> bytes | None:
        """Content of a file; None when there is none."""
        ...

    def size(self, key: str) -> int | None:
        """Bytes of a file; None when there is none."""
        ...

    def age_s(self, key: str) -> float | None:
        """Seconds since a file was written, by the clock that dated it; None when there is none."""
        ...

    def names(self, folder: str) -> list[str]:
        """Sorted keys of the files directly in a folder; empty when there is no folder."""
        ...

    def write(self, key: str, content: bytes) -> None:
        """Put a file whole or not at all."""
        ...

    def create(self, key: str, content: bytes) -> bool:
        """Put a file only where there is none; False when there is another. `content` must be unique to its writer."""
        ...

    def delete(self, key: str) -> None:
        """Take a file away, if there is one."""
        ...

    def remove(self) -> None:
        """Take everything away, so that a kill leaves nothing that looks like a store to read or to continue."""
        ...

    def sweep(self) -> int:
        """Remove temporary files that killed processes left; returns how many. Only with no run alive."""
        ...

    def zarr_store(self, group: str = "") -> str | ObjectStore[object]:
        """What `zarr.open_group` and `xarray.open_zarr` take."""
        ...

    def reading(self) -> AbstractContextManager[None]:
        """Around code that reads through zarr: an object store's failures in words."""
        ...

    def writing(self) -> AbstractContextManager[None]:
        """Around code that writes through zarr: refusals in words, as StorageError."""
        ...


Where = Place | Path | str  # whatever names a store


def place_of(where: Where) -> Place:
    """The place that a path or URL names. UsageError for an address of another kind, or one that holds a secret."""
    if not isinstance(where, Path | str):
        return where
    found = _ADDRESS.fullmatch(str(where))
    if not found:
        return LocalPlace(Path(where))
    scheme, rest = found[1].lower(), found[2]
    if scheme == "file":
        return LocalPlace(Path("/" + unquote(rest.removeprefix("localhost/"))))
    if scheme not in _SCHEMES:
        raise UsageError(f"{scheme}:// names no store", "a folder, s3://BUCKET/NAME, gs://BUCKET/NAME or az://...")
    url = f"{scheme}://{rest.rstrip('/')}"  # a pathlib.Path of a URL has lost one slash
    parts = urlsplit(url)
    named = parts.username is not None and not scheme.startswith("abfs")  # abfs://container@account...
    if named or parts.password is not None or parts.query:
        raise UsageError(
            f"the {scheme}:// address holds a user name, a key or a query",
            "credentials in the environment only, such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        )
    if not parts.netloc or not parts.path.strip("/"):
        raise UsageError(f"{url} names no store", f"a name below the bucket, such as {scheme}://BUCKET/region.zarr")
    if find_spec("obstore") is None:
        raise UsageError(f"{url} needs the package obstore", cure='pip install "sen2fine[s3]"')
    from pipeline.store.objects import ObjectPlace

    return ObjectPlace(url)


@dataclass(frozen=True)
class LocalPlace:
    """A folder, which need not exist yet."""

    path: Path

    hands = 1

    def __str__(self) -> str:
        return str(self.path)

    @property
    def picture(self) -> Path:
        """Beside the store."""
        return self.path.with_suffix(".png")

    def absolute(self) -> LocalPlace:
        """The path resolved. OSError when it cannot be."""
        return LocalPlace(self.path.resolve())

    def shown(self, key: str) -> str:
        """The file's path."""
        return str(self.path / key)

    def exists(self) -> bool:
        """True for a file as well: it stands in the way."""
        return self.path.exists()

    def empty(self) -> bool:
        """True for a folder with nothing in it."""
        return self.path.is_dir() and not any(self.path.iterdir())

    def read(self, key: str) -> bytes | None:
        """Content; OSError when the disk refuses to read."""
        try:
            return (self.path / key).read_bytes()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None

    def size(self, key: str) -> int | None:
        """Bytes."""
        path = self.path / key
        return path.stat().st_size if path.is_file() else None

    def age_s(self, key: str) -> float | None:
        """Seconds by this machine's clock."""
        try:
            return time.time() - (self.path / key).stat().st_mtime
        except FileNotFoundError:
            return None

    def names(self, folder: str) -> list[str]:
        """Files of a folder, temporary ones left out."""
        found = (self.path / folder).glob("*")
        return sorted(f"{folder}/{path.name}" for path in found if path.suffix != ".partial" and path.is_file())

    def write(self, key: str, content: bytes) -> None:
        """Write beside, bring to disk, rename."""
        write_atomic(self.path / key, content)

    def create(self, key: str, content: bytes) -> bool:
        """Write beside, then link under the name, which fails where there is one."""
        path = self.path / key
        partial = _partial(path)
        try:
            _put(partial, content)
            try:
                os.link(partial, path)
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                with path.open("xb") as file:  # a file system without links: a kill now leaves a file without content
                    file.write(content)
        except FileExistsError:
            return False
        except OSError as error:
            raise storage_error(error, path) from error
        finally:
            with suppress(OSError):
                partial.unlink()
        return True

    def delete(self, key: str) -> None:
        """Unlink."""
        (self.path / key).unlink(missing_ok=True)

    def remove(self) -> None:
        """Rename first, so that a kill leaves no half store under its name. StorageError when the system refuses."""
        doomed = self.path.with_name(self.path.name + ".deleting")
        try:
            shutil.rmtree(doomed, ignore_errors=True)
            self.path.rename(doomed)
            shutil.rmtree(doomed)
        except OSError as error:
            raise StorageError(f"cannot delete {self}: {error.strerror}", cure="delete it by hand") from error

    def sweep(self) -> int:
        """Remove all *.partial files, ours and zarr's."""
        leftovers = [path for path in self.path.rglob("*.partial") if path.is_file()]
        for path in leftovers:
            path.unlink(missing_ok=True)
        return len(leftovers)

    def zarr_store(self, group: str = "") -> str:
        """The group's folder."""
        return str(self.path / group)

    def reading(self) -> AbstractContextManager[None]:
        """Nothing to put into words: a disk's failures on reading are as good as damage to the file."""
        return nullcontext()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """The system's refusals as StorageError."""
        try:
            yield
        except OSError as error:
            raise storage_error(error, self.path) from error


def _partial(path: Path) -> Path:
    return path.with_name(f"{path.name}.{os.getpid()}.partial")


def _put(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def write_atomic(path: Path, content: bytes) -> None:
    """Put `content` at a local `path` whole or not at all. Raises StorageError."""
    partial = _partial(path)
    try:
        _put(partial, content)
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
