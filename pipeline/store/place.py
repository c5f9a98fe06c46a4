"""Locations of stores: a local folder or a prefix of an object store, with atomic reads and writes of small files.

Keys are relative, with slashes, such as "_run/plan.json".
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from urllib.parse import unquote, urlsplit
from uuid import uuid4

from pipeline.errors import StorageError, UsageError
from pipeline.store.files import is_temporary, partial_path, put_file
from pipeline.store.files import storage_error as storage_error
from pipeline.store.files import write_atomic as write_atomic
from pipeline.store.keys import RUN_FOLDER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from contextlib import AbstractContextManager

    from zarr.abc.store import Store

    Guard = Callable[[], None]

_SCHEMES = ("s3", "s3a", "gs", "az", "adl", "azure", "abfs", "abfss", "http", "https")
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)", re.DOTALL)  # one letter is a Windows drive
_REMOVED = "removed-"  # prefix of folders in the run folder whose content is about to be deleted
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


class Place(Protocol):
    """Location of one store. Immutable and picklable; str() shows it as the user named it, without credentials.

    Writing raises StorageError. Every method raises StoreUnreachable if an object store does not answer.
    """

    @property
    def hands(self) -> int:
        """Number of concurrent requests that make sense."""
        ...

    @property
    def picture(self) -> Path:
        """Local file of the store's quicklook."""
        ...

    def absolute(self) -> Place:
        """Return the same place, independent of the working folder."""
        ...

    def shown(self, key: str) -> str:
        """Return the name of one file for messages."""
        ...

    def exists(self) -> bool:
        """Return whether anything is there."""
        ...

    def guarded(self, guard: Guard) -> Place:
        """Return the same place with `guard` called before each write; the write does not happen if it raises."""
        ...

    def walk(self) -> Iterator[str]:
        """Yield the keys of all files, in any order, and of empty folders with a slash at the end."""
        ...

    def read(self, key: str) -> bytes | None:
        """Return the content of a file; None if there is none."""
        ...

    def size(self, key: str) -> int | None:
        """Return the size of a file in bytes; None if there is none."""
        ...

    def age_s(self, key: str) -> float | None:
        """Return the seconds since a file was written, by the clock that dated it; None if there is none."""
        ...

    def names(self, folder: str) -> list[str]:
        """Return the sorted keys of the files directly in a folder; empty if there is no folder."""
        ...

    def dates(self, folder: str) -> dict[str, float]:
        """Return when each file directly in a folder was written, in seconds since 1970 by the storage's clock."""
        ...

    def write(self, key: str, content: bytes) -> None:
        """Write a file atomically."""
        ...

    def write_all(self, files: Mapping[str, bytes]) -> None:
        """Write files of a store that has not begun, and begins anew after a crash: none has to reach the disk yet."""
        ...

    def create(self, key: str, content: bytes) -> bool:
        """Write a file only if there is none; False if there is another. `content` must be unique to its writer."""
        ...

    def delete(self, key: str) -> None:
        """Delete a file, if there is one."""
        ...

    def clear(self, kept: tuple[str, ...]) -> None:
        """Delete everything but the files of `_run` whose keys begin with one of `kept`."""
        ...

    def tidy(self, *, whole: bool) -> None:
        """Remove the run's folder if it is empty, and with `whole` the place itself."""
        ...

    def sweep(self) -> int:
        """Remove temporary files of killed processes and return how many. Call it only while no run is active."""
        ...

    def zarr_store(self, group: str = "") -> str | Store:
        """Return what `zarr.open_group` and `xarray.open_zarr` take."""
        ...

    def reading(self) -> AbstractContextManager[None]:
        """Wrap code that reads through zarr, and raise an object store's errors as PipelineErrors."""
        ...

    def writing(self) -> AbstractContextManager[None]:
        """Wrap code that writes through zarr, and raise refusals as StorageError."""
        ...


Where = Place | Path | str  # anything that names a store


def place_of(where: Where) -> Place:
    """Return the place that a path or URL names. Raises UsageError if it is unsupported or holds a secret."""
    if not isinstance(where, Path | str):
        return where
    found = _ADDRESS.fullmatch(str(where))
    if not found:
        return LocalPlace(Path(where))
    scheme, rest = found[1].lower(), found[2]
    if scheme == "file":
        return LocalPlace(Path("/" + unquote(rest.removeprefix("localhost/"))))
    if scheme not in _SCHEMES:
        raise UsageError(
            f"{scheme}:// is not a valid store address", "a folder, s3://BUCKET/NAME, gs://BUCKET/NAME or az://..."
        )
    url = f"{scheme}://{rest.rstrip('/')}"  # a pathlib.Path of a URL has lost one slash
    parts = urlsplit(url)
    named = parts.username is not None and not scheme.startswith("abfs")  # abfs://container@account...
    if named or parts.password is not None or parts.query:
        raise UsageError(
            f"the {scheme}:// address holds a user name, a key or a query",
            "credentials in the environment only, such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        )
    if not parts.netloc or not parts.path.strip("/"):
        raise UsageError(
            f"{url} is not a valid store address", f"a name below the bucket, such as {scheme}://BUCKET/region.zarr"
        )
    if find_spec("obstore") is None:
        raise UsageError(f"{url} needs the package obstore", cure='pip install "sen2fine[s3]"')
    from pipeline.store.objects import ObjectPlace

    return ObjectPlace(url)


@dataclass(frozen=True)
class LocalPlace:
    """A folder, which need not exist yet."""

    path: Path
    guard: Guard | None = field(default=None, compare=False, repr=False)

    hands = 1

    def __str__(self) -> str:
        return str(self.path)

    @property
    def picture(self) -> Path:
        """File beside the store."""
        return self.path.with_suffix(".png")

    def absolute(self) -> LocalPlace:
        """Return the place with a resolved path. Raises OSError if it cannot be resolved."""
        return LocalPlace(self.path.resolve(), self.guard)

    def shown(self, key: str) -> str:
        """Return the file's path."""
        return str(self.path / key)

    def exists(self) -> bool:
        """Return whether the path exists, even as a file, which is in the way of the folder."""
        return self.path.exists()

    def guarded(self, guard: Guard) -> LocalPlace:
        """Return the same folder with a guard."""
        return LocalPlace(self.path, guard)

    def walk(self) -> Iterator[str]:
        """Walk the folder. A file in its place has an empty key."""
        if self.path.exists() and not self.path.is_dir():
            yield ""
        for folder, inside, files in os.walk(self.path):
            at = Path(folder).relative_to(self.path)
            yield from ((at / name).as_posix() for name in files)
            yield from ((at / name).as_posix() for name in inside if (Path(folder) / name).is_symlink())
            if not inside and not files and at != Path():
                yield f"{at.as_posix()}/"

    def read(self, key: str) -> bytes | None:
        """Return the content of a file; None if there is none. Raises OSError if it cannot be read."""
        try:
            return (self.path / key).read_bytes()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None

    def size(self, key: str) -> int | None:
        """Return the size of a file in bytes."""
        path = self.path / key
        return path.stat().st_size if path.is_file() else None

    def age_s(self, key: str) -> float | None:
        """Return the age by the clock of a file written now, since a file server's clock may differ from ours."""
        try:
            written = (self.path / key).stat().st_mtime
        except (FileNotFoundError, NotADirectoryError):
            return None
        probe = (self.path / key).with_name(f"lease.clock-{uuid4().hex}")
        try:
            probe.touch()
            now = probe.stat().st_mtime
        except OSError as error:
            raise storage_error(error, probe) from error
        finally:
            with suppress(OSError):
                probe.unlink()
        return now - written

    def names(self, folder: str) -> list[str]:
        """Return the files of a folder without temporary ones."""
        found = (self.path / folder).glob("*")
        return sorted(f"{folder}/{path.name}" for path in found if path.suffix != ".partial" and path.is_file())

    def dates(self, folder: str) -> dict[str, float]:
        """Return the modification times of the files of a folder. Files that vanish meanwhile are left out."""
        found: dict[str, float] = {}
        for key in self.names(folder):
            with suppress(FileNotFoundError):
                found[key] = (self.path / key).stat().st_mtime
        return found

    def write(self, key: str, content: bytes) -> None:
        """Write a temporary file, fsync it and rename it."""
        self._require()
        try:
            write_atomic(self.path / key, content)
        except StorageError:
            self._require()  # the folder is missing if another run is recreating the store
            raise

    def write_all(self, files: Mapping[str, bytes]) -> None:
        """Write temporary files and rename them, without fsync."""
        with self.writing():
            for key, content in files.items():
                self._require()
                path = self.path / key
                path.parent.mkdir(parents=True, exist_ok=True)
                partial = partial_path(path)
                partial.write_bytes(content)
                partial.replace(path)

    def create(self, key: str, content: bytes) -> bool:
        """Write a temporary file, then hard-link it to the name, which fails if that exists."""
        self._require()
        path = self.path / key
        partial = partial_path(path)
        try:
            put_file(partial, content)
            try:
                os.link(partial, path)
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                with path.open("xb") as file:  # a file system without links: a kill now leaves an empty file
                    file.write(content)
        except FileExistsError:
            return False
        except OSError as error:
            self._require()
            raise storage_error(error, path) from error
        finally:
            with suppress(OSError):
                partial.unlink()
        return True

    def delete(self, key: str) -> None:
        """Delete a file, if there is one."""
        self._require()
        with suppress(NotADirectoryError):
            (self.path / key).unlink(missing_ok=True)

    def clear(self, kept: tuple[str, ...]) -> None:
        """Move everything aside and delete it there, so that files written to the old paths meanwhile are kept."""
        run = self.path / RUN_FOLDER
        aside = run / f"{_REMOVED}{uuid4().hex}"
        try:
            (aside / RUN_FOLDER).mkdir(parents=True)
            for path in [*self.path.iterdir(), *run.iterdir()]:
                key = path.relative_to(self.path)
                if path != run and not path.name.startswith(_REMOVED) and not key.as_posix().startswith(kept):
                    self._require()
                    path.rename(aside / key)
            for folder in run.glob(f"{_REMOVED}*"):
                shutil.rmtree(folder)
        except OSError as error:
            raise StorageError(
                f"cannot delete what is in {self}: {error.strerror}", cure="delete it by hand"
            ) from error

    def tidy(self, *, whole: bool) -> None:
        """Remove empty folders, if the system allows it."""
        with suppress(OSError):
            (self.path / RUN_FOLDER).rmdir()
            if whole:
                self.path.rmdir()

    def sweep(self) -> int:
        """Remove temporary files, ours and zarr's, but no other files that end in .partial."""
        leftovers = [path for path in self.path.rglob("*.partial") if is_temporary(path.name) and path.is_file()]
        for path in leftovers:
            self._require()
            path.unlink(missing_ok=True)
        return len(leftovers)

    def zarr_store(self, group: str = "") -> str | Store:
        """Return the group's folder, or a guarded store over it."""
        path = self.path / group
        if self.guard is None:
            return str(path)
        from zarr.storage import LocalStore

        from pipeline.store.guarded import guarded_store

        return guarded_store(LocalStore(path), self.guard)

    def _require(self) -> None:
        if self.guard is not None:
            self.guard()

    def reading(self) -> AbstractContextManager[None]:
        """Translate nothing: callers treat read errors of a disk as damaged files."""
        return nullcontext()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Raise operating system errors as StorageError."""
        self._require()
        try:
            yield
        except OSError as error:
            self._require()
            raise storage_error(error, self.path) from error
