"""Samplers of a denoising diffusion model. Both are deterministic (eta 0): all randomness is in the initial noise.

A noisy image at signal level s = sqrt(alpha_bar) is x = s * x0 + sqrt(1 - s^2) * eps. Levels are float64 scalars;
images keep their own dtype.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    Denoise = Callable[[Tensor, float], Tensor]
    Sampler = Callable[..., Tensor]

Spacing = Literal["trailing", "published", "log-snr"]
MAX_STEPS = 50
LOG_SNR_ENDS = (0.02, 0.98)  # signal levels: almost pure noise, and almost clean

_COSINE_OFFSET = 0.008  # Nichol and Dhariwal 2021, eq. 17
_MAX_BETA = 0.999  # same, section 3.2: keeps the last step from being singular


def cosine_alpha_bar(steps: int = 1000) -> NDArray[np.float64]:
    """Return alpha_bar after 1..steps noising steps, float64 (steps,) (Nichol and Dhariwal 2021, eq. 17)."""
    t = np.arange(steps + 1, dtype=np.float64) / steps
    f = np.cos((t + _COSINE_OFFSET) / (1 + _COSINE_OFFSET) * np.pi / 2) ** 2
    beta = np.minimum(1.0 - f[1:] / f[:-1], _MAX_BETA)
    return np.cumprod(1.0 - beta)


def timesteps(steps: int, total: int = 1000, spacing: Spacing = "trailing") -> list[int]:
    """Return `steps` decreasing indices, at which the network is evaluated, into a schedule of `total` steps.

    "trailing" (Lin et al. 2024, table 2) starts at the noisiest step, total - 1, and moves to the clean image after its
    last evaluation. "published" is DiffFuSR's grid, 950, 900, ..., 0 for 20 of 1000: it starts below the noisiest step,
    and its last evaluation is of an almost clean image. Raises ValueError outside 1..50 steps.
    """
    _steps_within(steps, min(MAX_STEPS, total))
    if spacing == "trailing":
        return [round(total - k * total / steps) - 1 for k in range(steps)]
    if spacing == "published":
        return [k * (total // steps) for k in reversed(range(steps))]
    msg = f"unknown spacing {spacing!r}; expected 'trailing', 'published' or 'log-snr'"
    raise ValueError(msg)


def levels(steps: int, alpha_bar: NDArray[np.float64], spacing: Spacing = "trailing") -> list[float]:
    """Return the `steps` signal levels s = sqrt(alpha_bar), increasing, at which a sampler evaluates the network.

    "trailing" and "published" are as in `timesteps`. "log-snr" levels are equally spaced in log(s / sqrt(1 - s^2)),
    the variable of the second-order solver (Lu et al. 2022, section 4.1), which then needs fewer steps.
    """
    if spacing == "log-snr":
        _steps_within(steps, MAX_STEPS)
        first, last = (_log_snr(level) for level in LOG_SNR_ENDS)
        odds = [math.exp(first + (last - first) * k / max(steps - 1, 1)) for k in range(steps)]
        return [ratio / math.hypot(1.0, ratio) for ratio in odds]
    return [math.sqrt(alpha_bar[t]) for t in timesteps(steps, len(alpha_bar), spacing)]


def ddim(
    denoise: Denoise,
    x: Tensor,
    levels: Sequence[float],
    x0_range: tuple[float, float] | None = None,
    denoise_last: bool = True,
) -> Tensor:
    """DDIM with eta 0 (Song et al. 2021, eq. 12): noise x (B, C, H, W) at levels[0] to x0, one evaluation per level.

    `denoise(x, s)` returns x0 (B, C, H, W). `x0_range` clamps every x0. The x0 of the last evaluation is returned.
    Without `denoise_last` the last evaluation is left out, and the image at the last level is returned with noise of
    sd sqrt(1 - s^2). DiffFuSR's sampler does this, because its last step maps its input to itself.
    """
    _check(levels, denoise_last)
    for here, there in pairwise(levels):
        x0 = _clamped(denoise(x, here), x0_range)
        eps = (x - here * x0) / _sigma(here)
        x = there * x0 + _sigma(there) * eps
    return _clamped(denoise(x, levels[-1]), x0_range) if denoise_last else x


def dpmpp_2m(
    denoise: Denoise,
    x: Tensor,
    levels: Sequence[float],
    x0_range: tuple[float, float] | None = None,
    denoise_last: bool = True,
) -> Tensor:
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2), with the arguments and result of `ddim`.

    The second-order step extrapolates x0 along lambda = log(s / sqrt(1 - s^2)) from the last two evaluations. The first
    and the last step are of first order.
    """
    _check(levels, denoise_last)
    previous: Tensor | None = None
    h_previous = 0.0
    for here, there in pairwise(levels):
        x0 = _clamped(denoise(x, here), x0_range)
        h = _log_snr(there) - _log_snr(here)
        extrapolated = x0
        if previous is not None:
            weight = h / (2 * h_previous)
            extrapolated = (1 + weight) * x0 - weight * previous
        ratio = _sigma(there) / _sigma(here)
        x = ratio * x + (there - ratio * here) * extrapolated
        previous, h_previous = x0, h
    return _clamped(denoise(x, levels[-1]), x0_range) if denoise_last else x


SAMPLERS: Mapping[str, Sampler] = {"ddim": ddim, "dpm++2m": dpmpp_2m}


def _steps_within(steps: int, most: int) -> None:
    if not 1 <= steps <= most:
        msg = f"{steps} sampling steps; expected 1 to {most}"
        raise ValueError(msg)


def _sigma(level: float) -> float:
    return math.sqrt(1.0 - level * level)


def _log_snr(level: float) -> float:
    return math.log(level / _sigma(level))


def _clamped(x0: Tensor, x0_range: tuple[float, float] | None) -> Tensor:
    return x0 if x0_range is None else x0.clamp(*x0_range)


def _check(levels: Sequence[float], denoise_last: bool) -> None:
    """Raise ValueError unless levels grow strictly within (0, 1); other levels lead to divisions by zero."""
    if not denoise_last and len(levels) < 2:
        msg = f"{len(levels)} signal level and no denoising at the last; expected at least 2 levels"
        raise ValueError(msg)
    grows = all(here < there for here, there in pairwise(levels))
    if not levels or not grows or not levels[0] > 0 or not levels[-1] < 1:
        msg = f"signal levels {[round(level, 6) for level in levels]}; expected to grow strictly within (0, 1)"
        raise ValueError(msg)
