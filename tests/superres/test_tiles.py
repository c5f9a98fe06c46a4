"""Images in tiles: sums where something was added, 0 elsewhere, and no memory where nothing is needed."""

import numpy as np
import pytest

from pipeline.grid import arrays
from pipeline.grid.arrays import on_device
from pipeline.grid.grid import Window
from pipeline.superres.tiles import COLS_PX, ROWS_PX, Tiles
from tests.superres.fakes import CPU

PART = Window(-70, 470, 60, 30)  # meets two rows and two columns of tiles
RNG = np.random.default_rng(0)


@pytest.fixture(params=["numpy", "torch"])
def tiles(request, monkeypatch):
    if request.param == "torch":
        monkeypatch.setattr(arrays, "takes_numpy", lambda device: False)
    found = Tiles(3, CPU)
    values = [RNG.normal(size=(2, *PART.shape)).astype(np.float32), np.full(PART.shape, 0.25, np.float32)]
    placed = values if request.param == "numpy" else [on_device(one, CPU) for one in values]
    found.add(1, PART, placed[1], placed[0])
    found.add(1, PART, placed[1], placed[0])
    return found, 0.5 * values[0]


def test_what_was_added_is_where_it_was_added(tiles):
    found, expected = tiles
    window = PART.pad(500)
    image = np.asarray(found.cut(slice(0, 3), window))
    inside = PART.slices(window)
    assert np.array_equal(image[(slice(1, None), *inside)], expected)
    image[(slice(None), *inside)] = 0
    assert not image.any()
    assert np.array_equal(np.asarray(found.cut(slice(2, None), PART)), expected[1:])


def test_memory_is_taken_where_something_was_added(tiles):
    found, _ = tiles
    assert {tuple(tile.shape) for tile in found.held} == {(3, ROWS_PX, COLS_PX)}
    assert sorted(found.places) == [Window(row, col, ROWS_PX, COLS_PX) for row in (-96, -48) for col in (0, 480)]


def test_tiles_are_dropped_when_none_of_their_pixels_is_needed(tiles):
    found, _ = tiles
    found.drop(-49, 960)
    assert len(found.held) == 4
    found.drop(-48, 959)
    assert sorted(found.places) == [
        Window(row, col, ROWS_PX, COLS_PX) for row, col in ((-96, 480), (-48, 0), (-48, 480))
    ]
    found.drop(0, 10_000)
    assert found.held == []
    assert not np.asarray(found.cut(slice(0, 3), PART)).any()


def test_a_copy_is_cut(tiles):
    found, expected = tiles
    found.cut(slice(1, 3), PART)[:] = 7
    assert np.array_equal(np.asarray(found.cut(slice(1, 3), PART)), expected)
