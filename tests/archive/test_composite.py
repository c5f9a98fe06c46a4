"""Composites: clear before cloudy, best scene first, no dependence on where the grid ends."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.archive.composite import UNCLEAR_SCL, best_first, median, mosaic, periods, solar_day
from pipeline.archive.cube import Pixels
from pipeline.archive.scene import Scene
from pipeline.errors import UsageError
from pipeline.grid.grid import Grid, Window

CELL = 24  # 2.5 m pixels per 60 m
GROUPS = {10: ("B02", "B04"), 20: ("B11",), 60: ("B01",)}


def grid(ny=2, nx=3, row=0):
    return Grid(32632, Window(row * CELL, 0, ny * CELL, nx * CELL))


def flat(value, scl=4, where=None, ny=2, nx=3):
    """Pixels of one value everywhere, 0 outside `where` (y, x) of 60 m cells; `scl` a class or (y, x) at 20 m."""
    inside = np.ones((ny, nx), bool) if where is None else np.asarray(where, bool)
    dn = {
        gsd: np.stack([inside.repeat(60 // gsd, 0).repeat(60 // gsd, 1) * (value + i) for i in range(len(names))])
        for gsd, names in GROUPS.items()
    }
    classes = np.broadcast_to(np.uint8(scl), (3 * ny, 3 * nx)) if scl is not None else None
    scl_array = None if classes is None else np.where(inside.repeat(3, 0).repeat(3, 1), classes, 0).astype(np.uint8)
    return Pixels(grid(ny, nx), {g: a.astype(np.uint16) for g, a in dn.items()}, GROUPS, scl_array)


@st.composite
def step(draw, ny=2, nx=2):
    """Random pixels: DN with holes, SCL with every class."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    holes = draw(st.sampled_from([0.0, 0.1, 0.6]))
    dn = {}
    for gsd, names in GROUPS.items():
        shape = ny * 60 // gsd, nx * 60 // gsd
        image = rng.integers(1, 65536, (len(names), *shape))
        dn[gsd] = np.where(rng.random(shape) < holes, 0, image).astype(np.uint16)
    scl = rng.integers(0, 12, (3 * ny, 3 * nx)).astype(np.uint8) if draw(st.booleans()) else None
    return Pixels(grid(ny, nx), dn, GROUPS, scl)


def clear(pixels, gsd):
    """Mask of clear ground at `gsd`, written out pixel by pixel."""
    ny, nx = pixels.dn[gsd].shape[1:]
    if pixels.scl is None:
        return np.ones((ny, nx), bool)
    bad = np.isin(pixels.scl, UNCLEAR_SCL)
    if gsd == 60:
        return np.array([[bad[3 * y : 3 * y + 3, 3 * x : 3 * x + 3].sum() < 5 for x in range(nx)] for y in range(ny)])
    return np.array([[not bad[y * gsd // 20, x * gsd // 20] for x in range(nx)] for y in range(ny)])


steps_lists = st.lists(step(), min_size=1, max_size=4).map(
    lambda steps: (
        [dataclasses.replace(s, scl=s.scl if s.scl is not None else np.full((6, 6), 7, np.uint8)) for s in steps]
        if any(s.scl is not None for s in steps)
        else steps
    )
)


@settings(max_examples=60, deadline=None)
@given(steps_lists)
def test_mosaic_takes_whole_observations_and_leaves_no_hole_that_a_scene_could_fill(steps):
    dn, scl = mosaic(steps)
    for gsd in GROUPS:
        known = np.stack([s.dn[gsd] for s in steps])
        equal = (known == dn[gsd]).all(axis=1)  # all bands of the group from one scene
        valid = known.any(axis=1)
        assert (equal.any(axis=0)).all()
        assert (dn[gsd].any(axis=0) == valid.any(axis=0)).all()
    assert (scl is None) == (steps[0].scl is None)


@settings(max_examples=60, deadline=None)
@given(steps_lists)
def test_mosaic_shows_cloud_only_where_no_whole_cell_is_clear(steps):
    _, scl = mosaic(steps)
    if scl is None:
        return
    whole_clear = np.zeros((6, 6), bool)
    for s in steps:
        whole = np.ones((6, 6), bool)
        for gsd in GROUPS:
            has = s.dn[gsd].any(axis=0)
            whole &= has.repeat(3, 0).repeat(3, 1) if gsd == 60 else has.reshape(6, 20 // gsd, 6, 20 // gsd).all((1, 3))
        whole_clear |= whole & ~np.isin(s.scl, UNCLEAR_SCL)
    assert not np.isin(scl[whole_clear], UNCLEAR_SCL).any()


@settings(max_examples=60, deadline=None)
@given(steps_lists)
def test_median_is_the_median_of_clear_valid_observations(steps):
    dn, _ = median(steps)
    fallback, _ = mosaic(steps)
    for gsd in GROUPS:
        masks = [clear(s, gsd) for s in steps]
        for band, y, x in np.ndindex(dn[gsd].shape):
            seen = [int(s.dn[gsd][band, y, x]) for s, m in zip(steps, masks, strict=True) if m[y, x]]
            seen = [value for value in seen if value]
            want = int(np.floor(np.median(seen) + 0.5)) if seen else fallback[gsd][band, y, x]
            assert dn[gsd][band, y, x] == want


@settings(max_examples=30, deadline=None)
@given(st.lists(step(ny=3, nx=2), min_size=2, max_size=3).filter(lambda s: len({t.scl is None for t in s}) == 1))
def test_a_part_of_the_grid_composites_as_the_whole(steps):
    for composite in (mosaic, median):
        whole, _ = composite(steps)
        parts = [
            Pixels(
                grid(2, 2, row=1),
                {gsd: a[:, 60 // gsd :] for gsd, a in s.dn.items()},
                GROUPS,
                None if s.scl is None else s.scl[3:],
            )
            for s in steps
        ]
        part, _ = composite(parts)
        for gsd in GROUPS:
            np.testing.assert_array_equal(part[gsd], whole[gsd][:, 60 // gsd :])


@pytest.mark.parametrize("hidden", [0, 1, 3, 8, 9, 10])
def test_hidden_ground_is_taken_from_the_next_scene(hidden):
    scl = np.full((6, 9), 4)
    scl[:, 3:] = hidden
    dn, classes = mosaic([flat(2000, scl), flat(3000, 5)])
    assert (dn[10][0, :, :6] == 2000).all()
    assert (dn[10][0, :, 6:] == 3000).all()
    assert (dn[20][0, :, 3:] == 3000).all()
    assert (dn[60][0, :, 1:] == 3000).all()
    assert (classes[:, :3] == 4).all()
    assert (classes[:, 3:] == 5).all()


def test_ground_that_is_never_clear_comes_from_the_first_scene():
    dn, scl = mosaic([flat(2000, 9), flat(3000, 8)])
    assert (dn[10][0] == 2000).all()
    assert (scl == 9).all()


def test_60m_follows_the_majority_of_its_nine_cells():
    scl = np.full((6, 9), 4)
    scl[:3, :3] = [[9, 9, 9], [9, 9, 4], [4, 4, 4]]  # five of nine hidden
    scl[:3, 3:6] = [[9, 9, 9], [9, 4, 4], [4, 4, 4]]  # four of nine
    dn, _ = mosaic([flat(2000, scl), flat(3000, 4)])
    assert dn[60][0, 0].tolist() == [3000, 2000, 2000]


def test_snow_water_and_unclassified_ground_are_clear():
    for scl in (2, 4, 5, 6, 7, 11):
        dn, _ = mosaic([flat(2000, scl), flat(3000, 4)])
        assert (dn[20] == 2000).all()


def test_ground_outside_one_footprint_is_filled_and_outside_all_stays_zero():
    left, middle = [[1, 0, 0], [1, 0, 0]], [[0, 1, 0], [0, 1, 0]]
    dn, scl = mosaic([flat(2000, 4, left), flat(3000, 9, middle)])
    assert dn[60][0].tolist() == [[2000, 3000, 0]] * 2
    assert scl[0].tolist() == [4, 4, 4, 9, 9, 9, 0, 0, 0]


def test_mosaic_stops_asking_once_everything_is_clear():
    def scenes():
        yield flat(2000, 9)
        yield flat(3000, 4)
        raise AssertionError("read a scene that was not needed")

    dn, _ = mosaic(scenes())
    assert (dn[10][0] == 3000).all()


def test_median_rounds_half_up_and_survives_the_largest_values():
    dn, _ = median([flat(1000), flat(1001)])
    assert (dn[10][0] == 1001).all()
    dn, _ = median([flat(65530), flat(65533)])
    assert (dn[10][0] == 65532).all()


# --- periods


def scene(scene_id, when="2024-06-17T10:00:00Z", longitude=9.0, cloud=None):
    box = [[longitude, 45], [longitude + 1, 45], [longitude + 1, 46], [longitude, 46], [longitude, 45]]
    return Scene(scene_id, when, 32632, {"type": "Polygon", "coordinates": [box]}, {}, cloud_pct=cloud)


def test_best_first_is_least_cloudy_then_by_id_unknown_last():
    scenes = [scene("d"), scene("c", cloud=10), scene("b", cloud=10), scene("a", cloud=0.5)]
    assert [s.id for s in best_first(scenes)] == ["a", "b", "c", "d"]


def test_an_overpass_is_not_split_at_midnight_utc():
    before = scene("before", "2024-06-17T23:59:50Z", longitude=178.0)
    after = scene("after", "2024-06-18T00:00:05Z", longitude=178.5)
    next_day = scene("next", "2024-06-18T23:59:50Z", longitude=178.0)
    steps = periods([next_day, after, before], "none")
    assert [step.scene_ids for step in steps] == [("after", "before"), ("next",)]
    assert [step.label for step in steps] == ["2024-06-18", "2024-06-19"]
    assert steps[0].datetime_utc == "2024-06-17T23:59:50Z"
    assert {step.composite for step in steps} == {"mosaic"}


def test_solar_day_of_a_footprint_split_at_the_antimeridian():
    west = [[[179, 0], [180, 0], [180, 1], [179, 1], [179, 0]]]
    east = [[[-180, 0], [-179.9, 0], [-179.9, 1], [-180, 1], [-180, 0]]]
    split = dataclasses.replace(
        scene("s", "2024-06-17T22:00:00Z"), footprint={"type": "MultiPolygon", "coordinates": [west, east]}
    )
    assert solar_day(split) == "2024-06-18"


def test_mosaic_and_median_are_one_period_over_everything():
    scenes = [scene("late", "2024-08-31T10:00:00Z", cloud=1), scene("early", "2024-06-01T10:00:00Z", cloud=2)]
    for composite in ("mosaic", "median"):
        (step,) = periods(scenes, composite)
        assert step.label == "2024-06-01/2024-08-31"
        assert step.scene_ids == ("late", "early")
        assert step.composite == composite
        assert step.datetime_utc == "2024-06-01T10:00:00Z"


def test_no_scenes_no_periods_and_unknown_composites_are_refused():
    assert periods([], "none") == periods([], "median") == ()
    with pytest.raises(UsageError, match="mean"):
        periods([scene("a")], "mean")
