"""What the training loop asks of anything that can be trained.

In: nothing. Out: protocols. Imports nothing heavy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor, nn

    from pipeline.models.bundle import Bundle
    from training.data.sources import TrainingData
    from training.loop.batches import Draw
    from training.presets import Stage


@dataclass(frozen=True)
class Objective:
    """What is minimised, and the parts it is made of, each before its weight, for the log."""

    total: Tensor
    parts: Mapping[str, Tensor]


class Task(Protocol):
    """What is trained. `network` owns every parameter; all chance comes from `Draw`."""

    @property
    def network(self) -> nn.Module:
        """What is trained, in place, averaged and later bundled."""
        ...

    def batch(self, draw: Draw) -> dict[str, Tensor]:
        """Fresh data on the CPU in float32; the first axis of every tensor counts images.

        Worker processes call it: it depends on `draw` and on what the task was made with, not on training.
        """
        ...

    def loss(self, stage: Stage, batch: dict[str, Tensor], draw: Draw) -> Tensor | Objective:
        """What `stage` minimises, on one batch."""
        ...

    def begin(self, stage: Stage, draw: Draw) -> None:
        """Called once when a stage begins, with averaged weights in place."""
        ...

    def finish(self) -> None:
        """Called once after the last step, with averaged weights in place."""
        ...

    def validate(self, stage: Stage) -> str:
        """One line of numbers on held-out places, with the network as it is now, in eval mode."""
        ...


class Trainable(Task, Protocol):
    """A task whose network becomes a bundle."""

    @property
    def data(self) -> TrainingData:
        """What it learns from."""
        ...

    def describe(self) -> dict[str, Any]:
        """What the provenance of the weights says of data and recipe."""
        ...

    def bundle(self, provenance: dict[str, Any] | None = None, licence: str = "") -> Bundle:
        """The bundle of the network as it is now."""
        ...


@runtime_checkable
class HasCompanion(Protocol):
    """A task that needs more than its network to go on, such as a momentum encoder: kept in checkpoints only."""

    @property
    def companion(self) -> nn.Module:
        """Neither trained by gradients, nor averaged, nor bundled."""
        ...


@runtime_checkable
class ShowsSamples(Protocol):
    """A task whose validation can be looked at."""

    def samples(self, stage: Stage) -> Sequence[Mapping[str, Tensor]]:
        """Labelled images (3, H, W), reflectance, of a few held-out places, the truth last."""
        ...
