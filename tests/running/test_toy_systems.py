"""Systems of one file each through the whole pipeline, found by an entry point; nothing under pipeline/ knows them."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyogrio.raw
import pytest
import rasterio
import shapely

import pipeline
from pipeline import check, export, view
from pipeline.bands import BAND_NAMES
from pipeline.errors import IntegrityError, UsageError
from pipeline.run import main
from pipeline.running import unit
from pipeline.running.local_cluster import local_workers
from pipeline.superres import registry
from pipeline.superres.spec import stochastic
from tests.conditions.made_up import osm_xml
from tests.running.conftest import LEFT, TOP, box, chunk_digests, sensor_errors, values, write_aoi
from tests.toys import all_bands, cascade, map_guided, rgbn
from tests.toys.installed import write_package

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = ("--estimate", "sample")  # one draw; "rgbn" stores the mean of four
CASES = {
    "rgbn": (rgbn.SYSTEM, ("--bands", "B02,B03,B04,B08")),
    "rgbn, fewer and others": (rgbn.SYSTEM, ("--bands", "B02,B04,B11", *SAMPLE)),
    "all bands": (all_bands.SYSTEM, ()),
    "two passes": (cascade.SYSTEM, ("--bands", "B02,B03,B04,B08", "--unit-chunks", "4", *SAMPLE)),
    "map": (
        map_guided.SYSTEM,
        ("--bands", "B02,B03,B04,B11", "--condition", "map=MAP", "--option", "contrast=0.1", *SAMPLE),
    ),
}
FINER = {"two passes": ("B02", "B03", "B04", "B08"), "map": ("B02", "B03", "B04")}  # bands at 1.25 m
MODULES = (rgbn, all_bands, cascade, map_guided)
CORNERS = box(LEFT + 700, TOP - 1300, LEFT + 1390, TOP - 890)
CHUNK_PX = 96
MAP_CREDIT = "Town of Ex, CC BY 4.0"


@pytest.fixture(scope="module")
def aoi(tmp_path_factory):
    return write_aoi(tmp_path_factory.mktemp("aoi") / "region.geojson", CORNERS)


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """Folder of an installed package that brings the toys."""
    return write_package(tmp_path_factory.mktemp("site"), MODULES)


@pytest.fixture(scope="module", autouse=True)
def installed(package):
    """Known here as in any process whose path has the package."""
    registered = dict(registry._REGISTERED)
    sys.path.insert(0, str(package))
    registry._installed.cache_clear()
    yield
    sys.path.remove(str(package))
    registry._REGISTERED.clear()
    registry._REGISTERED.update(registered)
    registry._installed.cache_clear()


HOUSES = [shapely.box(x, TOP - 1180, x + 45, TOP - 1120) for x in range(LEFT + 760, LEFT + 1400, 130)]
ROAD = shapely.LineString([(LEFT + 600, TOP - 1400), (LEFT + 1500, TOP - 800)])


@pytest.fixture(scope="module")
def drawn_map(tmp_path_factory):
    """Buildings and a road, as a GeoPackage."""
    shapes = [*HOUSES, ROAD]
    kinds = np.array([*["building"] * len(HOUSES), "road"], dtype=object)
    path = tmp_path_factory.mktemp("map") / "town.gpkg"
    path.with_name("town.gpkg.license").write_text("Town of Ex, CC BY 4.0\n")
    geometries = shapely.to_wkb(np.array(shapes))
    pyogrio.raw.write(
        path, geometries, [kinds], fields=["kind"], geometry_type="Unknown", crs="EPSG:32632", driver="GPKG"
    )
    return path


@pytest.fixture(
    params=[pytest.param(name, marks=[pytest.mark.slow] * (name in FINER)) for name in CASES], scope="module"
)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def case(name, drawn_map):
    system, more = CASES[name]
    return system, tuple(word.replace("=MAP", f"={drawn_map}") for word in more)


@pytest.fixture(scope="module")
def words(case, archive, aoi):
    """Arguments of a run, but its store."""
    system, more = case
    chunks = ("--chunk-px", str(CHUNK_PX), "--unit-chunks", "2", "--start", "2024-01-01", "--end", "2024-12-31")
    return ("--aoi", str(aoi), "--catalog", str(archive), "--sr", system.name, "--max-cloud", "100", *chunks, *more)


@pytest.fixture(scope="module")
def finished(words, tmp_path_factory):
    """A store of the case; for reading only."""
    store = tmp_path_factory.mktemp("finished") / "whole.zarr"
    assert main([*words, "--out", str(store), "--cluster", "inline"]) == 0
    return store


def test_the_store_is_sound_and_says_what_is_generated(case, finished, capsys):
    system, _ = case
    assert check.main([str(finished), "--verify", "full"]) == 0
    stages = system.stages({}, {})
    attributes = json.loads((finished / "zarr.json").read_text())["attributes"]
    assert attributes["super_resolution"] == system.name
    assert set(attributes["generated_bands"]) == {band for stage in stages for band in stage.gives}
    assert attributes.get("options", {}) == {"contrast": 0.1} if system.options else "options" not in attributes
    assert attributes.get("conditions", {}).get("map", {}).get("file", "town.gpkg") == "town.gpkg"
    assert ("conditions" in attributes) == bool(system.conditions)
    assert (MAP_CREDIT in attributes["credit"]) == bool(system.conditions)
    item = json.loads((finished / "stac-item.json").read_text())
    assert (MAP_CREDIT in [one["name"] for one in item["properties"]["providers"]]) == bool(system.conditions)
    dataset = pipeline.open_store(finished)
    bands = dataset.band.values.tolist()
    generated = dict(zip(bands, dataset.generated.values.tolist(), strict=True)) if "generated" in dataset else {}
    assert generated == {} or generated == {band: band in attributes["generated_bands"] for band in bands}
    assert int((dataset.quality == 3).sum()) > 0
    bias = {name: bias for name, (_, bias) in sensor_errors(finished).items() if name not in ("B01", "B09")}
    assert max(map(abs, bias.values())) < 2
    capsys.readouterr()


@pytest.mark.slow
def test_chunks_and_the_ends_of_the_area_do_not_show(name, words, finished, tmp_path):
    other = [*words, "--unit-chunks", "5", "--out", str(tmp_path / "other.zarr"), "--cluster", "inline"]
    assert main(other) == 0
    assert np.array_equal(values(tmp_path / "other.zarr"), values(finished))
    corners = box(LEFT + 900, TOP - 1200, LEFT + 1100, TOP - 1000)
    small = write_aoi(tmp_path / "small.geojson", corners)
    given = ["--aoi", str(small), *words[2:], "--chunk-px", "24", "--out", str(tmp_path / "small.zarr")]
    assert main([*given, "--cluster", "inline"]) == 0
    part = pipeline.load_plan(tmp_path / "small.zarr").zones[0].grid.window
    rows, cols = part.slices(pipeline.load_plan(finished).zones[0].grid.window)
    there = values(tmp_path / "small.zarr") > 0
    assert there.mean() > 0.5
    assert np.array_equal(values(tmp_path / "small.zarr")[there], values(finished)[..., rows, cols][there])
    if name in FINER:
        assert np.array_equal(finer_values(tmp_path / "other.zarr"), finer_values(finished))
        fine = finer_values(tmp_path / "small.zarr")
        rows, cols = part.refine(2).slices(pipeline.load_plan(finished).zones[0].grid.window.refine(2))
        assert (fine > 0).mean() > 0.03
        assert np.array_equal(fine[fine > 0], finer_values(finished)[..., rows, cols][fine > 0])


def test_detail_below_the_grid_keeps_its_means(name, finished, tmp_path, capsys):
    if name not in FINER:
        with pytest.raises(UsageError, match=r"holds nothing at 1\.25 m"):
            pipeline.open_store(finished, gsd_m=1.25)
        return
    fine, coarse = pipeline.open_store(finished, gsd_m=1.25), pipeline.open_store(finished)
    assert tuple(fine.band.values) == FINER[name]
    assert bool(fine.generated.all())
    assert "not measured" in fine.attrs["comment"]
    means = fine.reflectance.coarsen(y=2, x=2).mean().values
    there = np.isfinite(means)
    assert there.mean() > 0.1
    assert np.abs(means - coarse.reflectance.sel(band=fine.band).values)[there].max() < 1e-6
    assert float(fine.reflectance.std() - coarse.reflectance.std()) != 0
    assert (fine.quality == 3).any()
    assert json.loads((finished / "stac-item.json").read_text())["assets"]["finer-1.25m"]["bands"][0]["gsd"] == 1.25
    assert export.main([str(finished), "--gsd", "1.25", "--out", str(tmp_path / "tifs"), "--quiet"]) == 0
    with rasterio.open(next((tmp_path / "tifs").glob("*1.25m*B04.tif"))) as tif:
        assert tif.res == (1.25, 1.25)
        assert tif.tags()["gsd_m"] == "1.25"
        at = fine.attrs["spatial:transform"] if isinstance(fine.attrs["spatial:transform"], list) else None
        assert at is None or tif.transform[2] == at[2]
        assert np.array_equal(tif.read(1), finer_values(finished)[0, FINER[name].index("B04")])
    assert export.main([str(finished), "--gsd", "0.625", "--out", str(tmp_path / "no"), "--quiet"]) == 2
    assert "holds nothing at 0.625 m" in capsys.readouterr().err


def test_damage_below_the_grid_is_found_and_repaired(name, finished, tmp_path, capsys):
    if name not in FINER:
        return
    store = shutil.copytree(finished, tmp_path / "copy.zarr")
    broken = sorted(store.glob("finer/1.25m/reflectance/c/0/0/*/*"))[0]
    broken.write_bytes(broken.read_bytes()[:-7])
    assert check.main([str(store)]) == 7
    assert check.main([str(store), "--repair", "--verify", "full"]) == 0
    assert chunk_digests(store) == chunk_digests(finished)
    capsys.readouterr()


def test_a_pass_waits_for_the_whole_of_the_one_before(name, words, tmp_path, capsys):
    """Nothing is computed from a group that is not complete, nor from one that lost a chunk."""
    if name != "two passes":
        return
    store = tmp_path / "waits.zarr"
    assert main([*words, "--out", str(store), "--plan-only"]) == 0
    part = ["--plan", str(store), "--cluster", "inline", "--shard-of", "1/2"]
    assert main([*part, "--pass", "2"]) == 75
    assert "of pass 1 of 2 are not there" in capsys.readouterr().err
    assert main(part) == 75
    assert main(["--plan", str(store), "--cluster", "inline", "--shard-of", "2/2", "--pass", "1"]) == 0
    assert main([*part, "--pass", "3"]) == 2
    plan = pipeline.load_plan(store)
    assert main(part) == 0
    lost = sorted(store.glob("reflectance/c/0/0/*/*"))[0]
    lost.unlink()
    with pytest.raises(IntegrityError, match="which it is computed from, is not whole"):
        unit.process(next(plan.units_of(1)), str(store), plan.digest)
    capsys.readouterr()


def finer_values(store):
    return values(store, "finer/1.25m/reflectance")


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was(words, finished, package, tmp_path):
    store = tmp_path / "killed.zarr"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(package), str(ROOT)])}
    command = [sys.executable, "-m", "pipeline.run", *words, "--out", str(store), "--cluster", "inline"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as child:
        while child.poll() is None and not list(store.glob("_run/receipts/*.json")):
            time.sleep(0.01)
        child.send_signal(signal.SIGKILL)
        child.communicate()
    done = {path.name: path.stat().st_mtime_ns for path in store.glob("_run/receipts/*.json")}
    assert 0 < len(done) < len(list(pipeline.load_plan(finished).units()))
    assert main(command[3:]) == 0
    assert all((store / "_run" / "receipts" / name).stat().st_mtime_ns == at for name, at in done.items())
    assert chunk_digests(store) == chunk_digests(finished)


@pytest.mark.slow
def test_parts_of_a_frozen_plan_make_the_same_store(words, finished, tmp_path):
    store = str(tmp_path / "parts.zarr")
    assert main([*words, "--out", store, "--plan-only"]) == 0
    passes = len(pipeline.load_plan(store).passes)
    for number in range(1, passes + 1):
        for part in ("1/2", "2/2"):
            words = ["--plan", store, "--shard-of", part, "--cluster", "inline"]
            assert main(words if passes == 1 else [*words, "--pass", str(number)]) == 0
    assert main(["--plan", store, "--finalise"]) == 0
    assert chunk_digests(Path(store)) == chunk_digests(finished)


@pytest.mark.slow
def test_members_spread_where_something_is_drawn(name, case, words, tmp_path, capsys):
    system, _ = case
    store = tmp_path / "members.zarr"
    words = [word for word in words if word not in SAMPLE]
    assert main([*words, "--out", str(store), "--members", "2", "--cluster", "inline"]) == 0
    dataset, said = pipeline.open_store(store), capsys.readouterr()
    if not stochastic(system.stages({}, {})):
        assert "uncertainty" not in dataset
        assert f"--members 2 has no effect with --sr {system.name}" in said.out + said.err
        return
    drawn = {band for stage in system.stages({}, {}) if stage.stochastic and not stage.finished for band in stage.gives}
    for band in dataset.band.values:
        spread = dataset.uncertainty.sel(band=band)
        assert bool(spread.notnull().any()) == (band in drawn), band
    if name in FINER:
        assert float(pipeline.open_store(store, gsd_m=1.25).uncertainty.max()) > 0.001


@pytest.fixture(scope="module")
def workers(package):
    """Address of two workers, which have imported nothing of the toys."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(package), str(ROOT)]))
        with local_workers("local", 2) as address:
            yield address


@pytest.mark.slow
def test_workers_find_the_system(words, finished, workers, tmp_path):
    """The next test starts workers of its own."""
    store = tmp_path / "local.zarr"
    assert main([*words, "--out", str(store), "--cluster", workers]) == 0
    assert np.array_equal(values(store), values(finished))


@pytest.mark.slow
def test_workers_share_a_map_of_openstreetmap(name, words, finished, package, tmp_path, monkeypatch, capsys):
    """The same features in a file without index: nearly the same pixels, and no copy is left behind."""
    if name != "map":
        return
    ways = [*((house, {"building": "yes"}) for house in HOUSES), (ROAD, {"highway": "service"})]
    given = f"map={osm_xml(tmp_path / 'town.osm', ways)}"
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(package), str(ROOT)]))
    there = [given if word.startswith("map=") else word for word in words]
    left = set(Path(tempfile.gettempdir()).glob("sen2fine-map-*"))
    command = [sys.executable, "-m", "pipeline.run", *there, "--out", str(tmp_path / "osm.zarr"), "--cluster", "local"]
    done = subprocess.run([*command, "--workers", "2"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert set(Path(tempfile.gettempdir()).glob("sen2fine-map-*")) == left
    attributes = json.loads((tmp_path / "osm.zarr" / "zarr.json").read_text())["attributes"]
    assert attributes["conditions"]["map"]["credit"] == "© OpenStreetMap contributors, ODbL 1.0"
    assert (finer_values(tmp_path / "osm.zarr") != finer_values(finished)).mean() < 0.02
    capsys.readouterr()


def test_it_is_looked_at_and_exported(case, finished, tmp_path, capsys):
    assert view.main([str(finished), "--out", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert "toy-" in page
    assert page.count(MAP_CREDIT) >= 3 * bool(case[0].conditions), "as the map's, in the credit, and in the footer"
    assert export.main([str(finished), "--out", str(tmp_path / "tifs"), "--quiet"]) == 0
    assert len(list((tmp_path / "tifs").glob("*.tif"))) == len(pipeline.open_store(finished).band)
    capsys.readouterr()


def test_scenes_without_a_band_that_it_reads_are_refused_by_name(aoi, tmp_path, capsys):
    from tests.archive.synthetic import make_archive, make_scene

    bands = tuple(band for band in BAND_NAMES if band != "B08")
    archive = make_archive(tmp_path, [make_scene(tmp_path, scene_id="S2A_NO_NIR", size_m=1800, bands=bands)])
    words = ["--aoi", str(aoi), "--catalog", str(archive), "--sr", rgbn.SYSTEM.name, "--bands", "B02,B03,B04"]
    days = ["--start", "2024-01-01", "--end", "2024-12-31"]
    assert main([*words, *days, "--out", str(tmp_path / "x.zarr"), "--max-cloud", "100"]) == 3
    said = capsys.readouterr().err
    assert "bands B08 are missing" in said
    assert f"choose another --sr: {rgbn.SYSTEM.name} reads B08" in said
