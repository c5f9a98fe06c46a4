"""The driver's window over a pool: tries, pauses in an outage, twins of stragglers. No pixels, a pool by script."""

import time

import pytest

from pipeline.errors import Interrupted, PipelineError, ReadError, StorageError, Unreachable
from pipeline.planning.plan import Unit
from pipeline.running.stop import Stop
from pipeline.running.unit_queue import Breaker, Patience, Summary, UnitQueue
from pipeline.store.receipts import Receipt

DIGEST = "d" * 64


def units(count):
    return [Unit(32632, 0, col, 0) for col in range(count)]


def receipt(unit):
    return Receipt(unit.id, DIGEST, "done", "", {}, {"B02": 1}, 1, None, ())


class ScriptedPool:
    """Ends units in order of `script(unit, attempt, submissions)`: an outcome, or None for one that never ends."""

    def __init__(self, script, capacity=2):
        self.capacity, self.script = capacity, script
        self.submitted, self._waiting, self.expected = [], [], []

    def set_demand(self, units):
        self.expected.append(units)

    def submit(self, unit, attempt):
        self.submitted.append((unit, attempt, time.monotonic()))
        self._waiting.append((unit, attempt))

    def next(self, timeout_s):
        for waiting in self._waiting:
            outcome = self.script(*waiting, len(self.submitted))
            if outcome is not None:
                self._waiting.remove(waiting)
                return (*waiting, outcome)
        time.sleep(min(timeout_s, 0.005))
        return None


def through(pool, todo, tmp_path, **patience):
    summary = Summary(units=len(todo))
    work = UnitQueue(pool, summary, lambda *_: None, Stop(), tmp_path, DIGEST, Patience(**patience))
    work.run(todo)
    work.raise_unless_whole()
    return summary


def test_an_outage_pauses_submission_and_costs_no_attempt(tmp_path):
    away = {"left": 4}

    def script(unit, attempt, _):
        if away["left"]:
            away["left"] -= 1
            return Unreachable("no answer")
        return receipt(unit)

    pool = ScriptedPool(script, capacity=1)
    summary = through(pool, units(3), tmp_path, first_pause_s=0.04, longest_pause_s=0.1, max_outage_s=60)
    assert summary.computed == 3
    assert {attempt for _, attempt, _ in pool.submitted} == {1}
    gaps = [b[2] - a[2] for a, b in zip(pool.submitted, pool.submitted[1:], strict=False)]
    for gap, pause in zip(gaps[:4], (0.04, 0.08, 0.1, 0.1), strict=True):
        assert gap >= pause


def test_an_outage_that_lasts_ends_with_75_and_names_the_archive(tmp_path):
    pool = ScriptedPool(lambda *_: Unreachable("archive.example does not answer"), capacity=1)
    with pytest.raises(Interrupted, match=r"archive\.example") as caught:
        through(pool, units(3), tmp_path, first_pause_s=0.01, longest_pause_s=0.01, max_outage_s=0.05)
    assert caught.value.exit_code == 75


def test_one_answer_ends_the_outage():
    breaker = Breaker(Patience(10, 20, 0))
    assert breaker.unanswered(1)
    breaker = Breaker(Patience(10, 20, 1000))
    assert not breaker.unanswered(1)
    assert 9 < breaker.left_s <= 10
    breaker.answered()
    assert breaker.left_s == 0


def test_a_straggler_gets_a_twin_and_the_first_receipt_counts(tmp_path):
    slow = units(13)[-1]

    def script(unit, attempt, _):
        return None if unit == slow and attempt == 1 else receipt(unit)

    pool = ScriptedPool(script)
    summary = through(pool, units(13), tmp_path)
    assert (summary.computed, summary.left) == (13, 0)
    assert [attempt for unit, attempt, _ in pool.submitted if unit == slow] == [1, 4]


def test_a_straggler_whose_twin_fails_may_still_end(tmp_path):
    slow = units(13)[-1]

    def script(unit, attempt, submissions):
        if unit != slow:
            return receipt(unit)
        if attempt > 1:
            return ReadError("the twin failed")
        return receipt(unit) if submissions > 14 or time.monotonic() > started + 0.3 else None

    started = time.monotonic()
    summary = through(ScriptedPool(script), units(13), tmp_path)
    assert summary.computed == 13


def test_the_pool_hears_how_many_units_are_left(tmp_path):
    """All of them at first, the last ones at the end: a cluster that follows need not keep workers for nothing."""
    pool = ScriptedPool(lambda unit, *_: receipt(unit))
    through(pool, units(5), tmp_path)
    assert pool.expected[0] == 5
    assert sorted(pool.expected, reverse=True) == pool.expected
    assert pool.expected[-1] == 1


def test_a_stop_leaves_only_the_units_at_work(tmp_path):
    stop = Stop()

    def script(unit, *_):
        stop.asked = True
        return receipt(unit)

    pool = ScriptedPool(script)
    work = UnitQueue(pool, Summary(units=5), lambda *_: None, stop, tmp_path, DIGEST)
    work.run(units(5))
    with pytest.raises(Interrupted, match="stopped with 3 of 5 units to do"):
        work.raise_unless_whole()
    assert pool.expected == [5, 1]


def test_an_error_that_nobody_explained_is_shown_without_secrets(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.running.unit_queue.worth_isolating", lambda error: False)
    pool = ScriptedPool(lambda *_: KeyError("https://host.example/a.tif?sig=CANARY123"), capacity=1)
    with pytest.raises(PipelineError, match=r"host\.example/a\.tif\?\[redacted\]") as caught:
        through(pool, units(3), tmp_path)
    assert "CANARY123" not in str(caught.value)


def test_a_full_disk_is_nobodys_fault_and_stops_at_once(tmp_path):
    pool = ScriptedPool(lambda *_: StorageError("no space left"), capacity=1)
    with pytest.raises(StorageError):
        through(pool, units(5), tmp_path)
    assert len(pool.submitted) == 1


def test_a_failing_unit_is_tried_three_times(tmp_path):
    bad = units(4)[1]
    pool = ScriptedPool(lambda unit, *_: ReadError("gone for good") if unit == bad else receipt(unit))
    summary = through(pool, units(4), tmp_path)
    assert summary.quarantined == (bad.id,)
    assert [attempt for unit, attempt, _ in pool.submitted if unit == bad] == [1, 2, 3]
    assert (summary.computed, summary.left) == (3, 0)
