"""Where a run computes and with how many workers, as far as the user leaves it open."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.process import device_name
from pipeline.running.memory import CUDA_MIB, fitting_workers, require_memory
from pipeline.superres.precision import require_possible

if TYPE_CHECKING:
    from pipeline.planning.estimate import Estimate

HERE = ("auto", "inline", "local")  # clusters whose workers are on this machine


def cluster_of(asked: str, units: int, workers: int) -> str:
    """Resolve "auto": one worker per GPU if there are several, or a local cluster if several workers can be busy."""
    if asked != "auto":
        return asked
    import torch

    if torch.cuda.is_available() and torch.cuda.device_count() > 1:
        return "cuda"
    if torch.cuda.is_available():
        return "inline"
    return "local" if min(units, workers) > 1 else "inline"


def at_work(cluster: str, wanted: int) -> int:
    """Return how many workers will be at work: one per GPU where the run uses GPUs of this machine, else `wanted`."""
    if cluster not in ("auto", "inline", "cuda"):
        return wanted
    import torch

    if not torch.cuda.is_available():
        return wanted
    return 1 if cluster == "inline" else torch.cuda.device_count()


def require_precision(cluster: str, precision: str) -> None:
    """Raise UsageError if the workers of this machine, where the cluster is here, do not compute in a precision."""
    if cluster in HERE:
        require_possible(precision, device_name())


def affordable(cluster: str, asked: int | None, workers: int, cost: Estimate) -> int:
    """Limit the workers of this machine to its memory, unless their number was `asked` for.

    Workers of other clusters are not limited. Raises UsageError if the number asked for is too many.
    """
    if cluster not in (*HERE, "cuda"):
        return workers
    processes = 1 if cluster == "inline" else max(1, min(workers, cost.units))
    threads, cuda_mib = max(1, workers // processes), CUDA_MIB if device_name() != "cpu" else 0
    worker_mib = cost.worker_mib + cuda_mib + cost.thread_mib * (threads - 1)
    if asked is None and cluster != "cuda":
        fitting = fitting_workers(processes, worker_mib)
        processes, workers = fitting, workers if fitting == processes else fitting * threads
    require_memory(processes, worker_mib)
    return workers
