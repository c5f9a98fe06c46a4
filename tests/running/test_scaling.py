"""Clusters that follow the units left: a plain one, and dask-jobqueue's machinery with processes for jobs."""

import os
import signal
import time

import pytest

from pipeline.running import scaling
from pipeline.running import slurm_workers as slurm
from pipeline.running.pools import DaskPool
from pipeline.running.scaling import Demand, following

LOOK_S = 0.02


def wait_until(true, limit_s=60):
    until = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < until
        time.sleep(LOOK_S)


@pytest.fixture(autouse=True)
def often(monkeypatch):
    """Looks at the cluster follow each other closely."""
    monkeypatch.setattr(scaling, "INTERVAL_S", LOOK_S)


@pytest.fixture
def threads():
    """A cluster whose workers are threads of this process; none yet."""
    from distributed import LocalCluster

    with LocalCluster(n_workers=0, threads_per_worker=1, processes=False, dashboard_address=None) as cluster:
        yield cluster


def test_workers_come_with_units_and_go_but_for_one_and_a_spare(threads):
    from distributed import Client

    demand = Demand(9)
    with Client(threads) as client, following(threads, 3, demand):
        pool = DaskPool(client, "store", "digest", demand=demand)
        wait_until(lambda: pool.capacity == 3)
        pool.set_demand(1)
        wait_until(lambda: pool.capacity == 2)  # one for the unit, one for its twin if it lags
        pool.set_demand(0)
        wait_until(lambda: pool.capacity == 1)
        pool.set_demand(2)
        wait_until(lambda: pool.capacity == 3)
    time.sleep(5 * LOOK_S)
    assert len(threads.workers) == 3  # nothing follows any more


def test_a_worker_with_a_unit_is_not_the_one_that_goes(threads):
    from distributed import Client, Event, get_worker

    demand = Demand(9)

    def unit(name):
        Event(f"at work {name}").set()
        Event(name).wait()
        return get_worker().name

    with Client(threads) as client, following(threads, 3, demand):
        client.wait_for_workers(3)
        long, short = client.submit(unit, "long"), client.submit(unit, "short")
        for name in ("long", "short"):
            Event(f"at work {name}", client=client).wait()
        Event("short", client=client).set()
        short.result()
        demand.units = 0
        wait_until(lambda: len(threads.scheduler_info["workers"]) == 1)
        (left,) = threads.scheduler_info["workers"].values()
        Event("long", client=client).set()
        assert long.result() == left["name"]


@pytest.fixture
def processes_for_jobs(monkeypatch):
    """dask-jobqueue with local processes where SLURM would run jobs; yields the clusters made."""
    jobqueue = pytest.importorskip("dask_jobqueue.local")
    made = []

    class Job(jobqueue.LocalJob):
        @classmethod
        async def _close_job(cls, job_id, cancel_command):
            if job_id:  # as those of SLURM: a job that is closed while it starts has none
                await super()._close_job(job_id, cancel_command)

    class Jobs(jobqueue.LocalCluster):
        job_cls = Job

        def __init__(self, **settings):
            settings.pop("job_script_prologue")  # these jobs have no shell
            super().__init__(**{**settings, "processes": 1}, cores=1, memory="2GB", interface="lo")
            made.append(self)

    def running():
        return {job.job_id for job in list(made[-1].workers.values()) if job.job_id and alive(job.job_id)}

    monkeypatch.setattr("dask_jobqueue.slurm.SLURMCluster", Jobs)
    monkeypatch.setattr(slurm, "_require_acceptance", lambda script: None)
    monkeypatch.setattr(slurm, "_queued", running)
    monkeypatch.setattr(slurm, "_SWEEP_EVERY_S", LOOK_S)
    return made


def alive(pid):
    import psutil

    return psutil.pid_exists(int(pid)) and psutil.Process(int(pid)).status() != psutil.STATUS_ZOMBIE


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # dask-jobqueue's local jobs are not waited for
def test_jobs_follow_units_and_ended_ones_are_replaced(tmp_path, processes_for_jobs):
    demand = Demand(1)
    (tmp_path / "run.zarr" / "_run").mkdir(parents=True)
    with slurm.slurm_workers(2, tmp_path / "run.zarr", {}, demand) as cluster:

        def jobs():
            return {job.job_id for job in list(cluster.workers.values()) if job.job_id}

        wait_until(lambda: len(jobs()) == len(cluster.scheduler_info["workers"]) == 2)
        first = jobs()
        os.kill(int(min(first)), signal.SIGKILL)
        wait_until(lambda: len(jobs() - first) == 1)
        wait_until(lambda: len(cluster.scheduler_info["workers"]) == 2)
        demand.units = 0
        wait_until(lambda: len(cluster.scheduler_info["workers"]) == 1)
