"""Device placement of networks and data, and checks for bfloat16 support."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pipeline.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

# Names of bfloat16 instructions in `torch.cpu.get_capabilities` and in Linux, on x86 and ARM.
BF16_INSTRUCTIONS = ("amx_bf16", "avx512_bf16", "bf16", "sve_bf16", "svebf16")
CPUINFO = Path("/proc/cpuinfo")


def device_of(network: nn.Module) -> torch.device:
    """Return the device of the network's weights."""
    return next(network.parameters()).device


def settle(device: torch.device) -> None:
    """Wait for what a GPU has still to compute, so that a clock read afterwards tells the truth."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def run(device: torch.device, call: Callable[..., Tensor], *given: Tensor | int) -> Tensor:
    """Return `call(*given)` computed on `device`, with the result on the CPU."""
    return call(*(value.to(device) if isinstance(value, Tensor) else value for value in given)).cpu()


def cpu_features() -> set[str] | None:
    """Return the names of the CPU's instruction sets, or None if neither torch (2.13 or later) nor Linux lists them."""
    capabilities = getattr(torch.cpu, "get_capabilities", None)
    if capabilities is not None:
        return {name for name, value in capabilities().items() if value is True}
    try:
        lines = CPUINFO.read_text().splitlines()
    except OSError:
        return None
    told = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    return set(told.partition(":")[2].split()) or None


def check_bf16(device: torch.device) -> None:
    """Raise UsageError if `device` lacks bfloat16 arithmetic: emulation is slower than float32."""
    if device.type == "cuda":
        if not torch.cuda.is_bf16_supported(including_emulation=False):
            raise UsageError(
                f"--bf16 on {device}, which has no bfloat16 arithmetic", "a GPU that has it", "leave it out"
            )
        return
    features = cpu_features()
    if features is not None and not features & {*BF16_INSTRUCTIONS}:
        raise UsageError(
            "--bf16 on a CPU without bfloat16 arithmetic, where it is slower than float32",
            f"one of {', '.join(BF16_INSTRUCTIONS)} among its instructions",
            "leave --bf16 out",
        )
