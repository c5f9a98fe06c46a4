"""Where a run computes and with how many workers, as far as the user leaves it open."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pipeline.process import device_name, processors
from pipeline.running.memory import CUDA_MIB, fits, fitting_workers, require_memory
from pipeline.superres.precision import require_possible
from pipeline.superres.registry import spec_of
from pipeline.superres.system import AT_ONCE, units_at_once

if TYPE_CHECKING:
    from pipeline.planning.estimate import Estimate

HERE = ("auto", "inline", "local")  # clusters whose workers are on this machine
_MOST_PER_GPU = 4  # processes that share a GPU, unless more are asked for
_PROCESSORS_EACH = 4  # a process at a GPU has three threads that read, blend and write, and one that starts kernels
_GPU_MIB = 8192  # of a GPU's memory for each process: its context, weights and a batch of windows
_ASK_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Crew:
    """Processes of a run, the units that each computes at once, and the threads that compute the windows of a unit."""

    processes: int
    at_once: int = 1
    threads: int = 1

    @classmethod
    def of(cls, cluster: str, workers: int, units: int, at_once: int) -> Crew:
        """Divide `workers`, who could compute as many units at a time, over `units`; `at_once` of them share a process.

        What the units do not take, their threads do.
        """
        most = 1 if cluster == "inline" else max(1, workers // at_once)
        processes = max(1, min(most, units))
        together = min(at_once, workers, -(-max(1, units) // processes))
        return cls(processes, together, max(1, workers // (processes * together)))

    @property
    def workers(self) -> int:
        """Threads in all."""
        return self.processes * self.at_once * self.threads


def crew_of(cluster: str, workers: int, units: int, system: str) -> Crew:
    """Return how `workers` of a cluster are divided. Only those of this machine compute several units in a process."""
    at_once = 1
    if cluster in (*HERE, "cuda"):
        at_once = units_at_once(spec_of(system), "cuda" if cluster == "cuda" else device_name())
    return Crew.of(cluster, workers, units, at_once)


def cluster_of(asked: str, units: int, workers: int) -> str:
    """Resolve "auto": one worker per GPU if there are several, or a local cluster if several workers can be busy."""
    if asked != "auto":
        return asked
    gpus = gpus_here()
    if gpus > 1:
        return "cuda"
    return "local" if min(units, workers) > (AT_ONCE if gpus else 1) else "inline"


def gpus_here() -> int:
    """Return the number of GPUs that torch sees."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def at_work(cluster: str, asked: int | None) -> int:
    """Return how many units can be at work at a time; `asked` is the number of worker processes, if it was given.

    Where the run uses GPUs of this machine, each process computes several. With "cuda", and with several GPUs, it has
    one process per GPU.
    """
    gpus = gpus_here() if cluster in (*HERE, "cuda") else 0
    if not gpus:
        return asked or processors()
    if cluster == "cuda" or (cluster == "auto" and gpus > 1):
        return gpus * AT_ONCE
    return (1 if cluster == "inline" else asked or processes_per_gpu()) * AT_ONCE


def processes_per_gpu() -> int:
    """Return how many processes share the GPU by default, by processors and by its memory. Some GPUs take only one."""
    import torch

    fitting = torch.cuda.get_device_properties(0).total_memory // (_GPU_MIB * 2**20)
    most = max(1, min(_MOST_PER_GPU, processors() // _PROCESSORS_EACH, fitting))
    return 1 if most == 1 or _exclusive() else most


def _exclusive() -> bool:
    """Return whether a GPU is set to serve one process only. Without the driver's own command it counts as shared."""
    words = ["nvidia-smi", "--query-gpu=compute_mode", "--format=csv,noheader"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=_ASK_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return "exclusive" in done.stdout.lower()


def require_precision(cluster: str, precision: str) -> None:
    """Raise UsageError if the workers of this machine, where the cluster is here, do not compute in a precision."""
    if cluster in HERE:
        require_possible(precision, device_name())


def affordable(cluster: str, asked: int | None, workers: int, cost: Estimate) -> int:
    """Limit the workers of this machine to its memory: processes, unless their number was `asked` for, then units.

    Workers of other clusters are not limited. Raises UsageError if the processes are too many with one unit each.
    """
    if cluster not in (*HERE, "cuda"):
        return workers
    whole = crew = Crew.of(cluster, workers, cost.units, cost.at_once)
    if asked is None and cluster != "cuda":
        crew = replace(crew, processes=fitting_workers(crew.processes, _mib(crew, cost)))
    while crew.at_once > 1 and not fits(crew.processes, _mib(crew, cost)):
        crew = replace(crew, at_once=crew.at_once - 1)
    require_memory(crew.processes, _mib(crew, cost))
    return workers if crew == whole else crew.workers


def _mib(crew: Crew, cost: Estimate) -> float:
    """Return the memory in MiB of one process."""
    cuda_mib = CUDA_MIB if device_name() != "cpu" else 0
    threads = min(crew.threads, processors())  # as in `running.unit`
    units_mib = cost.unit_mib * (crew.at_once - 1) + cost.thread_mib * (threads - 1) * crew.at_once
    return cost.worker_mib + cuda_mib + units_mib
