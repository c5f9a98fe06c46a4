"""One thread at a time, the earliest strip first."""

import threading
import time

import pytest
import torch

from pipeline.superres.spec import SystemSpec
from pipeline.superres.system import built, shares_device, units_at_once
from pipeline.superres.turns import Turns


def until(true):
    ends = time.monotonic() + 20
    while not true():
        assert time.monotonic() < ends
        time.sleep(0.001)


def waiting_for(turns, numbers, then):
    """Threads that wait for a turn with these numbers, in this order of arrival."""

    def take(number):
        with turns.taken(number):
            then(number)

    threads = []
    for number in numbers:
        threads.append(threading.Thread(target=take, args=(number,)))
        threads[-1].start()
        until(lambda: len(turns._waiting) == len(threads))
    return threads


def test_the_lowest_number_that_waits_is_next_whatever_came_first():
    turns, order = Turns(), []
    with turns.taken(0):
        threads = waiting_for(turns, [5, 3, 4, 3, 9], order.append)
    for thread in threads:
        thread.join(20)
    assert order == [3, 3, 4, 5, 9]


def test_turns_are_never_held_by_two():
    turns, held, most = Turns(), [], []

    def hold(number):
        held.append(number)
        most.append(len(held))
        time.sleep(0.001)
        held.remove(number)

    with turns.taken(0):
        threads = waiting_for(turns, range(8), hold)
    for thread in threads:
        thread.join(20)
    assert most == [1] * 8


def test_a_turn_ends_with_an_error_too():
    turns = Turns()
    with pytest.raises(ZeroDivisionError), turns.taken(1):
        _ = 1 / 0
    with turns.taken(2):
        pass
    assert turns._waiting == []


def test_numbers_grow():
    turns = Turns()
    assert [turns.number() for _ in range(3)] == [0, 1, 2]


def test_only_what_shares_a_device_takes_turns():
    """On a CPU, windows of a unit are computed by several threads at once."""
    here = SystemSpec("here", "on the processors", lambda *_: ())
    there = SystemSpec("there", "a service", lambda *_: (), elsewhere=True)
    assert [shares_device(one, "cpu") for one in (here, there)] == [False, True]
    assert [units_at_once(one, "cuda") for one in (here, there)] == [3, 3]
    assert units_at_once(here, "cpu") == 1
    alone = built(here, {}, torch.device("cpu"))
    assert alone.queued() is alone
    queued = built(there, {}, torch.device("cpu"))
    assert [queued.queued().number, queued.queued().number] == [0, 1]
    assert queued.queued().turns is queued.turns
