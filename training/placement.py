"""Networks where their weights are, judging on the CPU; and whether a device computes in bfloat16."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pipeline.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

# Instructions that multiply bfloat16, as `torch.cpu.get_capabilities` and Linux name them, on x86 and ARM.
BF16_INSTRUCTIONS = ("amx_bf16", "avx512_bf16", "bf16", "sve_bf16", "svebf16")
CPUINFO = Path("/proc/cpuinfo")


def device_of(network: nn.Module) -> torch.device:
    """Where the weights are."""
    return next(network.parameters()).device


def run(device: torch.device, call: Callable[..., Tensor], *given: Tensor | int) -> Tensor:
    """`call(*given)` with its tensors on `device`; the result on the CPU."""
    return call(*(value.to(device) if isinstance(value, Tensor) else value for value in given)).cpu()


def cpu_features() -> set[str] | None:
    """Names of instruction sets that this CPU has; None where neither torch (2.13 or later) nor Linux tells."""
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
    """UsageError where `device` has no bfloat16 arithmetic: it would be emulated, and slower than float32."""
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
