"""An area in strips, by any number of threads, has the pixels of the whole, and computes no window twice."""

import threading
import time
from functools import cache

import numpy as np
import pytest
import torch

from pipeline.bands import BAND_NAMES, RGB
from pipeline.grid.grid import Window
from pipeline.grid.lattice import Lattice
from pipeline.superres import superres
from pipeline.superres.options import Options
from pipeline.superres.passes import passes_of
from pipeline.superres.spec import Input, Stage
from pipeline.superres.superres import Begun, blend, super_resolve
from pipeline.superres.sweep import Sweep
from pipeline.superres.system import System
from pipeline.superres.tiles import COLS_PX
from tests.superres.fakes import CPU, FUSION_BUNDLE, Noisy, fake_system, fusion_stage
from tests.superres.test_superres import SMALL, native_over

AREA = Window(-79_992, 12_000, 288, 192)
PART, STRIPS = Window(AREA.row, AREA.col, 192, 144), Window(AREA.row, AREA.col, 192, 96)
HOLE = (slice(None), slice(20, 60), slice(0, 30))  # at 10 m: whole windows without data


def chunks_of(area, side, without=()):
    found = [
        Window(area.row + y, area.col + x, side, side) for y in range(0, area.ny, side) for x in range(0, area.nx, side)
    ]
    return [chunk for i, chunk in enumerate(found) if i not in without]


def in_strips(area, system, options, native, chunks, threads=1, finish=True):
    """Layers over the area, put together from strips of whole rows of chunks; the number of windows computed."""
    rows, windows, parts = sorted({chunk.row for chunk in chunks}), 0, {}
    with Sweep(threads) as sweep:
        for row in rows:
            own = [chunk for chunk in chunks if chunk.row == row]
            sweep.then = [chunk for chunk in chunks if chunk.row > row]
            whole = Window(row, own[0].col, own[0].ny, own[-1].col_end - own[0].col)
            blended = blend(native, whole, system, BAND_NAMES, options, wanted=own, sweep=sweep)
            windows += blended.windows
            for chunk in own if finish else []:
                parts[chunk] = blended.finish(chunk)
    return parts, windows


def windows_needed(system, options, chunks):
    """Windows by the plan's own count."""
    (of,) = passes_of(system.stages, BAND_NAMES)
    return sum(len(cells) for cells in of.cells([chunk.pad(of.reach_px(options)) for chunk in chunks]))


def two_lattices(couple=0.3):
    """The super-resolver in small windows, whose output is blended before the fusion reads it in larger ones."""
    resolve = Stage("sr", (Input("rgb", RGB, 10),), RGB, 2.5, Lattice(96, 72, 8, 8), stochastic=True)
    fusion = fusion_stage(FUSION_BUNDLE, resolve, SMALL)
    return System("two", (resolve, fusion), Noisy(couple=couple), {}, CPU)


def one_lattice():
    return fake_system(0.4, SMALL)


TWO_DRAWS = Options(seed=5, members=2)


@cache
def whole_of(make, area, holed=False):
    """The rasters over an area, and its layers computed as a whole by two draws; for reading only."""
    system = make()
    native = native_over(area, system)
    if holed:
        native.dn[10][HOLE] = 0
    return native, super_resolve(native, area, system, BAND_NAMES, TWO_DRAWS)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("make", [one_lattice, two_lattices])
def test_strips_equal_the_whole(make, threads):
    system, options = make(), TWO_DRAWS
    native, whole = whole_of(make, PART, holed=True)
    chunks = chunks_of(PART, 48)
    parts, windows = in_strips(PART, system, options, native, chunks, threads)
    for chunk, part in parts.items():
        cut = chunk.slices(PART)
        assert np.array_equal(part.dn, whole.dn[(slice(None), *cut)])
        assert np.array_equal(part.spread, whole.spread[(slice(None), *cut)])
        assert np.array_equal(part.quality, whole.quality[cut])
    assert windows == whole.windows


def test_no_window_is_computed_twice_where_chunks_are_left_out():
    """Also those that a strip in between does not touch."""
    system, options = fake_system(0.4, SMALL), Options(seed=5, members=1)
    chunks = chunks_of(AREA, 24, without=[*range(8, 14), 30, 31, 60])
    _, windows = in_strips(AREA, system, options, native_over(AREA, system), chunks, finish=False)
    assert windows == windows_needed(system, options, chunks)


@pytest.mark.parametrize("make", [one_lattice, two_lattices])
@pytest.mark.parametrize("lower", [0, 24, 48, 72])
def test_blocks_of_strips_equal_the_whole(make, lower):
    """A strip may begin above the first block of it that is computed, and so above what earlier ones kept for it."""
    system, options = make(), TWO_DRAWS
    native, whole = whole_of(make, STRIPS)
    strips = [Window(STRIPS.row + row, STRIPS.col, 96, 96) for row in (0, 96)]
    blocks = [
        Window(strips[0].row + 48, STRIPS.col + 24, 24, 24),
        Window(strips[1].row + lower, STRIPS.col + 48, 24, 24),
    ]
    with Sweep() as sweep:
        for strip, block, sweep.then in zip(strips, blocks, ([blocks[1]], []), strict=True):
            part = blend(native, strip, system, BAND_NAMES, options, wanted=[block], sweep=sweep).finish(strip)
            inside, there = block.slices(strip), block.slices(STRIPS)
            assert np.array_equal(part.dn[(slice(None), *inside)], whole.dn[(slice(None), *there)])
            assert np.array_equal(part.spread[(slice(None), *inside)], whole.spread[(slice(None), *there)])
            assert np.array_equal(part.quality[inside], whole.quality[there])


@pytest.mark.parametrize("make", [lambda: fake_system(0.0, SMALL), two_lattices])
def test_what_is_held_does_not_grow_with_the_length_of_the_area(make):
    system, options = make(), Options(seed=5, members=1)
    held = []
    for ny in (576, 864):
        area, largest = Window(AREA.row, AREA.col, ny, 24), (0, 0)
        native = native_over(area, system)
        with Sweep() as sweep:
            for row in range(area.row, area.row_end, 24):
                sweep.then = [Window(r, area.col, 24, 24) for r in range(row + 24, area.row_end, 24)]
                blend(native, Window(row, area.col, 24, 24), system, BAND_NAMES, options, sweep=sweep)
                largest = max(largest, (tiles_of(sweep), len(sweep._handed)))
        assert sweep._handed == {}
        held.append(largest)
    assert held[0] == held[1]


def tiles_of(sweep):
    return sum(len(canvas.image.held) for canvas in sweep.canvases.by_gsd.values())


class TestBlocks:
    """A strip of two blocks, each of which is handed over as soon as the windows that it needs are computed."""

    WIDE = Window(AREA.row, AREA.col, 24, 720)
    BLOCKS = ([Window(AREA.row, AREA.col, 24, 240)], [Window(AREA.row, AREA.col + 240, 24, 480)])

    def test_come_early_equal_the_whole_and_what_they_alone_need_is_dropped(self):
        system, options, sweep = fake_system(0.4, SMALL), Options(seed=5, members=1), Sweep()
        native = native_over(self.WIDE, system)
        whole = super_resolve(native, self.WIDE, system, BAND_NAMES, options)
        blocks = Begun(native, self.BLOCKS, system, BAND_NAMES, options, lambda _: None, 0, None, sweep).blocks()
        first = next(blocks)
        reach = first.of.reach_px(first.options)
        last = SMALL.cells_touching(self.BLOCKS[0][0].pad(reach))[-1]
        to_come = [cell for cell in SMALL.cells_touching(self.WIDE.pad(reach)) if cell > last]
        assert whole.windows - sweep.windows == len(to_come) > 0
        assert np.array_equal(first.finish(self.BLOCKS[0][0]).dn, whole.dn[..., :240])
        left, held = self.WIDE.col // COLS_PX * COLS_PX, sweep.canvases.by_gsd[2.5].image
        assert any(place.col < left for place in held.places)
        second = next(blocks)
        assert not any(place.col < left for place in held.places)
        assert np.array_equal(second.finish(self.BLOCKS[1][0]).dn, whole.dn[..., 240:])
        assert list(blocks) == []
        assert sweep.windows == whole.windows


def test_a_part_that_is_complete_already_computes_nothing():
    """Two strips that the same row of windows completes."""
    system, options = fake_system(0.4, SMALL), Options(seed=5, members=1)
    native = native_over(AREA, system)
    first, second = Window(AREA.row + 24, AREA.col, 24, 48), Window(AREA.row + 48, AREA.col, 24, 48)
    needed = [SMALL.cells_touching(one.pad(168))[-1] for one in (first, second)]
    assert needed[0][0] == needed[1][0], "choose another row"
    whole = super_resolve(native, first.union(second), system, BAND_NAMES, options)
    with Sweep() as sweep:
        sweep.then = [second]
        assert blend(native, first, system, BAND_NAMES, options, sweep=sweep).windows == whole.windows
        sweep.then = []
        found = blend(native, second, system, BAND_NAMES, options, sweep=sweep)
    assert found.windows == 0
    assert np.array_equal(found.finish(second).dn, whole.dn[:, 24:])


@pytest.mark.parametrize("make", [lambda: fake_system(0.4, SMALL), two_lattices])
def test_windows_of_the_next_strip_are_computed_while_this_one_is_finished(make):
    system, options = make(), Options(seed=5, members=1)
    native = native_over(AREA, system)
    upper, lower = Window(AREA.row, AREA.col, 96, AREA.nx), Window(AREA.row + 96, AREA.col, AREA.ny - 96, AREA.nx)
    whole = super_resolve(native, AREA, system, BAND_NAMES, options)
    given = (system, BAND_NAMES, options, lambda _: None, 0, None)
    with Sweep(2) as sweep:
        sweep.then = [lower]
        first = Begun(native, [[upper]], *given, sweep)
        sweep.then = []
        second = Begun(native, [[lower]], *given, sweep)
        first.follow(second)
        blocks = first.blocks()
        above = next(blocks)
        own = sum(len(due.cells) for due in first._due)
        first.ahead()
        until = time.monotonic() + 20
        while sweep.windows <= own and time.monotonic() < until:
            time.sleep(0.01)
        assert sweep.windows > own
        assert np.array_equal(above.finish(upper).dn, whole.dn[:, :96])
        assert list(blocks) == []
        (below,) = (part.finish(lower) for part in second.blocks())
    assert np.array_equal(below.dn, whole.dn[:, 96:])
    assert sweep.windows == whole.windows


def test_threads_compute_at_once_and_hand_over_in_order():
    gate = threading.Barrier(3, timeout=20)  # passes only if three are at work at once
    with Sweep(3) as sweep:
        assert list(sweep.in_order(lambda i: (gate.wait(), i)[1], range(9))) == list(range(9))


def test_no_more_windows_are_under_way_than_threads_and_one():
    begun, most = [], 0
    with Sweep(2) as sweep:
        for i, _ in enumerate(sweep.in_order(begun.append, range(50))):
            most = max(most, len(begun) - i)
    assert most <= 4  # two at work, one that waits, and one that has been handed over


def test_an_error_of_a_thread_is_raised():
    def broken(i):
        if i == 2:
            raise RuntimeError("no window 2")

    with Sweep(2) as sweep, pytest.raises(RuntimeError, match="no window 2"):
        list(sweep.in_order(broken, range(9)))


def test_a_thread_uses_one_thread_of_torch(monkeypatch):
    """Others change the last bits of what networks compute."""
    found = []
    monkeypatch.setattr(superres, "run_window", lambda *_: found.append(torch.get_num_threads()) or 1 / 0)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        system = fake_system(0.0, SMALL)
        with Sweep(2) as sweep, pytest.raises(ZeroDivisionError):
            blend(native_over(AREA, system), AREA, system, BAND_NAMES, Options(members=1), sweep=sweep)
    finally:
        torch.set_num_threads(before)
    assert set(found) == {1}
