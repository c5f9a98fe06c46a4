"""Several processes training one network: who they are, and the sums they agree on.

`torchrun` starts the processes and names them in the environment (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR,
MASTER_PORT). Without it there is one process, and every function here does the natural thing for one. Imports torch and
the errors.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import torch
from torch import distributed

from pipeline.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


def launched() -> bool:
    """Whether a launcher named this process."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def device_of(name: str) -> torch.device:
    """The device `name`; for "cuda" under a launcher the one of this process. UsageError where it is not there."""
    if name == "cuda" and launched():
        name = f"cuda:{int(os.environ.get('LOCAL_RANK', '0'))}"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"--device {name}", "cpu, cuda, cuda:1 ...") from None
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"--device {name}", "cpu, cuda, cuda:1 ...")
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cuda" and (device.index or 0) >= gpus:
        seen = f"PyTorch {torch.__version__} sees {gpus or 'no'} GPU{'s' if gpus > 1 else ''}"
        raise UsageError(f"--device {name}: {seen}", cure="--device cpu, fewer processes, or a PyTorch built for CUDA")
    return device


def begin(device: torch.device) -> None:
    """Join the other processes: gloo between CPUs, NCCL between GPUs."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
        distributed.init_process_group("cpu:gloo,cuda:nccl")
    else:
        distributed.init_process_group("gloo")


def end() -> None:
    """Leave the other processes, if any."""
    if _joined():
        distributed.destroy_process_group()


def rank() -> int:
    """Number of this process, 0 the one that writes."""
    return distributed.get_rank() if _joined() else 0


def world() -> int:
    """How many processes train together."""
    return distributed.get_world_size() if _joined() else 1


def average_(tensors: Sequence[Tensor]) -> None:
    """Replace tensors of one dtype by their mean over the processes, in one exchange."""
    if world() == 1 or not tensors:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    distributed.all_reduce(flat)
    flat /= world()
    parts = flat.split_with_sizes([tensor.numel() for tensor in tensors])
    for tensor, part in zip(tensors, parts, strict=True):
        tensor.copy_(part.view_as(tensor))


def totals(values: Sequence[float]) -> list[float]:
    """Sums of numbers over the processes."""
    if world() == 1:
        return list(values)
    summed = torch.tensor(values, dtype=torch.float64)
    distributed.all_reduce(summed)
    return [float(value) for value in summed]


def gathered(rows: Tensor) -> Tensor:
    """Rows (B, ...) of all processes in the order of their ranks, (sum of B, ...); each has its own B."""
    if world() == 1:
        return rows
    mine = [0] * world()
    mine[rank()] = len(rows)
    counts = [round(count) for count in totals(mine)]
    padded = rows.new_zeros((max(counts), *rows.shape[1:]))
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in counts]
    distributed.all_gather(parts, padded)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


def _joined() -> bool:
    return distributed.is_available() and distributed.is_initialized()
