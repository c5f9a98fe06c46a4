"""Where weights come from: the stages of training that made them, one after the other, with digests of the weights."""

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
    """SHA-256 over names, types, shapes and values of tensors, in the order of their names."""
    found = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        found.update(tensor.flatten().view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return found.hexdigest()


@dataclass(frozen=True)
class Trained:
    """One stage of training. `began_with` and `ended_with` are `weights_digest`s of the network.

    A stage begins with the weights that the stage before it ended with. The first stage of a run that began from a
    bundle names its file's SHA-256 in `bundle`; where that is of another kind, the weights are other ones.
    """

    preset: str
    stage: str
    data: str  # SHA-256 of the training file
    began_with: str
    ended_with: str = ""  # empty while it is trained
    first_step: int = 0
    end_step: int = 0
    first_image: int = 0
    end_image: int = 0
    bundle: str = ""


class Lineage:
    """The stages so far, the present one last."""

    def __init__(self, stages: Sequence[Trained] = ()) -> None:
        self.stages = list(stages)
        self._bundle = ""

    @classmethod
    def stored(cls, stages: Sequence[Mapping[str, Any]]) -> Lineage:
        """From what `described` gave. TypeError where these are no stages."""
        return cls([Trained(**stage) for stage in stages])

    def described(self) -> list[dict[str, Any]]:
        """As JSON and checkpoints hold it."""
        return [asdict(stage) for stage in self.stages]

    def begin_from(self, bundle: Bundle) -> None:
        """What a run begins from: its stages come first."""
        self.stages, self._bundle = Lineage.stored(bundle.provenance.get("trained", [])).stages, bundle.digest

    def begin(self, preset: str, stage: str, data: str, weights: Mapping[str, Tensor], at: Progress) -> None:
        """A stage begins with `weights`."""
        begun = Trained(preset, stage, data, weights_digest(weights), bundle=self._bundle)
        self.stages.append(replace(begun, first_step=at.step, first_image=at.images))
        self._bundle = ""

    def end(self, weights: Mapping[str, Tensor], at: Progress) -> None:
        """The present stage ends with `weights`, or would if it ended now."""
        if self.stages:
            ended = weights_digest(weights)
            self.stages[-1] = replace(self.stages[-1], ended_with=ended, end_step=at.step, end_image=at.images)
