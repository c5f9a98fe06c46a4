"""What a task declares so that a network can be evaluated as a cascade of x2 levels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from torch import Tensor

    from pipeline.models.bundle import Bundle
    from training.quality.pairs import Pair


class Cascade(Protocol):
    """A network of x2 that is repeated."""

    def every_level(self, pair: Pair, *, measured: bool, member: int | None = None, seed: int = 0) -> list[Tensor]:
        """Return the image (1, C, H, W) on the CPU after each level from a pair's input to its truth, coarsest first.

        `measured` says that the input is a sensor's, whose blur the first level may undo; else all levels keep means of
        2 x 2 px. Without a `member` they are mean estimates, else its draws.
        """
        ...


@dataclass(frozen=True)
class Cascades:
    """Evaluation at several scales, for weights of x2 that a cascade repeats.

    load: loads the network of a bundle on a device. scales: those that a cascade can have.
    """

    load: Callable[[Bundle, torch.device], Cascade]
    scales: tuple[int, ...]
