"""Images handed to later groups: what is read of them does not depend on what else is read."""

import numpy as np
import pytest

from pipeline.grid import arrays
from pipeline.grid.arrays import on_device
from pipeline.grid.grid import Window
from pipeline.grid.lattice import Lattice
from pipeline.superres.canvas import Handed
from pipeline.superres.chain import Group
from tests.superres.fakes import CPU

LATTICE = Lattice(96, 48, 24, 12)
GROUP = Group((), LATTICE, 2.5, (), handed=(("a", "B04"),))
EMPTY = (0, 1)  # a window in which nothing was measured


@pytest.fixture(params=["numpy", "torch"])
def placed(request, monkeypatch):
    if request.param == "numpy":
        return lambda image: image
    monkeypatch.setattr(arrays, "takes_numpy", lambda device: False)
    return lambda image: on_device(image, CPU)


def handed(cells, placed):
    found = Handed(GROUP, cells, 1, CPU)
    for row, col in cells:
        if (row, col) != EMPTY:
            image = np.random.default_rng(100 + 10 * row + col).uniform(1, 2, (1, 96, 96)).astype(np.float32)
            found.add((row, col), [placed(image)])
    return found


def test_a_window_is_filled_from_itself_alone(placed):
    window = Window(12, 12, 96, 96)
    few = handed([cell for cell in LATTICE.cells_touching(window)], placed)
    many = handed([(row, col) for row in range(-1, 4) for col in range(-1, 4)], placed)
    found = [one.over(window, 2.5, 0)["a", "B04"].numpy() for one in (few, many)]
    assert np.array_equal(*found)
    assert found[0].min() >= 1 - 1e-3, "no gap is left"
    assert found[0].max() <= 2 + 1e-3


def test_nothing_is_made_up_where_no_window_has_data(placed):
    alone = handed([EMPTY], placed)
    assert not alone.over(LATTICE.support(*EMPTY), 2.5, 0)["a", "B04"].any()
