"""Lineage of weights: the training stages that produced them, with digests of the weights."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from pipeline.models.bundle import Bundle
    from training.loop.progress import Progress


def weights_digest(state: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of names, dtypes, shapes and values of tensors, in order of name."""
    found = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        found.update(tensor.flatten().view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return found.hexdigest()


@dataclass(frozen=True)
class Trained:
    """One stage of training. `began_with` and `ended_with` are `weights_digest`s of the network.

    A stage begins with the final weights of the previous stage. If a run began from a bundle, its first stage has the
    SHA-256 of that file in `bundle`; a bundle of another kind has different weights.
    """

    preset: str
    stage: str
    data: str  # SHA-256 of the training file
    began_with: str
    ended_with: str = ""  # empty during training
    first_step: int = 0
    end_step: int = 0
    first_image: int = 0
    end_image: int = 0
    bundle: str = ""
    data_stage: str = ""  # name of the run among those of `training.staged`


class Lineage:
    """The stages so far, the current one last."""

    def __init__(self, stages: Sequence[Trained] = ()) -> None:
        self.stages = list(stages)
        self._bundle = ""

    @classmethod
    def stored(cls, stages: Sequence[Mapping[str, Any]]) -> Lineage:
        """Restore from the output of `described`. Raises TypeError if these are not stages."""
        return cls([Trained(**stage) for stage in stages])

    def described(self) -> list[dict[str, Any]]:
        """Return the stages as dicts for JSON and checkpoints."""
        return [asdict(stage) for stage in self.stages]

    def begin_from(self, bundle: Bundle) -> None:
        """Prepend the stages of the bundle from which a run begins."""
        self.stages, self._bundle = Lineage.stored(bundle.provenance.get("trained", [])).stages, bundle.digest

    def begin(self, names: tuple[str, str, str], data: str, weights: Mapping[str, Tensor], at: Progress) -> None:
        """Add a stage that begins with `weights`. `names` are those of preset, stage and data stage."""
        preset, stage, data_stage = names
        begun = Trained(preset, stage, data, weights_digest(weights), bundle=self._bundle, data_stage=data_stage)
        self.stages.append(replace(begun, first_step=at.step, first_image=at.images))
        self._bundle = ""

    def end(self, weights: Mapping[str, Tensor], at: Progress) -> None:
        """Record `weights` as the current end of the last stage."""
        if self.stages:
            ended = weights_digest(weights)
            self.stages[-1] = replace(self.stages[-1], ended_with=ended, end_step=at.step, end_image=at.images)
