"""A cascade of x2 levels on whole images, for validation and evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.models.wavediffur import MOST_SCALE, WaveDiffUR, levels_of
from pipeline.models.wavelet import padded_to_multiple
from training import placement
from training.quality.cascade import Cascades
from training.quality.pairs import noise_of
from training.quality.sampler import further_noise

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from pipeline.models.bundle import Bundle
    from pipeline.models.wavediffur import Noise
    from training.quality.pairs import Pair

_EVEN = 2


@dataclass(frozen=True)
class WaveletCascade:
    """The levels of a bundle, as `training.quality.cascade.Cascade`."""

    levels: WaveDiffUR

    @classmethod
    def load(cls, bundle: Bundle, device: torch.device) -> WaveletCascade:
        """Load the network of a bundle on a device. Raises BundleError if the tensors do not fit."""
        return cls(WaveDiffUR.from_bundle(bundle).to(device))

    def every_level(self, pair: Pair, *, measured: bool, member: int | None = None, seed: int = 0) -> list[Tensor]:
        """Return the images after each level, as the function of this name."""
        return every_level(self.levels, pair, measured=measured, member=member, seed=seed)


CASCADES = Cascades(WaveletCascade.load, tuple(2**level for level in range(1, MOST_SCALE.bit_length())))


def every_level(
    levels: WaveDiffUR, pair: Pair, *, measured: bool, member: int | None = None, seed: int = 0
) -> list[Tensor]:
    """Return the image (1, C, H, W) after each of the levels from a pair's input to its truth, coarsest first.

    `measured` says that the input is a sensor's, whose blur the first level may undo; else all levels keep means of
    2 x 2 px. Without a `member` they are mean estimates, else its draws. Everything is returned on the CPU.
    """
    image, found = pair.lr, []
    for number in range(levels_of(pair.scale)):
        noise = None if member is None else noise_of_level(pair, number, member, seed)
        image = one_level(levels, image, noise, measured=measured and number == 0)
        found.append(image)
    return found


def one_level(levels: WaveDiffUR, image: Tensor, noise: Noise | None = None, *, measured: bool) -> Tensor:
    """Return one level (1, C, 2H, 2W) of an image (1, C, H, W) of any size."""
    padded, (height, width) = padded_to_multiple(image, _EVEN), image.shape[-2:]
    device = placement.device_of(levels.network)
    drawn = None if noise is None else lambda *request: noise(*request).to(device)
    fine = levels.level(padded.to(device), drawn, measured=measured)
    return fine.cpu()[..., : 2 * height, : 2 * width]


def noise_of_level(pair: Pair, number: int, member: int, seed: int = 0) -> Noise:
    """Return the noise of one member of a pair at one level; members come in antithetic pairs."""
    first = noise_of(pair, member, seed)
    left = levels_of(pair.scale) - 1 - number  # levels behind this one
    height, width = (-(-(side >> left) // (2 * _EVEN)) * 2 * _EVEN for side in pair.hr.shape[-2:])

    def noise(draw: int, channels: int, coarser: int) -> Tensor:
        return further_noise(first, 1000 * number + draw, (1, channels, height // coarser, width // coarser))

    return noise
