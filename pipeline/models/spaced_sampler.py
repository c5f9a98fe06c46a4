"""Ancestral sampling of a diffusion on a few of its timesteps (Ho et al. 2020, eqs. 6 and 7; Nichol and Dhariwal 2021).

The grid spans the whole schedule, 0 and T - 1 included. Betas are those of a diffusion that has the timesteps of the
grid alone, and each step draws with the variance of the posterior, beta tilde ("fixed small").
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.models.latent_sampler import TIMESTEPS, alpha_bar, betas

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    Epsilon = Callable[[Tensor, int], Tensor]

STABLE_DIFFUSION_BETAS = (8.5e-4, 0.012)  # first and last; their square roots grow linearly


def stable_diffusion_alpha_bar() -> NDArray[np.float64]:
    """Return alpha_bar of Stable Diffusion's schedule, (1000,)."""
    return alpha_bar(betas(*STABLE_DIFFUSION_BETAS))


def spread_timesteps(steps: int, total: int = TIMESTEPS) -> list[int]:
    """Return `steps` timesteps from 0 to `total` - 1, equally spaced and rounded, ascending.

    Raises ValueError outside 2..`total`.
    """
    if not 2 <= steps <= total:
        msg = f"{steps} sampling steps; expected 2 to {total}"
        raise ValueError(msg)
    return [round((total - 1) * k / (steps - 1)) for k in range(steps)]


@dataclass(frozen=True)
class Posterior:
    """The normal distribution of x at the timestep before, given x0 and x, for every timestep of a grid, (n,) each.

    Its mean is of_x0 * x0 + of_x * x (Ho et al. 2020, eq. 7). At the first timestep it is x0 without variance.
    """

    alphas: NDArray[np.float64]  # alpha_bar
    of_x0: NDArray[np.float64]
    of_x: NDArray[np.float64]
    variance: NDArray[np.float64]


def posterior(schedule: NDArray[np.float64], grid: Sequence[int]) -> Posterior:
    """Return the posterior on an ascending grid of timesteps; `schedule` is alpha_bar by timestep."""
    alphas: NDArray[np.float64] = schedule[list(grid)]
    previous = np.concatenate([[1.0], alphas[:-1]])
    beta = 1 - alphas / previous
    return Posterior(
        alphas,
        beta * np.sqrt(previous) / (1 - alphas),
        (1 - previous) * np.sqrt(1 - beta) / (1 - alphas),
        beta * (1 - previous) / (1 - alphas),
    )


def ancestral(
    epsilon: Epsilon,
    x: Tensor,
    schedule: NDArray[np.float64],
    grid: Sequence[int],
    drawn: Callable[[int], Tensor],
    clip: float | None = None,
    seen: Callable[[Tensor, Tensor], None] | None = None,
) -> Tensor:
    """Denoise x (B, L, h, w), noisy at the last timestep of `grid` (ascending), one evaluation per timestep.

    `epsilon(x, t)` returns the noise. `schedule` is alpha_bar by timestep. `drawn(k)` returns standard normal noise of
    step k (from 0); the last step draws none. `clip` limits the estimates of x0 to -clip..clip. `seen(x, x0)` is called
    after every step.
    """
    to = posterior(schedule, grid)
    for k, i in enumerate(reversed(range(len(grid)))):
        x0 = (x - math.sqrt(1 - to.alphas[i]) * epsilon(x, grid[i])) / math.sqrt(to.alphas[i])
        if clip is not None:
            x0 = x0.clamp(-clip, clip)
        x = float(to.of_x0[i]) * x0 + float(to.of_x[i]) * x
        if i:
            x = x + math.sqrt(to.variance[i]) * drawn(k)
        if seen is not None:
            seen(x, x0)
    return x
