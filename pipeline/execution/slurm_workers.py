"""Dask workers as SLURM jobs, through dask-jobqueue: encrypted, one unit per process, as many as there are units left.

In: a number of workers, and the store, which all nodes see. Out: a Dask cluster. Imports layout, scaling and errors.

Jobs are as `jobqueue.slurm` in Dask's settings describes them (~/.config/dask/jobqueue.yaml, or variables such as
DASK_JOBQUEUE__SLURM__QUEUE): cores, memory, walltime, queue, account, interface. dask-jobqueue takes jobs that have
ended for running ones; here they are struck off, and the cluster asks for new ones while units are left.
"""

from __future__ import annotations

import subprocess
import tempfile
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import UsageError
from pipeline.execution.scaling import following
from pipeline.store.keys import RUN_FOLDER

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dask_jobqueue.slurm import SLURMCluster
    from distributed import Security

    from pipeline.execution.scaling import Demand

_SWEEP_EVERY_S = 15.0
_ASK_TIMEOUT_S = 60.0


@contextmanager
def slurm_workers(workers: int, store: Path, environment: dict[str, str], demand: Demand) -> Iterator[SLURMCluster]:
    """A cluster of up to `workers` processes, as SLURM grants them and units are left; keys lie in the store.

    UsageError when dask-jobqueue is missing, its settings describe no job, or SLURM would refuse the job.
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
    """Certificates of Dask's settings where there are some, else ones for this run alone, for the moment in `folder`.

    A node is shared with other users, and whoever reaches a scheduler without TLS runs code as its owner.
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
    """UsageError in SLURM's own words when it would not take the job."""
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
        raise UsageError(f"SLURM refuses the workers' job: {words[-1]}", cure="mend jobqueue.slurm in Dask's settings")


@contextmanager
def _swept(cluster: SLURMCluster) -> Iterator[None]:
    """Strike ended jobs off the cluster's list, now and then, so that it asks for new ones."""
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
        job.status = Status.closed  # else the cluster would not let itself be closed


def _queued() -> set[str] | None:
    """Ids of this user's jobs that wait or run; None when SLURM does not say."""
    queue = subprocess.run(["squeue", "--me", "--noheader", "--format=%i"], capture_output=True, text=True, check=False)
    return None if queue.returncode else set(queue.stdout.split())
