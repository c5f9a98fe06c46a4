"""A store on Ceph's S3 gateway: killed, resumed, verified byte by byte, equal to one in a folder."""

import json
import os
import signal
import subprocess
import time
import uuid
from pathlib import Path

import pytest

from pipeline import check, index
from pipeline.run import main
from tests.archive.synthetic import make_archive, make_scene
from tests.conftest import without_log
from tests.running.conftest import LEFT, PYTHON, SIZE, TOP, box, config_for, run, write_aoi
from tests.servers import ceph

pytestmark = [pytest.mark.ceph, pytest.mark.slow]
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def gateway():
    if reason := ceph.missing():
        pytest.skip(reason)
    with ceph.ceph_gateway() as running:
        yield running


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """(archive, AOI) of two synthetic scenes."""
    folder = tmp_path_factory.mktemp("archive")
    scenes = [
        make_scene(folder, scene_id="S2A_ONE", seed=1, size_m=SIZE, offset_dn=-1000, cloud_fraction=0.1),
        make_scene(folder, scene_id="S2B_TWO", seed=1, size_m=SIZE, date="2024-06-22T10:20:31Z", cloud_pct=30.0),
    ]
    aoi = write_aoi(folder / "aoi.geojson", box(LEFT + 217, TOP - 1490, LEFT + 1533, TOP - 311))
    return make_archive(folder, scenes), aoi


@pytest.fixture
def url(gateway, monkeypatch, tmp_path):
    for name, value in gateway.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    return f"s3://{ceph.BUCKET}/{uuid.uuid4().hex}/run.zarr"


def words(place, url, *more):
    archive, aoi = place
    return [str(word) for word in (
        "--aoi", aoi, "--catalog", archive, "--out", url, "--sr", "bicubic", "--chunk-px", "240", "--unit-chunks", "1",
        "--max-cloud", "100", "--bands", "B02,B03,B04", "--cluster", "inline", *more,
    )]  # fmt: skip


def keys(gateway, url):
    """(client, prefix, keys below the store)."""
    import boto3

    client = boto3.client(
        "s3", endpoint_url=gateway.url, aws_access_key_id=ceph.KEY_ID, aws_secret_access_key=ceph.SECRET,
        region_name="default",
    )  # fmt: skip
    prefix = url.removeprefix(f"s3://{ceph.BUCKET}/") + "/"
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=ceph.BUCKET, Prefix=prefix)
    listed = [entry["Key"].removeprefix(prefix) for page in pages for entry in page.get("Contents", [])]
    return client, prefix, listed


def objects(gateway, url):
    """{key below the store: bytes}."""
    client, prefix, listed = keys(gateway, url)
    return {key: client.get_object(Bucket=ceph.BUCKET, Key=prefix + key)["Body"].read() for key in listed}


def test_a_run_killed_twice_equals_that_into_a_folder(gateway, place, url, tmp_path, capsys):
    archive, aoi = place
    run(config_for(archive, chunk_px=240, unit_chunks=1, bands=("B02", "B03", "B04")), aoi, tmp_path / "sound.zarr")
    sound = {
        path.relative_to(tmp_path / "sound.zarr").as_posix(): path.read_bytes()
        for path in (tmp_path / "sound.zarr").rglob("*")
        if path.is_file()
    }
    for enough in (2, 5):
        process = subprocess.Popen(
            [PYTHON, "-m", "pipeline.run", *words(place, url)], cwd=tmp_path, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        until = time.monotonic() + 240
        while time.monotonic() < until and process.poll() is None:
            if sum(key.startswith("_run/receipts/") for key in keys(gateway, url)[2]) >= enough:
                break
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert json.loads(objects(gateway, url)["zarr.json"])["attributes"]["status"] != "complete"
    until = time.monotonic() + 660  # the killed run's lease has to lapse
    while (code := main(words(place, url))) != 0 and time.monotonic() < until:
        assert code in (2, 75), capsys.readouterr().err
        time.sleep(5)
    assert code == 0, capsys.readouterr().err
    found = objects(gateway, url)
    chunks = {key for key in sound if "/c/" in key}
    assert chunks
    assert {key for key in found if "/c/" in key} == chunks
    assert [key for key in sorted(chunks) if found[key] != sound[key]] == []
    assert not [word for word in (ceph.KEY_ID, ceph.SECRET) for content in found.values() if word.encode() in content]

    capsys.readouterr()
    assert check.main([url, "--verify", "full"]) == 0
    assert "sound" in capsys.readouterr().out
    assert index.main([url, "--out", str(tmp_path / "stores.json")]) == 0


def test_a_damaged_object_is_found_and_repaired(gateway, place, url, capsys):
    import boto3

    assert main(words(place, url)) == 0, capsys.readouterr().err
    before = objects(gateway, url)
    key = sorted(key for key in before if "reflectance/c/" in key)[0]
    client = boto3.client(
        "s3", endpoint_url=gateway.url, aws_access_key_id=ceph.KEY_ID, aws_secret_access_key=ceph.SECRET,
        region_name="default",
    )  # fmt: skip
    content = bytearray(before[key])
    content[len(content) // 2] ^= 1
    client.put_object(Bucket=ceph.BUCKET, Key=f"{url.removeprefix(f's3://{ceph.BUCKET}/')}/{key}", Body=bytes(content))
    assert check.main([url, "--verify", "full"]) == 7
    assert check.main([url, "--verify", "full", "--repair"]) == 0
    assert objects(gateway, url)[key] == before[key]


@pytest.mark.parametrize("variable", ["AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"])
def test_a_wrong_key_is_one_line_without_it(place, url, variable, monkeypatch, capsys):
    monkeypatch.setenv(variable, "CANARYwrongKey")
    assert main(words(place, url)) == 6
    said = capsys.readouterr().err
    assert len(without_log(said).splitlines()) == 1
    assert "CANARY" not in said
    assert ceph.SECRET not in said
