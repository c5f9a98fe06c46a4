"""Composites: clear before cloudy, best scene first, no dependence on where the grid ends."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.archive.read.composite import UNCLEAR_SCL, median, mosaic
from pipeline.archive.read.cube import LazyRasters
from pipeline.grid.grid import Window
from pipeline.grid.native_rasters import NativeRasters

CELL = 24  # 2.5 m pixels per 60 m
GROUPS = {10: ("B02", "B04"), 20: ("B11",), 60: ("B01",)}


def window(ny=2, nx=3, row=0):
    return Window(row * CELL, 0, ny * CELL, nx * CELL)


def flat(value, scl=4, where=None, ny=2, nx=3):
    """Pixels of one value everywhere, 0 outside `where` (y, x) of 60 m cells; `scl` a class or (y, x) at 20 m."""
    inside = np.ones((ny, nx), bool) if where is None else np.asarray(where, bool)
    dn = {
        gsd: np.stack([inside.repeat(60 // gsd, 0).repeat(60 // gsd, 1) * (value + i) for i in range(len(names))])
        for gsd, names in GROUPS.items()
    }
    classes = np.broadcast_to(np.uint8(scl), (3 * ny, 3 * nx)) if scl is not None else None
    scl_array = None if classes is None else np.where(inside.repeat(3, 0).repeat(3, 1), classes, 0).astype(np.uint8)
    return NativeRasters(window(ny, nx), {g: a.astype(np.uint16) for g, a in dn.items()}, GROUPS, scl_array)


@st.composite
def step(draw, ny=2, nx=2):
    """Random pixels: DN with holes, SCL with every class."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    holes = draw(st.sampled_from([0.0, 0.1, 0.6]))
    dn = {}
    for gsd, names in GROUPS.items():
        shape = ny * 60 // gsd, nx * 60 // gsd
        image = rng.integers(1, 65536, (len(names), *shape))
        dark = rng.random(image.shape) < draw(st.sampled_from([0.0, 0.3]))  # 0 in one band of several is no hole
        dn[gsd] = np.where((rng.random(shape) < holes) | dark, 0, image).astype(np.uint16)
    scl = rng.integers(0, 12, (3 * ny, 3 * nx)).astype(np.uint8) if draw(st.booleans()) else None
    return NativeRasters(window(ny, nx), dn, GROUPS, scl)


def clear(pixels, gsd):
    """Mask of clear ground at `gsd`, written out pixel by pixel."""
    ny, nx = pixels.dn[gsd].shape[1:]
    if pixels.scl is None:
        return np.ones((ny, nx), bool)
    bad = np.isin(pixels.scl, UNCLEAR_SCL)
    if gsd == 60:
        return np.array([[bad[3 * y : 3 * y + 3, 3 * x : 3 * x + 3].sum() < 5 for x in range(nx)] for y in range(ny)])
    return np.array([[not bad[y * gsd // 20, x * gsd // 20] for x in range(nx)] for y in range(ny)])


steps_lists = st.lists(step(), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(steps_lists)
def test_mosaic_takes_whole_observations_and_leaves_no_hole(steps):
    dn, *_ = mosaic(steps)
    for gsd in GROUPS:
        known = np.stack([s.dn[gsd] for s in steps])
        equal = (known == dn[gsd]).all(axis=1)  # all bands of the group from one scene
        valid = known.any(axis=1)
        assert (equal.any(axis=0)).all()
        assert (dn[gsd].any(axis=0) == valid.any(axis=0)).all()


@settings(max_examples=60, deadline=None)
@given(steps_lists)
def test_mosaic_shows_cloud_only_where_no_whole_cell_is_clear(steps):
    _, scl, *_ = mosaic(steps)
    whole_clear = np.zeros((6, 6), bool)
    for s in steps:
        whole = np.ones((6, 6), bool)
        for gsd in GROUPS:
            has = s.dn[gsd].any(axis=0)
            whole &= has.repeat(3, 0).repeat(3, 1) if gsd == 60 else has.reshape(6, 20 // gsd, 6, 20 // gsd).all((1, 3))
        whole_clear |= whole & (s.scl is None or ~np.isin(s.scl, UNCLEAR_SCL))
    assert not np.isin(scl[whole_clear], UNCLEAR_SCL).any()


@settings(max_examples=60, deadline=None)
@given(steps_lists)
def test_median_is_the_median_of_clear_valid_observations(steps):
    dn, *_ = median(steps, range(len(steps)))
    fallback, *_ = mosaic(steps)
    for gsd in GROUPS:
        masks = [clear(s, gsd) for s in steps]
        for band, y, x in np.ndindex(dn[gsd].shape):
            seen = [int(s.dn[gsd][band, y, x]) for s, m in zip(steps, masks, strict=True) if m[y, x]]
            seen = [value for value in seen if value]
            want = int(np.floor(np.median(seen) + 0.5)) if seen else fallback[gsd][band, y, x]
            assert dn[gsd][band, y, x] == want


@settings(max_examples=30, deadline=None)
@given(st.lists(step(ny=3, nx=2), min_size=2, max_size=3))
def test_a_part_of_the_grid_composites_as_the_whole(steps):
    for composite in (mosaic, lambda some: median(some, "abb"[: len(some)])):
        whole, *_ = composite(steps)
        parts = [
            NativeRasters(
                window(2, 2, row=1),
                {gsd: a[:, 60 // gsd :] for gsd, a in s.dn.items()},
                GROUPS,
                None if s.scl is None else s.scl[3:],
            )
            for s in steps
        ]
        part, *_ = composite(parts)
        for gsd in GROUPS:
            np.testing.assert_array_equal(part[gsd], whole[gsd][:, 60 // gsd :])


def composite_by_loops(steps):
    """(dn by GSD, scl, used) as the rules say, cell by cell and pixel by pixel."""
    hidden = [np.zeros((6, 6), bool) if s.scl is None else np.isin(s.scl, UNCLEAR_SCL) for s in steps]
    data = [{gsd: s.dn[gsd].any(axis=0) for gsd in GROUPS} for s in steps]
    choice, scl, used = np.full((6, 6), -1), np.zeros((6, 6), np.uint8), set()
    for y, x in np.ndindex(6, 6):
        part = [(d[10][2 * y : 2 * y + 2, 2 * x : 2 * x + 2], d[20][y, x], d[60][y // 3, x // 3]) for d in data]
        whole = [i for i, (a, b, c) in enumerate(part) if a.all() and b and c]
        order = [i for i in whole if not hidden[i][y, x]] + whole
        choice[y, x] = order[0] if order else -1
        order += [i for i, (a, b, c) in enumerate(part) if a.any() or b or c]
        if order:
            scl[y, x] = 7 if steps[order[0]].scl is None else steps[order[0]].scl[y, x]
    dn = {gsd: np.zeros_like(steps[0].dn[gsd]) for gsd in GROUPS}
    for gsd in GROUPS:
        for y, x in np.ndindex(dn[gsd].shape[1:]):
            cells = (slice(3 * y, 3 * y + 3), slice(3 * x, 3 * x + 3)) if gsd == 60 else (y * gsd // 20, x * gsd // 20)
            chosen = [int(c) for c in np.atleast_2d(choice[cells]).ravel() if c >= 0]
            order = [max(sorted(set(chosen)), key=chosen.count)] if chosen else []
            order += [i for i in range(len(steps)) if 2 * hidden[i][cells].sum() < np.size(hidden[i][cells])]
            order = [i for i in order + list(range(len(steps))) if data[i][gsd][y, x]]
            if order:
                dn[gsd][:, y, x] = steps[order[0]].dn[gsd][:, y, x]
                used.add(order[0])
    return dn, scl, tuple(sorted(used))


def lazy(pixels, reads, name):
    """The same pixels, read band by band; `reads` lists (name, GSD, band) and (name, "SCL")."""

    def load(gsd, bands):
        reads.extend((name, gsd, band) for band in range(*bands.indices(len(GROUPS[gsd]))))
        return pixels.dn[gsd][bands]

    def load_scl():
        reads.append((name, "SCL"))
        return pixels.scl

    return LazyRasters(pixels.window, GROUPS, load, None if pixels.scl is None else load_scl)


@settings(max_examples=150, deadline=None)
@given(steps_lists)
def test_composites_do_not_depend_on_how_they_are_read(steps):
    reads = []
    dn, scl, used = composite_by_loops(steps)
    for found in (mosaic(steps), mosaic([lazy(s, reads, i) for i, s in enumerate(steps)])):
        assert found.used == used
        np.testing.assert_array_equal(found.scl, scl)
        for gsd in GROUPS:
            np.testing.assert_array_equal(found.dn[gsd], dn[gsd])
    assert len(set(reads)) == len(reads)
    days = "aab"[: len(steps)].ljust(len(steps), "c")
    one, other = median(steps, days), median([lazy(s, reads, i) for i, s in enumerate(steps)], days)
    assert one.used == other.used
    for gsd in GROUPS:
        np.testing.assert_array_equal(one.dn[gsd], other.dn[gsd])


def test_a_never_clear_cell_does_not_make_every_scene_be_read():
    scl = np.full((6, 9), 4)
    scl[0, 0] = 9
    reads = []
    cloudy = np.where(np.arange(9) < 5, 4, 9)  # clear where the first is, too
    steps = [flat(2000, scl), flat(2100, 9), flat(2200, np.where(scl == 9, 8, cloudy)), flat(2300, scl)]
    found = mosaic([lazy(s, reads, i) for i, s in enumerate(steps)])
    assert found.used == (0,)
    assert (found.dn[10][0] == 2000).all()
    every_band = [(0, gsd, band) for gsd, names in GROUPS.items() for band in range(len(names))]
    assert sorted(reads, key=str) == sorted(every_band + [(i, "SCL") for i in range(4)], key=str)


def test_a_scene_that_covers_too_little_costs_one_band():
    scl = np.full((6, 9), 4)
    scl[:, 5:] = 9
    reads = []
    bare = flat(2100, 4)
    bare.dn[10][:, :, 10:] = 0  # SCL says clear, the 10 m bands say that nothing is there
    found = mosaic([lazy(s, reads, i) for i, s in enumerate([flat(2000, scl), bare, flat(2200, 4)])])
    assert found.used == (0, 2)
    assert [read for read in reads if read[0] == 1] == [(1, "SCL"), (1, 10, 0), (1, 10, 1)]


def test_overlapping_tiles_of_one_day_count_once_in_a_median():
    steps = [flat(2000), flat(2010), flat(3000), flat(3000), flat(3000)]
    found = median(steps, ["d1", "d2", "d3", "d3", "d3"])
    assert (found.dn[10][0] == 2010).all()
    assert (found.dn[60][0] == 2010).all()
    assert found.used == (0, 1, 2)


def test_within_a_day_the_clear_tile_speaks_for_the_day():
    scl = np.full((6, 9), 4)
    scl[:, :3] = 9
    found = median([flat(3000, scl), flat(2000, 4), flat(2010, 4)], ["d1", "d2", "d1"])
    assert (found.dn[10][0, :, :6] == 2005).all()  # 2000 and 2010
    assert (found.dn[10][0, :, 6:] == 2500).all()  # 3000 and 2000


@pytest.mark.parametrize("hidden", [0, 1, 3, 8, 9, 10])
def test_hidden_ground_is_taken_from_the_next_scene(hidden):
    scl = np.full((6, 9), 4)
    scl[:, 3:] = hidden
    dn, classes, *_ = mosaic([flat(2000, scl), flat(3000, 5)])
    assert (dn[10][0, :, :6] == 2000).all()
    assert (dn[10][0, :, 6:] == 3000).all()
    assert (dn[20][0, :, 3:] == 3000).all()
    assert (dn[60][0, :, 1:] == 3000).all()
    assert (classes[:, :3] == 4).all()
    assert (classes[:, 3:] == 5).all()


def test_ground_that_is_never_clear_comes_from_the_first_scene():
    dn, scl, *_ = mosaic([flat(2000, 9), flat(3000, 8)])
    assert (dn[10][0] == 2000).all()
    assert (scl == 9).all()


def test_60m_follows_the_majority_of_its_nine_cells():
    scl = np.full((6, 9), 4)
    scl[:3, :3] = [[9, 9, 9], [9, 9, 4], [4, 4, 4]]  # five of nine hidden
    scl[:3, 3:6] = [[9, 9, 9], [9, 4, 4], [4, 4, 4]]  # four of nine
    dn, *_ = mosaic([flat(2000, scl), flat(3000, 4)])
    assert dn[60][0, 0].tolist() == [3000, 2000, 2000]


def test_snow_water_and_unclassified_ground_are_clear():
    for scl in (2, 4, 5, 6, 7, 11):
        dn, *_ = mosaic([flat(2000, scl), flat(3000, 4)])
        assert (dn[20] == 2000).all()


def test_ground_outside_all_footprints_alone_stays_zero():
    left, middle = [[1, 0, 0], [1, 0, 0]], [[0, 1, 0], [0, 1, 0]]
    dn, scl, *_ = mosaic([flat(2000, 4, left), flat(3000, 9, middle)])
    assert dn[60][0].tolist() == [[2000, 3000, 0]] * 2
    assert scl[0].tolist() == [4, 4, 4, 9, 9, 9, 0, 0, 0]


def test_mosaic_stops_asking_once_everything_is_clear():
    def scenes():
        yield flat(2000, 9)
        yield flat(3000, 4)
        raise AssertionError("read a scene that was not needed")

    dn, *_ = mosaic(scenes())
    assert (dn[10][0] == 3000).all()


def test_median_rounds_half_up_and_survives_the_largest_values():
    dn, *_ = median([flat(1000), flat(1001)], "ab")
    assert (dn[10][0] == 1001).all()
    dn, *_ = median([flat(65530), flat(65533)], "ab")
    assert (dn[10][0] == 65532).all()
