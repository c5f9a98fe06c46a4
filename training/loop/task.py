"""What the training loop asks of anything that can be trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor, nn
    from torch.optim import Optimizer

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
    """What is trained: a task that also `HasLoss` or `TakesTurns`. All chance comes from `Draw`."""

    @property
    def network(self) -> nn.Module:
        """What is trained, in place, averaged and later bundled."""
        ...

    def batch(self, draw: Draw) -> dict[str, Tensor]:
        """Fresh data on the CPU in float32; the first axis of every tensor counts images.

        Worker processes call it: it depends on `draw` and on what the task was made with, not on training.
        """
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


@runtime_checkable
class HasLoss(Protocol):
    """A task with one loss, which the loop minimises by Adam over the parameters that the stage trains."""

    def loss(self, stage: Stage, batch: dict[str, Tensor], draw: Draw) -> Tensor | Objective:
        """What `stage` minimises, on one batch."""
        ...


@runtime_checkable
class TakesTurns(Protocol):
    """A task with optimisers of its own that step one after the other, such as generator and discriminator."""

    def optimisers(self, stage: Stage) -> Mapping[str, Optimizer]:
        """Fresh optimisers of a stage by name, over parameters of `network` and of a `companion`.

        Their learning rates are those at the start of the stage, before warm-up; the schedule multiplies them. Asked
        for when a stage begins and when a run resumes, before their states are loaded.
        """
        ...

    def turns(self, stage: Stage, batch: dict[str, Tensor], draw: Draw) -> Iterator[tuple[str, Tensor | Objective]]:
        """The losses of one step, each with the optimiser that steps before the next is asked for.

        Gradients of a loss reach that optimiser's parameters alone. Compute each loss in its turn: what was computed
        before has the weights of before. All processes of a run take the same turns.
        """
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
class BeginsFrom(Protocol):
    """A task that goes on from weights of another kind, which its `TaskSpec.follows` names."""

    def begin_from(self, bundle: Bundle) -> None:
        """Take what the network needs of a bundle of such a kind. BundleError where its tensors do not fit."""
        ...


@runtime_checkable
class HasCompanion(Protocol):
    """A task that needs more than its network to go on: a momentum encoder, a discriminator. Kept in checkpoints."""

    @property
    def companion(self) -> nn.Module:
        """Neither averaged nor bundled; trained only by optimisers that the task gives."""
        ...


@runtime_checkable
class ShowsSamples(Protocol):
    """A task whose validation can be looked at."""

    def samples(self, stage: Stage) -> Sequence[Mapping[str, Tensor]]:
        """Labelled images (3, H, W), reflectance, of a few held-out places, the truth last."""
        ...
