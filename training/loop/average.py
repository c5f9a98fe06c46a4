"""Exponential moving average of a network's weights."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor, nn


class Average:
    """Exponential moving average of a network's parameters, initialised as a copy of them.

    Buffers are copied, because the running statistics of BatchNorm are averages already.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.count = 0
        own = network.state_dict()
        self.state = {name: value.detach().clone() for name, value in own.items()}
        averaged = {name for name, _ in network.named_parameters()}
        # (average, own): load_state_dict copies into the same tensors, so these references stay valid
        self.averaged = [(self.state[name], value) for name, value in own.items() if name in averaged]
        self.copied = [(self.state[name], value) for name, value in own.items() if name not in averaged]

    @torch.no_grad()
    def update(self) -> None:
        """Update the average after a step, with a warm-up of the decay: min(d, (1 + n) / (10 + n))."""
        decay = min(self.decay, (1 + self.count) / (10 + self.count))
        self.count += 1
        torch._foreach_lerp_([average for average, _ in self.averaged], [own for _, own in self.averaged], 1 - decay)
        for average, own in self.copied:
            average.copy_(own)

    def load(self, state: Mapping[str, Tensor], count: int) -> None:
        """Restore a stored average of the same network. Raises KeyError or RuntimeError if it does not fit."""
        for name, value in self.state.items():
            value.copy_(state[name])
        self.count = count

    @contextlib.contextmanager
    def applied(self, network: nn.Module) -> Iterator[None]:
        """Load the average into the network inside the block; restore its own weights afterwards."""
        own = {name: value.detach().clone() for name, value in network.state_dict().items()}
        network.load_state_dict(self.state)
        yield
        network.load_state_dict(own)
