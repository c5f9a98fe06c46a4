"""Networks where their weights are, judging on the CPU: validation brings tensors to a network and its answer back.

In: a device, a function of tensors. Out: its result on the CPU. Imports torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from torch import nn


def device_of(network: nn.Module) -> torch.device:
    """Where the weights are."""
    return next(network.parameters()).device


def run(device: torch.device, call: Callable[..., Tensor], *given: Tensor | int) -> Tensor:
    """`call(*given)` with its tensors on `device`; the result on the CPU."""
    return call(*(value.to(device) if isinstance(value, Tensor) else value for value in given)).cpu()
