"""How far a run is: its budget, what it has done, and what happened since the last line."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor


@dataclass(frozen=True)
class Budget:
    """How long to train: minutes of training time over all resumes, or images. Images make a run reproducible."""

    minutes: float | None = None
    images: int | None = None

    def progress(self, elapsed_s: float, images: int) -> float:
        """Spent share, 0 to 1."""
        spent = images / self.images if self.images else elapsed_s / 60 / (self.minutes or math.inf)
        return min(spent, 1.0)


@dataclass
class Progress:
    """Where a run stands, over all processes and resumes."""

    step: int = 0
    stage: int = 0
    stage_step: int = 0
    batches: int = 0  # drawn so far: the number of the next one
    images: int = 0
    elapsed_s: float = 0.0


@dataclass
class Tally:
    """What happened since the last line, in this process."""

    images: int = 0
    seconds: float = 0.0
    waited_s: float = 0.0
    steps: int = 0
    losses: dict[str, Tensor] = field(default_factory=dict)

    def add(self, losses: Mapping[str, Tensor]) -> None:
        """Count one step; sums stay on the device so that nothing waits for them."""
        self.steps += 1
        for name, value in losses.items():
            self.losses[name] = self.losses.get(name, 0.0) + value.detach().float()

    def means(self) -> dict[str, float]:
        """Mean of the loss and its parts per step."""
        return {name: float(value) / max(self.steps, 1) for name, value in self.losses.items()}
