"""What a task declares of checkpoints of other code that become its bundles."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from pipeline.models.bundle import Bundle

    Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Flag:
    """A command line option for what tensors do not show: a switch, or a whole number of which 0 is the default."""

    name: str  # "--groups"
    help: str
    counts: bool = False

    @property
    def key(self) -> str:
        """Its name among `Choices.options`."""
        return self.name.removeprefix("--").replace("-", "_")


@dataclass(frozen=True)
class Choices:
    """What the file does not say of itself. `options`: values of the conversion's flags by key."""

    licence: str = ""
    name: str = ""
    ignore: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Made:
    """A checkpoint understood.

    `expected` are the network's tensors without values; `tensors` those of the checkpoint, and those that stand in for
    what it lacks. `bundle` takes provenance and licence.
    """

    expected: Tensors
    tensors: Tensors
    bundle: Callable[[dict[str, Any], str], Bundle]
    remarks: Mapping[str, str] = field(default_factory=dict)  # for the provenance


@dataclass(frozen=True)
class Conversion:
    """How released checkpoints become bundles.

    name: of `--from`. holds: in words. use: options of a run that take the bundle. ignored: prefixes of tensors that
    inference does not need. make: raises CheckpointError where the tensors are of another kind.
    """

    name: str
    holds: str
    use: str
    make: Callable[[Tensors, Choices], Made]
    ignored: tuple[str, ...] = ()
    flags: tuple[Flag, ...] = ()
    source: str = ""  # the paper, for the provenance
