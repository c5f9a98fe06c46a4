"""What a plan takes and computes: all that its pixels depend on, the same whatever the area's ends, and no more."""

import json

import numpy as np
import pytest
import shapely

from pipeline.aoi.aoi import aoi_from_bbox, read_aoi
from pipeline.aoi.utm_zones import grown, to_utm
from pipeline.bands import BAND_NAMES
from pipeline.config import RunConfig
from pipeline.errors import NoDataError
from pipeline.planning.estimate import estimate
from pipeline.planning.planner import make_plan
from pipeline.planning.scene_selection import padded, reach_m
from pipeline.superres import chain
from tests.archive.synthetic import make_archive, make_scene
from tests.running.conftest import LEFT, TOP, box, config_for, run, values, write_aoi

SIDE = 1800


@pytest.fixture(scope="module")
def neighbours(tmp_path_factory):
    """Index of two scenes of one pass that share an edge at LEFT + 1800 m, and of another date west of it."""
    folder = tmp_path_factory.mktemp("neighbours")
    west = make_scene(folder, scene_id="S2A_WEST", seed=1, size_m=SIDE)
    east = make_scene(folder, scene_id="S2A_EAST", seed=2, size_m=SIDE, left_m=LEFT + SIDE, date="2024-06-17T10:20:35Z")
    other = make_scene(folder, scene_id="S2A_OTHER", seed=3, size_m=SIDE, date="2024-06-19T10:20:35Z")
    return make_archive(folder, [west, east, other])


@pytest.mark.slow
@pytest.mark.parametrize("composite", ["mosaic", "none", "median"])
def test_a_scene_reached_by_windows_alone_is_used(neighbours, small_lite, tmp_path, composite):
    small = write_aoi(tmp_path / "small.geojson", box(LEFT + 1400, TOP - 800, LEFT + 1690, TOP - 510))
    large = write_aoi(tmp_path / "large.geojson", box(LEFT + 1300, TOP - 900, LEFT + 2100, TOP - 450))
    config = config_for(neighbours, composite=composite, bands=("B02", "B03", "B04", "B8A"), **small_lite)
    plan, _ = run(config, small, tmp_path / "small.zarr")
    assert {"S2A_WEST", "S2A_EAST"} <= set(plan.scenes)
    whole, _ = run(config, large, tmp_path / "large.zarr")
    rows, cols = plan.zones[0].grid.window.slices(whole.zones[0].grid.window)
    for name in ("reflectance", "quality"):
        cut = values(tmp_path / "large.zarr", name)[..., rows, cols]
        assert np.array_equal(cut, values(tmp_path / "small.zarr", name)), name


def test_a_date_that_saw_only_the_margin_makes_no_time_step(neighbours, tmp_path):
    place = write_aoi(tmp_path / "aoi.geojson", box(LEFT + SIDE + 200, TOP - 900, LEFT + SIDE + 500, TOP - 430))
    plan = make_plan(config_for(neighbours, composite="none"), read_aoi(str(place)))
    (step,) = plan.zones[0].periods
    assert set(step.scene_ids) == {"S2A_WEST", "S2A_EAST"}
    assert set(plan.scenes) == {"S2A_WEST", "S2A_EAST"}


def test_scenes_beside_the_area_alone_are_no_scenes_of_it(tmp_path):
    index = make_archive(tmp_path, [make_scene(tmp_path, scene_id="S2A_WEST", size_m=SIDE)])
    place = write_aoi(tmp_path / "aoi.geojson", box(LEFT + SIDE + 200, TOP - 900, LEFT + SIDE + 500, TOP - 430))
    with pytest.raises(NoDataError):
        make_plan(config_for(index), read_aoi(str(place)))


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [("2024-06-17", "2024-06-17", {"A", "B"}), ("2024-06-18", "2024-06-19", {"C"}), (None, "2024-06-17", {"A", "B"})],
)
def test_a_period_that_ends_at_midnight_cuts_no_pass_in_half(tmp_path, start, end, expected):
    dates = {"A": "2024-06-17T23:59:50Z", "B": "2024-06-18T00:00:05Z", "C": "2024-06-19T23:59:50Z"}
    scenes = [make_scene(tmp_path, scene_id=name, size_m=600, date=date) for name, date in dates.items()]
    index = make_archive(tmp_path, scenes)
    place = write_aoi(tmp_path / "aoi.geojson", box(LEFT + 100, TOP - 300, LEFT + 300, TOP - 100))
    plan = make_plan(config_for(index, composite="none", start=start, end=end), read_aoi(str(place)))
    assert set(plan.scenes) == expected
    assert len(plan.zones[0].periods) == 1


def test_reach_covers_the_chunk_the_window_and_the_context():
    config, windows_m = RunConfig(chunk_px=480), chain.reach_m(chain.groups_of((), ("B01",)))
    assert windows_m == (480 + 2 * 24) * 2.5
    assert reach_m(config, windows_m) >= np.hypot(1, 1) * (480 + 480) * 2.5
    assert reach_m(RunConfig(chunk_px=480, unit_chunks=4, shard=True), windows_m) > reach_m(config, windows_m) + 3600


def test_padding_keeps_open_ends_open():
    assert padded(None, None) == (None, None)
    assert padded("2024-06-17T00:00:00Z", "2024-06-17T23:59:59Z") == ("2024-06-16T23:10:00Z", "2024-06-18T00:49:59Z")


@pytest.mark.parametrize("west", [9.0, 11.99, 179.95, -179.999])
@pytest.mark.parametrize("south", [0.0, -33.0, 68.0])
def test_grown_areas_hold_what_is_within_reach(west, south):
    aoi = aoi_from_bbox(west, south, west + 0.04 if west + 0.04 <= 180 else west + 0.04 - 360, south + 0.02)
    bigger = grown(aoi.shape, 3000.0)
    assert bigger.bounds[0] >= -180
    assert bigger.bounds[2] <= 180
    zone = int((west + 180) // 6) % 60 + 1
    epsg = (32600 if south >= 0 else 32700) + zone
    metres = to_utm(aoi.shape, epsg)
    ring = shapely.get_coordinates(
        metres.buffer(2990).exterior if metres.geom_type == "Polygon" else metres.buffer(2990)
    )
    import pyproj

    lon, lat = pyproj.Transformer.from_crs(epsg, 4326, always_xy=True).transform(ring[:, 0], ring[:, 1])
    tolerant = bigger.buffer(1e-4)
    assert all(tolerant.contains(shapely.Point(x, y)) for x, y in zip(lon, lat, strict=True))
    assert bigger.area < 3 * metres.buffer(3000).area / (111_000**2 * np.cos(np.radians(south + 0.01)))


def test_all_bands_still_come_from_the_scene_over_the_area(neighbours, tmp_path):
    place = write_aoi(tmp_path / "aoi.geojson", box(LEFT + 100, TOP - 500, LEFT + 400, TOP - 200))
    plan, summary = run(config_for(neighbours), place, tmp_path / "out.zarr")
    assert summary.valid_fraction == 1.0
    assert set(plan.config.band_names) == set(BAND_NAMES)


@pytest.mark.slow
def test_scattered_fields_compute_only_windows_they_touch(neighbours, small_lite, tmp_path):
    """Two fields at opposite corners of one unit; what lies between them is not computed."""
    corners = box(LEFT + 420, TOP - 470, LEFT + 470, TOP - 420), box(LEFT + 3120, TOP - 1400, LEFT + 3180, TOP - 1340)
    rings = [json.loads(write_aoi(tmp_path / "ring.geojson", ring).read_text())["coordinates"] for ring in corners]
    fields = tmp_path / "fields.geojson"
    fields.write_text(json.dumps({"type": "MultiPolygon", "coordinates": rings}))
    config = config_for(neighbours, unit_chunks=12, bands=("B02", "B03", "B04", "B11"), **small_lite)
    plan, _ = run(config, fields, tmp_path / "fields.zarr")
    (one,) = plan.model_passes()
    (group,) = one.groups
    lattice = group.lattice
    (unit,) = plan.units()
    computed = json.loads(next((tmp_path / "fields.zarr" / "_run" / "receipts").glob("*.json")).read_text())["windows"]
    asked = [part.pad(one.reach_px(plan.options())) for part in plan.parts(unit)]
    assert computed == len(lattice.cells_touching_any(asked))
    assert computed < len(lattice.cells_touching(plan.window(unit)))
    assert estimate(plan, 1, timed=False).windows == computed
    everything = write_aoi(tmp_path / "all.geojson", box(LEFT + 420, TOP - 1400, LEFT + 3180, TOP - 420))
    run(config, everything, tmp_path / "all.zarr")
    found, whole = values(tmp_path / "fields.zarr"), values(tmp_path / "all.zarr")
    assert found.shape == whole.shape
    there = found > 0
    assert 0 < there.mean() < 0.1
    assert np.array_equal(found[there], whole[there])
