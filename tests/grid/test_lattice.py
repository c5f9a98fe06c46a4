"""The window lattice: weights sum to one everywhere, windows are absolute."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.grid.grid import Window
from pipeline.grid.lattice import Lattice

LATTICES = [Lattice(480, 384, 48, 24), Lattice(480, 336, 48, 48), Lattice(864, 720, 48, 48), Lattice(480, 384, 0, 48)]
places = st.builds(
    Window, st.integers(-2_000_000, 2_000_000), st.integers(-1000, 400_000), st.integers(1, 997), st.integers(1, 997)
)


def total_weight(lattice, window):
    total = np.zeros(window.shape, np.float32)
    weight = lattice.weight()
    for cell in lattice.cells_touching(window):
        part = lattice.support(*cell).intersect(window)
        total[part.slices(window)] += weight[part.slices(lattice.support(*cell))]
    return total


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(LATTICES), places)
def test_weights_sum_to_one_at_every_pixel_of_any_window(lattice, window):
    assert np.abs(total_weight(lattice, window) - 1).max() <= 1e-6


@pytest.mark.parametrize("lattice", LATTICES)
def test_windows_start_on_60_m_pixels_and_margin_has_no_weight(lattice):
    window, support = lattice.window(-5000, 37), lattice.support(-5000, 37)
    assert all(v % 24 == 0 for v in (window.row, window.col, window.ny, window.nx))
    assert support.row - window.row == window.row_end - support.row_end == lattice.margin_px


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(LATTICES), places)
def test_cells_touching_are_those_whose_support_meets_the_window(lattice, window):
    cells = lattice.cells_touching(window)
    rows = {row for row, _ in cells}
    cols = {col for _, col in cells}
    assert all(not lattice.support(*cell).intersect(window).empty for cell in cells)
    for row, col in [(min(rows) - 1, min(cols)), (max(rows) + 1, min(cols)), (min(rows), max(cols) + 1)]:
        assert lattice.support(row, col).intersect(window).empty


@pytest.mark.parametrize("numbers", [(480, 384, 48, 23), (480, 381, 47, 26), (470, 384, 48, 24), (480, 384, -48, 72)])
def test_impossible_lattices_are_refused(numbers):
    with pytest.raises(ValueError, match="must|hold"):
        Lattice(*numbers)


def test_a_five_stride_unit_costs_2_25_times_its_area():
    lattice, unit = LATTICES[0], Window(192, 192, 5 * 384, 5 * 384)
    assert len(lattice.cells_touching(unit)) * lattice.window_px**2 / (unit.ny * unit.nx) == pytest.approx(2.25)


def test_windows_that_overlap_and_leave_a_gap_are_not_taken_for_the_whole():
    """Five of six windows of 480 px every 384 px have together the area of all the ground from first to last."""
    reader, read = Lattice(480, 384, 48, 24), Lattice(120, 96, 24, 0)
    cells = [(0, col) for col in (0, 1, 2, 4, 5)]
    assert sum(reader.window(*cell).ny * reader.window(*cell).nx for cell in cells) == 480 * 2400
    windows = [reader.window(*cell) for cell in cells]
    expected = {cell for window in windows for cell in read.cells_touching(window)}
    assert read.cells_touching_any(windows) == sorted(expected)
    whole = [reader.window(0, col) for col in range(6)]
    assert len(expected) < len(read.cells_touching_any(whole))
    chunks = [Window(480 * row, 480 * col, 480, 480) for row in range(3) for col in range(2)]
    assert read.cells_touching_any(chunks) == read.cells_touching(Window(0, 0, 1440, 960))
