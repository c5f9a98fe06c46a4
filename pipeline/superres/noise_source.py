"""Noise of stochastic stages, keyed by absolute position."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.grid import arrays
from pipeline.grid.noise import normal_field

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from pipeline.grid.grid import Window
    from pipeline.superres.options import Options
    from pipeline.superres.spec import NoiseSource

_WORD = 2**64 - 1


def noise_source(window: Window, ordinal: int, member: int, options: Options, device: torch.device) -> NoiseSource:
    """Return the noise of one member over a window of a stage, (1, channels, T, T).

    `ordinal` counts the stochastic stages of the system from 0, so that no two of them draw the same numbers.
    """

    def noise(step: int, channels: int, coarser: int = 1) -> Tensor:
        values = normal_field(
            window.coarsen(coarser),
            seed=_seed(options.seed, ordinal, coarser),
            channels=channels,
            step=step,
            member=member,
            stream=options.stream,
            device=None if arrays.takes_numpy(device) else device,
        )
        return arrays.tensor_of(values)[None]

    return noise


def _seed(seed: int, ordinal: int, coarser: int) -> int:
    """Return the run's seed, mixed by SplitMix64 (Steele et al. 2014) except for the first stage at its own GSD."""
    if ordinal == 0 and coarser == 1:
        return seed
    z = (seed + 0x9E3779B97F4A7C15 * (ordinal * 1024 + coarser)) & _WORD
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _WORD
    return z ^ (z >> 31)
