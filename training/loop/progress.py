"""Budget and progress of a run, and counts since the last log line."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pipeline.errors import PipelineError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor


class Diverged(PipelineError):
    """Raised if the loss is not finite. Exit code 1."""


@dataclass(frozen=True)
class Budget:
    """Budget of a run: minutes of training time over all resumes, or images. Only images are reproducible."""

    minutes: float | None = None
    images: int | None = None

    def progress(self, elapsed_s: float, images: int) -> float:
        """Return the spent share of the budget, 0 to 1."""
        return min((images if self.images else elapsed_s) / self.total, 1.0)

    @property
    def total(self) -> float:
        """Budget in images or seconds."""
        return self.images or 60 * (self.minutes or math.inf)

    def spent(self, at: Progress) -> float:
        """Return the images or seconds spent by a run."""
        return at.images if self.images else at.elapsed_s

    def left_s(self, at: Progress) -> float:
        """Estimate the seconds of training that remain, at the average rate of the run so far."""
        left = max(self.total - self.spent(at), 0.0)
        return left * at.elapsed_s / max(at.images, 1) if self.images else left

    def stage_bounds(self, at: Progress, shares: Sequence[float]) -> tuple[float, float]:
        """Return the images or seconds at which the current stage begins and ends. `shares` has all stages.

        The current and later stages divide the budget that earlier stages have left, in proportion to their shares.
        """
        begin = at.stage_images if self.images else at.stage_s
        left = shares[at.stage :]
        return begin, begin + (self.total - begin) * (left[0] / sum(left))

    def __str__(self) -> str:
        return f"{self.images} images" if self.images else f"{self.minutes:g} minutes"


@dataclass
class Progress:
    """Progress of a run, over all processes and resumes.

    `stage_images` and `stage_s` say when the current stage began. `extended` counts how often the stages have
    restarted because a finished run was given a larger budget.
    """

    step: int = 0
    stage: int = 0
    stage_step: int = 0
    batches: int = 0  # drawn so far, which is the number of the next batch
    images: int = 0
    elapsed_s: float = 0.0
    stage_images: float = 0.0
    stage_s: float = 0.0
    extended: int = 0

    def enter(self, stage: int) -> None:
        """Start a stage."""
        self.stage, self.stage_step = stage, 0
        self.stage_images, self.stage_s = self.images, self.elapsed_s


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

    def check(self, step: int, folder: Path) -> None:
        """Raise Diverged if a mean is not finite, before a checkpoint of such weights replaces a good one."""
        broken = {name: value for name, value in self.means().items() if not math.isfinite(value)}
        for name, value in broken.items():
            raise Diverged(
                f"the {name} is {value} within the last {self.steps} steps to step {step}",
                "a finite number",
                f"resume from {folder} with a lower learning rate or without --bf16",
            )

    def means(self) -> dict[str, float]:
        """Return the mean loss and its parts per step."""
        return {name: float(value) / max(self.steps, 1) for name, value in self.losses.items()}
