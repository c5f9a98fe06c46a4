"""DDIM for latent diffusion (Song et al., ICLR 2021, eqs. 12 and 16), on the grid of the released LDM samplers.

Timesteps count from 0, and the grid is 1, 1 + T / n, 1 + 2 T / n, ... for n of T steps. The image at the last of them
is denoised to alpha_bar of timestep 0 as released, or to 1.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    Epsilon = Callable[[Tensor, int], Tensor]

TIMESTEPS = 1000
BETAS = (1e-4, 0.0155)  # first and last of release 1.0
BETAS_BEFORE_1_0 = (1.5e-3, 0.0155)


def betas(first: float = BETAS[0], last: float = BETAS[1], timesteps: int = TIMESTEPS) -> NDArray[np.float64]:
    """Return the schedule (T,) whose square roots grow linearly."""
    found: NDArray[np.float64] = np.linspace(math.sqrt(first), math.sqrt(last), timesteps, dtype=np.float64) ** 2
    return found


def alpha_bar(of: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the cumulative product of 1 - beta, (T,)."""
    product: NDArray[np.float64] = (1.0 - of).cumprod()
    return product


def timesteps(steps: int, total: int = TIMESTEPS) -> list[int]:
    """Return the `steps` timesteps of the grid, ascending. Raises ValueError unless `steps` divides `total`.

    Released code takes any number, and then has more timesteps than it was asked for, the last of which reads beyond
    the schedule.
    """
    if not 1 <= steps <= total or total % steps:
        fitting = [n for n in range(1, total + 1) if total % n == 0]
        near = sorted(fitting, key=lambda n: abs(n - steps))[:3]
        msg = f"{steps} sampling steps do not divide {total}; expected for example {', '.join(map(str, sorted(near)))}"
        raise ValueError(msg)
    return [min(1 + k * (total // steps), total - 1) for k in range(steps)]


def sigmas(alphas: NDArray[np.float64], previous: NDArray[np.float64], eta: float) -> NDArray[np.float64]:
    """Return the standard deviation of the noise drawn in each step (eq. 16), from alpha_bar before and after it."""
    found: NDArray[np.float64] = eta * np.sqrt((1 - previous) / (1 - alphas) * (1 - alphas / previous))
    return found


def forward(x0: Tensor, alpha: float | Tensor, noise: Tensor) -> Tensor:
    """Return a latent with noise at alpha_bar = `alpha` (a number, or a tensor that broadcasts)."""
    found: Tensor = alpha**0.5 * x0 + (1 - alpha) ** 0.5 * noise
    return found


def ddim(
    epsilon: Epsilon,
    x: Tensor,
    schedule: NDArray[np.float64],
    grid: Sequence[int],
    eta: float = 0.0,
    drawn: Callable[[int], Tensor] | None = None,
    temperature: float = 1.0,
    last: float | None = None,
    seen: Callable[[Tensor, Tensor], None] | None = None,
) -> Tensor:
    """Denoise x (B, L, h, w), noisy at the last timestep of `grid` (ascending), one evaluation per timestep.

    `epsilon(x, t)` returns the noise. `schedule` is alpha_bar by timestep. With `eta` > 0, `drawn(k)` returns standard
    normal noise of step k (from 0), which `temperature` multiplies. `last` is alpha_bar of the result, by default that
    of timestep 0. `seen(x, x0)` is called after every step.
    """
    alphas = schedule[list(grid)]
    previous = np.concatenate([schedule[:1] if last is None else [last], alphas[:-1]])
    spread = sigmas(alphas, previous, eta)
    for k, i in enumerate(reversed(range(len(grid)))):
        noise = epsilon(x, grid[i])
        x0 = (x - math.sqrt(1 - alphas[i]) * noise) / math.sqrt(alphas[i])
        x = math.sqrt(previous[i]) * x0 + math.sqrt(max(1 - previous[i] - spread[i] ** 2, 0.0)) * noise
        if eta and drawn is not None:
            x = x + float(spread[i]) * temperature * drawn(k)
        if seen is not None:
            seen(x, x0)
    return x
