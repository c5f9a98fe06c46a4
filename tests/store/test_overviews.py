"""Overviews: values worked by hand, and levels that meet the conventions."""

import numpy as np
import pytest

from pipeline.grid.grid import Grid
from pipeline.store import levels, overviews

BANDS = ("B01", "B02", "B11")


def grid_of(ny, nx):
    return Grid.covering(32632, (600000.0, 5100000.0 - 2.5 * ny, 600000.0 + 2.5 * nx, 5100000.0))


def test_reflectance_is_the_rounded_mean_of_what_was_measured():
    dn = np.array([[1, 2, 0, 0, 7], [2, 2, 0, 9, 0], [65535, 65535, 0, 0, 3]], np.uint16)
    np.testing.assert_array_equal(overviews.halve("reflectance", dn, 2), [[2, 9, 7], [65535, 0, 3]])


def test_uncertainty_counts_zeros_but_not_nodata():
    none = 65535
    spread = np.array([[4, 0, 6, none, none], [0, 0, 6, none, 3]], np.uint16)
    np.testing.assert_array_equal(overviews.halve("uncertainty", spread, 2), [[1, 6, 3]])
    np.testing.assert_array_equal(overviews.halve("uncertainty", np.full((2, 3), none, np.uint16), 2), [[none, none]])


@pytest.mark.parametrize("holes", [0.0, 0.2])
def test_rounding_of_many_levels_brightens_nothing(holes):
    """The mean of 2**18 random blocks per level, four levels: within four standard errors of the mean below it."""
    rng = np.random.default_rng(5)
    dn = rng.integers(1, 4000, (16, 512, 512)).astype(np.uint16)
    dn[rng.random(dn.shape) < holes] = 0
    for level in range(4):
        blocks = dn.reshape(16, dn.shape[1] // 2, 2, dn.shape[2] // 2, 2).astype(float)
        count = (blocks > 0).sum((2, 4))
        dn = overviews.halve("reflectance", dn, 2 ** (level + 1))
        off = (dn - blocks.sum((2, 4)) / np.maximum(count, 1))[count > 0]
        assert abs(off.mean()) < 4 * off.std() / np.sqrt(off.size), level
        assert np.abs(off).max() <= 0.5


def test_classes_are_taken_not_mixed_and_do_not_drift():
    """A gradient of column numbers: after each halving the taken column stays within half a pixel of the centre."""
    cols = np.tile(np.arange(128, dtype=np.uint8), (128, 1))
    taken, factor = cols, 1
    while factor < 32:
        factor *= 2
        taken = overviews.nearest_class(taken, factor)
        centres = (np.arange(128 // factor) + 0.5) * factor - 0.5
        assert np.abs(taken[0] - centres).max() <= factor / 4 + 0.5


def test_levels_halve_until_small_and_always_reach_10_m():
    found = levels.overviews(grid_of(4800, 2400), BANDS, ("reflectance",), 480)
    assert [level.path for level in found] == [f"overviews/{gsd}m" for gsd in (5, 10, 20, 40, 80)]
    assert [level.chunk_px for level in found] == [480, 480, 240, 120, 60]
    assert not any(level.late for level in found)
    assert found[-1].raster.shape == (150, 75)
    assert [level.factor for level in levels.overviews(grid_of(120, 120), BANDS, ("reflectance",), 480)] == [2, 4]


def test_levels_of_tiny_chunks_and_those_beyond_blocks_come_late():
    found = levels.overviews(grid_of(960, 960), BANDS, ("reflectance",), 24)
    assert [(level.factor, level.late) for level in found] == [(2, False), (4, True)]
    found = levels.overviews(grid_of(40_000, 40_000 // 24 * 24), BANDS, ("reflectance",), 480)
    assert [level.late for level in found] == [False] * 5 + [True] * 3


def test_measured_levels_hold_the_bands_of_their_gsd():
    found = levels.measured(grid_of(480, 480), BANDS, 240)
    assert [(level.path, level.bands, level.chunk_px) for level in found] == [
        ("measured/10m", ("B02",), 60), ("measured/20m", ("B11",), 30), ("measured/60m", ("B01",), 10)
    ]  # fmt: skip
    assert levels.measured(grid_of(480, 480), ("B02",), 240)[0].raster.gsd_m == 10.0


@pytest.mark.parametrize("shape", [(24, 24), (72, 120), (1464, 24)])
def test_the_last_pixel_may_leave_the_grid_but_none_is_lost(shape):
    for level in levels.overviews(grid_of(*shape), BANDS, ("reflectance",), 24):
        ny, nx = level.raster.shape
        assert 0 <= ny * level.factor - shape[0] < level.factor
        assert 0 <= nx * level.factor - shape[1] < level.factor
