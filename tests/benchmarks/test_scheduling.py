"""Units that do nothing pass through a local cluster, and are counted."""

import pytest

from pipeline.config import RunConfig
from tests.benchmarks.scene import wide_plan
from tests.benchmarks.scheduling import run_idle_units

COUNT = 40


@pytest.mark.slow
def test_idle_units_go_through_a_cluster(tmp_path):
    plan = wide_plan(tmp_path, 20_000, RunConfig(sr="bicubic", chunk_px=240, unit_chunks=4))
    seconds, memory = run_idle_units(plan, tmp_path, 1, COUNT)
    assert seconds > 0
    assert len(memory) >= 10
