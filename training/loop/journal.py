"""What process 0 tells of a run: a line per interval, `log.csv`, TensorBoard scalars and sample images."""

from __future__ import annotations

from typing import TYPE_CHECKING

from training.loop import log

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor


class Journal:
    """The files of one run besides its checkpoint. They begin with the first row: a run that fails leaves none."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.resumed_from: Path | None = None
        self.resumed_at = 0  # step
        self.scalars: log.Scalars | None = None
        self._open = self._advised = False

    def open(self) -> None:
        """Create the log, with the rows of a resumed run, unless that is done. Raises StorageError."""
        if not self._open:
            log.begin(self.folder, self.resumed_from, self.resumed_at)
            self._open = True

    def add(
        self, row: log.Row, steps: int, samples: Sequence[Mapping[str, Tensor]], say: Callable[[str], None]
    ) -> None:
        """Add an interval of `steps` steps. Raises StorageError."""
        self.open()
        if samples:
            log.write_samples(self.folder, row.step, samples)
        say(row.line())
        if row.waiting > log.WAITING and steps >= log.WAITING_STEPS and not self._advised:
            self._advised = True
            say(log.ADVICE.format(row.waiting))
        log.add(self.folder, row)
        if self.scalars is not None:
            self.scalars.add(row)
