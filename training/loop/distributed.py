"""Distributed training: ranks, devices and collective operations.

`torchrun` starts the processes and sets RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT. Without it, all
functions work for a single process.
"""

from __future__ import annotations

import contextlib
import os
import signal
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import distributed

from pipeline.errors import PipelineError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor

T = TypeVar("T")
WORDS_SHOWN = 160  # maximum characters of a library's message
PATIENCE = timedelta(minutes=1)  # timeout for the other processes after a failure of this one


class Abandoned(PipelineError):
    """Raised if the other processes cannot be reached: one has failed and reported why. Exit code 1."""


@contextlib.contextmanager
def _exchanging() -> Iterator[None]:
    """Convert RuntimeError inside the block to Abandoned."""
    try:
        yield
    except RuntimeError as error:
        words = (str(error).splitlines() or [type(error).__name__])[0][:WORDS_SHOWN]
        cure = "see what another process said; --resume goes on from the last checkpoint"
        raise Abandoned(f"process {rank()} lost the others ({words})", cure=cure) from error


def launched() -> bool:
    """Return whether a launcher such as torchrun started this process."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def device_of(name: str) -> torch.device:
    """Return the device `name`; for "cuda" under a launcher, that of the local rank. Raises UsageError if absent."""
    here = 1  # processes that share the GPUs of this node
    if name == "cuda" and launched():
        name, here = f"cuda:{int(os.environ.get('LOCAL_RANK', '0'))}", int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"--device {name}", "cpu, cuda, cuda:1 ...") from None
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"--device {name}", "cpu, cuda, cuda:1 ...")
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cuda" and max(device.index or 0, here - 1) >= gpus:
        seen = f"PyTorch {torch.__version__} sees {gpus or 'no'} GPU{'s' if gpus > 1 else ''}"
        who = f" for {here} processes" if here > 1 else ""
        raise UsageError(
            f"--device {name}{who}: {seen}", cure="--device cpu, fewer processes, or a PyTorch built for CUDA"
        )
    return device


def begin(device: torch.device, patience: timedelta | None = None) -> None:
    """Join the process group if a launcher started several processes: gloo on CPUs, NCCL on GPUs."""
    if not launched() or _joined():
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
        distributed.init_process_group("cpu:gloo,cuda:nccl")
    else:
        distributed.init_process_group("gloo", timeout=patience)


def agreed(make: Callable[[], T]) -> T:
    """Return `make()` once it has succeeded in every process; else all raise the error of the lowest failed rank.

    Otherwise the remaining processes would wait for one that has ended.
    """
    failed: PipelineError | None = None
    try:
        made = make()
    except PipelineError as error:
        if not launched():
            raise
        failed = type(error)(error.found, error.expected, error.cure)  # its cause may not pickle
    if launched():
        failed = _first_of_all(failed)
    if failed is not None:
        raise failed
    return made


def _first_of_all(mine: PipelineError | None) -> PipelineError | None:
    """Return the failure of the lowest failed rank; only this process's own if the others cannot be reached."""
    try:
        begin(torch.device("cpu"), PATIENCE)  # the failure may have come before the first `begin`
        found: list[PipelineError | None] = [None] * world()
        distributed.all_gather_object(found, mine)
    except RuntimeError:
        end()
        return mine or Abandoned("the other processes cannot be reached", cure="see what the first of them said")
    return next((failure for failure in found if failure is not None), None)


def by_first(speak: Callable[[], object]) -> None:
    """Call `speak` in process 0 before any process ends. Call this in all processes when they end with one result."""
    if launched():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a launcher terminates the others when one ends
    if rank() == 0:
        speak()
    if world() > 1:
        with contextlib.suppress(RuntimeError):  # the others have already ended
            distributed.barrier()


def end() -> None:
    """Leave the process group, if any."""
    if _joined():
        distributed.destroy_process_group()


def rank() -> int:
    """Return the rank of this process. Rank 0 writes the files."""
    return distributed.get_rank() if _joined() else 0


def world() -> int:
    """Return the number of processes."""
    return distributed.get_world_size() if _joined() else 1


def average_(tensors: Sequence[Tensor]) -> None:
    """Replace tensors of one dtype in place by their mean over the processes, with one all-reduce."""
    if world() == 1 or not tensors:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    with _exchanging():
        distributed.all_reduce(flat)
    flat /= world()
    parts = flat.split_with_sizes([tensor.numel() for tensor in tensors])
    for tensor, part in zip(tensors, parts, strict=True):
        tensor.copy_(part.view_as(tensor))


def summing(flat: Tensor) -> Callable[[], None]:
    """Begin to sum a tensor in place over the processes. Return a function that waits for it.

    All processes must begin their sums in the same order.
    """
    with _exchanging():
        work = distributed.all_reduce(flat, async_op=True)

    def wait() -> None:
        with _exchanging():
            work.wait()

    return wait


def totals(values: Sequence[float]) -> list[float]:
    """Return the sums of numbers over the processes."""
    if world() == 1:
        return list(values)
    summed = torch.tensor(values, dtype=torch.float64)
    with _exchanging():
        distributed.all_reduce(summed)
    return [float(value) for value in summed]


def gathered(rows: Tensor) -> Tensor:
    """Gather rows (B, ...) of all processes in rank order as (sum of B, ...). B may differ between processes."""
    if world() == 1:
        return rows
    mine = [0] * world()
    mine[rank()] = len(rows)
    counts = [round(count) for count in totals(mine)]
    padded = rows.new_zeros((max(counts), *rows.shape[1:]))
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in counts]
    with _exchanging():
        distributed.all_gather(parts, padded)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


def _joined() -> bool:
    return distributed.is_available() and distributed.is_initialized()
