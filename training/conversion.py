"""Dataclasses with which a task declares how third-party checkpoints convert to its bundles."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from torch import Tensor

    from pipeline.models.bundle import Bundle
    from training.checkpoint import Checkpoint

    Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Flag:
    """A command line option for what the tensors do not show.

    A switch; an integer (`counts`) with default 0; or the path of another file or folder (`path`) with default None.
    """

    name: str  # "--groups"
    help: str
    counts: bool = False
    path: bool = False

    @property
    def key(self) -> str:
        """Key in `Choices.options`."""
        return self.name.removeprefix("--").replace("-", "_")


@dataclass(frozen=True)
class Choices:
    """User choices that the file does not contain. `options`: values of the conversion's flags by key."""

    licence: str = ""
    name: str = ""
    ignore: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)


def _unchanged(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return tensors


@dataclass(frozen=True)
class Made:
    """A parsed checkpoint.

    `expected`: the network's tensors, for names, shapes and dtypes. `tensors`: those of the checkpoint, with
    substitutes for what it lacks. `bundle`: takes provenance and licence. `settle`: turns tensors that fit `expected`
    into those of the bundle, if checkpoints have names or layouts of their own.
    """

    expected: Tensors
    tensors: Tensors
    bundle: Callable[[dict[str, Any], str], Bundle]
    remarks: Mapping[str, str] = field(default_factory=dict)  # for the provenance
    settle: Callable[[dict[str, Tensor]], dict[str, Tensor]] = _unchanged


@dataclass(frozen=True)
class Conversion:
    """Conversion of released checkpoints to bundles.

    name: value of `--from`. holds: description of the contents. use: options of a run, up to the name of the
    bundle. ignored: prefixes of tensors that inference does not need. make: raises CheckpointError if tensors misfit.
    read: reads what is not one checkpoint file, such as a folder of several; raises UsageError. licence: that of the
    weights, where all have the same.
    """

    name: str
    holds: str
    use: str
    make: Callable[[Tensors, Choices], Made]
    ignored: tuple[str, ...] = ()
    flags: tuple[Flag, ...] = ()
    source: str = ""  # the paper, for the provenance
    read: Callable[[Path, Choices], Checkpoint] | None = None
    licence: str = ""
