"""Settings, device and memory of a process that computes units."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


def prepare_process(threads: int = 1) -> None:
    """Set the number of torch threads and disable GDAL's indirect drivers. Every worker process needs this once."""
    import torch

    from pipeline.archive.read.gdal import restrict_drivers

    restrict_drivers()
    torch.set_num_threads(threads)


@contextmanager
def one_thread() -> Iterator[None]:
    """Use one torch thread, as units do: other numbers change the last bits of what networks compute."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


_unit_threads = 1


def set_unit_threads(threads: int) -> None:
    """Set how many threads of this process compute the windows of a unit. Each uses one thread of torch."""
    global _unit_threads
    _unit_threads = threads


@contextmanager
def unit_threads(threads: int) -> Iterator[None]:
    """Compute units in so many threads meanwhile."""
    before = _unit_threads
    set_unit_threads(threads)
    try:
        yield
    finally:
        set_unit_threads(before)


def threads_of(device_type: str) -> int:
    """Return how many threads compute a unit: those set for the CPU, one for any other device."""
    return _unit_threads if device_type == "cpu" else 1


def device_name() -> str:
    """Return the torch device of this process: the first visible CUDA device, else the CPU."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def peak_rss_mib() -> float:
    """Return the largest resident set of this process so far, in MiB (Linux counts KiB, macOS bytes)."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)
