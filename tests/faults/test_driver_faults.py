"""Faults of machines and networks around a run: kills at seeded moments, broken networks, odd clocks; and the ledger's
state machine. Units here write numbers that follow from their address, so that hundreds of runs cost seconds.
"""

import multiprocessing
import os
import random
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from pipeline.aoi.aoi import read_aoi
from pipeline.check import repair
from pipeline.errors import PipelineError
from pipeline.planning.planner import make_plan
from pipeline.running import driver, pools
from pipeline.store import layout
from pipeline.store.layout import RegionWriter
from pipeline.store.receipts import Ledger, Receipt
from pipeline.superres import superres
from tests.archive.synthetic import make_archive
from tests.running.conftest import chunk_digests, config_for, run


@pytest.fixture(scope="module")
def plan(scenes, aoi, tmp_path_factory):
    """Some twenty units of one chunk."""
    folder = tmp_path_factory.mktemp("plan")
    return make_plan(config_for(make_archive(folder, scenes[1]), unit_chunks=1), read_aoi(str(aoi)))


def process(unit, store, digest, attempt=1):
    """A unit's work without the pixels: chunks that follow from the address, then the receipt."""
    plan = driver_plan[digest]
    writer, stored, valid = RegionWriter(Path(store), "", unit.period), {}, 0
    for chunk in plan.chunks(unit):
        value = 1000 + 37 * unit.row + 101 * unit.col
        arrays = {
            "reflectance": np.full((len(plan.config.band_names), chunk.ny, chunk.nx), value, np.uint16),
            "quality": np.ones(chunk.shape, np.uint8),
            "scl": np.full(chunk.shape, 4, np.uint8),
        }
        arrays["reflectance"][:, ::3, ::5] += np.arange(chunk.ny, dtype=np.uint16)[::3, None]
        stored.update(writer.write(*chunk.slices(plan.zones[0].grid.window), arrays))
        valid += chunk.ny * chunk.nx
    receipt = Receipt(unit.id, digest, "done", "", stored, {"B02": valid}, valid, valid, (), attempts=attempt)
    Ledger(Path(store), digest).record(receipt)
    return receipt


driver_plan = {}


@pytest.fixture
def by_address(plan, monkeypatch):
    driver_plan[plan.digest] = plan
    monkeypatch.setattr(pools, "process", process)


@pytest.fixture
def calm(plan, by_address, tmp_path):
    driver.prepare(plan, tmp_path / "calm.zarr")
    driver.run_plan(plan, tmp_path / "calm.zarr", cluster="inline", workers=1)
    return chunk_digests(tmp_path / "calm.zarr")


def whole_run(plan, store):
    driver.run_plan(plan, store, cluster="inline", workers=1)


@pytest.mark.slow
def test_ten_kills_lose_at_most_the_unit_at_work(plan, calm, tmp_path):
    """kill -9 of the driver, ten times, each a little further: same bytes, and only the unit in hand is done again."""
    store, rng = tmp_path / "killed.zarr", random.Random(11)
    driver.prepare(plan, store)
    ledger = Ledger(store, plan.digest)
    units = [unit.id for unit in plan.units()]
    done: dict[str, int] = {}
    for _ in range(10):
        child = multiprocessing.get_context("fork").Process(target=whole_run, args=(plan, store))
        before = set(done)
        child.start()
        target = len(before) + 1
        while child.is_alive() and sum(ledger.read(unit) is not None for unit in units) < target:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.01))
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        for unit in units:
            path = store / "_run" / "receipts" / f"{unit}.json"
            if path.is_file():
                assert done.get(unit, path.stat().st_mtime_ns) == path.stat().st_mtime_ns, f"{unit} was done again"
                done[unit] = path.stat().st_mtime_ns
    assert len(done) >= min(10, len(units))
    summary = driver.run_plan(plan, store, cluster="inline", workers=1)
    assert summary.resumed == len(done)
    assert chunk_digests(store) == calm
    assert not list(store.rglob("*.partial"))


@pytest.mark.slow
def test_networks_that_give_nan_fail_the_unit_and_write_nothing(scenes, aoi, tmp_path, monkeypatch):
    real = superres.run_window

    def broken(*given):
        found = yield from real(*given)
        found.mean[2.5][2, 50:60] = np.nan
        return found

    monkeypatch.setattr(superres, "run_window", broken)
    monkeypatch.setattr("pipeline.running.unit_queue.worth_isolating", lambda error: False)
    store = tmp_path / "nan.zarr"
    with pytest.raises(PipelineError, match="NaN or infinity in B03"):
        run(config_for(make_archive(tmp_path, scenes[1])), aoi, store)
    assert not list(store.rglob("reflectance/c/**/*"))


@pytest.mark.slow
@pytest.mark.parametrize("place", ["Pacific/Kiritimati", "America/Anchorage"])
def test_clock_zone_and_language_do_not_show(plan, calm, by_address, scenes, aoi, tmp_path, monkeypatch, place):
    """Ten hours away, a day ahead, in Turkish: the same plan and the same bytes."""
    now = time.time
    monkeypatch.setenv("TZ", place)
    monkeypatch.setenv("LANG", "tr_TR.UTF-8")
    time.tzset()
    monkeypatch.setattr(time, "time", lambda: now() + 86400)
    try:
        there = make_plan(config_for(make_archive(tmp_path, scenes[1]), unit_chunks=1), read_aoi(str(aoi)))
        assert there.zones == plan.zones
        store = tmp_path / "there.zarr"
        driver.prepare(plan, store)
        driver.run_plan(plan, store, cluster="inline", workers=1)
    finally:
        monkeypatch.undo()
        time.tzset()
    assert chunk_digests(store) == calm


class StoreMachine(RuleBasedStateMachine):
    """Runs that stop, damage, lost receipts and repairs in any order: what is published is always whole and right."""

    plan = None
    calm = None
    folder = None

    @initialize()
    def begin(self):
        self.store = self.folder / "machine.zarr"
        shutil.rmtree(self.store, ignore_errors=True)
        driver.prepare(self.plan, self.store)

    def receipts(self):
        return sorted((self.store / "_run" / "receipts").glob("*.json"))

    @rule(count=st.integers(0, 6))
    def run_some_units_and_stop(self, count):
        todo, _ = driver.pending(self.plan, self.store)
        for unit in todo[:count]:
            process(unit, str(self.store), self.plan.digest)

    @rule(which=st.integers(0, 10**6))
    def lose_a_receipt(self, which):
        if found := self.receipts():
            found[which % len(found)].unlink()

    @rule(which=st.integers(0, 10**6), cut=st.booleans())
    def damage_a_chunk(self, which, cut):
        chunks = sorted(path for path in self.store.rglob("reflectance/c/**/*") if path.is_file())
        if chunks:
            path = chunks[which % len(chunks)]
            content = bytearray(path.read_bytes())
            if cut:
                path.write_bytes(content[: len(content) // 2])
            else:
                content[len(content) // 2] ^= 0x40  # the size stands: only full verification finds it
                path.write_bytes(content)

    @rule(which=st.integers(0, 10**6))
    def tear_a_receipt(self, which):
        if found := self.receipts():
            path = found[which % len(found)]
            path.write_bytes(path.read_bytes()[:40])

    @rule()
    def repair_with_full_verification(self):
        repair(self.store, "full", 1)
        assert layout.status(self.store) == layout.STATUS_COMPLETE
        assert chunk_digests(self.store) == self.calm

    @invariant()
    def receipts_that_count_are_true(self):
        if not hasattr(self, "store"):
            return
        ledger = Ledger(self.store, self.plan.digest)
        for unit in self.plan.units():
            if not ledger.faults(unit.id, "full"):
                for key in ledger.read(unit.id).chunks:
                    assert chunk_digests(self.store)[key] == self.calm[key]
                break


@pytest.mark.slow
def test_any_order_of_faults_and_repairs_ends_in_one_store(plan, calm, by_address, tmp_path):
    StoreMachine.plan, StoreMachine.calm, StoreMachine.folder = plan, calm, tmp_path
    machine = StoreMachine.TestCase
    machine.settings = settings(max_examples=6, stateful_step_count=8, deadline=None)
    machine("runTest").runTest()
