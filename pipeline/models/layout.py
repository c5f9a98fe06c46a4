"""The order of networks' weights in memory, by the device that computes with them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import nn


def moved(network: nn.Module, device: torch.device | str) -> None:
    """Move the weights of a network to a device; on a CPU, lay them out channels last.

    The images between convolutions are then laid out so, too, and oneDNN reorders neither
    (`python -m tests.benchmarks --only batches`).
    """
    network.to(device)
    if torch.device(device).type == "cpu":
        channels_last(network)


def channels_last(network: nn.Module) -> None:
    """Lay out the kernels of convolutions channels last, in place. Names, shapes and values of tensors stay."""
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.dim() == 4:
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
