"""Settings, device and memory of a process that computes units."""

from __future__ import annotations

import os
import platform
import sys
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from pipeline.errors import EXIT_RESUMABLE, Interrupted
from pipeline.superres.precision import FLOAT32, TF32

if TYPE_CHECKING:
    from collections.abc import Iterator


def prepare_process(threads: int = 1) -> None:
    """Set torch's threads and arithmetic, disable GDAL's indirect drivers. Every worker process needs this once."""
    import torch

    from pipeline.archive.read.gdal import restrict_drivers

    restrict_drivers()
    torch.set_num_threads(threads)
    use_ieee_float32()


def use_ieee_float32() -> None:
    """Compute float32 as IEEE 754 has it, by algorithms that do not depend on what was timed.

    torch uses TF32 in cuDNN's convolutions by default, which changes a third of the stored DN by up to 9. cuDNN's
    benchmark chooses an algorithm, and so the last bits, by a race.
    """
    import torch

    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.benchmark = False


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


def processors() -> int:
    """Return the number of processors that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


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


def threads_of_unit() -> int:
    """Return how many threads of this process compute the windows of a unit."""
    return _unit_threads


def device_name() -> str:
    """Return the torch device of this process: the first visible CUDA device, else the CPU."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def arithmetic(precision: str = FLOAT32) -> str:
    """Return the processor and the number format that networks of this process compute with.

    Of a CPU it names the instruction set, since libraries choose their algorithms by it.
    """
    import torch

    if device_name() != "cpu":
        return f"{torch.cuda.get_device_name(0)}, {_format(precision)}"
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}, {_format(precision)}"


def _format(precision: str) -> str:
    import torch

    if precision not in (FLOAT32, TF32):
        return precision
    allowed = torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32
    as_tf32 = precision == TF32 or (allowed and device_name() != "cpu")
    return "float32 as TF32" if as_tf32 else "float32"


def device_lost(error: BaseException | None) -> bool:
    """Return whether an error leaves this process without its GPU: every later call to CUDA fails as well.

    Exhausted memory does not.
    """
    import torch

    lost = getattr(torch, "AcceleratorError", ())  # since torch 2.8; earlier releases raise RuntimeError
    while error is not None:
        if isinstance(error, torch.OutOfMemoryError):
            return False
        if isinstance(error, lost) or (type(error) is RuntimeError and str(error).startswith("CUDA error")):
            return True
        error = error.__cause__ or error.__context__
    return False


def without_device(error: BaseException) -> Interrupted:
    """Return the error of a run whose process has lost its GPU by `error`."""
    return Interrupted(
        f"the GPU of this process has failed ({str(error).splitlines()[0]})",
        "a process that can use its GPU",
        "run the same command again, it continues in a new process; if that fails too, look at the GPU (nvidia-smi)",
    )


def end_process(why: str) -> NoReturn:
    """End this process at once with exit code 75, so that its nanny starts another; `why` goes to its log."""
    print(why, file=sys.stderr, flush=True)
    os._exit(EXIT_RESUMABLE)


# mallopt(3): M_ARENA_MAX, M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
_MALLOC = ((-8, 1), (-3, 2**28), (-1, 2**28))


def share_heap() -> bool:
    """Have glibc use one heap for all threads of this process and keep what is freed, as workers do (`running.pools`).

    Return False where the C library is another one. Call this before threads are started.
    """
    import ctypes

    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    return all([mallopt(setting, value) == 1 for setting, value in _MALLOC])


def give_back_heap() -> None:
    """Give the free pages within glibc's heap back to the system; nothing where the C library is another one.

    What windows, blocks and files leave free does not fit the next of these, so that the heap grows beyond what is ever
    used at once. Called twice for each block this takes 0.02 processor seconds per km2, and 85 MiB less at the peak.
    """
    import ctypes

    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def peak_rss_mib() -> float:
    """Return the largest resident set of this process so far, in MiB.

    Linux tells it of this program alone in /proc. `getrusage`, asked elsewhere, would there begin with the size of the
    process that started this one, such as a large notebook. It counts bytes on macOS, KiB on other systems.
    """
    import resource

    with suppress(OSError, StopIteration):
        line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
        return round(int(line.split()[1]) / 2**10, 1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)
