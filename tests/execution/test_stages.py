"""Stages of a unit sum to what it took, by a clock that ticks when it is read."""

import itertools
import json

import pytest

from pipeline.archive.aoi import read_aoi
from pipeline.execution import driver, stages
from pipeline.execution.planner import make_plan
from pipeline.execution.stages import Stages
from pipeline.execution.unit import process
from pipeline.execution.work import Summary
from tests.execution.conftest import LEFT, TOP, box, config_for, run, write_aoi


@pytest.fixture
def clock(monkeypatch):
    """Every reading is a second later than the last; the readings so far."""
    readings = []

    def tick():
        readings.append(float(len(readings)))
        return readings[-1]

    monkeypatch.setattr(stages.time, "perf_counter", tick)
    return readings


def test_laps_sum_to_the_whole_and_parts_keep_their_name(clock):
    timed = Stages()
    timed.lap("read")
    timed.lap("superres", within={"superres": 0.25, "blend": 0.5})
    timed.lap("read")
    assert timed.seconds == {"read": 2.0, "superres": 0.5, "blend": 0.5}
    assert sum(timed.seconds.values()) == clock[-1] - clock[0]


@pytest.mark.parametrize("last", [False, True])
def test_a_units_stages_sum_to_what_it_took(archive, aoi, tmp_path, clock, last):
    """Overviews are a stage of the unit that completes a block."""
    store = tmp_path / "a.zarr"
    plan = make_plan(config_for(archive, unit_chunks=40 if last else 3), read_aoi(str(aoi)))
    driver.prepare(plan, store)
    units = list(plan.units())
    assert (len(units) == 1) is last
    begun = len(clock)
    receipt = process(units[0], str(store), plan.digest)
    assert sum(receipt.seconds.values()) == pytest.approx(clock[-1] - clock[begun], abs=1e-3)
    assert ("overviews" in receipt.seconds) is last
    stored = json.loads((store / "_run" / "receipts" / f"{receipt.unit}.json").read_text())
    assert stored["seconds"] == receipt.seconds


def test_publication_adds_the_overviews_that_it_makes(archive, tmp_path):
    """Levels beyond blocks are made at the end, and are a stage as well."""
    small = write_aoi(tmp_path / "small.geojson", box(LEFT + 500, TOP - 740, LEFT + 740, TOP - 500))
    _, summary = run(config_for(archive, chunk_px=24, unit_chunks=4), small, tmp_path / "a.zarr")
    receipts = [json.loads(path.read_text()) for path in (tmp_path / "a.zarr/_run/receipts").glob("*.json")]
    of_units = sum(receipt["seconds"].get("overviews", 0.0) for receipt in receipts)
    assert set(summary.stage_seconds) == {
        "start", "load", "read", "superres", "blend", "project", "write", "overviews"
    }  # fmt: skip
    assert summary.stage_seconds["overviews"] > of_units > 0


def test_seconds_of_a_stage_add_up():
    summary = Summary()
    for seconds in itertools.repeat(0.5, 3):
        summary.add_seconds("overviews", seconds)
    assert summary.stage_seconds == {"overviews": 1.5}
