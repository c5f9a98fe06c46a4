"""Reverse diffusion with the projection of WaveDiffUR (eqs. 7 to 9), and its noise of the high frequencies (eq. 10).

Noise is an argument everywhere. The variance-preserving process ("vp") is that of DDPM: linear betas, 1000 steps.

The mean-reverting process of IR-SDE (Luo et al. 2023, "Image restoration with mean-reverting stochastic differential
equations"), dx = theta (mu - x) dt + sigma dw with sigma^2 = 2 lambda^2 theta, ends in N(mu, lambda^2). A level
diffuses the residual of its estimates in units of their spread: there mu is 0 and lambda is 1, and what remains of the
equation is its schedule, alpha_bar = exp(-2 * integral of theta), and its step, the mean of the posterior.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from pipeline.models.wavelet import noised, projected

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    Epsilon = Callable[[Tensor, int], Tensor]  # noise in a state at a timestep
    StepNoise = Callable[[int], Tensor]  # standard normal noise of the k-th step of the sampler
    Projection = Callable[[Tensor, int, float], Tensor]  # of a state after step k, at its alpha_bar

STEPS = 1000
PROCESSES = ("vp", "ir-sde")
IR_STEPS, IR_LEFT = 100, 0.005
BETAS = (1e-4, 0.02)  # first and last; Ho et al. 2020, section 4


def linear_alpha_bar(steps: int = STEPS, betas: tuple[float, float] = BETAS) -> NDArray[np.float64]:
    """Return alpha_bar after 1..steps noising steps with betas in equal distances, float64 (steps,)."""
    return np.cumprod(1.0 - np.linspace(*betas, steps)).astype(np.float64)


def mean_reverting_alpha_bar(steps: int = IR_STEPS, left: float = IR_LEFT) -> NDArray[np.float64]:
    """Return alpha_bar of IR-SDE after 1..steps steps, float64 (steps,), with theta of a cosine schedule.

    `left` is exp(-integral of theta) after all steps, the share of the truth that remains (delta of the authors' code,
    0.005; theta there is 1 - alpha_bar of Nichol and Dhariwal 2021).
    """
    times = np.arange(1, steps + 1) / steps
    theta = 1.0 - np.cos((times + 0.008) / 1.008 * np.pi / 2) ** 2 / np.cos(0.008 / 1.008 * np.pi / 2) ** 2
    passed = np.cumsum(theta) / theta.sum() * -np.log(left)
    found: NDArray[np.float64] = np.exp(-2.0 * passed)
    return found


def alpha_bar_of(process: str) -> NDArray[np.float64]:
    """Return alpha_bar by step of a process, "vp" or "ir-sde". Raises ValueError for another."""
    if process == "vp":
        return linear_alpha_bar()
    if process == "ir-sde":
        return mean_reverting_alpha_bar()
    msg = f"process {process!r}; expected one of {', '.join(PROCESSES)}"
    raise ValueError(msg)


def reverse_diffusion(
    epsilon: Epsilon,
    x: Tensor,
    timesteps: Sequence[int],
    alpha_bar: NDArray[np.float64],
    eta: float = 0.0,
    step_noise: StepNoise | None = None,
    project: Projection | None = None,
    *,
    optimal: bool = False,
) -> Tensor:
    """Bring noise x (..., H, W) at timesteps[0] to alpha_bar = 1, with one evaluation of `epsilon` per timestep.

    DDIM (Song et al. 2021, eqs. 12 and 16): eta 0 follows the probability flow, eta 1 is eq. 8 in its ancestral form.
    With `optimal`, each step goes to the mean of the posterior, the most likely state of IR-SDE (its proposition 3.2):
    the ancestral step without its noise. `project(x, k, alpha_bar)` is applied after step k, at the noise level that
    the step has reached (eq. 9).
    Raises ValueError for timesteps that do not fall, an eta outside 0..1, and an eta without `step_noise`.
    """
    _check(timesteps, alpha_bar, eta, step_noise)
    for k, t in enumerate(timesteps):
        here = float(alpha_bar[t])
        there = float(alpha_bar[timesteps[k + 1]]) if k + 1 < len(timesteps) else 1.0
        eps = epsilon(x, t)
        x0 = (x - math.sqrt(1 - here) * eps) / math.sqrt(here)
        sigma = (1.0 if optimal else eta) * math.sqrt((1 - there) / (1 - here)) * math.sqrt(1 - here / there)
        x = math.sqrt(there) * x0 + math.sqrt(max(1 - there - sigma * sigma, 0.0)) * eps
        if sigma > 0 and step_noise is not None and not optimal:
            x = x + sigma * step_noise(k)
        if project is not None:
            x = project(x, k, there)
    return x


def towards(tau: Tensor, block_px: int, noise: StepNoise) -> Projection:
    """Return the projection of eq. 9 onto the condition tau (..., H, W), for `reverse_diffusion`.

    A = A' - phi_N(A') + phi_N(sqrt(alpha_bar) * tau + sqrt(1 - alpha_bar) * z), where z = noise(k). Since the last
    alpha_bar is 1, phi_N(A_0) = phi_N(tau). N = 0 stands for no projection.
    """

    def project(x: Tensor, k: int, alpha_bar: float) -> Tensor:
        target = tau if block_px == 0 or alpha_bar == 1.0 else noised(tau, alpha_bar, noise(k))
        return projected(x, target, block_px)

    return project


def gaussian_epsilon(mean: Tensor, variance: Tensor, alpha_bar: NDArray[np.float64]) -> Epsilon:
    """Return the exact epsilon of independent Gaussian data N(mean, variance), the score being -eps / sqrt(1 - ab)."""

    def epsilon(x: Tensor, t: int) -> Tensor:
        ab = float(alpha_bar[t])
        eps: Tensor = math.sqrt(1 - ab) * (x - math.sqrt(ab) * mean) / (ab * variance + 1 - ab)
        return eps

    return epsilon


def detail_sample(
    upscale: Callable[[Tensor], Tensor], details: Tensor, r: float, z1: Tensor, sigma: float, z2: Tensor
) -> Tensor:
    """Draw from N(U(x), r^2 U U^T + sigma^2 I), eqs. 10, 11 and 17, for a linear `upscale` U: U(x + r z1) + sigma z2.

    `details` x and `z1` are (..., H, W), `z2` has the shape of the result. For a network U, r^2 U U^T is its covariance
    to first order in r.
    """
    return upscale(details + r * z1) + sigma * z2


def _check(timesteps: Sequence[int], alpha_bar: NDArray[np.float64], eta: float, step_noise: StepNoise | None) -> None:
    falls = all(a > b for a, b in pairwise(timesteps))
    if not timesteps or not falls or not 0 <= timesteps[-1] <= timesteps[0] < len(alpha_bar):
        msg = f"timesteps {list(timesteps)}; expected to fall strictly within {len(alpha_bar) - 1}..0"
        raise ValueError(msg)
    if not 0 <= eta <= 1 or (eta > 0 and step_noise is None):
        msg = f"eta {eta}; expected 0 to 1, and noise for every step if above 0"
        raise ValueError(msg)
