"""Checkpoints written while training goes on."""

from __future__ import annotations

import copy
import threading
from typing import TYPE_CHECKING, Any, Self

from torch import Tensor

from training.loop import savepoint

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from types import TracebackType


class Writer:
    """Writes one checkpoint at a time in a thread, from a copy in memory: `fsync` of 2 GB takes seconds.

    The file is replaced atomically, as by `savepoint.write`. What went wrong is raised by the next `check`, `begin` or
    `end`. At the end of the `with` block the last checkpoint is on the disk.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def begin(self, folder: Path, content: dict[str, Any]) -> None:
        """Copy `content` and begin to write it, after the last checkpoint is complete. Raises StorageError."""
        self.end()
        self._thread = threading.Thread(target=self._write, args=(folder, snapshot(content)), name="checkpoint")
        self._thread.start()

    def check(self) -> None:
        """Raise StorageError if the last checkpoint could not be written. Does not wait."""
        if self._thread is not None and not self._thread.is_alive():
            self.end()

    def end(self) -> None:
        """Wait until the last checkpoint is written. Raises StorageError if it could not be."""
        if self._thread is not None:
            self._thread.join()
        error, self._thread, self._error = self._error, None, None
        if error is not None:
            raise error

    def _write(self, folder: Path, content: dict[str, Any]) -> None:
        try:
            savepoint.write(folder, content)
        except Exception as error:  # raised where training would see it
            self._error = error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.end()
        elif self._thread is not None:  # that error is the one to tell
            self._thread.join()


def snapshot(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of nested dicts and lists with their tensors on the CPU, contiguous whatever their layout."""
    return {name: _copied(value) for name, value in content.items()}


def _copied(value: object) -> object:
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True).contiguous()
    if isinstance(value, dict):
        copied = copy.copy(value)  # a state_dict has attributes
        copied.update((key, _copied(part)) for key, part in value.items())
        return copied
    return type(value)(map(_copied, value)) if isinstance(value, list | tuple) else value
