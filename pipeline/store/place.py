"""Where a store lives: a folder, or a prefix of an object store; small files are read and put there whole.

In: a path or URL. Out: a `Place`, which the rest of this room and execution ask instead of the file system. Imports
errors, and objects.py for URLs. Keys are relative, with slashes: "_run/plan.json".
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
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from zarr.abc.store import Store

    Guard = Callable[[], None]

_SCHEMES = ("s3", "s3a", "gs", "az", "adl", "azure", "abfs", "abfss", "http", "https")
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)", re.DOTALL)  # one letter is a Windows drive
_REMOVED = "removed-"  # folder within the run's, for what is about to be deleted
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

    def guarded(self, guard: Guard) -> Place:
        """The same place, which calls `guard` before anything is written; what it raises keeps that from happening."""
        ...

    def walk(self) -> Iterator[str]:
        """Keys of all files, in any order; of empty folders too, with a slash at the end."""
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

    def clear(self, kept: tuple[str, ...]) -> None:
        """Take everything away but the files of `_run` whose keys begin with one of `kept`."""
        ...

    def tidy(self, *, whole: bool) -> None:
        """Remove the run's folder where it is empty, and with `whole` the place itself."""
        ...

    def sweep(self) -> int:
        """Remove temporary files that killed processes left; returns how many. Only with no run alive."""
        ...

    def zarr_store(self, group: str = "") -> str | Store:
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
    guard: Guard | None = field(default=None, compare=False, repr=False)

    hands = 1

    def __str__(self) -> str:
        return str(self.path)

    @property
    def picture(self) -> Path:
        """Beside the store."""
        return self.path.with_suffix(".png")

    def absolute(self) -> LocalPlace:
        """The path resolved. OSError when it cannot be."""
        return LocalPlace(self.path.resolve(), self.guard)

    def shown(self, key: str) -> str:
        """The file's path."""
        return str(self.path / key)

    def exists(self) -> bool:
        """True for a file as well: it stands in the way."""
        return self.path.exists()

    def guarded(self, guard: Guard) -> LocalPlace:
        """The same folder."""
        return LocalPlace(self.path, guard)

    def walk(self) -> Iterator[str]:
        """By walking; a file in the place's stead is one without a name."""
        if self.path.exists() and not self.path.is_dir():
            yield ""
        for folder, inside, files in os.walk(self.path):
            at = Path(folder).relative_to(self.path)
            yield from ((at / name).as_posix() for name in files)
            yield from ((at / name).as_posix() for name in inside if (Path(folder) / name).is_symlink())
            if not inside and not files and at != Path():
                yield f"{at.as_posix()}/"

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
        """Seconds by the file system's clock, which a file written now tells: a server's may differ from ours."""
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
        """Files of a folder, temporary ones left out."""
        found = (self.path / folder).glob("*")
        return sorted(f"{folder}/{path.name}" for path in found if path.suffix != ".partial" and path.is_file())

    def write(self, key: str, content: bytes) -> None:
        """Write beside, bring to disk, rename."""
        self._require()
        try:
            write_atomic(self.path / key, content)
        except StorageError:
            self._require()  # the folder is missing where another run has begun the store anew meanwhile
            raise

    def create(self, key: str, content: bytes) -> bool:
        """Write beside, then link under the name, which fails where there is one."""
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
                with path.open("xb") as file:  # a file system without links: a kill now leaves a file without content
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
        """Unlink."""
        self._require()
        with suppress(NotADirectoryError):
            (self.path / key).unlink(missing_ok=True)

    def clear(self, kept: tuple[str, ...]) -> None:
        """Move everything aside, then delete it there: what somebody writes to its old place meanwhile is not hit."""
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
        """As far as the system allows."""
        with suppress(OSError):
            (self.path / RUN_FOLDER).rmdir()
            if whole:
                self.path.rmdir()

    def sweep(self) -> int:
        """Remove temporary files, ours and zarr's; those of the user, by whatever name, stay."""
        leftovers = [path for path in self.path.rglob("*.partial") if is_temporary(path.name) and path.is_file()]
        for path in leftovers:
            self._require()
            path.unlink(missing_ok=True)
        return len(leftovers)

    def zarr_store(self, group: str = "") -> str | Store:
        """The group's folder."""
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
        """Nothing to put into words: a disk's failures on reading are as good as damage to the file."""
        return nullcontext()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """The system's refusals as StorageError."""
        self._require()
        try:
            yield
        except OSError as error:
            self._require()
            raise storage_error(error, self.path) from error
