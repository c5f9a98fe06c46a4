"""Settings, device and memory of a process that computes units."""

from __future__ import annotations

import os
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


@contextmanager
def guest() -> Iterator[None]:
    """Leave a process of the user as it was: torch's number of threads, and GDAL's drivers for files of the user.

    GDAL registers drivers once, and those that `restrict_drivers` leaves out would stay absent. Here they are
    registered first. Files of archives are opened by name of the driver in any case (`pipeline.archive.read.gdal`).
    """
    import rasterio
    import torch

    with rasterio.Env():
        pass
    threads, skipped = torch.get_num_threads(), os.environ.get("GDAL_SKIP")
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        os.environ.pop("GDAL_SKIP", None)
        if skipped is not None:
            os.environ["GDAL_SKIP"] = skipped


def device_name() -> str:
    """Return the torch device of this process: the first visible CUDA device, else the CPU."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def peak_rss_mib() -> float:
    """Return the largest resident set of this process so far, in MiB (Linux counts KiB, macOS bytes)."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)
