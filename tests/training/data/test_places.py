"""Splits by place: nothing that is judged on was ever trained on, whatever images show it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyproj import Transformer

from training.data.chips import held_out_chips
from training.data.images import Image, Values
from training.data.patches import PatchSampler
from training.data.places import (
    CELL_M,
    Georeference,
    SplitMap,
    cell_name,
    cell_split,
    split_map,
    split_of,
    zone_of,
)

GSD_M = 5.0
SIDE_PX = 24


class Flat:
    """A reader of images too large to exist: every value is 100."""

    itemsize = 1

    def __init__(self, shape):
        self.shape = shape

    def read(self, y, x, ny, nx):
        assert 0 <= y <= y + ny <= self.shape[0]
        assert 0 <= x <= x + nx <= self.shape[1]
        return np.full((3, ny, nx), 100, np.uint8)

    def mask(self, y, x, ny, nx):
        return None


def image_at(crs, left, top, step, shape, gsd_m=GSD_M) -> tuple[Image, Georeference]:
    raster = Georeference(crs, (step, 0.0, left, 0.0, -step, top), shape)
    ground = split_map(raster, gsd_m)
    target = (gsd_m, 2.3 * gsd_m)
    values = Values(encoded=True)
    return Image("a", "a", "", None, ground, Flat(shape), values, (gsd_m, gsd_m), target, gsd_m, 1.0), raster


def cells_of(raster: Georeference, rows, cols) -> set[str]:
    """Cells of ground points, the plain way: to degrees, to the zone of the point, to the cell."""
    x, y = raster.ground(np.asarray(rows, float), np.asarray(cols, float))
    lon, lat = Transformer.from_crs(raster.crs, 4326, always_xy=True).transform(x, y)
    epsg = zone_of(np.asarray(lon), np.asarray(lat))
    found = set()
    for code in np.unique(epsg).tolist():
        here = epsg == code
        east, north = Transformer.from_crs(4326, code, always_xy=True).transform(
            np.asarray(lon)[here], np.asarray(lat)[here]
        )
        found |= {
            cell_name(code, int(r), int(c))
            for r, c in zip(np.floor(-np.asarray(north) / CELL_M), np.floor(np.asarray(east) / CELL_M), strict=True)
        }
    return found


def points(y, x, ny, nx):
    """A grid of points strictly inside a window, its corners among them."""
    rows, cols = np.meshgrid(np.linspace(y + 0.01, y + ny - 0.01, 5), np.linspace(x + 0.01, x + nx - 0.01, 5))
    return rows.ravel(), cols.ravel()


def test_the_split_of_known_places_does_not_move():
    """Weights already shipped were trained without these places; a change would make their numbers worthless."""
    held_out = ["dubai_1m/tile2", "naip_iowa_1m/m_4209449_sw", "naip_ca/long_beach", "naip_ca/palm_springs"]
    assert [split_of(place) for place in held_out] == ["held-out"] * 4
    assert [split_of(place) for place in ("dubai_1m/tile1", "naip_ca/chico", "naip_iowa_1m/m_4109450_se")] == [
        "train"
    ] * 3


def test_about_a_fifth_of_all_cells_is_held_out():
    cells = [cell_split(32632, row, col) for row in range(-700, -650) for col in range(40, 90)]
    assert 0.17 < cells.count("held-out") / len(cells) < 0.23


# Places: (CRS, left and top in its units, one pixel in its units).
SOMEWHERE = st.one_of(
    st.tuples(
        st.sampled_from(["EPSG:32632", "EPSG:32733", "EPSG:26911"]),
        st.floats(200_000, 800_000),
        st.floats(3_000_000, 6_000_000),
        st.just(GSD_M),
    ),
    st.tuples(  # across the edge of two zones, and the equator
        st.just("EPSG:4326"), st.floats(5.9, 6.0), st.floats(-0.05, 0.1), st.just(GSD_M / 111_320)
    ),
    st.tuples(st.just("EPSG:3857"), st.floats(600_000, 700_000), st.floats(5e6, 6e6), st.just(GSD_M * 1.4)),
)


@settings(max_examples=60)
@given(SOMEWHERE, st.integers(100, 4000), st.integers(100, 4000), st.integers(0, 2**32 - 1))
def test_no_patch_touches_ground_of_the_other_split(place, height, width, seed):
    """Of any image, anywhere: every ground point of a patch lies in a cell of the patch's split."""
    image, raster = image_at(*place, (height, width))
    rng = np.random.default_rng(seed)
    for split in ("train", "held-out"):
        if image.share(split) == 0:
            continue
        sampler = PatchSampler([image], split, SIDE_PX)
        for _ in range(6):
            gsd_m = float(rng.uniform(*image.target_gsd_m))
            address = sampler.draw(rng, 0, SIDE_PX, gsd_m)
            if address is not None:
                side = SIDE_PX * gsd_m / GSD_M
                touched = cells_of(raster, *points(address.y, address.x, side, side))
                assert {split_of(cell) for cell in touched} == {split}


@settings(max_examples=15)
@given(SOMEWHERE, st.integers(0, 2**32 - 1))
def test_held_out_images_lie_on_held_out_ground(place, seed):
    image, raster = image_at(*place, (2500, 2500))
    assert isinstance(image.ground, SplitMap)
    for name, row, col, side in image.ground.squares("held-out", 4):
        n = image.ground.block_px
        y, x = row * n, col * n
        touched = cells_of(raster, *points(y, x, min(side * n, 2500 - y), min(side * n, 2500 - x)))
        assert {split_of(cell) for cell in touched} == {"held-out"}
        assert split_of(name) == "held-out"
    for chip in held_out_chips(image):
        assert split_of(chip.place) == "held-out"


@settings(max_examples=30)
@given(
    st.floats(-5_000, 5_000),
    st.floats(-5_000, 5_000),
    st.floats(0.5, 3.0),
    st.floats(0.5, 3.0),
    st.integers(0, 2**32 - 1),
)
def test_two_images_of_the_same_ground_never_disagree(dx_m, dy_m, gsd_a, gsd_b, seed):
    """Whatever their GSDs, positions and zones, train patches of one never meet held-out patches of the other."""
    left, top = 732_000.0, 5_000_000.0  # across the edge of zone 32
    first, raster_a = image_at("EPSG:32632", left, top, gsd_a, (int(9_000 / gsd_a),) * 2, gsd_a)
    x, y = Transformer.from_crs(32632, 32633, always_xy=True).transform(left + dx_m, top + dy_m)
    second, raster_b = image_at("EPSG:32633", x, y, gsd_b, (int(9_000 / gsd_b),) * 2, gsd_b)
    rng = np.random.default_rng(seed)
    cells = {"train": set(), "held-out": set()}
    for image, raster, gsd in ((first, raster_a, gsd_a), (second, raster_b, gsd_b)):
        for split, seen in cells.items():
            if image.share(split) == 0:
                continue
            sampler = PatchSampler([image], split, SIDE_PX)
            for _ in range(5):
                target = float(rng.uniform(*image.target_gsd_m))
                address = sampler.draw(rng, 0, SIDE_PX, target)
                if address is not None:
                    side = SIDE_PX * target / gsd
                    seen |= cells_of(raster, *points(address.y, address.x, side, side))
    assert not cells["train"] & cells["held-out"]


def test_an_image_across_cells_is_drawn_in_both_splits():
    """A map that marked everything as mixed would leak nothing, and teach nothing."""
    image, _ = image_at("EPSG:32632", 500_000.0, 5_000_000.0, GSD_M, (8_000, 8_000))
    assert image.share("train") > 0.6
    assert image.share("held-out") > 0.05
    assert image.share("train") + image.share("held-out") > 0.9


@pytest.mark.parametrize(
    ("lon", "lat", "epsg"), [(0.0, 10.0, 32631), (-180.0, -1.0, 32701), (180.0, 1.0, 32601), (11.99, 0.0, 32632)]
)
def test_zones_are_six_degrees_wide(lon, lat, epsg):
    assert zone_of(np.array([lon]), np.array([lat])).tolist() == [epsg]
