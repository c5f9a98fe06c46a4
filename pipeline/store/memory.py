"""A store in memory: the small files of a store, made without a disk."""

from __future__ import annotations

from collections.abc import MutableMapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from contextlib import AbstractContextManager

    from zarr.abc.store import Store
    from zarr.core.buffer import Buffer


@dataclass(frozen=True)
class MemoryPlace:
    """A place that lasts as long as this object, for one thread: nothing is dated, guarded or left half written."""

    files: dict[str, Buffer] = field(default_factory=dict, compare=False, repr=False)

    hands = 1

    def __str__(self) -> str:
        return "memory"

    @property
    def picture(self) -> Path:
        """File in the working folder."""
        return Path("memory.png")

    def contents(self) -> dict[str, bytes]:
        """Return {key: content} of all files, by key."""
        return {key: self.files[key].to_bytes() for key in sorted(self.files)}

    def absolute(self) -> MemoryPlace:
        """Return the place itself."""
        return self

    def shown(self, key: str) -> str:
        """Return the key below the name of the place."""
        return f"{self}/{key}"

    def exists(self) -> bool:
        """Return whether there is any file."""
        return bool(self.files)

    def guarded(self, guard: Callable[[], None]) -> MemoryPlace:
        """Return the place itself, which no other run can reach."""
        return self

    def walk(self) -> Iterator[str]:
        """Yield the keys of all files."""
        yield from list(self.files)

    def read(self, key: str) -> bytes | None:
        """Return the content of a file; None if there is none."""
        found = self.files.get(key)
        return None if found is None else found.to_bytes()

    def size(self, key: str) -> int | None:
        """Return the size of a file in bytes; None if there is none."""
        found = self.files.get(key)
        return None if found is None else len(found)

    def age_s(self, key: str) -> float | None:
        """Return 0; None if there is no file."""
        return 0.0 if key in self.files else None

    def names(self, folder: str) -> list[str]:
        """Return the sorted keys of the files directly in a folder."""
        return sorted(key for key in self.files if key.rpartition("/")[0] == folder)

    def dates(self, folder: str) -> dict[str, float]:
        """Return 1970 for each file directly in a folder."""
        return dict.fromkeys(self.names(folder), 0.0)

    def write(self, key: str, content: bytes) -> None:
        """Keep a file."""
        from zarr.buffer import cpu

        self.files[key] = cpu.Buffer.from_bytes(content)

    def write_all(self, files: Mapping[str, bytes]) -> None:
        """Keep files."""
        for key, content in files.items():
            self.write(key, content)

    def create(self, key: str, content: bytes) -> bool:
        """Keep a file only if there is none; False if there is another."""
        if key in self.files:
            return False
        self.write(key, content)
        return True

    def delete(self, key: str) -> None:
        """Forget a file, if there is one."""
        self.files.pop(key, None)

    def clear(self, kept: tuple[str, ...]) -> None:
        """Forget all files but those whose keys begin with one of `kept`."""
        for key in [key for key in self.files if not key.startswith(kept)]:
            del self.files[key]

    def tidy(self, *, whole: bool) -> None:
        """Do nothing: there are no folders."""

    def sweep(self) -> int:
        """Return 0: there are no temporary files."""
        return 0

    def zarr_store(self, group: str = "") -> Store:
        """Return a Zarr store over the group's files."""
        from zarr.storage import MemoryStore

        return MemoryStore(_Below(self.files, f"{group}/") if group else self.files)

    def reading(self) -> AbstractContextManager[None]:
        """Translate nothing."""
        return nullcontext()

    def writing(self) -> AbstractContextManager[None]:
        """Translate nothing."""
        return nullcontext()


class _Below(MutableMapping[str, "Buffer"]):
    """The files whose keys begin with a prefix, by the rest of their keys."""

    def __init__(self, files: dict[str, Buffer], prefix: str) -> None:
        self._files, self._prefix = files, prefix

    def __getitem__(self, key: str) -> Buffer:
        return self._files[self._prefix + key]

    def __setitem__(self, key: str, value: Buffer) -> None:
        self._files[self._prefix + key] = value

    def __delitem__(self, key: str) -> None:
        del self._files[self._prefix + key]

    def __iter__(self) -> Iterator[str]:
        return (key.removeprefix(self._prefix) for key in self._files if key.startswith(self._prefix))

    def __len__(self) -> int:
        return sum(key.startswith(self._prefix) for key in self._files)
