"""How many local workers the memory of this machine allows."""

from __future__ import annotations

from pipeline.errors import UsageError

_MEMORY_SHARE = 0.7
CUDA_MIB = 8192  # main memory for CUDA and its libraries; a conservative guess


def fitting_workers(wanted: int, worker_mib: float) -> int:
    """Return how many of `wanted` workers of `worker_mib` fit in 70 % of the memory limit (cgroups too), at least 1."""
    from distributed.system import MEMORY_LIMIT

    return max(1, min(wanted, int(_MEMORY_SHARE * MEMORY_LIMIT / 2**20 / max(1.0, worker_mib))))


def fits(workers: int, worker_mib: float) -> bool:
    """Return whether `workers` of `worker_mib` take no more than 70 % of the memory limit."""
    from distributed.system import MEMORY_LIMIT

    return workers * worker_mib <= _MEMORY_SHARE * MEMORY_LIMIT / 2**20


def require_memory(workers: int, worker_mib: float) -> None:
    """Raise UsageError if `workers` of `worker_mib` need more than 70 % of the memory limit."""
    from distributed.system import MEMORY_LIMIT

    if fits(workers, worker_mib):
        return
    limit_mib = MEMORY_LIMIT / 2**20
    fitting = int(_MEMORY_SHARE * limit_mib / worker_mib)
    cure = f"--workers {fitting}" if fitting else "fewer --workers, a smaller --unit-chunks, or more memory"
    raise UsageError(
        f"{workers} workers of about {worker_mib:.0f} MiB need {workers * worker_mib:.0f} MiB",
        f"at most {_MEMORY_SHARE:.0%} of this machine's limit of {limit_mib:.0f} MiB",
        cure,
    )
