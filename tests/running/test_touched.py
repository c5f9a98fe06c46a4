"""Areas that fill little of their chunks: what is computed and stored is what they touch, in blocks of 60 m."""

import json
from dataclasses import replace

import numpy as np
import pytest
from shapely.geometry import Point, box

from pipeline.grid.grid import Grid
from pipeline.planning.estimate import estimate
from pipeline.planning.plan import Plan
from pipeline.planning.touched import blocks_of, is_sparse, painted
from tests.running.conftest import LEFT, TOP, config_for, run, values
from tests.running.test_plan import planned, scene

GRID = Grid.covering(32632, (LEFT, TOP - 1200, LEFT + 1200, TOP))
SIDE_M, COUNT = 150, 300  # 6.75 km2 together


def fields(corners_m):
    """A GeoJSON of squares of `SIDE_M` with these upper left corners, in degrees."""
    import pyproj

    turn = pyproj.Transformer.from_crs(32632, 4326, always_xy=True).transform
    rings = []
    for x, y in corners_m:
        ring = [(x, y), (x, y - SIDE_M), (x + SIDE_M, y - SIDE_M), (x + SIDE_M, y), (x, y)]
        rings.append([[list(turn(*corner)) for corner in ring]])
    return {"type": "MultiPolygon", "coordinates": rings}


def scattered():
    """Corners of 300 fields in 48 x 48 km, 20 m from the edges of blocks: each touches 3 x 3 blocks of its own."""
    places = np.random.default_rng(0).permutation(100 * 100)[:COUNT]
    return [(LEFT + 20 + 480 * int(place % 100), TOP - 20 - 480 * int(place // 100)) for place in places]


@pytest.fixture(scope="module")
def plans(tmp_path_factory):
    """The plan of 300 fields, and the same with whole chunks."""
    folder = tmp_path_factory.mktemp("fields")
    path = folder / "fields.geojson"
    path.write_text(json.dumps(fields(scattered())))
    plan = planned(folder, [scene(size_m=55200)], path)
    return plan, replace(plan, zones=tuple(replace(zone, blocks=False) for zone in plan.zones))


def test_300_fields_cost_what_they_touch(plans):
    plan, whole = plans
    found, before = estimate(plan, 1, timed=False), estimate(whole, 1, timed=False)
    assert found.area_km2 == pytest.approx(COUNT * 9 * 0.0036)  # 9.72 for 6.75 asked for
    assert before.area_km2 > 300
    (of,), reach = plan.model_passes(), plan.model_passes()[0].reach_px(plan.options())
    each = [of.cells([part.pad(reach)])[0] for unit in plan.units() for part in plan.parts(unit)]
    together = {cell for cells in each for cell in cells}
    assert len(together) <= found.windows <= sum(map(len, each))
    assert found.windows < 0.7 * before.windows
    assert any("less than a quarter" in note for note in plan.notes)


def test_plans_without_blocks_are_written_as_before(plans):
    plan, whole = plans
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    assert plan.digest != whole.digest
    assert "blocks" not in whole.to_json()["zones"][0]
    assert [whole.parts(unit) for unit in whole.units()] == [whole.chunks(unit) for unit in whole.units()]


def test_pixels_of_blocks_are_those_of_a_whole_run_and_others_nodata(archive, wide_aoi, tmp_path):
    corners = [(LEFT + 260, TOP - 340), (LEFT + 1000, TOP - 400), (LEFT + 620, TOP - 1220)]
    path = tmp_path / "fields.geojson"
    path.write_text(json.dumps(fields(corners)))
    settings = {"bands": ("B04", "B11"), "chunk_px": 240}
    whole, _ = run(config_for(archive, **settings), wide_aoi, tmp_path / "whole.zarr")
    plan, summary = run(config_for(archive, **settings), path, tmp_path / "fields.zarr")
    assert plan.zones[0].blocks
    assert not whole.zones[0].blocks
    there, here = whole.zones[0].grid.window, plan.zones[0].grid.window
    inside = painted([part for unit in plan.units() for part in plan.parts(unit)], here)
    found = values(tmp_path / "fields.zarr")[0]
    assert (found[:, ~inside] == 0).all()
    cut = here.slices(there)
    assert np.array_equal(found[:, inside], values(tmp_path / "whole.zarr")[0][(..., *cut)][:, inside])
    assert (found[:, inside] > 0).all()
    for name in ("quality", "scl"):
        assert (values(tmp_path / "fields.zarr", name)[0][~inside] == 0).all()
    assert summary.pixels == inside.sum()
    assert summary.valid_fraction == 1.0


def test_blocks_are_those_that_touch():
    area = Point(LEFT + 400, TOP - 700).buffer(130)
    whole = GRID.window
    mask = painted(blocks_of(area, GRID, whole), whole)
    for row in range(20):
        for col in range(20):
            x, y = LEFT + 60 * col, TOP - 60 * row
            touches = area.intersects(box(x + 1e-3, y - 60 + 1e-3, x + 60 - 1e-3, y - 1e-3))
            assert (mask[24 * row : 24 * row + 24, 24 * col : 24 * col + 24] == touches).all()
    parts = blocks_of(area, GRID, whole)
    assert sum(part.ny * part.nx for part in parts) == mask.sum(), "no pixel twice"
    assert len(parts) < 10


@pytest.mark.parametrize("area", [box(LEFT, TOP - 1200, LEFT + 1200, TOP), box(LEFT - 99, TOP, LEFT + 1, TOP + 99)])
def test_a_chunk_that_is_covered_or_hardly_touched_is_whole(area):
    assert blocks_of(area, GRID, GRID.window) == [GRID.window]


def test_only_areas_that_fill_less_than_a_quarter_are_sparse():
    active = np.array([[True, False], [True, True]])
    grid = Grid.covering(32632, (LEFT, TOP - 2100, LEFT + 1800, TOP))  # chunks of 1200 m, cut at the edges
    pixels_m2 = 1200**2 + 1200 * 900 + 600 * 900
    for share, sparse in ((0.24, True), (0.26, False)):
        area = box(0, 0, 1, share * pixels_m2)
        assert is_sparse(area, grid, 480, active) == sparse


def test_the_window_of_a_part_lies_in_its_chunk(plans):
    plan, _ = plans
    unit = next(plan.units())
    chunks = plan.chunks(unit)
    for part in plan.parts(unit):
        assert any(part.intersect(chunk) == part for chunk in chunks)
    assert plan.zones[0].ground.area == pytest.approx(COUNT * SIDE_M**2, rel=1e-4)
