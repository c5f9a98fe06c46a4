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
        own = network.state_dict()
        self.state = {name: value.detach().clone() for name, value in own.items()}
        averaged = {name for name, _ in network.named_parameters()}
        # (average, own): what is loaded into a network is copied into the same tensors, so these stay its own
        self.averaged = [(self.state[name], value) for name, value in own.items() if name in averaged]
        self.copied = [(self.state[name], value) for name, value in own.items() if name not in averaged]

    @torch.no_grad()
    def update(self) -> None:
        """One step of the network; young averages forget faster: decay = min(d, (1 + n) / (10 + n))."""
        decay = min(self.decay, (1 + self.count) / (10 + self.count))
        self.count += 1
        torch._foreach_lerp_([average for average, _ in self.averaged], [own for _, own in self.averaged], 1 - decay)
        for average, own in self.copied:
            average.copy_(own)

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
