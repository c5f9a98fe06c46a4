"""Grids and windows."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.grid.grid import Grid, Phase, Window, align_down, align_up

windows = st.builds(
    Window, st.integers(-5000, 5000), st.integers(-5000, 5000), st.integers(1, 400), st.integers(1, 400)
)


@given(st.integers(-(10**9), 10**9), st.integers(1, 1000))
def test_alignment_brackets_the_value(value, step):
    low, high = align_down(value, step), align_up(value, step)
    assert low % step == high % step == 0
    assert low <= value < low + step
    assert high - step < value <= high


@given(windows, windows)
def test_intersection_lies_in_both_and_union_holds_both(a, b):
    common, both = a.intersect(b), a.union(b)
    for window in (a, b):
        window.slices(both)
        if not common.empty:
            common.slices(window)


@given(windows, st.sampled_from([1, 4, 8, 24]))
def test_coarsen_undoes_refine(window, factor):
    assert window.refine(factor).coarsen(factor) == window


def test_coarsen_refuses_cut_pixels():
    with pytest.raises(ValueError, match="multiples of 4"):
        Window(2, 0, 8, 8).coarsen(4)


def test_grid_is_snapped_outward_to_60_m_once():
    grid = Grid.covering(32631, (300001.0, 5000001.0, 301199.0, 5001199.0))
    assert grid.bounds_m == (300000.0, 4999980.0, 301200.0, 5001240.0)
    assert Grid.covering(32631, grid.bounds_m) == grid
    assert grid.transform == (2.5, 0.0, 300000.0, 0.0, -2.5, 5001240.0)


def test_southern_rows_and_phase():
    phase = Phase.of({10: (300017.4, 1000003.2), 20: (300017.4, 1000003.2), 60: (300017.4, 1000003.2)}, 32720)
    grid = Grid.covering(32720, (300017.4, 999403.2, 300617.4, 1000003.2), phase)
    assert grid.left_m == pytest.approx(300017.4)
    assert grid.top_m == pytest.approx(1000003.2)
    assert grid.shape == (240, 240)
    assert grid.at_gsd(60).shape == (10, 10)


def test_phase_of_bands_whose_origins_differ_but_nest():
    # 20 m origin 10 m west of the 10 m origin: both sit on one 60 m grid
    phase = Phase.of({10: (600010.0, 7000000.0), 20: (600000.0, 7000000.0)}, 32720)
    assert phase == Phase.official(32720)
    assert (600010.0 - phase.x_m) % 10 == 0
    assert (600000.0 - phase.x_m) % 20 == 0


def test_phase_refuses_rasters_that_do_not_nest():
    with pytest.raises(ValueError, match="no common 60 m grid"):
        Phase.of({10: (600005.0, 0.0), 20: (600000.0, 0.0)}, 32632)


def test_official_origins_have_the_official_phase():
    north, south = (499980.0, 5300040.0), (399960.0, 9100000.0)
    assert Phase.of({10: north, 20: north, 60: north}, 32632) == Phase.official(32632) == Phase(0, 0)
    assert Phase.of({10: south, 20: south, 60: south}, 32720) == Phase.official(32720) == Phase(0, 40)
