"""Searches of a real STAC API: all pages, GET where POST is refused, a wrong collection named as such; a whole run."""

import dataclasses
import json
from pathlib import Path

import pytest

from pipeline.aoi.aoi import read_aoi
from pipeline.archive.catalog import Limits, RetryPolicy, load_catalog
from pipeline.archive.search import search
from pipeline.archive.stac.api import api_items
from pipeline.archive.stac.index_file import to_item
from pipeline.run import main
from tests.archive.stac_server import COLLECTION, make_item
from tests.archive.synthetic import make_archive, make_scene
from tests.conftest import without_log
from tests.faults.files import Faults, file_server
from tests.running.conftest import LEFT, TOP, box, chunk_digests, config_for, run, write_aoi
from tests.servers import pgstac

pytestmark = [pytest.mark.stac_server, pytest.mark.slow]
DAYS = [f"2024{month:02d}{day:02d}" for month in (5, 6) for day in range(1, 29, 2)]
PATIENT = RetryPolicy(tries=2, backoff_s=0.1)


def collection(name):
    return {
        "type": "Collection", "id": name, "stac_version": "1.0.0", "description": name, "license": "proprietary",
        "links": [], "extent": {"spatial": {"bbox": [[-180, -90, 180, 90]]}, "temporal": {"interval": [[None, None]]}},
    }  # fmt: skip


@pytest.fixture(scope="module")
def api():
    if reason := pgstac.missing():
        pytest.skip(reason)
    with pgstac.pgstac_api() as running:
        running.load("collections", [collection(COLLECTION), collection("sentinel-1-grd"), collection("synthetic")])
        running.load("items", [make_item(day) for day in DAYS])
        yield running


@pytest.fixture(scope="module")
def aoi(tmp_path_factory):
    path = tmp_path_factory.mktemp("aoi") / "aoi.geojson"
    left, top = 399_960 + 20_000, 5_100_000 - 20_000
    return read_aoi(str(write_aoi(path, box(left, top - 5000, left + 5000, top))))


def listed(url, aoi, name=COLLECTION, page_items=100, **query):
    """Ids that the API lists."""
    catalog = dataclasses.replace(load_catalog(f"{url}/collections/{name}"), limits=Limits(page_items=page_items))
    asked = {"start": "2024-05-01T00:00:00Z", "end": "2024-06-30T00:00:00Z", "ids": (), **query}
    items = [item for item, _ in api_items(catalog, aoi, retry_policy=PATIENT, notes=[], **asked)]
    ids = [item["id"] for item in items]
    assert len(set(ids)) == len(ids)
    return set(ids)


@pytest.mark.parametrize("page_items", [1, 3, 5, len(DAYS), 100])
def test_every_page_is_read(api, aoi, page_items):
    assert listed(api.url, aoi, page_items=page_items) == {make_item(day)["id"] for day in DAYS}


def test_a_period_and_an_area_select(api, aoi, tmp_path):
    may = {make_item(day)["id"] for day in DAYS if day < "20240601"}
    assert listed(api.url, aoi, end="2024-05-31T23:59:59Z") == may
    elsewhere = write_aoi(tmp_path / "far.geojson", box(500_000, 5_600_000, 505_000, 5_605_000))
    assert listed(api.url, read_aoi(str(elsewhere))) == set()


def test_items_by_id(api, aoi):
    wanted = tuple(make_item(day)["id"] for day in DAYS[3:6])
    assert listed(api.url, aoi, ids=wanted, page_items=2) == set(wanted)


@pytest.mark.parametrize("page_items", [3, 100])
def test_an_archive_that_answers_get_only_is_searched_by_get(api, aoi, page_items):
    with pgstac.get_only(api.url) as (url, requests):
        assert listed(url, aoi, page_items=page_items) == {make_item(day)["id"] for day in DAYS}
    assert ("GET", "/search") in {(method, path.split("?")[0]) for method, path in requests}
    assert sum(method == "POST" for method, _ in requests) <= 1, "refused once, not asked again"


def test_scenes_come_out_of_it(api, aoi):
    catalog = load_catalog(f"{api.url}/collections/{COLLECTION}")
    catalog = dataclasses.replace(catalog, hosts=("data.example.org",))
    found = search(catalog, aoi, "2024-05-01T00:00:00Z", "2024-06-30T00:00:00Z", 100.0)
    assert len(found.scenes) == len(DAYS)
    assert {scene.offset.offset_dn for scene in found.scenes} == {-1000}


@pytest.mark.parametrize("command", ["dry", "run"])
def test_an_unknown_collection_is_named_with_the_known(api, aoi, tmp_path, capsys, command):
    path = write_aoi(tmp_path / "aoi.geojson", box(420_000, 5_070_000, 425_000, 5_075_000))
    words = ["--aoi", path, "--catalog", f"{api.url}/collections/sentinel-2-12a", "--out", tmp_path / "x.zarr"]
    words += ["--start", "2024-05-01", "--end", "2024-05-31", *(["--dry-run"] if command == "dry" else [])]
    assert main([str(word) for word in words]) in (2, 3)
    said = capsys.readouterr().err
    assert "sentinel-2-12a" in said
    assert COLLECTION in said
    assert len(without_log(said).splitlines()) == 1


def test_a_run_from_it_is_that_from_a_folder(api, tmp_path, capsys):
    records = [
        make_scene(tmp_path, scene_id="S2A_MSIL2A_ONE", seed=1, size_m=1800, offset_dn=-1000, cloud_fraction=0.1),
        make_scene(
            tmp_path, scene_id="S2B_MSIL2A_TWO", seed=1, size_m=1800, date="2024-06-22T10:20:31Z", cloud_pct=40.0
        ),
    ]
    aoi = write_aoi(tmp_path / "aoi.geojson", box(LEFT + 217, TOP - 1490, LEFT + 1533, TOP - 311))
    (tmp_path / "golden").mkdir()
    run(config_for(make_archive(tmp_path / "golden", records), chunk_px=240), aoi, tmp_path / "golden.zarr")
    faults = Faults()
    with file_server(tmp_path, faults) as files:
        items = []
        for scene in records:
            item = to_item(scene) | {"collection": "synthetic"}
            item["properties"]["constellation"] = "sentinel-2"
            for asset in item["assets"].values():
                asset["href"] = f"{files}/{Path(asset['href']).relative_to(tmp_path)}"
            items.append(json.loads(json.dumps(item)))
        api.load("items", items)
        toml = tmp_path / "pgstac.toml"
        shipped = (Path(__file__).parents[2] / "catalogs" / "planetary-computer.toml").read_text()
        bands = "[bands]" + shipped.partition("[bands]")[2]
        toml.write_text(
            f'name = "pgstac"\nurl = "{api.url}"\ncollection = "synthetic"\nscl = ["SCL"]\n'
            f'hosts = ["{files.removeprefix("http://")}"]\noffset_rule = "baseline"\n\n{bands}'
        )
        code = main([str(word) for word in (
            "--aoi", aoi, "--catalog", toml, "--out", tmp_path / "run.zarr", "--start", "2024-06-01", "--end",
            "2024-06-30", "--sr", "bicubic", "--max-cloud", "100", "--chunk-px", "240", "--unit-chunks", "2",
            "--cluster", "inline",
        )])  # fmt: skip
    assert code == 0, capsys.readouterr().err
    assert chunk_digests(tmp_path / "run.zarr") == chunk_digests(tmp_path / "golden.zarr")
    assert faults.requests
