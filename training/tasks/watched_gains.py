"""What tasks of super-resolvers with a mean and draws show of held-out places while they train: gains and samples."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from training import placement
from training.loop.task import Measured
from training.quality.pairs import (
    average,
    from_many_sets,
    ibp_scores,
    members,
    per_set_mean,
    score,
    side_by_side,
)

if TYPE_CHECKING:
    from torch import Tensor

    from training.quality.pairs import Pair
    from training.quality.sampler import Sampler

SAMPLES = 4
DRAWS = 4  # whose mean is scored beside one draw


@dataclass(frozen=True)
class WatchedGains:
    """Held-out pairs, scored in dB over IBP. `drawn` says whether the network's draws are learned yet."""

    pairs: list[Pair]

    @cached_property
    def baseline(self) -> float:
        """PSNR of IBP in dB, mean over sets."""
        return average(per_set_mean(self.pairs, ibp_scores(self.pairs)))

    @torch.no_grad()
    def measured(self, sampler: Sampler, device: torch.device, drawn: bool) -> Measured:
        """Return the PSNR gain over IBP of the mean and, if `drawn`, of one draw and the mean of four."""
        named: dict[str, list[float]] = {}
        for pair in self.pairs:
            if sampler.mean is not None:
                named.setdefault("mean", []).append(score(placement.run(device, sampler.mean, pair.lr), pair))
            if drawn:
                samples = members(sampler, pair, DRAWS, device=device)
                named.setdefault("one", []).append(score(samples[:1], pair))
                named.setdefault("of 4", []).append(score(samples.mean(0, keepdim=True), pair))
        gains = {name: average(per_set_mean(self.pairs, values)) - self.baseline for name, values in named.items()}
        text = f"PSNR over IBP {self.baseline:.2f} dB: " + "  ".join(f"{name} {g:+.2f}" for name, g in gains.items())
        return Measured(text, {"psnr_ibp": self.baseline, **{f"gain {name}": gain for name, gain in gains.items()}})

    @torch.no_grad()
    def samples(self, sampler: Sampler, device: torch.device, drawn: bool) -> list[dict[str, Tensor]]:
        """Return input, bicubic, ours (one draw if `drawn`, else the mean) and truth of a few pairs."""
        rows = []
        for pair in from_many_sets(self.pairs, SAMPLES):
            if drawn or sampler.mean is None:
                ours = members(sampler, pair, 1, device=device)
            else:
                ours = placement.run(device, sampler.mean, pair.lr)
            rows.append(side_by_side(pair, ours))
        return rows
