"""The order of networks' weights and images in memory, by the device that computes with them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor, nn


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


def laid_out(images: Tensor) -> Tensor:
    """Return images (B, C, H, W) in the order in memory of the weights that `moved` leaves: channels last on a CPU.

    Most convolutions see to it themselves, but every one of them copies its input if that is laid out otherwise.
    Depthwise and 1x1 convolutions keep the layout of their input.
    """
    return images.contiguous(memory_format=torch.channels_last) if images.device.type == "cpu" else images
