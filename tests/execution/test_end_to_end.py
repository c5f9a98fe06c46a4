"""From AOI to store on a synthetic archive: invariance, block means, coordinates, absences."""

import json
import random
import shutil

import numpy as np
import pytest
import xarray as xr
import zarr

import pipeline
from pipeline.bands import BAND_NAMES
from pipeline.errors import NoDataError, ReadError, UsageError
from pipeline.execution import driver
from pipeline.grid.grid import Window
from pipeline.store import layout
from pipeline.superres.fuse import factor_of
from tests.archive.synthetic import make_archive, make_scene
from tests.execution.conftest import (
    LEFT,
    SIZE,
    TOP,
    block_mean_errors,
    box,
    chunk_digests,
    config_for,
    run,
    values,
    write_aoi,
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, archive, aoi):
    store = tmp_path_factory.mktemp("run") / "region.zarr"
    plan, summary = run(config_for(archive, sr="lite"), aoi, store)
    return plan, summary, store


def test_a_run_completes_with_all_bands_and_provenance(finished):
    plan, summary, store = finished
    assert layout.status(store) == layout.STATUS_COMPLETE
    assert summary.computed == summary.units > 1
    assert summary.valid_fraction == 1.0
    ds = pipeline.open_store(store)
    assert tuple(ds.band.values) == BAND_NAMES
    assert ds.attrs["plan_digest"] == plan.digest
    assert set(json.loads(ds.attrs["scenes"])) == {"S2A_CLOUDY", "S2B_LATER"}
    assert "pixels" in json.loads(ds.attrs["scenes"])["S2A_CLOUDY"]["offset_evidence"]
    left, bottom, right, top = plan.zones[0].grid.bounds_m
    assert (left, top) == (LEFT + 180, TOP - 300)
    assert (right - left) % 60 == (top - bottom) % 60 == 0


@pytest.fixture(scope="module")
def crossing(tmp_path_factory, archive):
    """(AOI, store) of 240 x 240 px around a place where four windows of the lattice meet, in four units.

    Windows meet at (960 m, 480 m) from the corner of the scenes, off the borders of units and chunks.
    """
    folder = tmp_path_factory.mktemp("crossing")
    place = write_aoi(folder / "crossing.geojson", box(LEFT + 740, TOP - 700, LEFT + 1300, TOP - 140))
    _, summary = run(config_for(archive, sr="lite", unit_chunks=1), place, folder / "crossing.zarr")
    assert (summary.units, summary.computed) == (4, 4)
    return place, folder / "crossing.zarr"


@pytest.mark.parametrize("change", ["unit size", "workers", "order", "chunk size"])
def test_chunks_never_show(crossing, archive, tmp_path, monkeypatch, change):
    place, store = crossing
    changes, more = {"unit_chunks": 1}, {}
    if change == "unit size":
        changes["unit_chunks"] = 5
    elif change == "chunk size":
        changes["chunk_px"] = 144
    elif change == "workers":
        more = {"cluster": "local", "workers": 2}
    else:
        original = driver.pending

        def shuffled(*args):
            todo, done = original(*args)
            random.Random(3).shuffle(todo)
            return todo, done

        monkeypatch.setattr(driver, "pending", shuffled)
    run(config_for(archive, sr="lite", **changes), place, tmp_path / "other.zarr", **more)
    for name in ("reflectance", "quality", "scl"):
        assert np.array_equal(values(store, name), values(tmp_path / "other.zarr", name)), name


def test_a_small_aoi_is_the_same_place_cut_out_of_a_large_one(finished, archive, tmp_path):
    plan, _, store = finished
    small = write_aoi(tmp_path / "small.geojson", box(LEFT + 700, TOP - 1200, LEFT + 1190, TOP - 730))
    inner, _ = run(config_for(archive, sr="lite"), small, tmp_path / "small.zarr")
    rows, cols = inner.zones[0].grid.window.slices(plan.zones[0].grid.window)
    assert np.array_equal(values(store)[..., rows, cols], values(tmp_path / "small.zarr"))


def test_block_means_equal_the_composited_input(finished):
    plan, _, store = finished
    assert max(block_mean_errors(plan, store).values()) <= 0.5


def test_detail_differs_from_interpolation_but_not_under_clouds(finished, archive, aoi, tmp_path):
    _, _, store = finished
    run(config_for(archive, sr="bicubic"), aoi, tmp_path / "plain.zarr")
    lite, plain = values(store)[0].astype(int), values(tmp_path / "plain.zarr")[0].astype(int)
    quality = values(store, "quality")[0]
    red = BAND_NAMES.index("B04")
    assert np.abs(lite[red] - plain[red])[quality == 3].mean() > 1
    blocked = quality == 1
    if blocked.any():
        assert np.abs(lite[red] - plain[red])[blocked].max() <= 1


def test_coordinate_images_land_on_themselves_through_the_whole_pipeline(tmp_path):
    """Every native pixel names its place; the store's block means give that name back at exactly that place."""
    scene = make_scene(tmp_path, scene_id="S2A_COORD", kind="coordinates", size_m=SIZE, scl=False)
    index = make_archive(tmp_path, [scene])
    aoi = write_aoi(tmp_path / "aoi.geojson", box(LEFT + 250, TOP - 900, LEFT + 910, TOP - 310))
    plan, _ = run(config_for(index, offset=0), aoi, tmp_path / "coord.zarr")
    from tests.archive.synthetic import coordinate_dn

    window = plan.zones[0].grid.window
    dn = values(tmp_path / "coord.zarr")[0]
    for i, name in enumerate(BAND_NAMES):
        native = window.coarsen(factor_of(name))
        expected = 1000 + coordinate_dn(
            name, np.arange(native.row, native.row_end), np.arange(native.col, native.col_end)
        )
        means = dn[i].reshape(native.ny, factor_of(name), native.nx, factor_of(name)).mean((1, 3))
        assert np.abs(means - np.minimum(expected, 65535)).max() <= 0.5, name


def test_off_grid_scenes_keep_their_phase(tmp_path):
    scene = make_scene(tmp_path, scene_id="S2A_OFF", left_m=600017.3, top_m=5100004.9, size_m=1200)
    index = make_archive(tmp_path, [scene])
    aoi = write_aoi(tmp_path / "aoi.geojson", box(LEFT + 200, TOP - 700, LEFT + 610, TOP - 210))
    plan, _ = run(config_for(index), aoi, tmp_path / "off.zarr")
    zone = plan.zones[0]
    assert (zone.grid.left_m - 600017.3) % 60 == pytest.approx(0, abs=1e-6) or (
        zone.grid.left_m - 600017.3
    ) % 60 == pytest.approx(60, abs=1e-6)
    assert not zone.resample
    ds = xr.open_zarr(tmp_path / "off.zarr")
    assert ds.x.values[0] == pytest.approx(zone.grid.left_m + 1.25)


def test_composite_none_gives_one_step_per_day_and_median_one(archive, aoi, tmp_path):
    run(config_for(archive, composite="none"), aoi, tmp_path / "days.zarr")
    days = xr.open_zarr(tmp_path / "days.zarr")
    assert [str(t)[:10] for t in days.time.values] == ["2024-06-17", "2024-06-22"]
    run(config_for(archive, composite="median"), aoi, tmp_path / "median.zarr")
    assert xr.open_zarr(tmp_path / "median.zarr").sizes["time"] == 1


def test_members_add_uncertainty(archive, aoi, tmp_path):
    plan, _ = run(config_for(archive, sr="lite", members=2, unit_chunks=5), aoi, tmp_path / "m.zarr")
    spread = values(tmp_path / "m.zarr", "uncertainty")[0]
    assert spread[BAND_NAMES.index("B04")].mean() > 0.5
    quality = values(tmp_path / "m.zarr", "quality")[0]
    assert spread[:, quality == 1].max(initial=0) == 0
    assert plan.config.members == 2


def test_clip_masks_outside_the_polygon_only(archive, tmp_path):
    corners = [(LEFT + 300, TOP - 400), (LEFT + 900, TOP - 400), (LEFT + 600, TOP - 1000)]
    aoi = write_aoi(tmp_path / "triangle.geojson", corners)
    plan, _ = run(config_for(archive), aoi, tmp_path / "kept.zarr")
    run(config_for(archive, clip=True), aoi, tmp_path / "clipped.zarr")
    kept, clipped = values(tmp_path / "kept.zarr")[0, 3], values(tmp_path / "clipped.zarr")[0, 3]
    inside = clipped > 0
    assert np.array_equal(kept[inside], clipped[inside])
    share = inside.sum() * 6.25 / (0.5 * 600 * 600)
    assert share == pytest.approx(1, abs=0.02)
    assert (kept > 0).sum() > inside.sum()
    assert plan.units()


def test_units_outside_a_slanted_aoi_are_not_computed(archive, tmp_path):
    corners = [(LEFT + 100, TOP - 1700), (LEFT + 160, TOP - 1700), (LEFT + 1700, TOP - 160), (LEFT + 1700, TOP - 100)]
    aoi = write_aoi(tmp_path / "strip.geojson", corners)
    plan, summary = run(config_for(archive, unit_chunks=1), aoi, tmp_path / "strip.zarr")
    zone = plan.zones[0]
    assert summary.units < 0.6 * zone.row_breaks[-1] * zone.col_breaks[-1]
    grid = zone.grid.window
    for unit in plan.units():
        for chunk in plan.chunks(unit):
            assert chunk.intersect(grid) == chunk
    assert values(tmp_path / "strip.zarr")[0, 0, 0, 0] == 0


def test_sharded_and_unsharded_stores_hold_the_same_pixels(archive, aoi, tmp_path):
    run(config_for(archive), aoi, tmp_path / "plain.zarr")
    run(config_for(archive, shard=True), aoi, tmp_path / "shard.zarr")
    assert np.array_equal(values(tmp_path / "plain.zarr"), values(tmp_path / "shard.zarr"))
    assert len(chunk_digests(tmp_path / "shard.zarr")) < len(chunk_digests(tmp_path / "plain.zarr"))


def test_two_zones_make_two_groups(tmp_path):
    """An AOI across 12 degrees east: each part in its own zone, from that zone's scenes."""
    import pyproj

    scenes, corners = [], []
    for epsg, lon in ((32632, 11.995), (32633, 12.005)):
        x, y = pyproj.Transformer.from_crs(4326, epsg, always_xy=True).transform(lon, 46.0)
        left, top = round((x - 1500) / 60) * 60, round((y + 1500) / 60) * 60
        scenes.append(make_scene(tmp_path, scene_id=f"S2A_{epsg}", epsg=epsg, left_m=left, top_m=top, size_m=3000))
    index = make_archive(tmp_path, scenes)
    corners = [(11.994, 45.998), (12.006, 45.998), (12.006, 46.002), (11.994, 46.002)]
    path = tmp_path / "aoi.geojson"
    ring = [list(c) for c in (*corners, corners[0])]
    path.write_text(f'{{"type": "Polygon", "coordinates": [{ring}]}}')
    plan, _ = run(config_for(index), path, tmp_path / "two.zarr")
    assert [zone.epsg for zone in plan.zones] == [32632, 32633]
    tree = pipeline.open_store(tmp_path / "two.zarr")
    assert set(tree.children) == {"utm32n", "utm33n"}
    for name, epsg in (("utm32n", 32632), ("utm33n", 32633)):
        assert tree[name].to_dataset().rio.crs.to_epsg() == epsg
        assert np.isfinite(tree[name]["reflectance"].values).any()


class TestNeverSilent:
    """A missing or damaged file stops the run; it never becomes nodata."""

    @pytest.fixture(autouse=True)
    def impatient(self, monkeypatch):
        monkeypatch.setattr("pipeline.archive.retry.MAX_WAIT_S", 0.01)

    @pytest.fixture
    def broken(self, tmp_path, aoi):
        scene = make_scene(tmp_path, scene_id="S2A_BROKEN", seed=1, size_m=SIZE)
        return make_archive(tmp_path, [scene]), scene

    @pytest.mark.parametrize("fault", ["missing", "truncated", "garbage"])
    def test_band_file(self, broken, aoi, tmp_path, fault):
        index, scene = broken
        from pathlib import Path

        path = Path(scene.hrefs["B11"])
        if fault == "missing":
            path.unlink()
        elif fault == "truncated":
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        else:
            path.write_bytes(b"not a tiff" * 100)
        store = tmp_path / "broken.zarr"
        with pytest.raises(ReadError, match="B11") as caught:
            run(config_for(index, unit_chunks=5), aoi, store)
        assert caught.value.exit_code == 5
        assert "S2A_BROKEN" in str(caught.value)
        if store.exists():
            assert layout.status(store) == layout.STATUS_INCOMPLETE
            assert not chunk_digests(store)

    def test_scene_without_a_band_is_left_out_and_said_so(self, tmp_path, aoi):
        names = tuple(name for name in BAND_NAMES if name != "B07")
        scene = make_scene(tmp_path, scene_id="S2A_NO_B07", size_m=SIZE, bands=names)
        index = make_archive(tmp_path, [scene])
        with pytest.raises(NoDataError, match="B07"):
            run(config_for(index), aoi, tmp_path / "x.zarr")
        plan, _ = run(config_for(index, bands=names), aoi, tmp_path / "eleven.zarr")
        assert "B07" not in list(pipeline.open_store(tmp_path / "eleven.zarr").band.values)
        assert plan.config.band_names == names

    def test_wrong_offset_is_caught_by_the_pixels(self, tmp_path, aoi):
        """Files still carry +1000 although the index says that nothing is left to subtract."""
        from dataclasses import replace

        from pipeline.archive.scene import OffsetDecision

        scene = make_scene(tmp_path, scene_id="S2A_PLUS", size_m=SIZE, offset_dn=-1000)
        index = make_archive(tmp_path, [replace(scene, offset=OffsetDecision(0, "claimed"), baseline="")])
        with pytest.raises(UsageError, match="--offset"):
            run(config_for(index), aoi, tmp_path / "x.zarr")
        run(config_for(index, offset=-1000), aoi, tmp_path / "ok.zarr")

    def test_ground_without_imagery_is_nodata_and_counted(self, tmp_path):
        scene = make_scene(tmp_path, scene_id="S2A_HALF", seed=1, size_m=SIZE, nodata_left_m=600)
        index = make_archive(tmp_path, [scene])
        aoi = write_aoi(tmp_path / "aoi.geojson", box(LEFT + 310, TOP - 900, LEFT + 1190, TOP - 310))
        _, summary = run(config_for(index), aoi, tmp_path / "half.zarr")
        dn = values(tmp_path / "half.zarr")[0]
        assert (dn[:, :, :120] == 0).all()
        assert (dn[:, :, 120:] > 0).all()
        assert summary.valid_fraction == pytest.approx((dn > 0).mean())


def test_a_unit_writes_only_its_own_chunks(archive, aoi, tmp_path):
    from pipeline.archive.aoi import read_aoi
    from pipeline.execution.planner import make_plan
    from pipeline.execution.unit import process

    plan = make_plan(config_for(archive), read_aoi(str(aoi)))
    store = tmp_path / "one.zarr"
    driver.prepare(plan, store)
    unit = list(plan.units())[1]
    before = set(chunk_digests(store))
    receipt = process(unit, str(store), plan.digest)
    written = set(chunk_digests(store)) - before
    assert written == set(receipt.chunks)
    covered = np.zeros(plan.zones[0].grid.shape, bool)
    for chunk in plan.chunks(unit):
        covered[chunk.slices(plan.zones[0].grid.window)] = True
    assert ((values(store)[0, 0] > 0) == covered).all()
    assert isinstance(plan.window(unit), Window)
    shutil.rmtree(store)
    assert not zarr.storage.LocalStore(store).root.exists()


def test_a_date_is_the_same_whatever_other_dates_the_run_found(archive, aoi, tmp_path):
    """Noise follows the date, not its place in the list of time steps."""
    run(config_for(archive, sr="lite", composite="none", unit_chunks=5), aoi, tmp_path / "both.zarr")
    run(config_for(archive, sr="lite", composite="none", start="2024-06-20"), aoi, tmp_path / "later.zarr")
    assert values(tmp_path / "later.zarr").shape[0] == 1
    assert np.array_equal(values(tmp_path / "both.zarr")[1], values(tmp_path / "later.zarr")[0])


def test_excluded_scenes_are_left_out_and_said_so(archive, aoi, tmp_path):
    plan, _ = run(config_for(archive, exclude=("S2A_CLOUDY",)), aoi, tmp_path / "one.zarr")
    assert set(plan.scenes) == {"S2B_LATER"}
    assert any("--exclude" in note for note in plan.notes)


def test_a_scene_whose_files_are_gone_is_left_out_while_others_remain(tmp_path, aoi):
    from pathlib import Path

    scenes = [
        make_scene(tmp_path, scene_id="S2A_GONE", seed=1, size_m=SIZE),
        make_scene(tmp_path, scene_id="S2B_HERE", seed=1, size_m=SIZE, date="2024-06-22T10:20:31Z"),
    ]
    Path(scenes[0].hrefs["B04"]).unlink()
    plan, summary = run(config_for(make_archive(tmp_path, scenes)), aoi, tmp_path / "x.zarr")
    assert set(plan.scenes) == {"S2B_HERE"}
    assert any("S2A_GONE" in note and "B04" in note for note in plan.notes)
    assert summary.valid_fraction == 1.0


def test_ground_that_only_the_neighbouring_zone_covers_is_processed_there(tmp_path):
    """One scene of zone 31 covers the AOI, which lies in zone 32; a scene of zone 32 covers a corner of it."""
    import pyproj

    def corner(epsg, lon, lat):
        x, y = pyproj.Transformer.from_crs(4326, epsg, always_xy=True).transform(lon, lat)
        return round(x / 60) * 60, round(y / 60) * 60

    x31, y31 = corner(32631, 6.01, 46.0)
    x32, y32 = corner(32632, 6.01, 46.0)
    scenes = [
        make_scene(tmp_path, scene_id="S2A_31", epsg=32631, left_m=x31 - 1500, top_m=y31 + 1500, size_m=3000),
        make_scene(tmp_path, scene_id="S2A_32", epsg=32632, left_m=x32 - 1500, top_m=y32 + 1500, size_m=(3000, 1200)),
    ]
    west, south, east, north = 6.004, 45.997, 6.016, 46.003
    ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    path = tmp_path / "aoi.geojson"
    path.write_text(f'{{"type": "Polygon", "coordinates": [{ring}]}}')
    plan, summary = run(config_for(make_archive(tmp_path, scenes)), path, tmp_path / "x.zarr")
    assert [zone.epsg for zone in plan.zones] == [32631, 32632]
    assert any("processed in EPSG:32631" in note for note in plan.notes)
    tree = pipeline.open_store(tmp_path / "x.zarr")
    east_of_it = tree["utm31n"]["reflectance"].isel(time=0, band=3).values
    assert np.isfinite(east_of_it).mean() > 0.8
    assert summary.valid_fraction > 0.8


def test_clip_counts_pixels_inside_the_polygon_only(archive, tmp_path):
    corners = [(LEFT + 300, TOP - 400), (LEFT + 900, TOP - 400), (LEFT + 600, TOP - 1000)]
    aoi = write_aoi(tmp_path / "triangle.geojson", corners)
    _, summary = run(config_for(archive, clip=True), aoi, tmp_path / "clipped.zarr")
    assert summary.valid_fraction == 1.0


def test_scl_is_the_same_however_units_are_cut_where_only_one_scene_has_it(tmp_path, aoi):
    scenes = [
        make_scene(tmp_path, scene_id="S2A_NO_SCL", seed=1, size_m=SIZE, scl=False, cloud_pct=0.0),
        make_scene(
            tmp_path, scene_id="S2B_SCL", seed=1, left_m=LEFT + 900, size_m=SIZE, date="2024-06-22T10:20:31Z",
            cloud_pct=20.0,
        ),
    ]  # fmt: skip
    index = make_archive(tmp_path, scenes)
    run(config_for(index, unit_chunks=1), aoi, tmp_path / "small.zarr")
    run(config_for(index, unit_chunks=9), aoi, tmp_path / "large.zarr")
    assert np.array_equal(values(tmp_path / "small.zarr", "scl"), values(tmp_path / "large.zarr", "scl"))
    assert np.array_equal(values(tmp_path / "small.zarr"), values(tmp_path / "large.zarr"))
