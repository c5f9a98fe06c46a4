"""An indexed job that writes into an object store: its containers' commands, run here as processes of their own."""

import os
import signal
import subprocess
import sys
import time

import pytest
import yaml

from pipeline import submit
from pipeline.planning.plan import load_plan
from pipeline.store import layout
from pipeline.store.place import place_of
from tests.deploy.test_manifests import named, pod_of, validate
from tests.running.conftest import config_for, run
from tests.running.test_object_store import assert_like, stored
from tests.store.s3_server import KEY_ID, SECRET, Fault, s3_server

PARTS = 8
URL = "s3://bucket/country/run.zarr"


@pytest.fixture(scope="module")
def server():
    with s3_server() as rig:
        yield rig


@pytest.fixture
def manifests(archive, aoi, tmp_path, monkeypatch, capsys, server):
    """The documents that submit writes for a store in the bucket, and the area's files as pods see them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.toml").write_text(
        'catalog = "/data/archive.json"\nsr = "bicubic"\nchunk_px = 120\nunit_chunks = 1\nmax_cloud = 100\n'
        'bands = ["B02", "B03", "B04"]\n'
    )
    code = submit.main([
        "--target", "kubernetes", "--manifest", "out", "--aoi", str(aoi), "--config", "run.toml", "--out", URL,
        "--array", str(PARTS), "--secret", "keys", "--env", f"AWS_ENDPOINT_URL=http://{server.host}",
        "--env", "AWS_ALLOW_HTTP=true", "--env", "AWS_REGION=us-east-1", "--env", "SEN2FINE_LEASE_S=5",
    ])  # fmt: skip
    assert code == 0, capsys.readouterr().err
    found = [document for path in sorted((tmp_path / "out").glob("*.yaml")) for document in
             yaml.safe_load_all(path.read_text())]  # fmt: skip
    for name, text in named(found, "-area")["data"].items():
        (tmp_path / f"there_{name}").write_text(text.replace("/data/archive.json", str(archive)))
    return found


@pytest.fixture
def start(manifests, tmp_path):
    """Return a function that starts a job's container as Kubernetes would: arguments, environment and secret."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (folder / "python").chmod(0o755)
    processes = []

    def start(end, index=0):
        (container,) = pod_of(named(manifests, end))["containers"]
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "SEN2FINE_LEASE"))},
            **{entry["name"]: entry["value"] for entry in container.get("env", ())},
            **named(manifests, "-run-run")["data"],
            "AWS_ACCESS_KEY_ID": KEY_ID,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "JOB_COMPLETION_INDEX": str(index),
            "PATH": f"{folder}:{os.environ['PATH']}",
        }
        sources = [key for source in container["envFrom"] for key in source]
        assert sources == ["configMapRef", "secretRef"]
        arguments = [
            word.replace("/etc/sen2fine/", f"{tmp_path}/there_").replace("$(SEN2FINE_STORE)", URL)
            for word in container["args"]
        ]
        place = tmp_path / f"pod{len(processes)}"
        place.mkdir()
        process = subprocess.Popen(
            arguments,
            env=environment,
            cwd=place,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def ended(process):
    """The exit code of a process, whose words hold no secret."""
    out, err = process.communicate(timeout=240)
    assert KEY_ID not in out + err
    assert SECRET not in out + err
    return process.returncode, err


def test_manifests_for_a_bucket_need_no_claim(manifests, server):
    for document in manifests:
        validate(document)
    volumes = [
        volume for end in ("-plan", "-array", "-finalise") for volume in pod_of(named(manifests, end))["volumes"]
    ]
    assert not [volume for volume in volumes if "persistentVolumeClaim" in volume]
    assert [volume for volume in volumes if volume["name"] == "data"] == [{"name": "data", "emptyDir": {}}] * 3
    port = int(server.host.rpartition(":")[2])
    policy = named(manifests, "sen2fine-run")  # named as the whole run
    assert {"port": port, "protocol": "TCP"} in policy["spec"]["egress"][-1]["ports"]
    text = yaml.safe_dump_all(manifests)
    assert KEY_ID not in text
    assert SECRET not in text


@pytest.mark.long
@pytest.mark.slow
def test_parts_wait_for_the_plan_one_is_killed_and_the_store_is_that_of_one_run(start, server, archive, aoi, tmp_path):
    one = tmp_path / "one.zarr"
    run(config_for(archive, chunk_px=120, unit_chunks=1, bands=("B02", "B03", "B04")), aoi, one)
    sound = {path.relative_to(one).as_posix(): path.read_bytes() for path in one.rglob("*") if path.is_file()}
    units = list(load_plan(one).units())
    assert len(units) >= 2 * PARTS

    first = start("-array", index=0)  # before there is a plan
    plan = start("-plan")
    code, err = ended(plan)
    assert code == 0, err
    code, err = ended(first)
    assert code == 0, err

    server.faults[:] = [Fault("PUT", "receipts", "slow", times=10**6)]
    victim = start("-array", index=1)
    place, until = place_of(URL), time.monotonic() + 120
    done = len(place.names("_run/receipts"))
    while len(place.names("_run/receipts")) == done and victim.poll() is None and time.monotonic() < until:
        time.sleep(0.02)
    if victim.poll() is None:
        os.killpg(victim.pid, signal.SIGKILL)
    ended(victim)
    server.faults.clear()
    for index in (1, *range(2, PARTS)):  # the first is the next try of the killed one
        code, err = ended(start("-array", index=index))
        assert code == 0, err
    code, err = ended(start("-finalise"))
    assert code == 0, err
    assert layout.status(URL) == layout.STATUS_COMPLETE
    assert_like(stored(server, URL), sound)
