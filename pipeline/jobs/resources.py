"""Resources of one task of a job array, for any scheduler, and the location of the files in deploy/."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import UsageError
from pipeline.running.memory import CUDA_MIB

MEMORY_SHARE = 0.7  # share of the memory limit that a run plans to use; see running/pools.py
_DRIVER_MIB = 600  # a driver process with local workers
_SHORTEST_S = 600  # start-up, the grace period before the limit, and some work in between
_UNITS = {"": 1.0, "M": 1.0, "Mi": 1.0, "G": 1024.0, "Gi": 1024.0, "T": 1024.0**2, "Ti": 1024.0**2}


@dataclass(frozen=True)
class Resources:
    """Resources of one task: CPUs, GPUs, main memory in MiB, and wall time in seconds (0: the cluster's own limit)."""

    cpus: int = 1
    gpus: int = 0
    memory_mib: int = 0
    limit_s: int = 0

    @property
    def workers(self) -> int:
        """Number of worker processes: one per CPU, or 1 with GPUs, since the pipeline counts those."""
        return 1 if self.gpus else self.cpus

    @property
    def processes(self) -> int:
        """Number of processes that compute units: one per GPU, or one per CPU without."""
        return self.gpus or self.cpus

    def needed_mib(self, process_mib: float) -> int:
        """Return the MiB for processes of `process_mib` each, with the reserve of a run, rounded up to GiB."""
        driver = _DRIVER_MIB if self.processes > 1 else 0
        total = (self.processes * process_mib + CUDA_MIB * self.gpus + driver) / MEMORY_SHARE
        return -(-int(total) // 1024) * 1024


def memory_mib(text: str) -> int:
    """Parse a size such as "8G", "8Gi" or "8000M" to MiB. Raises UsageError otherwise."""
    found = re.fullmatch(r"(\d{1,7}(?:\.\d{1,3})?)([MGT]i?)?", text)
    size = float(found[1]) * _UNITS[found[2] or ""] if found else 0.0
    if size < 1:
        raise UsageError(f"--memory {text}", "a size such as 8G or 8000M")
    return round(size)


def limit_s(text: str) -> int:
    """Parse "[D-]HH:MM:SS" to seconds. Raises UsageError otherwise, or below ten minutes, too short for a unit."""
    found = re.fullmatch(r"(?:(\d{1,3})-)?(\d{1,4}):([0-5]\d):([0-5]\d)", text)
    if not found:
        raise UsageError(f"--time-limit {text}", "[D-]HH:MM:SS such as 04:00:00 or 1-12:00:00")
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    total = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    if total < _SHORTEST_S:
        raise UsageError(f"--time-limit {text}", f"at least {_SHORTEST_S // 60} minutes")
    return total


def clock(seconds: int) -> str:
    """Format seconds as HH:MM:SS."""
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"


def deploy_folder(name: str) -> Path:
    """Return a folder of deploy/, from a checkout or the installation. Raises UsageError if it is missing."""
    here = Path(__file__).resolve()
    folders = (here.parents[1] / "_deploy" / name, here.parents[2] / "deploy" / name)
    for folder in folders:
        if folder.is_dir():
            return folder
    raise UsageError(f"deploy/{name} is not part of this installation", "a complete one", "install sen2fine again")
