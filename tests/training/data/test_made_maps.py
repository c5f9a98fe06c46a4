"""Maps made of training images, on ground whose classes are known."""

import numpy as np
import pytest

from pipeline.bands import RGB
from training.data.made_maps import BUILDING_M2, CLASSES, LEAST_M2, MADE, made_map, made_maps

GSD_M = 1.25
SIDE = 160
SOIL = (0.16, 0.12, 0.08)


def ground(colour=SOIL, rough=0.0, seed=0, bands=3):
    """Ground of one colour (bands, n, n) with brightness varying by `rough` between blocks of 5 px."""
    blocks = 1 + rough * np.random.default_rng(seed).standard_normal((SIDE // 5, SIDE // 5))
    return (np.array(colour, np.float32)[:, None, None] * np.kron(blocks, np.ones((5, 5)))).astype(np.float32)


def channel(of_map, name):
    return of_map[CLASSES.index(name)] > 0


def test_classes_exclude_each_other_and_those_that_cannot_be_told_are_empty():
    image = ground(rough=0.4)
    image[:, 20:60, 20:60] = ground((0.02, 0.03, 0.035))[:, 20:60, 20:60]
    image[:, 100:116, 100:116] = 0.4
    found = made_map(image, GSD_M)
    assert found.shape == (len(CLASSES), SIDE, SIDE)
    assert found.sum(0).max() == 1
    assert not found[[name not in MADE for name in CLASSES]].any()
    assert np.array_equal(found, made_maps(image[None], GSD_M)[0])


def test_dark_even_bluish_ground_is_water():
    image = ground(rough=0.3)
    image[:, 40:120, 40:120] = ground((0.02, 0.03, 0.035))[:, 40:120, 40:120]
    water = channel(made_map(image, GSD_M), "water")
    assert water[44:116, 44:116].mean() > 0.97
    assert water.sum() == pytest.approx(80 * 80, rel=0.25)


def test_dark_green_rough_ground_is_wood_and_large_even_ground_farmland():
    image = ground((0.09, 0.10, 0.05))
    image[:, :, :80] = ground((0.03, 0.05, 0.025), rough=0.35)[:, :, :80]
    found = made_map(image, GSD_M)
    assert channel(found, "wood")[:, 4:72].mean() > 0.9
    assert channel(found, "farmland")[:, 100:].mean() > 0.97
    assert not channel(found, "wood")[:, 100:].any()


def test_near_infrared_tells_water_from_dark_ground():
    dark = ground((0.02, 0.03, 0.035))
    land = np.concatenate([dark, np.full((1, SIDE, SIDE), 0.2, np.float32)])
    sea = np.concatenate([dark, np.full((1, SIDE, SIDE), 0.01, np.float32)])
    bands = (*RGB, "B08")
    assert channel(made_map(sea, GSD_M, bands), "water").all()
    assert not channel(made_map(land, GSD_M, bands), "water").any()
    assert np.array_equal(made_map(land[[3, 2, 1, 0]], GSD_M, bands[::-1]), made_map(land, GSD_M, bands))


@pytest.mark.parametrize("degrees", [0, 30])
def test_a_bright_compact_object_becomes_a_rectangle(degrees):
    y, x = np.mgrid[:SIDE, :SIDE] - SIDE / 2 + 0.5
    turn = np.radians(degrees)
    along, across = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    roof = (np.abs(along) < 14) & (np.abs(across) < 8)
    image = ground(rough=0.05)
    image[:, roof] = 0.5
    rng = np.random.default_rng(0)
    image += 0.01 * rng.standard_normal(image.shape).astype(np.float32)
    building = channel(made_map(image, GSD_M), "building")
    assert building.sum() == pytest.approx(roof.sum(), rel=0.25)
    assert (building & roof).sum() > 0.85 * roof.sum()


def test_objects_of_other_sizes_and_shapes_are_no_buildings():
    image = ground()
    image[:, 80:83, :] = 0.4  # a road
    image[:, 20:22, 20:22] = 0.5  # a car
    assert not channel(made_map(image, GSD_M), "building").any()
    assert BUILDING_M2[0] > 4 * GSD_M**2


def test_small_areas_are_left_out():
    side = round((0.5 * LEAST_M2["water"]) ** 0.5 / GSD_M)
    image = ground(rough=0.3)
    image[:, 80 : 80 + side, 80 : 80 + side] = ground((0.02, 0.03, 0.035))[:, :side, :side]
    assert not channel(made_map(image, GSD_M), "water").any()


def test_a_map_does_not_tell_the_pixels_inside():
    image = ground(rough=0.3)
    image[:, 40:120, 40:120] = ground((0.02, 0.03, 0.035))[:, 40:120, 40:120]
    before = channel(made_map(image, GSD_M), "water")
    rippled = image.copy()
    rippled[:, 60:100, 60:100] *= 1 + 0.05 * np.sin(np.arange(40))[None, :, None].astype(np.float32)
    assert np.array_equal(before, channel(made_map(rippled, GSD_M), "water"))
