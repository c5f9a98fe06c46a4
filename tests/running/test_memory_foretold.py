"""The memory that a plan foretells, against the peak of a run in a process of its own."""

import json
import subprocess
import sys

import pytest

from pipeline.planning.estimate import estimate
from pipeline.planning.plan import load_plan

FIELD = "-6.8935,52.3075,-6.8895,52.3100"  # of the sample, 300 m wide


@pytest.mark.slow
def test_with_several_members_and_threads(tmp_path):
    """Four members keep all running sums of a spread, and two threads those of a window each."""
    words = (
        "--bbox",
        FIELD,
        "--catalog",
        "sample",
        "--members",
        "4",
        "--workers",
        "2",
        "--consistency",
        "box",
        "--json",
    )
    command = [sys.executable, "-m", "pipeline.run", *words, "--out", str(tmp_path / "field.zarr")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)["peak_worker_mib"]
    cost = estimate(load_plan(tmp_path / "field.zarr"), 2, timed=False, together=True)
    assert (cost.processes, cost.threads) == (1, 2)
    assert 1.0 <= cost.process_mib / seen <= 1.4, (cost.process_mib, seen)
