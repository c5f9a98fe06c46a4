"""Stages of a unit sum to what it took, by a clock that ticks when it is read."""

import json

import pytest

from pipeline.aoi.aoi import read_aoi
from pipeline.planning.planner import make_plan
from pipeline.running import build_overviews, driver, timing
from pipeline.running.timing import Stages
from pipeline.running.unit import process
from pipeline.running.unit_queue import Summary
from pipeline.store import overview_records
from pipeline.store.overview_records import Record
from pipeline.store.place import place_of
from tests.running.conftest import LEFT, TOP, box, config_for, run, write_aoi


@pytest.fixture
def clock(monkeypatch):
    """Every reading is a second later than the last; the readings so far."""
    readings = []

    def tick():
        readings.append(float(len(readings)))
        return readings[-1]

    monkeypatch.setattr(timing.time, "perf_counter", tick)
    return readings


def test_laps_sum_to_the_whole_and_parts_keep_their_name(clock):
    timed = Stages()
    timed.lap("read")
    timed.lap("superres", within={"superres": 0.25, "blend": 0.5})
    timed.lap("read")
    assert timed.seconds == {"read": 2.0, "superres": 0.5, "blend": 0.5}
    assert sum(timed.seconds.values()) == clock[-1] - clock[0]


def test_processor_time_is_without_waiting_and_limited_by_threads(clock, monkeypatch):
    used = iter([10.0, *[12.5] * 5])
    monkeypatch.setattr(timing.time, "process_time", lambda: next(used))
    timed = Stages()
    assert timed.cpu_seconds(2) == 0.0, "no lap has ended"
    timed.lap("read")
    timed.lap("read")
    assert timed.cpu_seconds(2) == 2.5, "of two threads over two seconds"
    assert timed.cpu_seconds(1) == 2.0, "the rest is of other units in this process"


@pytest.mark.usefixtures("clock")
def test_processor_time_of_overviews_is_without_waiting_and_of_one_thread(monkeypatch):
    used = iter([10.0, 12.5, 12.75, 20.0])
    monkeypatch.setattr(timing.time, "process_time", lambda: next(used))
    timed = Stages()
    timed.lap("write")
    assert timed.lap_of_one("overviews") == (1.0, 0.25), "the rest of the second it waited, as for an object store"
    assert timed.lap_of_one("overviews") == (1.0, 1.0), "more is of other units in this process"


@pytest.mark.parametrize("cpu_seconds", [0.25, None])
def test_a_summary_counts_processor_time_of_overviews_where_it_is_known(cpu_seconds):
    """Stores of earlier versions say only how long they took."""
    summary = Summary(units=1, cpu_seconds=2.0)
    summary.add_overviews(Record("digest", (), {"array/c/0": [10, 1]}, 1.0, cpu_seconds))
    assert summary.cpu_seconds == 2.0 + (1.0 if cpu_seconds is None else 0.25)
    assert summary.stage_seconds == {"overviews": 1.0}


@pytest.mark.parametrize("last", [False, True])
def test_timings_are_in_receipts_and_block_records(archive, aoi, tmp_path, clock, last):
    """Overviews are made by the unit that completes a block, after its receipt."""
    store = tmp_path / "a.zarr"
    plan = make_plan(config_for(archive, unit_chunks=40 if last else 2, bands=("B04",)), read_aoi(str(aoi)))
    driver.prepare(plan, store)
    units = list(plan.units())
    assert (len(units) == 1) is last
    begun = len(clock)
    receipt = process(units[0], str(store), plan.digest)
    records = overview_records.read_all(place_of(store), plan.digest)
    assert bool(records) is last
    overviews = sum(record.seconds for record in records.values())
    assert sum(receipt.seconds.values()) + overviews == pytest.approx(clock[-1] - clock[begun], abs=1e-3)


def test_a_run_tells_the_seconds_of_all_overviews(archive, tmp_path):
    """Those of blocks, and those beyond them, which publication makes; also when all was found done."""
    small = write_aoi(tmp_path / "small.geojson", box(LEFT + 500, TOP - 740, LEFT + 740, TOP - 500))
    store = tmp_path / "a.zarr"
    plan, summary = run(config_for(archive, chunk_px=24, unit_chunks=4, bands=("B04",)), small, store)
    assert set(summary.stage_seconds) == {
        "start", "load", "read", "superres", "blend", "project", "write", "overviews"
    }  # fmt: skip
    records = overview_records.read_all(place_of(store), plan.digest)
    assert [record.units == () for record in records.values()].count(True) == 1, "beyond blocks"
    assert all(record.seconds > 0 for record in records.values())
    assert summary.stage_seconds["overviews"] == pytest.approx(sum(record.seconds for record in records.values()))
    again = driver.run_plan(plan, store, cluster="inline", workers=1)
    assert again.stage_seconds == pytest.approx(summary.stage_seconds)


def test_records_without_seconds_are_believed(archive, tmp_path):
    """Of stores that were made before records held any."""
    small = write_aoi(tmp_path / "small.geojson", box(LEFT + 500, TOP - 740, LEFT + 740, TOP - 500))
    plan, _ = run(config_for(archive, bands=("B04",)), small, tmp_path / "a.zarr")
    for path in (tmp_path / "a.zarr" / overview_records.FOLDER).iterdir():
        content = json.loads(path.read_text())
        del content["seconds"], content["checksum"]
        path.write_text(json.dumps(content))
    assert build_overviews.is_complete(plan, tmp_path / "a.zarr")
