"""Areas of rasterised classes are those of the vectors, and no pixel shows where tiles or windows end."""

from dataclasses import replace

import numpy as np
import pytest
import shapely
from rasterio import Affine
from rasterio.features import rasterize

from pipeline.conditions import vector_map
from pipeline.conditions.maps import TILE_PX
from pipeline.grid.grid import Window
from tests.conditions.made_up import CLASSES, LEFT, TOP, osm_xml, turned_box, window, zone_maps

SIZE_M = 900  # two tiles of 1.25 m px
BUILDINGS = [turned_box(30 + 21 * at, 40 + 17 * (at % 7), 9 + at % 5, 14, 11 * at) for at in range(38)]
FIELDS = [turned_box(90, 480, 310, 190, 23), turned_box(520, 470, 250, 330, -31)]
ROADS = [
    shapely.LineString([(LEFT + 5, TOP - 260), (LEFT + 430, TOP - 390), (LEFT + 880, TOP - 230)]),
    shapely.LineString([(LEFT + 470, TOP - 890), (LEFT + 455, TOP - 420), (LEFT + 520, TOP - 250)]),
]
RIVER = shapely.LineString([(LEFT + 100, TOP - 220), (LEFT + 130, TOP - 890)])
TAGGED = [
    *[(shape, {"building": "yes"}) for shape in BUILDINGS],
    *[(shape, {"landuse": "farmland"}) for shape in FIELDS],
    *[(shape, {"highway": "residential"}) for shape in ROADS],
    (RIVER, {"waterway": "river"}),
]
EXPECTED = {  # m2, by the widths in map_classes.toml
    "building": shapely.union_all(BUILDINGS).area,
    "farmland": shapely.union_all(FIELDS).area,
    "road-minor": shapely.union_all(shapely.buffer(ROADS, 3.0)).area,
    "water": shapely.buffer(RIVER, 4.0).area,
}


@pytest.fixture(scope="module")
def town(tmp_path_factory):
    return osm_xml(tmp_path_factory.mktemp("osm") / "town.osm", TAGGED)


@pytest.mark.parametrize("gsd_m", [1.25, 0.625])
def test_classes_have_the_area_of_their_vectors(town, gsd_m):
    burnt = zone_maps(town).over("map", CLASSES.channels, window(gsd_m, SIZE_M), gsd_m)
    found = dict(zip(CLASSES.channels, burnt.sum((1, 2)) * gsd_m**2, strict=True))
    for name in CLASSES.channels:
        assert found[name] == pytest.approx(EXPECTED.get(name, 0.0), rel=0.02), name


def test_touched_pixels_would_be_too_many():
    """Why a pixel counts by its centre: with all that are touched, no class but large fields keeps its area."""
    transform = Affine(1.25, 0, LEFT, 0, -1.25, TOP)
    shapes = {"building": BUILDINGS, "road-minor": list(shapely.buffer(ROADS, 3.0))}
    for name, given in shapes.items():
        touched = rasterize(given, out_shape=(720, 720), transform=transform, all_touched=True).sum() * 1.25**2
        assert touched > 1.15 * EXPECTED[name]


@pytest.mark.parametrize("gsd_m", [1.25, 0.625])
@pytest.mark.parametrize("exclusive", [False, True])
def test_any_cut_shows_the_same_pixels(town, gsd_m, exclusive):
    declared = replace(CLASSES, exclusive=exclusive)
    whole_window = window(gsd_m, SIZE_M)
    maps = zone_maps(town, declared)
    whole = maps.over("map", declared.channels, whole_window, gsd_m)
    assert whole_window.ny > TILE_PX
    random = np.random.default_rng(3)
    for _ in range(12):
        ny, nx = random.integers(1, 400, 2).tolist()
        row = whole_window.row + int(random.integers(0, whole_window.ny - ny))
        col = whole_window.col + int(random.integers(0, whole_window.nx - nx))
        part = Window(row, col, ny, nx)
        vector_map.channels.cache_clear()
        names = tuple(random.permutation(declared.channels).tolist())
        order = [declared.channels.index(name) for name in names]
        assert np.array_equal(maps.over("map", names, part, gsd_m), whole[(order, *part.slices(whole_window))])


def test_tiles_meet_as_if_there_were_none(town):
    """Against one raster of the whole, in which nothing is cut: lines are cut by tiles before they are widened."""
    from tests.conditions.made_up import EPSG

    gsd_m, whole = 1.25, window(1.25, SIZE_M)
    maps = zone_maps(town)
    declared, frozen = maps.maps["map"]
    drawn = vector_map.draw(declared, frozen, EPSG, (LEFT, TOP - SIZE_M, LEFT + SIZE_M, TOP), (10.2, 46, 10.4, 46.1))
    transform = Affine(gsd_m, 0, LEFT, 0, -gsd_m, TOP)
    tiled = maps.over("map", declared.channels, whole, gsd_m)
    for values, polygons in zip(tiled, drawn.polygons, strict=True):
        at_once = rasterize(polygons, out_shape=whole.shape, transform=transform) if polygons else np.zeros(whole.shape)
        assert (values != at_once).sum() <= 2, "but for centres within rounding of an edge"


def test_exclusive_classes_go_to_the_first(town):
    burnt = zone_maps(town).over("map", CLASSES.channels, window(1.25, SIZE_M), 1.25)
    single = zone_maps(town, replace(CLASSES, exclusive=True)).over("map", CLASSES.channels, window(1.25, SIZE_M), 1.25)
    assert burnt.sum(0).max() > 1
    assert single.sum(0).max() == 1
    assert np.array_equal(single.any(0), burnt.any(0))
    first = np.argmax(burnt, 0)
    assert np.array_equal(np.argmax(single, 0)[burnt.any(0)], first[burnt.any(0)])
    road, water = CLASSES.channels.index("road-minor"), CLASSES.channels.index("water")
    bridge = (burnt[road] > 0) & (burnt[water] > 0)
    assert bridge.any()
    assert (single[road][bridge] == 1).all()
