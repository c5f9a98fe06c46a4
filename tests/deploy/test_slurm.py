"""A real SLURM cluster of one node runs what submit hands it: killed, warned, requeued, resubmitted, published."""

import json
import os
import signal
import subprocess
import time

import pytest

from pipeline import submit
from pipeline.execution.plan import load_plan
from pipeline.execution.shards import Shard
from pipeline.store import layout
from tests.deploy.local_slurm import local_slurm, missing, queued
from tests.execution.conftest import chunk_digests, config_for, run

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


def wait_until(true, what):
    until = time.monotonic() + LIMIT_S
    while not true():
        assert time.monotonic() < until, f"{what}; in the queue: {queued()}"
        time.sleep(0.05)


def submitted(capsys, *words):
    """What submit says; it must succeed."""
    capsys.readouterr()
    code = submit.main([*words, "--target", "slurm", "--json"])
    said = capsys.readouterr()
    assert code == 0, said.err
    return json.loads(said.out)


def test_an_array_with_a_killed_and_a_warned_task_equals_one_run(slurm, archive, aoi, tmp_path, capsys):
    sound, store = tmp_path / "sound.zarr", tmp_path / "jobs.zarr"
    run(config_for(archive, unit_chunks=1), aoi, sound)
    lease, receipts = store / "_run" / "lease-3-of-4.json", store / "_run" / "receipts"
    said = submitted(
        capsys, "--aoi", str(aoi), "--catalog", str(archive), "--sr", "bicubic", "--chunk-px", "120",
        "--unit-chunks", "1", "--max-cloud", "100", "--out", str(store), "--array", "4",
    )  # fmt: skip
    assert said["parts_to_do"] == [1, 2, 3, 4]

    part3 = [unit.id for unit in Shard(3, 4).units(load_plan(store))]

    def done():
        return [unit for unit in part3 if (receipts / f"{unit}.json").exists()]

    wait_until(done, "part 3 has not begun")
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
    wait_until(lease.exists, "part 3 has not begun again")
    subprocess.run(["scancel", "--signal=USR1", "--batch", f"{said['array_job']}_3"], check=True)
    wait_until(lambda: f"{said['array_job']}_3 PENDING" in queued(), "part 3 was not requeued")
    assert any("PENDING" in job for job in queued() if job.startswith(said["finalise_job"]))
    subprocess.run(["scontrol", "update", f"JobId={said['array_job']}_3", "StartTime=now"], check=True)
    wait_until(lambda: not queued(), "the jobs have not ended")
    log = (tmp_path / "jobs.zarr.slurm" / "part-3.log").read_text()
    assert "try 2" in log, log
    assert layout.status(store) == layout.STATUS_COMPLETE
    assert chunk_digests(store) == chunk_digests(sound)

    assert submitted(capsys, "--plan", str(store))["status"] == "complete"
    assert queued() == []
