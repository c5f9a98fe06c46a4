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


def device_name() -> str:
    """Return the torch device of this process: the first visible CUDA device, else the CPU."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def peak_rss_mib() -> float:
    """Return the largest resident set of this process so far, in MiB (Linux counts KiB, macOS bytes)."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)
