"""Exponential moving average of a network's weights. In: a network. Out: its average. Imports torch."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor, nn


class Average:
    """Moving average of all parameters of a network; it starts as a copy, not as a fresh initialisation.

    Buffers are copied: the running statistics of BatchNorm are averages already.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.count = 0
        self.averaged = [name for name, _ in network.named_parameters()]
        self.state = {name: value.detach().clone() for name, value in network.state_dict().items()}

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """One step; young averages forget faster: decay = min(d, (1 + n) / (10 + n))."""
        decay = min(self.decay, (1 + self.count) / (10 + self.count))
        self.count += 1
        own = network.state_dict()
        for name in self.averaged:
            self.state[name].lerp_(own.pop(name), 1 - decay)
        for name, value in own.items():
            self.state[name].copy_(value)

    def load(self, state: Mapping[str, Tensor], count: int) -> None:
        """Go on from a stored average of the same network. Raises KeyError or RuntimeError where it does not fit."""
        for name, value in self.state.items():
            value.copy_(state[name])
        self.count = count

    @contextlib.contextmanager
    def applied(self, network: nn.Module) -> Iterator[None]:
        """The network carries the average inside the block and its own weights after it."""
        own = {name: value.detach().clone() for name, value in network.state_dict().items()}
        network.load_state_dict(self.state)
        yield
        network.load_state_dict(own)
