"""Images in tiles: sums where something was added, 0 elsewhere, and no memory where nothing is needed."""

import numpy as np
import pytest
import torch

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
    found = Tiles(3, CPU, Window(-480, 0, 960, 510))
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
    """In whole tiles, but for what lies beyond the area."""
    found, _ = tiles
    assert {tuple(tile.shape) for tile in found.held} == {(3, ROWS_PX, COLS_PX), (3, ROWS_PX, 30)}
    rows = (-72, -48, -24)
    assert sorted(found.places) == [
        Window(row, col, ROWS_PX, nx) for row in rows for col, nx in ((0, COLS_PX), (COLS_PX, 30))
    ]


def test_tiles_are_dropped_when_none_of_their_pixels_is_needed(tiles):
    found, _ = tiles
    found.drop(-49, 960)
    assert len(found.held) == 6
    found.drop(-48, 509)
    assert Window(-72, 480, ROWS_PX, 30) in found.places
    assert len(found.held) == 5
    found.drop(-24, 960)
    assert {place.row for place in found.places} == {-24}
    found.drop(0, 10_000)
    assert found.held == []
    assert not np.asarray(found.cut(slice(0, 3), PART)).any()


def test_nothing_is_added_beyond_the_area(tiles):
    found, _ = tiles
    beyond = Window(-70, 500, 60, 30)
    before = np.asarray(found.cut(slice(0, 3), beyond))
    ones = np.ones((3, *beyond.shape), np.float32)
    share, images = (
        (ones[0], ones) if isinstance(found.held[0], np.ndarray) else (torch.ones(60, 30), torch.ones(3, 60, 30))
    )
    found.add(0, beyond, share, images)
    after = np.asarray(found.cut(slice(0, 3), beyond))
    assert np.array_equal(after[..., 10:], np.zeros_like(after[..., 10:]))
    assert np.array_equal(after[..., :10], before[..., :10] + 1)


def test_a_copy_is_cut(tiles):
    found, expected = tiles
    found.cut(slice(1, 3), PART)[:] = 7
    assert np.array_equal(np.asarray(found.cut(slice(1, 3), PART)), expected)
