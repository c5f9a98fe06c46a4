"""A real one-node SLURM cluster runs submitted jobs: killed, signalled, requeued, resubmitted and published."""

import gc
import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from pipeline import submit
from pipeline.aoi.aoi import read_aoi
from pipeline.errors import UsageError
from pipeline.planning.parts import Part
from pipeline.planning.plan import load_plan
from pipeline.planning.planner import make_plan
from pipeline.running.driver import prepare
from pipeline.store import layout
from tests.deploy.local_slurm import local_slurm, missing, queued
from tests.running.conftest import chunk_digests, config_for, run

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.slow,
    pytest.mark.skipif(bool(missing()), reason=missing() or "SLURM is here"),
]
LIMIT_S = 120


@pytest.fixture(scope="module")
def slurm():
    with local_slurm() as folder:
        yield folder


def wait_until(true, what, every_s=0.1):
    until = time.monotonic() + LIMIT_S
    while not true():
        assert time.monotonic() < until, f"{what}; in the queue: {queued()}"
        time.sleep(every_s)


def has_pending(pid, number):
    """Return whether a signal is pending for a (stopped) process."""
    status = Path(f"/proc/{pid}/status").read_text()
    return any(
        int(mask, 16) >> (number - 1) & 1 for mask in re.findall(r"^(?:Sig|Shd)Pnd:\s*(\w+)", status, re.MULTILINE)
    )


def submitted(capsys, *words):
    """Run submit and return its JSON output. Raise AssertionError if it fails."""
    capsys.readouterr()
    code = submit.main([*words, "--target", "slurm", "--json"])
    said = capsys.readouterr()
    assert code == 0, said.err
    return json.loads(said.out)


def test_an_array_with_a_killed_and_a_warned_task_equals_one_run(slurm, archive, aoi, tmp_path, capsys):
    sound, store = tmp_path / "sound.zarr", tmp_path / "jobs.zarr"
    config = config_for(archive, unit_chunks=1, bands=("B02", "B03", "B04", "B11"))
    run(config, aoi, sound)
    prepare(make_plan(config, read_aoi(str(aoi))), store)
    lease, receipts = store / "_run" / "lease-3-of-4.json", store / "_run" / "receipts"
    said = submitted(capsys, "--plan", str(store), "--array", "4")
    assert said["parts_to_do"] == [1, 2, 3, 4]

    part3 = [unit.id for unit in Part(3, 4).units(load_plan(store))]

    def done():
        return [unit for unit in part3 if (receipts / f"{unit}.json").exists()]

    wait_until(done, "part 3 has not begun", every_s=0.005)
    os.kill(json.loads(lease.read_text())["pid"], signal.SIGKILL)
    assert submit.main(["--plan", str(store), "--target", "slurm"]) == 2
    assert "has jobs in the queue" in capsys.readouterr().err
    wait_until(lambda: not queued(), "the jobs have not ended")
    assert 0 < len(done()) < len(part3)
    assert layout.status(store) == layout.STATUS_INCOMPLETE
    refusal = (tmp_path / "jobs.zarr.slurm" / "finalise.log").read_text()
    assert "units are missing" in refusal
    assert "submit again" in refusal

    said = submitted(capsys, "--plan", str(store), "--array", "4")
    assert said["parts_to_do"] == [3]
    wait_until(lease.exists, "part 3 has not begun again", every_s=0.005)
    pid = json.loads(lease.read_text())["pid"]
    os.kill(pid, signal.SIGSTOP)  # so that it cannot finish before the signal arrives
    subprocess.run(["scancel", "--signal=USR1", "--batch", f"{said['array_job']}_3"], check=True)
    wait_until(lambda: has_pending(pid, signal.SIGUSR1), "the warning was not handed on")
    os.kill(pid, signal.SIGCONT)
    wait_until(lambda: f"{said['array_job']}_3 PENDING" in queued(), "part 3 was not requeued")
    assert any("PENDING" in job for job in queued() if job.startswith(said["finalise_job"]))
    time.sleep(2)  # SLURM cannot restart a job within the second of its requeue, so it delays it by two minutes
    subprocess.run(["scontrol", "update", f"JobId={said['array_job']}_3", "StartTime=now"], check=True)
    wait_until(lambda: not queued(), "the jobs have not ended")
    log = (tmp_path / "jobs.zarr.slurm" / "part-3.log").read_text()
    assert "try 2" in log, log
    assert layout.status(store) == layout.STATUS_COMPLETE
    assert chunk_digests(store) == chunk_digests(sound)

    assert submitted(capsys, "--plan", str(store))["status"] == "complete"
    assert queued() == []


def jobqueue(**settings):
    """Return a context that sets dask-jobqueue up for the loopback cluster."""
    import dask

    return dask.config.set({"jobqueue.slurm": {**dask.config.get("jobqueue.slurm"), "interface": "lo", **settings}})


def test_dask_workers_as_jobs_give_the_same_store(slurm, archive, aoi, tmp_path):
    """Two workers run at once with encryption and leave no jobs or keys behind."""
    pytest.importorskip("dask_jobqueue")
    sound, store = tmp_path / "sound.zarr", tmp_path / "workers.zarr"
    run(config_for(archive), aoi, sound)
    with jobqueue(cores=2, memory="2GB"):
        _, summary = run(config_for(archive), aoi, store, cluster="slurm", workers=2)
    assert summary.computed == summary.units
    assert chunk_digests(store) == chunk_digests(sound)
    wait_until(lambda: not queued(), "workers were left")
    (log,) = (tmp_path / "workers.zarr.slurm").glob("*.err")
    assert "tls://127.0.0.1" in log.read_text()
    assert log.read_text().count("Registered to") == 2
    assert not list((store / "_run").glob("tls*"))


@pytest.mark.filterwarnings("ignore:unclosed cluster:ResourceWarning")  # left by a constructor that raises
def test_a_refused_workers_job_is_one_line(slurm, archive, aoi, tmp_path):
    pytest.importorskip("dask_jobqueue")
    for settings, words in (({"queue": "nowhere", "cores": 1, "memory": "1GB"}, "artition"), ({}, "cores and memory")):
        with jobqueue(**settings), pytest.raises(UsageError, match=words) as caught:
            run(config_for(archive), aoi, tmp_path / f"{len(settings)}.zarr", cluster="slurm", workers=2)
        assert "\n" not in str(caught.value)
        del caught
    gc.collect()  # so that the ResourceWarning is raised within this test
    assert queued() == []
