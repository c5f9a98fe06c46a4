"""How far a run is: its budget, what it has done, and what happened since the last line."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor


@dataclass(frozen=True)
class Budget:
    """How long to train: minutes of training time over all resumes, or images. Images make a run reproducible."""

    minutes: float | None = None
    images: int | None = None

    def progress(self, elapsed_s: float, images: int) -> float:
        """Spent share, 0 to 1."""
        return min((images if self.images else elapsed_s) / self.total, 1.0)

    @property
    def total(self) -> float:
        """Images, or seconds."""
        return self.images or 60 * (self.minutes or math.inf)

    def spent(self, at: Progress) -> float:
        """Images, or seconds, of a run so far."""
        return at.images if self.images else at.elapsed_s

    def stage_bounds(self, at: Progress, shares: Sequence[float]) -> tuple[float, float]:
        """Images, or seconds, at which the present stage begins and ends; `shares` are those of all stages.

        It and the stages after it divide what the budget leaves after the stages before it.
        """
        begin = at.stage_images if self.images else at.stage_s
        left = shares[at.stage :]
        return begin, begin + (self.total - begin) * (left[0] / sum(left))

    def __str__(self) -> str:
        return f"{self.images} images" if self.images else f"{self.minutes:g} minutes"


@dataclass
class Progress:
    """Where a run stands, over all processes and resumes.

    `stage_images` and `stage_s`: when the present stage began. `extended`: how often the stages began anew because a
    run whose budget was spent was given more.
    """

    step: int = 0
    stage: int = 0
    stage_step: int = 0
    batches: int = 0  # drawn so far: the number of the next one
    images: int = 0
    elapsed_s: float = 0.0
    stage_images: float = 0.0
    stage_s: float = 0.0
    extended: int = 0

    def enter(self, stage: int) -> None:
        """Move to the begin of a stage."""
        self.stage, self.stage_step = stage, 0
        self.stage_images, self.stage_s = self.images, self.elapsed_s


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
