"""What a task declares so that a network can be evaluated as a cascade of x2 levels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch.nn import functional

from training.data.rasters import area_average

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from pipeline.models.bundle import Bundle
    from training.quality.pairs import Pair


@dataclass(frozen=True)
class Finer:
    """A finer image (1, C, h, w) of a pair's ground, in any unit, whose pixels are `pixel_px` px of the truth wide.

    It begins at the corner of the truth and covers at least its ground, in whole pixels of every level.
    """

    image: Tensor
    pixel_px: float

    def at(self, pixel_px: float, height: int, width: int) -> Tensor:
        """Return the image (1, C, height, width) at another pixel: area means if that is larger, else cubic."""
        ratio = pixel_px / self.pixel_px
        if ratio >= 1:
            found = torch.from_numpy(area_average(self.image[0].numpy(), ratio, ratio))[None]
        else:
            found = functional.interpolate(self.image, scale_factor=1 / ratio, mode="bicubic", align_corners=False)
        return found[..., :height, :width]


class Cascade(Protocol):
    """A network of x2 that is repeated, or another system's that is."""

    def every_level(
        self, pair: Pair, *, measured: bool, member: int | None = None, seed: int = 0, finer: Finer | None = None
    ) -> list[Tensor]:
        """Return the image (1, C, H, W) on the CPU after each level from a pair's input to its truth, coarsest first.

        `measured` says that the input is a sensor's, whose blur the first level may undo; else all levels keep the
        means of their input. Without a `member` they are mean estimates, else its draws. `finer` shows red, green and
        blue in the places of the pair's.
        """
        ...


@dataclass(frozen=True)
class Cascades:
    """Evaluation at several scales, for weights of x2 that a cascade repeats.

    load: loads the network of a bundle on a device. scales: those that a cascade can have. over: loads a cascade to a
    scale whose steps are another system's, given by name, with files of its weights if it takes others than the
    shipped ones. It raises UsageError for a scale that is no power of its factor.
    """

    load: Callable[[Bundle, torch.device], Cascade]
    scales: tuple[int, ...]
    over: Callable[[str, tuple[str, ...], int, torch.device], Cascade]
