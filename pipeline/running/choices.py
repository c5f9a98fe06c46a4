"""Where a run computes and with how many workers, as far as the user leaves it open."""

from __future__ import annotations

from pipeline.running.pools import fitting_workers, require_memory


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


def affordable(cluster: str, asked: int | None, workers: int, worker_mib: float) -> int:
    """Limit local workers to the memory, unless their number was `asked` for; other clusters are not limited.

    Raises UsageError if the number asked for is too many.
    """
    if cluster not in ("auto", "inline", "local"):
        return workers
    if asked is None:
        workers = fitting_workers(workers, worker_mib)
    require_memory(1 if cluster == "inline" else workers, worker_mib)
    return workers
