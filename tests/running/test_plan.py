"""Plans: written and read back, digests, units as addresses, zones; on scenes that no file stands behind."""

import json
import time
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely.geometry import shape

from pipeline.aoi.aoi import aoi_from_bbox, read_aoi
from pipeline.archive import passes
from pipeline.archive.local.scan import footprint_of
from pipeline.archive.read.access import Access
from pipeline.archive.scene import OffsetDecision, Raster, Scene
from pipeline.archive.stac.index_file import write_index
from pipeline.bands import BAND_NAMES
from pipeline.conditions.frozen import Frozen
from pipeline.config import RunConfig
from pipeline.errors import IntegrityError, NoDataError, UsageError
from pipeline.grid.grid import Phase, Window
from pipeline.grid.noise import normal_field
from pipeline.planning import planner, zoning
from pipeline.planning.noise_stream import noise_stream
from pipeline.planning.plan import Plan, Unit, load_plan, plan_file, plan_path
from pipeline.planning.planner import make_plan
from pipeline.planning.store_template import template_of
from pipeline.planning.units import PassLayout
from pipeline.store import sealed
from pipeline.superres.weights import Choice
from tests.running.conftest import box, write_aoi

LEFT, TOP = 600000, 5100000


def scene(
    name="S2A_ONE", epsg=32632, left_m=LEFT, top_m=TOP, size_m=12000, date="2024-06-17T10:20:31Z", gsds=(10, 20, 60)
):
    """A record without files: planning with a given offset opens none."""
    return Scene(
        id=name,
        datetime_utc=date,
        epsg=epsg,
        footprint=footprint_of(epsg, (left_m, top_m - size_m, left_m + size_m, top_m)),
        hrefs={band: f"{name}_{band}.tif" for band in BAND_NAMES},
        rasters=tuple(Raster(g, left_m, top_m, size_m // g, size_m // g) for g in gsds),
        baseline="02.14",
        offset=OffsetDecision(0, "stated"),
        cloud_pct=1.0,
    )


def planned(folder, scenes, aoi, workers=1, **changes):
    """Plan over an index of `scenes`; nothing is read but the index."""
    index = folder / "index.json"
    write_index(scenes, index)
    config = RunConfig(**{"catalog": str(index), "sr": "bicubic", "offset": 0, "max_cloud": 100.0, **changes})
    return make_plan(config, read_aoi(str(aoi)) if not hasattr(aoi, "digest") else aoi, workers=workers)


@pytest.fixture
def aoi(tmp_path):
    return write_aoi(tmp_path / "aoi.geojson", box(LEFT + 1000, TOP - 6100, LEFT + 5500, TOP - 2000))


@pytest.fixture
def plan(tmp_path, aoi):
    return planned(tmp_path, [scene(), scene("S2B_TWO", date="2024-06-20T10:20:31Z")], aoi, sr="lite", clip=True)


class TestJson:
    def test_the_default_precision_adds_nothing(self, plan):
        """Plans from before there was another keep their digest."""
        content = json.loads(json.dumps(plan.to_json()))
        assert "precision" not in content["config"]
        assert Plan.from_json(content).config.precision == "float32"
        half = replace(plan, config=replace(plan.config, precision="float16"))
        assert Plan.from_json(json.loads(json.dumps(half.to_json()))) == half

    def test_round_trip_keeps_everything(self, plan):
        plan = replace(plan, states={"S2A_ONE": {"v": [0.1, -0.25]}})
        again = Plan.from_json(json.loads(json.dumps(plan.to_json())))
        assert again == plan
        assert again.digest == plan.digest
        assert list(again.units()) == list(plan.units())

    def test_windows_one_by_one_add_nothing(self, plan):
        """Plans from before there were batches keep their digest, and so do those whose user asks for none."""
        assert "batch" not in plan.to_json()["config"]
        one, four = (replace(plan, config=replace(plan.config, batch=size)) for size in (1, 4))
        assert (one.digest, one.options().batch) == (plan.digest, 1)
        assert four.options().batch == 4
        assert Plan.from_json(json.loads(json.dumps(four.to_json()))) == four

    def test_batches_are_those_of_the_gpu_that_plans(self, tmp_path, aoi, monkeypatch):
        asked = []
        monkeypatch.setattr(planner, "size_for", lambda memory, side, device: asked.append((side, device)) or 4)
        lite = planned(tmp_path, [scene()], aoi, sr="lite")
        assert (lite.batch, asked) == (4, [(480, "cpu")])
        assert planned(tmp_path, [scene()], aoi, sr="lite", batch=2).batch == 2
        assert planned(tmp_path, [scene()], aoi).batch == 1, "nothing to compute in batches"

    def test_passes_maps_and_options_are_part_of_it(self, plan):
        finer = PassLayout(1.25, 0.0, ((1.25, ("B03", "B04")), (0.625, ("B04",))))
        more = replace(
            plan,
            passes=(PassLayout(rim_m=410.5), finer),
            conditions=(Frozen("map", "vector", "/maps/town.gpkg", "ab" * 32),),
            system=replace(plan.system, options=(("eta", 0.5), ("fast", False), ("steps", 20))),
        )
        again = Plan.from_json(json.loads(json.dumps(more.to_json())))
        assert again == more
        assert again.digest == more.digest
        assert again.finer == ((1.25, ("B03", "B04")), (0.625, ("B04",)))
        digests = {
            replace(more, passes=(PassLayout(), finer)).digest,
            replace(more, conditions=()).digest,
            replace(more, system=plan.system).digest,
            more.digest,
        }
        assert len(digests) == 4

    def test_credits_of_maps_change_neither_older_plans_nor_the_digest(self, plan):
        bare = replace(plan, conditions=(Frozen("map", "vector", "/maps/town.gpkg", "ab" * 32),))
        credited = replace(bare, conditions=(replace(bare.conditions[0], credit="© Town, CC BY 4.0"),))
        older = json.loads(json.dumps(bare.to_json()))
        assert older["conditions"] == [
            {"name": "map", "kind": "vector", "where": "/maps/town.gpkg", "sha256": "ab" * 32}
        ]
        assert Plan.from_json(older) == bare
        assert Plan.from_json(json.loads(json.dumps(credited.to_json()))) == credited
        assert credited.digest == bare.digest
        stated = template_of(credited, credited.zones[0]).attributes
        assert stated["credit"].endswith("map town.gpkg: © Town, CC BY 4.0")
        assert stated["conditions"] == {
            "map": {"file": "town.gpkg", "sha256": "ab" * 32, "credit": "© Town, CC BY 4.0"}
        }
        assert template_of(bare, bare.zones[0]).attributes["credit"] == plan.credit
        assert "credit" not in template_of(bare, bare.zones[0]).attributes["conditions"]["map"]

    def test_from_a_store(self, plan, tmp_path):
        path = plan_path(tmp_path / "x.zarr")
        with pytest.raises(UsageError, match="holds no plan"):
            load_plan(tmp_path / "x.zarr")
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(plan.to_json()))
        assert load_plan(tmp_path / "x.zarr") == plan
        path.write_text(json.dumps({**plan.to_json(), "format_version": 99}))
        with pytest.raises(UsageError, match="format version 99"):
            load_plan(tmp_path / "x.zarr")

    @pytest.mark.parametrize("cut", [0, 1, 100, -2])
    def test_damaged(self, plan, tmp_path, cut):
        path = plan_path(tmp_path / "x.zarr")
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(plan.to_json())[:cut])
        with pytest.raises(IntegrityError, match=r"plan\.json"):
            load_plan(tmp_path / "x.zarr")


class TestDigest:
    def test_the_same_plan_twice(self, plan, tmp_path, aoi):
        again = planned(tmp_path, [scene("S2B_TWO", date="2024-06-20T10:20:31Z"), scene()], aoi, sr="lite", clip=True)
        assert again.digest == plan.digest

    def test_what_does_not_decide_pixels_does_not_matter(self, plan):
        other = replace(
            plan,
            notes=("said",),
            zones=(replace(plan.zones[0], row_breaks=(0, 1, plan.zones[0].row_breaks[-1])),),
            created_utc="2001-01-01T00:00:00Z",
            access=Access("planetary-computer", ("x.example",), ("/elsewhere",)),
            system=replace(plan.system, licence="other"),
        )
        assert other.digest == plan.digest

    @pytest.mark.parametrize(
        "change",
        [
            lambda p: replace(p, config=replace(p.config, seed=1)),
            lambda p: replace(p, config=replace(p.config, precision="bfloat16")),
            lambda p: replace(p, config=replace(p.config, batch=4)),
            lambda p: replace(p, config=replace(p.config, clip=False)),
            lambda p: replace(p, scenes={k: v for k, v in p.scenes.items() if k != "S2A_ONE"}),
            lambda p: replace(p, scenes={k: replace(v, hrefs={**v.hrefs, "B02": "x"}) for k, v in p.scenes.items()}),
            lambda p: replace(
                p, scenes={k: replace(v, offset=OffsetDecision(-1000, "")) for k, v in p.scenes.items()}
            ),
            lambda p: replace(p, system=replace(p.system, weights=p.system.weights[:1])),
            lambda p: replace(p, system=replace(p.system, weights=(replace(p.system.weights[0], sha256="0" * 64),))),
            lambda p: replace(p, states={"S2A_ONE": {"v": [0.5]}}),
            lambda p: replace(p, aoi_digest="0" * 64),
            lambda p: replace(p, zones=(replace(p.zones[0], periods=p.zones[0].periods[::-1] * 2),)),
            lambda p: replace(p, version="9.9.9"),
        ],
    )  # fmt: skip
    def test_what_decides_them_does(self, plan, change):
        assert change(plan).digest != plan.digest


def test_a_plan_of_the_older_format_keeps_digest_and_form():
    """Written by the version whose systems took a super-resolver and a fusion."""
    content = sealed.load((Path(__file__).parent / "plans" / "format_3.json").read_bytes())
    plan = Plan.from_json(content)
    assert plan.digest == content["plan_digest"]
    assert plan.config.weights == ("fusion=/weights/fusion.safetensors",)
    assert [file.where for file in plan.system.weights] == [
        "shipped:lite-sr.safetensors",
        "/weights/fusion.safetensors",
    ]
    assert plan.draws == 2
    written = sealed.load(plan_file(plan))
    for part in ("system", "config"):
        assert written[part] == content[part]
    assert Plan.from_json(written) == plan


def test_a_plan_from_before_styles_and_credits_keeps_its_digest():
    """Written by the last version whose systems could not change colours, and whose maps had no credit."""
    content = sealed.load((Path(__file__).parent / "plans" / "format_4.json").read_bytes())
    plan = Plan.from_json(content)
    assert plan.digest == content["plan_digest"]
    assert sealed.load(plan_file(plan))["conditions"] == content["conditions"]
    said = replace(plan, system=replace(plan.system, synthetic="imagined"), conditions=credited(plan.conditions))
    assert said.digest == plan.digest
    assert replace(plan, system=replace(plan.system, restyled=True)).digest != plan.digest


def credited(conditions):
    return tuple(replace(one, credit="its makers") for one in conditions)


ONE_PASS = (PassLayout(),)


def by_hand(corners, chunk_px, unit_chunks, workers, *, shard=False, periods=1, layouts=ONE_PASS):
    """A plan over one polygon (metres), without a search."""
    config = RunConfig(chunk_px=chunk_px, unit_chunks=unit_chunks, shard=shard, sr="bicubic", composite="none")
    scenes = tuple(scene(f"S{i}", date=f"2024-06-{10 + i}T10:00:00Z") for i in range(periods))
    steps = passes.periods(scenes, config.composite)
    zone, _ = zoning._zone(config, 32632, shapely.Polygon(corners), list(scenes), steps, workers, layouts)
    return Plan(config, "aoi", "0", {s.id: s for s in scenes}, (zone,), Choice("bicubic"), Access(), passes=layouts)


offsets = st.floats(0, 6000).map(lambda v: round(v, 2))
triangles = st.lists(st.tuples(offsets, offsets), min_size=3, max_size=3, unique=True).filter(
    lambda points: shapely.Polygon(points).area > 10000
)


class TestUnits:
    @pytest.mark.slow
    @settings(deadline=None, max_examples=60)
    @given(
        triangles, st.sampled_from([24, 120, 264, 480]), st.integers(1, 5), st.integers(1, 9), st.booleans(),
        st.integers(1, 2),
    )  # fmt: skip
    def test_units_partition_the_active_chunks(self, points, chunk_px, unit_chunks, workers, shard, periods):
        corners = [(LEFT + x, TOP - y) for x, y in points]
        plan = by_hand(corners, chunk_px, unit_chunks, workers, shard=shard, periods=periods)
        (zone,) = plan.zones
        grid, area = zone.grid.window, shapely.Polygon(corners)
        covered = np.zeros((periods, *grid.shape), np.uint8)
        units = list(plan.units())
        assert len(set(units)) == len({unit.id for unit in units}) == len(units)
        for unit in units:
            for chunk in plan.chunks(unit):
                rows, cols = chunk.slices(grid)  # raises where a chunk leaves the grid
                covered[unit.period, rows, cols] += 1
                step = chunk_px * (unit_chunks if shard else 1)
                assert (rows.start % step, cols.start % step) == (0, 0)
                assert rows.stop % step == 0 or rows.stop == grid.ny
                assert cols.stop % step == 0 or cols.stop == grid.nx
                assert chunk.intersect(plan.window(unit)) == chunk
                assert area.intersects(shapely.box(*zone.grid.of(chunk).bounds_m))
        assert covered.max() == 1, "no pixel belongs to two units"
        assert (covered == covered[0]).all()
        assert self.uncovered_m2(covered[0], zone, area) < 0.1 * area.length + 1, "the AOI's ground is computed"

    @settings(deadline=None, max_examples=20)
    @given(triangles, st.sampled_from([120, 264]), st.integers(1, 3), st.booleans(), st.tuples(offsets, offsets))
    def test_an_earlier_pass_computes_what_the_next_one_reads_and_nothing_else(
        self, points, chunk_px, unit_chunks, shard, reaches
    ):
        later = [PassLayout(gsd_m, reach_m=1 + r / 8) for gsd_m, r in zip((1.25, 0.625), reaches, strict=True)]
        corners = [(LEFT + x / 4, TOP - y / 4) for x, y in points]
        plan = by_hand(corners, chunk_px, unit_chunks, 2, shard=shard, layouts=(PassLayout(), *later))
        (zone,), shards = plan.zones, plan.config.shard_chunks
        area = shapely.geometry.shape(zone.area)  # in millimetres, as in plans
        needed = area
        for cut, layout in reversed(list(zip(zone.cuts(plan.passes, chunk_px, shards), plan.passes, strict=True))):
            left, bottom, right, top = cut.grid.bounds_m
            assert shapely.box(left - 0.2, bottom - 0.2, right + 0.2, top + 0.2).contains(area), "the grid holds it all"
            size, (rows, cols) = chunk_px * layout.gsd_m, np.indices(cut.active.shape)
            boxes = shapely.box(
                left + cols * size, top - (rows + 1) * size, left + (cols + 1) * size, top - rows * size
            )
            assert np.array_equal(shapely.intersects(needed, shapely.buffer(boxes, -1e-3)), cut.active)
            whole = max(1, shards)
            stored = {(r // whole, c // whole) for r, c in np.argwhere(cut.active)}
            step = whole * size
            places = [(left + c * step, top - r * step) for r, c in stored]
            reads = [
                shapely.box(x, y - step, x + step, y).buffer(layout.reach_m, join_style="mitre") for x, y in places
            ]
            needed = shapely.union_all([area, *reads]).buffer(0)
        for axis in (0, 1):
            edges = {0, (cut.active.shape[axis] - 1) // whole}
            assert edges <= {place[axis] for place in stored}, "no row of chunks at the edge is there in vain"

    @settings(deadline=None, max_examples=40)
    @given(
        triangles, st.sampled_from([24, 120, 264]), st.integers(1, 4), st.integers(1, 5), st.booleans(),
        st.sampled_from([1.25, 0.625, 0.3125]),
    )  # fmt: skip
    def test_units_of_a_later_pass_partition_the_ground(self, points, chunk_px, unit_chunks, workers, shard, gsd_m):
        """As many pixels in a unit as at 2.5 m, whole chunks, none twice; and `units_over` finds those that meet."""
        corners = [(LEFT + x / 4, TOP - y / 4) for x, y in points]
        plan = by_hand(corners, chunk_px, unit_chunks, workers, shard=shard)
        plan = replace(plan, passes=(PassLayout(rim_m=300.0), PassLayout(gsd_m, 0.0, ((gsd_m, ("B04",)),))))
        (zone,), area = plan.zones, shapely.Polygon(corners)
        grid = zone.grid.at_gsd(gsd_m)
        covered = np.zeros(grid.shape, np.uint8)
        units = list(plan.units_of(1))
        assert len({unit.id for unit in plan.units()}) == len(units) + len(list(plan.units_of(0)))
        for unit in units:
            assert plan.window(unit).ny * plan.window(unit).nx <= (unit_chunks * chunk_px) ** 2
            for chunk in plan.chunks(unit):
                rows, cols = chunk.slices(grid.window)
                covered[rows, cols] += 1
                assert (rows.start % chunk_px, cols.start % chunk_px) == (0, 0)
        assert covered.max() == 1
        middle = units[len(units) // 2]
        found = plan.units_over(middle.epsg, 0, 1, plan.window(middle))
        assert middle in found
        expected = {unit for unit in units if not plan.window(unit).intersect(plan.window(middle)).empty}
        assert expected <= set(found)
        inside = area.buffer(-gsd_m).representative_point() if area.buffer(-gsd_m).area else None
        if inside is not None:
            row, col = int((zone.grid.top_m - inside.y) / gsd_m), int((inside.x - zone.grid.left_m) / gsd_m)
            assert covered[row, col] == 1

    @staticmethod
    def uncovered_m2(covered, zone, area):
        """Area of the AOI outside the computed pixels."""
        left, _, _, top = zone.grid.bounds_m
        blocks = covered[::24, ::24]  # everything is made of 60 m blocks
        rows, cols = np.nonzero(blocks)
        boxes = shapely.box(left + 60 * cols, top - 60 * (rows + 1), left + 60 * (cols + 1), top - 60 * rows)
        return area.difference(shapely.union_all(boxes)).area

    @settings(deadline=None, max_examples=300)
    @given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 12), st.integers(1, 64))
    def test_breaks_are_even_and_keep_workers_busy(self, ny, nx, unit_chunks, workers):
        rows, cols = zoning._breaks(ny, nx, RunConfig(unit_chunks=unit_chunks), workers)
        for breaks, count in ((rows, ny), (cols, nx)):
            sizes = np.diff(breaks)
            assert (breaks[0], breaks[-1]) == (0, count)
            assert 1 <= sizes.min() <= sizes.max() <= min(unit_chunks, sizes.min() + 1)
        assert (len(rows) - 1) * (len(cols) - 1) >= min(workers, ny * nx)

    @settings(deadline=None)
    @given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 12), st.integers(1, 64))
    def test_shards_do_not_follow_the_workers(self, ny, nx, unit_chunks, workers):
        config = RunConfig(unit_chunks=unit_chunks, shard=True)
        assert zoning._breaks(ny, nx, config, workers) == zoning._breaks(ny, nx, config, 1)
        assert all(edge % unit_chunks == 0 for edge in zoning._breaks(ny, nx, config, workers)[0][:-1])

    def test_unit_ids_name_files_safely(self):
        assert Unit(32733, 12, 3, 40).id == "z32733-r12-c3-t40"

    def test_ten_thousand_units(self, tmp_path, capsys):
        """120 km squared as units of 1.2 km; the seconds are printed, not judged."""
        south = write_aoi(tmp_path / "large.geojson", box(540030, 4980030, 659970, 5099970))
        started = time.process_time()
        plan = planned(tmp_path, [scene(left_m=480000, top_m=5160000, size_m=240000)], south, unit_chunks=1)
        planning = time.process_time() - started
        units = list(plan.units())
        chunks = sum(len(plan.chunks(unit)) for unit in units)
        content = json.dumps(plan.to_json())
        whole = time.process_time() - started
        with capsys.disabled():
            print(f"\nplanning {len(units)} units: {planning:.2f} CPU s, {whole:.2f} with all their chunks; ", end="")
            print(f"plan of {len(content) / 1000:.0f} kB")
        assert len(units) == chunks >= 10_000
        assert len(content) < 100_000, "a plan does not grow with its units"


class TestZones:
    CORNERS = (11.95, 45.98, 12.05, 46.02)  # across the border of zones 32 and 33

    def over(self, epsg, lon=12.0, size_m=30000):
        import pyproj

        x, y = pyproj.Transformer.from_crs(4326, epsg, always_xy=True).transform(lon, 46.0)
        left, top = round((x - size_m / 2) / 60) * 60, round((y + size_m / 2) / 60) * 60
        return scene(f"S2A_{epsg}", epsg, left, top, size_m)

    def test_each_part_in_its_own_zone_when_both_have_scenes(self, tmp_path):
        plan = planned(tmp_path, [self.over(32632), self.over(32633)], aoi_from_bbox(*self.CORNERS))
        assert [zone.epsg for zone in plan.zones] == [32632, 32633]
        assert [plan.group(zone.epsg) for zone in plan.zones] == ["utm32n", "utm33n"]
        named = "the area lies in 2 UTM zones (EPSG:32632, EPSG:32633): one group of the store for each"
        assert named in plan.notes
        for zone in plan.zones:
            assert zone.periods[0].scene_ids == (f"S2A_{zone.epsg}",)
        assert not any("processed in" in note for note in plan.notes)

    @pytest.mark.parametrize(("has", "lacks"), [(32632, 32633), (32633, 32632)])
    def test_a_part_without_scenes_goes_to_the_neighbour(self, tmp_path, has, lacks):
        plan = planned(tmp_path, [self.over(has)], aoi_from_bbox(*self.CORNERS))
        (zone,) = plan.zones
        assert zone.epsg == has
        assert plan.group(has) == ""
        assert any(f"EPSG:{lacks} is processed in EPSG:{has}" in note for note in plan.notes)
        width_km = (zone.grid.bounds_m[2] - zone.grid.bounds_m[0]) / 1000
        assert 7.5 < width_km < 8.5, "both halves, 0.1 degrees"
        assert shape(zone.area).geom_type == "Polygon", "joined along the border"

    def test_a_part_that_no_scene_reaches_is_left_out_and_said_so(self, tmp_path):
        plan = planned(tmp_path, [self.over(32632, lon=11.9, size_m=9000)], aoi_from_bbox(*self.CORNERS))
        assert [zone.epsg for zone in plan.zones] == [32632]
        assert "no scene covers the AOI's part in EPSG:32633, so it is not in the store" in plan.notes
        assert not any("UTM zones" in note for note in plan.notes), "one zone is used"

    def test_no_scene_at_all(self, tmp_path):
        with pytest.raises(NoDataError, match="outside the area"):
            planned(tmp_path, [scene()], aoi_from_bbox(1, 1, 1.01, 1.01))

    def test_a_footprint_across_the_antimeridian_reaches_both_sides(self, tmp_path):
        wide = replace(
            scene("S2A_FIJI", 32660, 780000, 1899960, 109800),
            footprint={
                "type": "Polygon",
                "coordinates": [[[179.6, 16.5], [-179.4, 16.5], [-179.4, 17.1], [179.6, 17.1], [179.6, 16.5]]],
            },
        )
        plan = planned(tmp_path, [wide], aoi_from_bbox(179.8, 16.7, 179.81, 16.71))
        assert [zone.epsg for zone in plan.zones] == [32660]

    @pytest.mark.parametrize("rasters", [True, False])
    def test_southern_zones_have_their_own_phase(self, tmp_path, rasters):
        """Products of the south start 40 m off the multiples of 60 m, whether the archive says so or not."""
        left, top = 300000, 6100000  # an official corner: 6100000 = 40 modulo 60
        southern = scene("S2A_SOUTH", 32733, left, top)
        if not rasters:
            southern = replace(southern, rasters=())
        area = write_aoi(tmp_path / "s.geojson", box(left + 500, top - 3100, left + 3500, top - 500), 32733)
        plan = planned(tmp_path, [southern], area)
        grid = plan.zones[0].grid
        assert grid.phase == Phase(0.0, 40.0)
        assert (grid.left_m - left) % 60 == (grid.top_m - top) % 60 == 0
        assert not plan.zones[0].resample
        assert not [note for note in plan.notes if "grid" in note]

    def test_scenes_of_another_phase_are_resampled(self, tmp_path, aoi):
        shifted = scene("S2A_OFF", left_m=LEFT + 7.5, top_m=TOP + 3.25)
        plan = planned(tmp_path, [scene(), shifted], aoi)
        assert plan.zones[0].grid.phase == Phase()
        assert plan.zones[0].resample
        assert any("1 scenes are off the official grid" in note for note in plan.notes)
        alone = planned(tmp_path, [shifted], aoi)
        assert alone.zones[0].grid.phase == Phase(7.5, 3.25)
        assert not alone.zones[0].resample


def test_noise_streams_are_distinct_for_every_zone_and_date():
    zones = [*range(32601, 32661), *range(32701, 32761)]
    first = date(2016, 1, 1)
    days = ["", *((first + timedelta(days=i)).isoformat() for i in range(0, 8000, 20))]
    streams = [noise_stream(epsg, day) for epsg in zones for day in days]
    assert len(set(streams)) == len(streams)
    assert 0 <= min(streams) <= max(streams) < 2**24
    fields = [
        normal_field(Window(0, 0, 8, 8), seed=0, channels=1, stream=noise_stream(epsg, day))
        for epsg in (32632, 32633, 32732)
        for day in ("", "2024-06-17", "2024-06-18")
    ]
    assert all(not np.array_equal(a, b) for i, a in enumerate(fields) for b in fields[:i])
