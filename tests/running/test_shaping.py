"""Units by what they cost, and their reading row by row."""

from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import shapely

from pipeline.aoi.aoi import read_aoi
from pipeline.archive.read import cube
from pipeline.bands import BAND_NAMES
from pipeline.config import RunConfig
from pipeline.grid.grid import Grid, Window
from pipeline.planning import estimate as estimates
from pipeline.planning import zoning
from pipeline.planning.estimate import estimate, speed_up
from pipeline.planning.planner import make_plan
from pipeline.planning.shaping import Shaping
from pipeline.planning.unit_job import Strip, job_of
from pipeline.planning.units import PassLayout
from pipeline.process import set_unit_threads, threads_of_unit, unit_threads
from pipeline.running import rolling_read
from pipeline.running import unit as units
from pipeline.running.rolling_read import RollingRead
from pipeline.superres import superres
from pipeline.superres.options import Options
from pipeline.superres.passes import passes_of
from pipeline.superres.system import load
from pipeline.superres.weights import choose, stages_of
from tests.running.conftest import LEFT, TOP, box, config_for, run, values, write_aoi

CHUNK_PX, WINDOW_PX = 480, 480


def shaping(workers, *, together=True, draws=0):
    (of,) = passes_of(stages_of(choose("lite")), BAND_NAMES)
    return Shaping(of, of.reach_px(Options()), draws, workers, together)


def grid_of(side_m, row=-1_912_008, col=150_024):
    side_px = round(side_m / 60) * 24
    return Grid(32632, Window(row, col, side_px, side_px))


def windows_of(shape, grid, breaks):
    """Windows of every unit, counted as a run counts them."""
    rows, cols = breaks
    whole, found = grid.window, []
    for top, end in pairwise(rows):
        for left, right in pairwise(cols):
            unit = Window(
                whole.row + top * CHUNK_PX, whole.col + left * CHUNK_PX,
                (end - top) * CHUNK_PX, (right - left) * CHUNK_PX,
            ).intersect(whole)  # fmt: skip
            (cells,) = shape.of.cells([unit.pad(shape.reach_px)])
            found.append(len(cells))
    return found


def factor(shape, grid, breaks):
    """Pixels through the networks per pixel stored."""
    return sum(windows_of(shape, grid, breaks)) * WINDOW_PX**2 / (grid.window.ny * grid.window.nx)


@pytest.mark.parametrize(("side_m", "most"), [(5000, 3.7), (10_000, 2.5), (20_000, 2.25), (60_000, 2.25)])
@pytest.mark.parametrize("workers", [1, 2])
def test_few_pixels_are_computed_twice(side_m, most, workers):
    """For any place of the area on the lattice; square units of four chunks take 4.9 times at 25 km2, 3.4 at 400."""
    found = []
    for i in range(8):
        grid = grid_of(side_m, row=-1_912_008 + 48 * i, col=150_024 + 72 * i)
        found.append(factor(shaping(workers), grid, shaping(workers).breaks(grid, CHUNK_PX)))
    assert max(found) <= most


def test_costs_are_those_that_a_run_counts():
    shape, grid = shaping(2), grid_of(20_000)
    breaks = shape.breaks(grid, CHUNK_PX)
    counted = windows_of(shape, grid, breaks)
    from pipeline.planning.shaping import _Axis

    rows, cols = (_Axis.of(shape.of, shape.reach_px, grid.window, CHUNK_PX, axis) for axis in (0, 1))
    products = [r[0] * c[0] for r in rows.windows(breaks[0]) for c in cols.windows(breaks[1])]
    assert products == counted


def test_small_areas_are_one_unit_that_workers_share():
    assert shaping(2).breaks(grid_of(5000), CHUNK_PX) == ((0, 5), (0, 5))
    rows, cols = shaping(2, together=False).breaks(grid_of(5000), CHUNK_PX)
    assert (len(rows) - 1) * (len(cols) - 1) == 2


@pytest.mark.parametrize("together", [True, False])
def test_units_are_bounded_in_width_and_work(together):
    shape, grid = shaping(2, together=together), grid_of(60_000)
    rows, cols = shape.breaks(grid, CHUNK_PX)
    assert max(np.diff(cols)) * CHUNK_PX <= 4320
    assert (rows[0], rows[-1], cols[0], cols[-1]) == (0, 50, 0, 50)
    assert max(windows_of(shape, grid, (rows, cols))) <= (320 if together else 96)
    drawn = shaping(2, together=together, draws=4)
    assert max(windows_of(drawn, grid, drawn.breaks(grid, CHUNK_PX))) <= (80 if together else 64)


def test_areas_of_any_shape_are_divided():
    for ny, nx in ((24, 24), (24, 9600), (9600, 24), (504, 1000)):
        rows, cols = shaping(3).breaks(Grid(32632, Window(-24, 48, ny, nx)), CHUNK_PX)
        assert (rows[-1], cols[-1]) == (-(-ny // CHUNK_PX), -(-nx // CHUNK_PX))
        assert all(np.diff(rows) > 0)
        assert all(np.diff(cols) > 0)


def test_scattered_ground_is_read_in_small_units():
    """A large unit would read all the ground between two fields."""
    fields = shapely.union_all([shapely.box(0, 0, 900, 900), shapely.box(29_000, 29_000, 30_000, 30_000)])
    whole = shapely.box(0, 0, 30_000, 30_000)
    for area, most in ((fields, 4), (whole, 60)):
        zone, _ = zoning._zone(RunConfig(sr="lite"), 32632, area, [], (), 1, (PassLayout(),), shaping(1))
        assert bool(max(np.diff(zone.row_breaks)) <= 4) is (most == 4)


def test_only_plans_of_one_pass_without_shards_are_shaped(archive, aoi, small_lite):
    plan = make_plan(config_for(archive, unit_chunks=0, chunk_px=24, **small_lite), read_aoi(str(aoi)), workers=2)
    (zone,) = plan.zones
    assert (len(zone.row_breaks), len(zone.col_breaks)) == (2, 2)
    sharded = config_for(archive, unit_chunks=0, chunk_px=24, shard=True)
    plan = make_plan(sharded, read_aoi(str(aoi)), workers=2)
    (zone,) = plan.zones
    assert set(np.diff(zone.row_breaks)[:-1]) == {4}
    assert plan.config.shard_chunks == 4


@pytest.mark.parametrize(
    ("workers", "units", "together", "found"),
    [(1, 9, True, 1), (4, 9, True, 4), (4, 2, False, 2), (4, 2, True, 2 * 1.92), (4, 1, True, 1 + 3 * 0.92)],
)
def test_workers_beyond_units_help_only_on_one_machine(workers, units, together, found):
    assert speed_up(workers, units, together=together) == pytest.approx(found)


@pytest.mark.parametrize(("processors", "threads"), [(1, 1), (2, 2), (8, 4)])
def test_an_estimate_counts_no_more_threads_than_processors(archive, aoi, monkeypatch, processors, threads):
    """A unit starts no more (`running.unit`), so four workers on two processors are as fast as two."""
    monkeypatch.setattr(estimates, "processors", lambda: processors)
    plan = make_plan(config_for(archive, sr="bicubic", unit_chunks=0), read_aoi(str(aoi)), workers=4)
    four, as_many, one = (estimate(plan, workers, together=True) for workers in (4, threads, 1))
    assert (four.units, four.processes, four.threads) == (1, 1, threads)
    assert four.process_mib == as_many.process_mib == one.process_mib + (threads - 1) * one.thread_mib
    speeds = (estimates._speed(workers, 1, 1, together=True) for workers in (4, threads))
    assert len({*speeds}) == 1
    assert estimates._speed(4, 9, 1, together=True) == threads
    assert estimates._speed(4, 9, 1, together=False) == 4  # elsewhere, whose processors are not known here


def test_memory_of_a_unit_does_not_grow_with_its_length(tmp_path):
    from tests.benchmarks.scene import wide_plan

    costs = []
    for unit_chunks in (6, 12):
        config = RunConfig(sr="bicubic", unit_chunks=unit_chunks)
        costs.append(estimate(wide_plan(tmp_path, 14_000, config), 1, timed=False))
    wide = [estimate(wide_plan(tmp_path, 14_000, RunConfig(sr="bicubic")), 1, timed=False).worker_mib]
    assert costs[1].worker_mib < 2 * costs[0].worker_mib
    assert wide[0] <= costs[1].worker_mib


@pytest.fixture(scope="module")
def by_one_thread(archive, aoi, small_lite, tmp_path_factory):
    """The store of a single unit."""
    store = tmp_path_factory.mktemp("one") / "one.zarr"
    _, summary = run(config_for(archive, unit_chunks=0, **small_lite), aoi, store, workers=1)
    assert summary.units == 1
    return store


def same(one, other):
    for name in ("reflectance", "quality", "scl"):
        assert np.array_equal(values(one, name), values(other, name)), name


@pytest.mark.slow
@pytest.mark.parametrize("cluster", ["inline", "local"])
def test_threads_that_share_a_unit_do_not_show(archive, aoi, small_lite, by_one_thread, tmp_path, cluster):
    config = config_for(archive, unit_chunks=0, **small_lite)
    run(config, aoi, tmp_path / "two.zarr", cluster=cluster, workers=2)
    same(by_one_thread, tmp_path / "two.zarr")


@pytest.mark.slow
def test_units_that_are_shaped_give_what_those_of_one_chunk_give(archive, aoi, small_lite, by_one_thread, tmp_path):
    run(config_for(archive, unit_chunks=1, **small_lite), aoi, tmp_path / "small.zarr", workers=1)
    same(by_one_thread, tmp_path / "small.zarr")


def test_threads_of_units_are_set_for_this_process():
    with unit_threads(3):
        assert threads_of_unit() == 3
        set_unit_threads(2)
        assert threads_of_unit() == 2
    assert threads_of_unit() == 1


@pytest.mark.parametrize(("processors", "threads"), [(1, 1), (2, 2), (8, 4)])
def test_a_unit_has_no_more_threads_than_processors(archive, tmp_path, monkeypatch, processors, threads):
    """Threads only compute, so that more of them than processors would take each other's caches."""
    monkeypatch.setattr(units, "processors", lambda: processors)
    started = []
    real = units.Sweep
    monkeypatch.setattr(units, "Sweep", lambda count, *rest: started.append(count) or real(count, *rest))
    aoi = write_aoi(tmp_path / "region.geojson", box(LEFT + 700, TOP - 1100, LEFT + 1000, TOP - 890))
    run(config_for(archive), aoi, tmp_path / "a.zarr", workers=4)
    assert {*started} == {threads}


class TestRollingRead:
    @pytest.fixture
    def job(self, archive, tmp_path):
        tall = write_aoi(tmp_path / "tall.geojson", box(LEFT + 300, TOP - 1700, LEFT + 700, TOP - 100))
        plan = make_plan(config_for(archive, unit_chunks=0), read_aoi(str(tall)))
        (unit,) = plan.units()
        return job_of(plan, unit, load(plan.system, "cpu"))

    def test_strips_hold_every_chunk_once_by_the_row_of_windows_that_completes_it(self, job, archive):
        (of,) = passes_of(load(choose("bicubic"), "cpu").stages, BAND_NAMES)
        last = [{of.cells([chunk.pad(168)])[0][-1][0] for chunk in strip.chunks} for strip in job.strips]
        assert all(len(rows) == 1 for rows in last)
        assert len({row for rows in last for row in rows}) == len(last) > 1
        assert [chunk for strip in job.strips for chunk in strip.chunks] == list(job.chunks)
        blocks = [chunk for strip in job.strips for block in strip.blocks for chunk in block]
        assert sorted(blocks) == sorted(job.chunks)

    @pytest.mark.parametrize("rows_px", [24, 240, 3840])
    def test_rows_are_those_of_the_whole_and_each_is_read_once(self, job, monkeypatch, rows_px):
        whole = RollingRead(job).over(job.read)
        monkeypatch.setattr(rolling_read, "_ROWS_PX", rows_px)
        real, read = cube.read_period, []

        def counted(scenes, composite, grid, *given, **more):
            read.append(grid.window)
            return real(scenes, composite, grid, *given, **more)

        monkeypatch.setattr(cube, "read_period", counted)
        rolling = RollingRead(job)
        for row in range(job.read.row, job.read.row_end - 240, 192):
            window = Window(row, job.read.col, 264, job.read.nx).intersect(job.read)
            found = rolling.over(window)
            assert found.window.row <= window.row
            for gsd_m in (10, 20, 60):
                assert np.array_equal(found.over(window, gsd_m), whole.over(window, gsd_m))
            assert np.array_equal(found.scl_over(window), whole.scl_over(window))
        tops = [(window.row, window.row_end) for window in read]
        assert all(end == top for (_, end), (top, _) in pairwise(tops))
        assert len(read) == 1 or rows_px < 3840
        assert rolling.scenes == whole.scenes

    def test_holes_of_all_rows_are_counted_once(self, job, monkeypatch):
        monkeypatch.setattr(rolling_read, "_ROWS_PX", 24)
        monkeypatch.setattr(rolling_read, "holes", lambda found, bands: {bands[0]: found.window.ny})
        rolling = RollingRead(job)
        for row in range(job.read.row, job.read.row_end, 240):
            rolling.over(Window(row, job.read.col, 240, job.read.nx).intersect(job.read))
        assert rolling.holes == {job.bands[0]: job.read.ny}

    def test_rows_in_between_are_not_read(self, job, monkeypatch):
        monkeypatch.setattr(rolling_read, "_ROWS_PX", 24)
        rolling = RollingRead(job)
        rolling.over(Window(job.read.row, job.read.col, 48, job.read.nx))
        later = Window(job.read.row_end - 48, job.read.col, 48, job.read.nx)
        assert rolling.over(later).window == later


@pytest.mark.parametrize(("seconds", "runs"), [(1.0, 2), (600.0, 1)])
def test_a_window_that_takes_long_is_timed_once(archive, tmp_path, monkeypatch, seconds, runs):
    aoi = write_aoi(tmp_path / "region.geojson", box(LEFT + 700, TOP - 1100, LEFT + 1000, TOP - 890))
    plan = make_plan(config_for(archive), read_aoi(str(aoi)))
    one = plan.model_passes()[0]
    middle = round(one.groups[0].lattice.stride_px // 2 * one.groups[0].gsd_m / one.gsd_m)
    cell = Window(middle, middle, one.source_px, one.source_px).snap_out(one.source_px)
    windows = one.cells([cell.pad(one.reach_px(replace(plan.options(), consistency="none")))])[0]
    clock, counted = iter(seconds * number for number in range(2 * runs)), []
    monkeypatch.setattr(estimates.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(superres, "super_resolve", lambda *_, **__: counted.append(1) or SimpleNamespace(windows=4))
    assert seconds / estimates.time_window(plan).wall_s == pytest.approx(len(windows))
    assert len(counted) == runs


@pytest.mark.parametrize(("width", "chunk", "widest"), [(2000, 480, 1920), (4320, 480, 960), (4300, 700, 700)])
def test_wide_units_are_finished_in_narrow_blocks(width, chunk, widest):
    """So that the memory of a worker hardly grows with the width of its units."""
    chunks = tuple(Window(0, col, chunk, min(chunk, width - col)) for col in range(0, width, chunk))
    whole = Window(0, 0, chunk, width)
    blocks = Strip(chunks, whole, whole, chunks).blocks
    assert [one for block in blocks for one in block] == [*chunks]
    assert max(sum(one.nx for one in block) for block in blocks) == widest
