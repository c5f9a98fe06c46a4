"""Dask workers as SLURM jobs, through dask-jobqueue: encrypted, one unit per process, no more than remaining units.

Jobs are described by `jobqueue.slurm` in Dask's settings (~/.config/dask/jobqueue.yaml, or variables such as
DASK_JOBQUEUE__SLURM__QUEUE): cores, memory, walltime, queue, account, interface. dask-jobqueue counts ended jobs as
running; here they are removed, and the cluster requests new ones while units remain.
"""

from __future__ import annotations

import subprocess
import tempfile
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import UsageError
from pipeline.running.scaling import following
from pipeline.store.keys import RUN_FOLDER

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dask_jobqueue.slurm import SLURMCluster
    from distributed import Security

    from pipeline.running.scaling import Demand

_SWEEP_EVERY_S = 15.0
_ASK_TIMEOUT_S = 60.0


@contextmanager
def slurm_workers(workers: int, store: Path, environment: dict[str, str], demand: Demand) -> Iterator[SLURMCluster]:
    """Open a cluster of up to `workers` processes, as SLURM grants them and units remain. TLS keys are in the store.

    Raises UsageError if dask-jobqueue is missing, its settings describe no job, or SLURM would refuse the job.
    """
    try:
        from dask_jobqueue.slurm import SLURMCluster
    except ImportError as error:
        raise UsageError("--cluster slurm needs dask-jobqueue", cure='pip install "sen2fine[hpc]"') from error
    import dask

    settings = dask.config.get("jobqueue.slurm")
    variables = " ".join(f"{name}={value}" for name, value in environment.items())
    with _security(settings.get("shared-temp-directory") or store / RUN_FOLDER) as security:
        try:
            cluster = SLURMCluster(
                processes=settings.get("cores"),  # one thread each
                security=security,
                log_directory=settings.get("log-directory") or f"{store}.slurm",
                scheduler_options={"dashboard_address": "127.0.0.1:0", **(settings.get("scheduler-options") or {})},
                worker_extra_args=["--no-dashboard", *(settings.get("worker-extra-args") or ())],
                job_script_prologue=[f"export {variables}", *(settings.get("job-script-prologue") or ())],
            )
        except (ValueError, TypeError, OSError) as error:
            raise UsageError(
                f"no SLURM cluster can be described ({error})",
                "cores and memory under jobqueue.slurm in Dask's settings",
            ) from error
        with cluster:
            _require_acceptance(cluster.job_script())
            with following(cluster, workers, demand), _swept(cluster):
                yield cluster


@contextmanager
def _security(folder: str | Path) -> Iterator[Security]:
    """Yield the certificates from Dask's settings, else temporary ones for this run in `folder`.

    Nodes are shared with other users, and anyone who reaches a scheduler without TLS can run code as its owner.
    """
    import dask
    from distributed import Security

    if dask.config.get("distributed.comm.tls.scheduler.cert", None):
        yield Security()
        return
    try:
        made = Security.temporary()
    except ImportError as error:
        raise UsageError("--cluster slurm needs cryptography", cure='pip install "sen2fine[hpc]"') from error
    with tempfile.TemporaryDirectory(prefix="tls-", dir=folder) as private:  # mode 0700
        files = {}
        for name in ("tls_ca_file", "tls_client_cert", "tls_client_key", "tls_scheduler_cert", "tls_scheduler_key",
                     "tls_worker_cert", "tls_worker_key"):  # fmt: skip
            files[name] = str(Path(private) / name)
            Path(files[name]).write_text(getattr(made, name))
        yield Security(require_encryption=True, **files)


def _require_acceptance(script: str) -> None:
    """Raise UsageError with SLURM's own message if it would not accept the job."""
    try:
        done = subprocess.run(
            ["sbatch", "--test-only"], input=script, capture_output=True, text=True, check=False, timeout=_ASK_TIMEOUT_S
        )
    except FileNotFoundError as error:
        raise UsageError("--cluster slurm, but there is no sbatch on the PATH", "a node of the cluster") from error
    except subprocess.TimeoutExpired as error:
        raise UsageError(f"sbatch has not answered for {_ASK_TIMEOUT_S:.0f} s", cure="try again") from error
    if done.returncode:
        words = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise UsageError(
            f"SLURM refuses the workers' job: {words[-1]}", cure="correct jobqueue.slurm in Dask's settings"
        )


@contextmanager
def _swept(cluster: SLURMCluster) -> Iterator[None]:
    """Remove ended jobs from the cluster's list periodically, so that it requests new ones."""
    done = threading.Event()
    sweeper = threading.Thread(target=_sweep, args=(cluster, done), daemon=True)
    sweeper.start()
    try:
        yield
    finally:
        done.set()
        sweeper.join()


def _sweep(cluster: SLURMCluster, done: threading.Event) -> None:
    while not done.wait(_SWEEP_EVERY_S):
        queued = _queued()
        if queued is None or done.is_set():
            continue
        for name, job in list(cluster.workers.items()):
            if job.job_id is not None and job.job_id not in queued and cluster.loop is not None:
                cluster.loop.add_callback(_strike_off, cluster, name)


def _strike_off(cluster: SLURMCluster, name: str) -> None:
    from distributed.core import Status

    job = cluster.workers.pop(name, None)
    if job is not None:
        job.status = Status.closed  # else the cluster could not be closed


def _queued() -> set[str] | None:
    """Return the ids of this user's pending and running jobs, or None if SLURM does not answer."""
    queue = subprocess.run(["squeue", "--me", "--noheader", "--format=%i"], capture_output=True, text=True, check=False)
    return None if queue.returncode else set(queue.stdout.split())
