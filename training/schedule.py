"""Learning rate schedules over a stage, as multiples of its base rate."""

from __future__ import annotations

import math
from bisect import bisect_right
from typing import Literal

Schedule = Literal["cosine", "step", "constant"]
FINAL_RATE = 0.02  # final factor of the cosine
# DiffFuSR (arXiv 2506.11764) halves its rate after epochs 200, 400, 600 and 800 of 1000; here as shares of the stage.
HALVED_AT = (0.2, 0.4, 0.6, 0.8)


def rate(schedule: Schedule, spent: float, step: int, warmup_steps: int) -> float:
    """Return the factor after the share `spent` (0 to 1) of a stage at step `step` (from 0), with linear warm-up."""
    warm = min(1.0, (step + 1) / max(warmup_steps, 1))
    if schedule == "constant":
        return warm
    return warm * (_cosine(spent) if schedule == "cosine" else 0.5 ** bisect_right(HALVED_AT, spent))


def _cosine(spent: float) -> float:
    half = 0.5 * (1 + math.cos(math.pi * min(max(spent, 0.0), 1.0)))
    return FINAL_RATE + (1 - FINAL_RATE) * half
