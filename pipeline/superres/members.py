"""Streamed mean and spread of the members of an ensemble.

Members come in antithetic pairs (Hammersley and Morton 1956): 2k + 1 is drawn from the negated noise of 2k
(`pipeline.grid.noise`). Each is a fair sample, and odd terms of the noise cancel in the mean of a pair, so few members
give a mean that otherwise takes many independent ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


class Ensemble:
    """Running mean and spread of draws of one shape; memory does not grow with their number."""

    def __init__(self) -> None:
        self.count = 0
        self._total: Tensor | None = None
        self._even: Tensor | None = None  # first member of the current pair
        self._pair_mean: Tensor | None = None  # mean over whole pairs
        self._between: Tensor | None = None  # sum of squared deviations of pair means
        self._within: Tensor | None = None  # sum of squared half differences

    def add(self, draw: Tensor) -> None:
        """Add the next member."""
        self._total = draw if self._total is None else self._total + draw
        self.count += 1
        if self._even is None:
            self._even = draw
            return
        self._pair(self._even, draw)
        self._even = None

    @property
    def mean(self) -> Tensor:
        """Mean of all members. Raises ValueError if there are none."""
        if self._total is None:
            msg = "no members drawn; expected at least 1"
            raise ValueError(msg)
        return self._total / self.count

    @property
    def spread(self) -> Tensor | None:
        """Standard deviation of one member, estimated from the whole pairs; None if there are none.

        For a pair p + h, p - h with symmetric h, var(x) = E[h^2] + var(p): the mean of squared half differences plus,
        from two pairs on, the variance of pair means (ddof 1). This is unbiased, unlike the usual formula, which
        assumes independent members.
        """
        if self._within is None or self._between is None:
            return None
        pairs = self.count // 2
        variance = self._within / pairs
        return torch.sqrt(variance + self._between / (pairs - 1) if pairs > 1 else variance)

    def _pair(self, even: Tensor, odd: Tensor) -> None:
        """Update by Welford's recurrence over pair means."""
        middle, half = (even + odd) / 2, (even - odd) / 2
        if self._pair_mean is None or self._between is None or self._within is None:
            self._pair_mean, self._between, self._within = middle, torch.zeros_like(middle), half.square()
            return
        delta = middle - self._pair_mean
        self._pair_mean = self._pair_mean + delta / (self.count // 2)
        self._between = self._between + delta * (middle - self._pair_mean)
        self._within = self._within + half.square()
