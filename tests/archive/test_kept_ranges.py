"""Ranges of bytes that a gateway keeps, against a plain array of what was put."""

import threading

from hypothesis import given
from hypothesis import strategies as st

from pipeline.archive.read.kept_ranges import KeptRanges, UnderWay

FILE = bytes(range(200))


@given(st.lists(st.tuples(st.integers(0, 199), st.integers(1, 60))), st.integers(0, 199), st.integers(1, 80))
def test_what_is_known_is_what_was_put(puts, first, length):
    kept, there = KeptRanges(10_000), [False] * 200
    for start, count in puts:
        piece = FILE[start : start + count]
        kept.put("a", start, piece)
        kept.put("b", start, bytes(255 - byte for byte in piece))
        there[start : start + count] = [True] * len(piece)
    last = min(first + length, 200) - 1
    head, tail = kept.known("a", first, last)
    assert head == FILE[first : first + len(head)]
    assert tail == FILE[last + 1 - len(tail) : last + 1]
    assert len(head) + len(tail) <= last + 1 - first
    if len(puts) <= 1:  # a later range may take the place of a larger one that it touches
        assert len(head) == next((i for i, known in enumerate(there[first : last + 1]) if not known), last + 1 - first)


def test_bounded_and_the_longest_unused_go_first():
    kept = KeptRanges(100)
    kept.put("a", 0, FILE[:40])
    kept.put("b", 0, FILE[:40])
    assert kept.known("a", 0, 39) == (FILE[:40], b"")
    kept.put("a", 40, FILE[40:80])
    assert kept.known("b", 0, 39) == (b"", b"")
    assert kept.known("a", 0, 79) == (FILE[:80], b"")
    kept.put("c", 0, FILE[:101])
    assert kept.known("c", 0, 10) == (b"", b""), "more than may be kept"
    assert kept.known("a", 0, 79) == (FILE[:80], b"")


def test_a_gap_is_what_lies_between_the_known_ends():
    kept = KeptRanges(1000)
    kept.put("a", 0, FILE[:50])
    kept.put("a", 100, FILE[100:150])
    assert kept.known("a", 20, 119) == (FILE[20:50], FILE[100:120])
    kept.put("a", 50, FILE[50:100])
    assert kept.known("a", 20, 119) == (FILE[20:120], b"")
    kept.forget("a")
    assert kept.known("a", 20, 119) == (b"", b"")


def test_overlapping_ranges_wait_for_each_other_and_others_do_not():
    ways, order = UnderWay(), []
    inside, apart = threading.Event(), threading.Event()

    def want(first, last, name):
        with ways.alone(first, last):
            order.append(name)
            apart.set()

    with ways.alone(0, 9):
        waiting = threading.Thread(target=want, args=(5, 20, "overlapping"))
        other = threading.Thread(target=want, args=(21, 30, "apart"))
        waiting.start()
        other.start()
        assert apart.wait(10)
        assert not inside.wait(0.05)
        assert order == ["apart"]
    waiting.join(10)
    other.join(10)
    assert order == ["apart", "overlapping"]
