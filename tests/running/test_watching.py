"""`python -m pipeline.check --watch`: what an onlooker is told of a run, and when it ends."""

import json
import os
import re
import threading
import time
from itertools import pairwise

import pytest

from pipeline import check
from pipeline.aoi.aoi import read_aoi
from pipeline.errors import Interrupted, PipelineError, ReadError
from pipeline.planning.parts import Part
from pipeline.planning.planner import make_plan
from pipeline.running import driver, part_records, pools
from pipeline.running.watching import Watch
from pipeline.store.lease import lease, sightings
from pipeline.store.place import place_of
from tests.running.conftest import config_for

PARTS, POISONED = 16, 5
BANDS = ("B02", "B03", "B04")


@pytest.fixture
def begun(archive, wide_aoi, tmp_path):
    """A frozen plan of at least 16 units, and its store."""
    store = tmp_path / "array.zarr"
    plan = make_plan(config_for(archive, unit_chunks=1, bands=BANDS), read_aoi(str(wide_aoi)))
    driver.prepare(plan, store)
    assert sum(1 for _ in plan.units()) >= PARTS
    return plan, store


def compute(plan, store, number):
    return driver.run_plan(plan, store, cluster="inline", workers=1, shard=Part(number, PARTS))


def poison(monkeypatch, unit_id):
    real = pools.process

    def process(unit, store, digest, attempt=1):
        if unit.id == unit_id:
            raise ReadError(f"unit {unit.id}: B04.tif is damaged", "a whole file", "fetch it again")
        return real(unit, store, digest, attempt)

    monkeypatch.setattr(pools, "process", process)


def looked(capsys, *words):
    code = check.main([*map(str, words)])
    return code, capsys.readouterr().out


@pytest.mark.slow
def test_an_array_of_16_parts_with_one_failing(begun, monkeypatch, capsys):
    plan, store = begun
    code, said = looked(capsys, store, "--watch", "--once", "--parts", PARTS)
    assert code == 75
    assert "0 of" in said
    assert f"parts     16 waiting of {PARTS}" in said

    first = Part(POISONED, PARTS).units(plan)[0].id
    with monkeypatch.context() as patch:
        poison(patch, first)
        for number in (1, 2, 3, POISONED):
            if number == POISONED:
                with pytest.raises(PipelineError, match="B04.tif is damaged"):
                    compute(plan, store, number)
            else:
                compute(plan, store, number)
    with lease(store, Part(7, PARTS).label):
        code, said = looked(capsys, store, "--watch", "--once")
        found = json.loads(looked(capsys, store, "--once", "--json")[1])
    assert code == 75
    assert "3 done, 1 working, 11 waiting, 1 failed of 16" in said
    assert re.search(r"done +1-3\n", said)
    assert re.search(rf"failed +5\n +5: .*unit {first}: B04.tif is damaged", said)
    assert re.search(r" 7: 0 of \d units, process \d+ on ", said)
    assert re.search(r"speed +\d+ km2/h, \d+ units/h; about .* left", said)
    states = [part["state"] for part in found["parts"]]
    assert states == ["done"] * 3 + ["waiting", "failed", "waiting", "working"] + ["waiting"] * 9
    assert found["done"] == sum(len(Part(number, PARTS).units(plan)) for number in (1, 2, 3))

    for number in range(1, PARTS + 1):
        compute(plan, store, number)
    code, said = looked(capsys, store, "--once")
    assert (code, "16 done of 16" in said, "the store is to be published" in said) == (75, True, True)
    assert len(part_records.read_records(place_of(store), plan.digest)) == PARTS
    driver.finalise(plan, store)
    assert part_records.read_records(place_of(store), plan.digest) == []
    code, said = looked(capsys, store, "--watch")
    assert code == 0
    assert "complete" in said
    assert "failed" not in said


@pytest.mark.slow
def test_it_watches_until_the_store_is_complete(begun, capsys):
    """Each state is printed once, whatever the number of looks; without an array there is no table of parts."""
    plan, store = begun
    thread = threading.Thread(target=driver.run_plan, args=(plan, store), kwargs={"cluster": "inline", "workers": 1})
    thread.start()
    try:
        code, said = looked(capsys, store, "--watch", "--every", "0.05", "--json")
    finally:
        thread.join()
    assert code == 0
    states = [json.loads(line) for line in said.splitlines()]
    counts = [state["done"] for state in states]
    assert counts == sorted(counts)
    lasting = [{**state, "at": 0, "km2_per_h": 0, "units_per_h": 0, "left_s": 0} for state in states]
    assert all(one != other for one, other in pairwise(lasting))
    assert states[-1]["status"] == "complete"
    assert states[-1]["done"] == states[-1]["units"]
    assert not any(state["parts"] for state in states)
    assert any(f"process {os.getpid()} on " in state["run"] for state in states[:-1])


def test_a_part_that_was_killed_is_lost_and_one_that_was_stopped_is_not(begun):
    plan, store = begun
    place = place_of(store)
    with pytest.raises(Interrupted), part_records.recorded(place, plan.digest, Part(2, PARTS)):
        raise Interrupted("stopped with 1 of 1 units to do")
    with part_records.recorded(place, plan.digest, Part(3, PARTS)):
        states = Watch(plan, place).look().parts  # its lease is not there, as after a kill
    assert [part.state for part in states[:4]] == ["waiting", "stopped", "lost", "waiting"]
    assert "stopped with 1 of 1 units" in states[1].error
    with part_records.recorded(place, plan.digest, Part(2, PARTS)):
        pass
    assert [part.begun for part in Watch(plan, place).look().parts[:3]] == [0, 2, 1]


def test_records_of_another_plan_do_not_count(begun):
    plan, store = begun
    with part_records.recorded(place_of(store), "0" * 64, Part(1, 4)):
        pass
    assert part_records.read_records(place_of(store), plan.digest) == []
    assert Watch(plan, place_of(store)).look().parts == ()


def test_looking_writes_nothing_and_a_lapsed_lease_is_no_work(begun, monkeypatch):
    plan, store = begun
    with lease(store, "1-of-4") as held:
        before = sorted(path.name for path in store.rglob("*"))
        assert [part.state for part in Watch(plan, place_of(store)).look().parts] == ["working", *["waiting"] * 3]
        assert sorted(path.name for path in store.rglob("*")) == before
        (seen,) = sightings(place_of(store))
        assert (seen.shard, seen.holder.owner) == ("1-of-4", held.owner)
        assert seen.lives(time.time())
        assert not seen.lives(time.time() + seen.holder.lapse_s + 1)


def test_speed_is_that_of_the_last_half_hour(begun, monkeypatch):
    """Four units, the first an hour ago: three ended in ten minutes, two of them after the first of these."""
    plan, store = begun
    units, now = list(plan.units()), 1e9
    ages = dict(zip((unit.id for unit in units), (3600.0, 600.0, 300.0, 60.0), strict=False))
    monkeypatch.setattr("pipeline.running.watching.time.time", lambda: now)
    monkeypatch.setattr(
        "pipeline.running.watching.Ledger.dates", lambda _self: {unit: now - age for unit, age in ages.items()}
    )
    state = Watch(plan, place_of(store)).look()
    assert state.done == 4
    assert state.units_per_h == 12.0
    km2 = [sum(c.ny * c.nx for c in plan.chunks(unit)) * 6.25e-6 for unit in units[2:4]]
    assert state.km2_per_h == pytest.approx(6 * sum(km2), abs=0.06)
    assert state.left_s == pytest.approx(300 * (len(units) - 4))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--watch", "--repair"], "--watch with --repair"),
        (["--watch", "--every", "0"], "seconds above 0"),
        (["--watch", "--parts", "-1"], "0 or more parts"),
    ],
)
def test_what_does_not_fit_is_refused(begun, capsys, words, said):
    assert check.main([str(begun[1]), *words]) == 2
    assert said in capsys.readouterr().err
