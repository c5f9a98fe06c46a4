"""Batch scripts, run without SLURM: they forward signals, requeue exit code 75 up to a cap and keep other codes."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "deploy" / "slurm"
ARRAY, FINALISE = FOLDER / "array.sbatch", FOLDER / "finalise.sbatch"

# Stub of python: records its arguments, then exits with $CODE, or waits for a signal and exits with 75.
PYTHON = """#!/bin/bash
printf '%s\\n' "$@" >"$SEEN"
trap 'echo USR1 >>"$SEEN"; sleep 0.2; exit 75' USR1
trap 'echo TERM >>"$SEEN"; sleep 0.2; exit 75' TERM
[ "$CODE" = deaf ] && trap - USR1
touch "$SEEN.ready"
while [ "$CODE" = wait ] || [ "$CODE" = deaf ]; do sleep 0.02; done
exit "$CODE"
"""
# Stub of scontrol. The real one ends the calling script; this one fails, so the script reaches its last line.
SCONTROL = """#!/bin/bash
echo "$@" >"$REQUEUED"
exit 1
"""


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """Return a folder with a store, and set the scripts' parameters and stubs in the environment."""
    for name, text in (("python", PYTHON), ("scontrol", SCONTROL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "run.zarr" / "_run").mkdir(parents=True)
    for name, value in {
        "PATH": f"{tmp_path}:{os.environ['PATH']}", "SEEN": str(tmp_path / "seen"), "CODE": "0",
        "REQUEUED": str(tmp_path / "requeued"), "SEN2FINE_STORE": str(tmp_path / "run.zarr"), "SEN2FINE_PARTS": "64",
        "SEN2FINE_PYTHON": str(tmp_path / "python"), "SLURM_ARRAY_TASK_ID": "3", "SLURM_JOB_ID": "77",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    return tmp_path


def run(script):
    return subprocess.run(["bash", str(script)], capture_output=True, text=True, check=False, timeout=30)


def signalled(bench, number):
    """Run the array script and signal it while its python runs. Return the exit code and stderr."""
    task = subprocess.Popen(["bash", str(ARRAY)], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    while not (bench / "seen.ready").exists():
        assert task.poll() is None
        time.sleep(0.01)
    task.send_signal(number)
    _, errors = task.communicate(timeout=30)
    return task.returncode, errors


@pytest.mark.parametrize("script", [ARRAY, FINALISE], ids=lambda path: path.name)
def test_shellcheck_finds_nothing(script):
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed (apt-get install shellcheck)")
    done = subprocess.run(["shellcheck", "--severity=style", str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_shellcheck_would_find_something(tmp_path):
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed (apt-get install shellcheck)")
    (tmp_path / "bad.sh").write_text(ARRAY.read_text().replace('"$store"', "$store"))
    assert subprocess.run(["shellcheck", str(tmp_path / "bad.sh")], capture_output=True, check=False).returncode == 1


def test_a_task_runs_its_part_with_its_workers_and_options(bench, monkeypatch):
    monkeypatch.setenv("SEN2FINE_OPTIONS", "--verify full --max-outage 60")
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "4")
    assert run(ARRAY).returncode == 0
    assert (bench / "seen").read_text().split() == [
        "-m", "pipeline.run", "--plan", str(bench / "run.zarr"), "--shard-of", "3/64", "--workers", "4", "--quiet",
        "--verify", "full", "--max-outage", "60",
    ]  # fmt: skip
    monkeypatch.setenv("SEN2FINE_WORKERS", "1")  # beside a GPU
    assert run(ARRAY).returncode == 0
    assert "--workers 1 " in " ".join((bench / "seen").read_text().split())


@pytest.mark.parametrize("name", ["SEN2FINE_STORE", "SEN2FINE_PARTS", "SLURM_ARRAY_TASK_ID"])
def test_a_missing_parameter_is_named(bench, monkeypatch, name):
    monkeypatch.delenv(name)
    done = run(ARRAY)
    assert done.returncode != 0
    assert f"{name}: is not set" in done.stderr
    assert not (bench / "seen").exists()


def test_a_predecessors_lease_is_taken_over_and_no_other(bench):
    leases = [bench / "run.zarr" / "_run" / f"lease{name}.json" for name in ("-3-of-64", "-4-of-64", "")]
    for lease in leases:
        lease.write_text("{}")
    run(ARRAY)
    assert [lease.exists() for lease in leases] == [False, True, True]
    run(FINALISE)
    assert [lease.exists() for lease in leases] == [False, False, True]


@pytest.mark.parametrize("code", ["0", "1", "2", "6", "137"])
def test_other_codes_are_kept_and_never_requeued(bench, monkeypatch, code):
    monkeypatch.setenv("CODE", code)
    assert run(ARRAY).returncode == int(code)
    assert not (bench / "requeued").exists()


def test_75_goes_back_into_the_queue_until_the_cap(bench, monkeypatch):
    monkeypatch.setenv("CODE", "75")
    monkeypatch.setenv("SEN2FINE_MAX_REQUEUES", "2")
    for restarts in (None, "1"):
        if restarts:
            monkeypatch.setenv("SLURM_RESTART_COUNT", restarts)
        assert run(ARRAY).returncode == 75
        assert (bench / "requeued").read_text().split() == ["requeue", "77"]
        (bench / "requeued").unlink()
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    done = run(ARRAY)
    assert done.returncode == 1
    assert "submit again" in done.stderr
    assert not (bench / "requeued").exists()


def test_the_time_limit_warning_reaches_python_and_requeues(bench, monkeypatch):
    monkeypatch.setenv("CODE", "wait")
    code, _ = signalled(bench, signal.SIGUSR1)
    assert code == 75
    assert (bench / "seen").read_text().endswith("USR1\n")
    assert (bench / "requeued").exists()


def test_a_warning_that_python_does_not_hear_yet_requeues_too(bench, monkeypatch):
    monkeypatch.setenv("CODE", "deaf")
    code, _ = signalled(bench, signal.SIGUSR1)
    assert code == 75
    assert (bench / "requeued").exists()


def test_a_cancelled_task_stops_in_order_and_is_not_requeued(bench, monkeypatch):
    monkeypatch.setenv("CODE", "wait")
    code, _ = signalled(bench, signal.SIGTERM)
    assert code == 75
    assert (bench / "seen").read_text().endswith("TERM\n")
    assert not (bench / "requeued").exists()


@pytest.mark.parametrize(("code", "ours"), [("0", 0), ("4", 4), ("75", 1), ("7", 7)])
def test_the_publication_fails_rather_than_end_with_75(bench, monkeypatch, code, ours):
    """A cluster with RequeueExit=75 would requeue it forever."""
    monkeypatch.setenv("CODE", code)
    assert run(FINALISE).returncode == ours
    assert "--finalise" in (bench / "seen").read_text()
