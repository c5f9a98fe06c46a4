"""Budget and progress of a run, and counts since the last log line."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor


@dataclass(frozen=True)
class Budget:
    """Budget of a run: minutes of training time over all resumes, or images. Only images are reproducible."""

    minutes: float | None = None
    images: int | None = None

    def progress(self, elapsed_s: float, images: int) -> float:
        """Return the spent share of the budget, 0 to 1."""
        spent = images / self.images if self.images else elapsed_s / 60 / (self.minutes or math.inf)
        return min(spent, 1.0)


@dataclass
class Progress:
    """Progress of a run, over all processes and resumes."""

    step: int = 0
    stage: int = 0
    stage_step: int = 0
    batches: int = 0  # drawn so far, which is the number of the next batch
    images: int = 0
    elapsed_s: float = 0.0


@dataclass
class Tally:
    """Counts of this process since the last log line."""

    images: int = 0
    seconds: float = 0.0
    waited_s: float = 0.0
    steps: int = 0
    losses: dict[str, Tensor] = field(default_factory=dict)

    def add(self, losses: Mapping[str, Tensor]) -> None:
        """Count one step. Sums stay on the device to avoid synchronisation."""
        self.steps += 1
        for name, value in losses.items():
            self.losses[name] = self.losses.get(name, 0.0) + value.detach().float()

    def means(self) -> dict[str, float]:
        """Return the mean loss and its parts per step."""
        return {name: float(value) / max(self.steps, 1) for name, value in self.losses.items()}
