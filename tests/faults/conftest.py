"""Scenes behind a faulty file server, and the digests of a run that nothing disturbed."""

import json
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.archive.stac.index_file import to_item
from pipeline.bands import BAND_NAMES
from pipeline.run import main
from tests.archive.stac_server import stac_server
from tests.archive.synthetic import make_archive, make_scene
from tests.faults.files import Faults, file_server
from tests.running.conftest import LEFT, TOP, box, chunk_digests, config_for, run, write_aoi


@pytest.fixture(scope="session")
def scenes(tmp_path_factory):
    """(folder, records) of two synthetic scenes with files of several blocks."""
    folder = tmp_path_factory.mktemp("faulty")
    return folder, [
        make_scene(folder, scene_id="S2A_MSIL2A_ONE", seed=1, size_m=1800, offset_dn=-1000, cloud_fraction=0.1),
        make_scene(folder, scene_id="S2B_MSIL2A_TWO", seed=1, size_m=1800, date="2024-06-22T10:20:31Z", cloud_pct=40.0),
    ]


@pytest.fixture(scope="session")
def aoi(tmp_path_factory):
    path = tmp_path_factory.mktemp("aoi") / "region.geojson"
    return write_aoi(path, box(LEFT + 217, TOP - 1490, LEFT + 1533, TOP - 311))


@pytest.fixture(scope="session")
def golden(scenes, aoi, tmp_path_factory):
    """crc32 of every chunk of a local run without faults: the yardstick of all rows."""
    folder = tmp_path_factory.mktemp("golden")
    run(config_for(make_archive(folder, scenes[1]), chunk_px=240), aoi, folder / "golden.zarr")
    return chunk_digests(folder / "golden.zarr")


@contextmanager
def online(scenes, rule, signing="none", listed=lambda href: href, also=lambda item: ()):
    """The scenes behind a STAC API and a faulty file server; yields (catalogue TOML, faults).

    `listed` makes of an asset's address what the API lists; `also` gives further items for each.
    """
    folder, records = scenes
    faults = Faults(rule)
    with file_server(folder, faults) as files:
        items = []
        for scene in records:
            item = to_item(scene)
            item["collection"] = "sentinel-2-l2a"
            item["properties"]["constellation"] = "sentinel-2"
            for asset in item["assets"].values():
                asset["href"] = listed(f"{files}/{Path(asset['href']).relative_to(folder)}")
            items += json.loads(json.dumps([item, *also(item)]))
        with stac_server(items) as api:
            bands = "\n".join(f'{name} = ["{name}"]' for name in BAND_NAMES)
            toml = folder / f"{files.rpartition(':')[2]}.toml"
            toml.write_text(
                f'name = "loopback"\nurl = "{api.url}"\ncollection = "sentinel-2-l2a"\nscl = ["SCL"]\n'
                f'hosts = ["{files.removeprefix("http://")}"]\noffset_rule = "baseline"\nsigning = "{signing}"\n\n'
                f"[bands]\n{bands}\n"
            )
            yield toml, faults


def words_for(toml, aoi, store):
    """Arguments of `pipeline.run` on the faulty archive; the last one is the cluster."""
    words = [
        *("--aoi", aoi, "--catalog", toml, "--out", store, "--start", "2024-06-01", "--end", "2024-06-30"),
        *("--sr", "bicubic", "--max-cloud", "100", "--chunk-px", "240", "--unit-chunks", "2", "--cluster", "inline"),
    ]
    return [str(word) for word in words]


def call(toml, aoi, store):
    """`pipeline.run` on the faulty archive in this process; returns its exit code."""
    return main(words_for(toml, aoi, store))
