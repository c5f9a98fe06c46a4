"""The main job as users run it: a STAC API, files over HTTP by ranges, one command. All on loopback."""

import json
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import numpy as np
import pytest

from pipeline.archive.index_file import to_item
from pipeline.bands import BAND_NAMES
from pipeline.run import main
from pipeline.store import layout
from tests.archive.stac_server import serving, stac_server
from tests.archive.synthetic import make_archive, make_scene
from tests.execution.conftest import SIZE, config_for, run, values

NAMES = (*BAND_NAMES, "SCL")


def ranges_of(folder, gone):
    """Handler that serves `folder` by ranges, and 404 for names in `gone`."""

    class Files(BaseHTTPRequestHandler):
        def log_message(self, *_args):
            pass

        def do_HEAD(self):
            self.do_GET()

        def do_GET(self):
            path = folder / self.path.split("?")[0].lstrip("/")
            if path.name in gone or not path.is_file():
                self.send_error(404)
                return
            content = path.read_bytes()
            first, last = 0, len(content) - 1
            asked = self.headers.get("Range")
            if asked:
                low, _, high = asked.removeprefix("bytes=").partition("-")
                first, last = int(low), min(int(high or last), last)
            self.send_response(206 if asked else 200)
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
            self.send_header("Content-Length", str(last - first + 1))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content[first : last + 1])

    return Files


@contextmanager
def archive_online(folder, scenes, gone=()):
    """A STAC API over `scenes` with their files on a second server; yields the catalogue's TOML."""
    with serving(ranges_of(folder, gone)) as files:
        items = []
        for scene in scenes:
            item = to_item(scene)
            item["collection"] = "sentinel-2-l2a"
            item["properties"]["constellation"] = "sentinel-2"
            for asset in item["assets"].values():
                asset["href"] = f"{files}/{Path(asset['href']).relative_to(folder)}"
            items.append(json.loads(json.dumps(item)))
        with stac_server(items) as api:
            bands = "\n".join(f'{name} = ["{name}"]' for name in BAND_NAMES)
            toml = folder / "loopback.toml"
            toml.write_text(
                f'name = "loopback"\nurl = "{api.url}"\ncollection = "sentinel-2-l2a"\nscl = ["SCL"]\n'
                f'hosts = ["{files.removeprefix("http://")}"]\noffset_rule = "baseline"\n\n[bands]\n{bands}\n'
            )
            yield toml


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("online")
    return folder, [
        make_scene(folder, scene_id="S2A_MSIL2A_ONE", seed=1, size_m=SIZE, offset_dn=-1000, cloud_fraction=0.1),
        make_scene(folder, scene_id="S2B_MSIL2A_TWO", seed=1, size_m=SIZE, date="2024-06-22T10:20:31Z", cloud_pct=40.0),
    ]


def call(toml, aoi, store, *more):
    words = [
        *("--aoi", aoi, "--catalog", toml, "--out", store, "--start", "2024-06-01", "--end", "2024-06-30"),
        *("--sr", "bicubic", "--max-cloud", "100", "--chunk-px", "240", "--unit-chunks", "2", "--cluster", "inline"),
        *more,
    ]
    return main([str(word) for word in words])


def test_one_command_from_api_to_store_equals_the_local_run(scenes, aoi, tmp_path, capsys):
    folder, records = scenes
    run(config_for(make_archive(tmp_path, records), chunk_px=240), aoi, tmp_path / "local.zarr")
    with archive_online(folder, records) as toml:
        assert call(toml, aoi, tmp_path / "online.zarr") == 0, capsys.readouterr().err
    assert "2 used" in capsys.readouterr().out
    for name in ("reflectance", "scl", "quality"):
        assert np.array_equal(values(tmp_path / "local.zarr", name), values(tmp_path / "online.zarr", name)), name


def test_a_file_that_answers_404_ends_the_run_with_5_and_no_pixel_of_it(scenes, aoi, tmp_path, capsys):
    folder, records = scenes
    store = tmp_path / "gone.zarr"
    with archive_online(folder, records[1:], gone=("S2B_MSIL2A_TWO_B11.tif",)) as toml:
        assert call(toml, aoi, store) == 5
        said = capsys.readouterr().err
        assert "B11" in said
        assert "S2B_MSIL2A_TWO" in said
        assert len(said.strip().splitlines()) == 1
    assert layout.status(store) == layout.STATUS_INCOMPLETE
    assert not list(store.rglob("reflectance/c/**/*"))
