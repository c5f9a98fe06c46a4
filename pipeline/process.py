"""The process that computes units: its settings, its device, its memory."""

from __future__ import annotations

import sys


def prepare_process(threads: int = 1) -> None:
    """Settings that every working process needs, once: one torch thread, and GDAL kept from indirect drivers."""
    import torch

    from pipeline.archive.read.gdal import restrict_drivers

    restrict_drivers()
    torch.set_num_threads(threads)


def device_name() -> str:
    """The accelerator of this process: the first CUDA device it sees, else the CPU."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def peak_rss_mib() -> float:
    """Largest resident set of this process so far, in MiB (Linux counts KiB, macOS bytes)."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)
