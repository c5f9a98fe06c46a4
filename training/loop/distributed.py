"""Several processes training one network: who they are, and the sums they agree on.

`torchrun` starts the processes and names them in the environment (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR,
MASTER_PORT). Without it there is one process, and every function here does the natural thing for one. Imports torch and
the errors.
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
WORDS_SHOWN = 160  # of a library's message
PATIENCE = timedelta(minutes=1)  # with processes that may not have met the failure of this one


class Abandoned(PipelineError):
    """The other processes cannot be reached any more: one of them has failed, and said why. Exit code 1."""


@contextlib.contextmanager
def _exchanging() -> Iterator[None]:
    """What fails inside the block becomes an Abandoned."""
    try:
        yield
    except RuntimeError as error:
        words = (str(error).splitlines() or [type(error).__name__])[0][:WORDS_SHOWN]
        cure = "see what another process said; --resume goes on from the last checkpoint"
        raise Abandoned(f"process {rank()} lost the others ({words})", cure=cure) from error


def launched() -> bool:
    """Whether a launcher named this process."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def device_of(name: str) -> torch.device:
    """The device `name`; for "cuda" under a launcher the one of this process. UsageError where it is not there."""
    here = 1  # processes that share this machine's GPUs
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
    """Join the other processes, if a launcher started several: gloo between CPUs, NCCL between GPUs."""
    if not launched() or _joined():
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
        distributed.init_process_group("cpu:gloo,cuda:nccl")
    else:
        distributed.init_process_group("gloo", timeout=patience)


def agreed(make: Callable[[], T]) -> T:
    """What `make` gives here, once it has succeeded in every process; else all raise what the first that failed raised.

    Without it the processes that go on would wait for one that has ended.
    """
    failed: PipelineError | None = None
    try:
        made = make()
    except PipelineError as error:
        if not launched():
            raise
        failed = type(error)(error.found, error.expected, error.cure)  # its cause may not survive the way
    if launched():
        failed = _first_of_all(failed)
    if failed is not None:
        raise failed
    return made


def _first_of_all(mine: PipelineError | None) -> PipelineError | None:
    """The failure of the first process that has one; of this one alone where the others cannot be reached."""
    try:
        begin(torch.device("cpu"), PATIENCE)  # where the failure came before that
        found: list[PipelineError | None] = [None] * world()
        distributed.all_gather_object(found, mine)
    except RuntimeError:
        end()
        return mine or Abandoned("the other processes cannot be reached", cure="see what the first of them said")
    return next((failure for failure in found if failure is not None), None)


def by_first(speak: Callable[[], object]) -> None:
    """Process 0 speaks before any ends; for those that are about to end alike, each by itself."""
    if launched():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a launcher ends the rest as soon as one has ended
    if rank() == 0:
        speak()
    if world() > 1:
        with contextlib.suppress(RuntimeError):  # the others have ended for reasons of their own
            distributed.barrier()


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
    with _exchanging():
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
    with _exchanging():
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
    with _exchanging():
        distributed.all_gather(parts, padded)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


def _joined() -> bool:
    return distributed.is_available() and distributed.is_initialized()
