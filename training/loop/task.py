"""Protocols that the training loop requires of a task."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from torch import Tensor, nn
    from torch.optim import Optimizer

    from pipeline.models.bundle import Bundle
    from training.data.sources import TrainingData
    from training.loop.batches import Draw
    from training.presets import Stage


@dataclass(frozen=True)
class Objective:
    """The minimised loss, and its unweighted parts for the log."""

    total: Tensor
    parts: Mapping[str, Tensor]


@dataclass(frozen=True)
class Measured:
    """Validation results: a line for the user, and numbers by name for the log."""

    text: str
    values: Mapping[str, float] = field(default_factory=dict)


class Task(Protocol):
    """A training task. It must also be `HasLoss` or `TakesTurns`. All randomness comes from `Draw`."""

    @property
    def network(self) -> nn.Module:
        """The network, trained in place, averaged and later bundled."""
        ...

    def batch(self, draw: Draw) -> dict[str, Tensor]:
        """Return new data, float32 on the CPU. The first axis of every tensor counts images.

        Worker processes call this, so it must not depend on the training state.
        """
        ...

    def begin(self, stage: Stage, draw: Draw) -> None:
        """Prepare a stage. Called once at its start, with averaged weights in place."""
        ...

    def finish(self) -> None:
        """Finish the training. Called once after the last step, with averaged weights in place."""
        ...

    def validate(self, stage: Stage) -> Measured:
        """Return one line of scores on held-out places. The network is in eval mode."""
        ...


@runtime_checkable
class HasLoss(Protocol):
    """A task with one loss, minimised by Adam over the parameters that the stage trains."""

    def loss(self, stage: Stage, batch: dict[str, Tensor], draw: Draw) -> Tensor | Objective:
        """Return the loss of `stage` on one batch. Draw tensors on its device with `draw.on(device)`."""
        ...


@runtime_checkable
class TakesTurns(Protocol):
    """A task with its own optimisers that step in turn, such as generator and discriminator."""

    def optimisers(self, stage: Stage) -> Mapping[str, Optimizer]:
        """Return new optimisers of a stage by name, over parameters of `network` and `companion`.

        The schedule multiplies their initial learning rates. Called when a stage begins, and when a run resumes before
        their states are loaded.
        """
        ...

    def turns(self, stage: Stage, batch: dict[str, Tensor], draw: Draw) -> Iterator[tuple[str, Tensor | Objective]]:
        """Yield the losses of one step, each with its optimiser, which steps before the next loss is requested.

        Gradients reach only that optimiser's parameters. Compute each loss in its own turn, so that it uses the updated
        weights. All processes of a run must take the same turns.
        """
        ...


class Trainable(Task, Protocol):
    """A task whose network becomes a bundle."""

    @property
    def data(self) -> TrainingData:
        """Training data."""
        ...

    def describe(self) -> dict[str, Any]:
        """Return the provenance of data and recipe."""
        ...

    def bundle(self, provenance: dict[str, Any] | None = None, licence: str = "") -> Bundle:
        """Return the bundle of the current network."""
        ...


@runtime_checkable
class BeginsFrom(Protocol):
    """A task that can start from weights of another kind, listed in `TaskSpec.follows`."""

    def begin_from(self, bundle: Bundle) -> None:
        """Load the needed tensors of such a bundle. Raises BundleError if they do not fit."""
        ...


@runtime_checkable
class HasCompanion(Protocol):
    """A task with more state than its network, such as a momentum encoder or discriminator, kept in checkpoints."""

    @property
    def companion(self) -> nn.Module:
        """The extra module: neither averaged nor bundled, trained only by the task's own optimisers."""
        ...


@runtime_checkable
class NamesCompiled(Protocol):
    """A task that says which parts of its network `--compile` compiles. Of others, these are its direct children."""

    @property
    def compiled(self) -> Iterable[nn.Module]:
        """Modules that losses call, without hooks that change from step to step."""
        ...


@runtime_checkable
class NamesWatched(Protocol):
    """A task that says which images `validate` scores."""

    @property
    def watching(self) -> str:
        """One sentence, such as "watched: 33 of 231 held-out images, the first 6 of each set"."""
        ...


@runtime_checkable
class NamesImageBands(Protocol):
    """A task that can learn from images that lack some of its bands."""

    @property
    def image_bands(self) -> tuple[str, ...]:
        """Bands that its images must have."""
        ...


@runtime_checkable
class HasRemarks(Protocol):
    """A task that has something to tell before the first step, such as a term of its loss that it cannot compute."""

    @property
    def remarks(self) -> Sequence[str]:
        """One line for each."""
        ...


@runtime_checkable
class ShowsSamples(Protocol):
    """A task with sample images for visual validation."""

    def samples(self, stage: Stage) -> Sequence[Mapping[str, Tensor]]:
        """Return labelled reflectance images (3, H, W) of a few held-out places, the truth last."""
        ...
