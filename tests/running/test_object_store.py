"""Runs into an object store: the same bytes as into a folder, whatever the server does, and no secret anywhere."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid

import numpy as np
import pytest

import pipeline
from pipeline import check
from pipeline.errors import UsageError
from pipeline.run import main
from pipeline.running.pools import open_pool
from pipeline.store import layout
from pipeline.store.place import place_of
from tests.conftest import without_log
from tests.running.conftest import config_for, run
from tests.store.s3_server import KEY_ID, SECRET, Fault, s3_server

CHUNKS = ("reflectance/c/", "quality/c/", "scl/c/")


@pytest.fixture(scope="module")
def server():
    with s3_server() as rig:
        yield rig


@pytest.fixture(scope="module")
def sound(archive, aoi, tmp_path_factory):
    """A run into a folder: {key: bytes} of all its files."""
    store = tmp_path_factory.mktemp("sound") / "sound.zarr"
    config = config_for(archive, chunk_px=240, unit_chunks=1, bands=("B02", "B03", "B04"), consistency="box")
    run(config, aoi, store)
    files = {path.relative_to(store).as_posix(): path.read_bytes() for path in store.rglob("*") if path.is_file()}
    return files


@pytest.fixture
def url(server, tmp_path, monkeypatch):
    """Address of a store to be, in an empty working folder; afterwards no secret is in any object or file."""
    monkeypatch.chdir(tmp_path)
    name = uuid.uuid4().hex
    yield f"s3://bucket/{name}/run.zarr"
    server.heal()
    written = [*server.objects(name).values(), *(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())]
    assert written
    assert not [word for word in (KEY_ID, SECRET) for content in written if word.encode() in content]


@pytest.fixture
def call(capsys):
    """Run a command; returns (exit code, stdout, stderr), which hold no secret."""

    def call(*words, program=main):
        code = program([str(word) for word in words])
        said = capsys.readouterr()
        assert not [word for word in (KEY_ID, SECRET) if word in said.out + said.err]
        assert "Traceback" not in said.err
        return code, said.out, said.err

    return call


def words(archive, aoi, url, *more):
    return ("--aoi", aoi, "--catalog", archive, "--out", url, "--sr", "bicubic", "--chunk-px", "240", "--unit-chunks",
            "1", "--max-cloud", "100", "--bands", "B02,B03,B04", "--consistency", "box", "--cluster", "inline",
            *more)  # fmt: skip


def stored(server, url):
    """{key: bytes} of a store's objects."""
    prefix = url.removeprefix("s3://bucket/")
    return {key.removeprefix(prefix + "/"): content for key, content in server.objects(prefix).items()}


def chunks(files):
    return {key: content for key, content in files.items() if key.startswith(CHUNKS)}


def facts(files):
    """What receipts say of the data."""
    receipts = [json.loads(content) for key, content in files.items() if key.startswith("_run/receipts/")]
    return {receipt["unit"]: (receipt["status"], receipt["chunks"], receipt["valid"]) for receipt in receipts}


def assert_like(found, sound):
    assert chunks(found) == chunks(sound)
    assert facts(found) == facts(sound)
    assert json.loads(found["zarr.json"])["attributes"]["status"] == layout.STATUS_COMPLETE
    assert {key for key in found if not key.startswith("_run/lease")} == set(sound)


@pytest.mark.slow
def test_a_run_in_parts_is_watched_from_elsewhere(archive, aoi, url, call):
    assert call(*words(archive, aoi, url, "--plan-only"))[0] == 0
    for number in (1, 3):
        assert call("--plan", url, "--shard-of", f"{number}/4", "--cluster", "inline")[0] == 0
    code, said, _ = call(url, "--watch", "--once", "--json", program=check.main)
    found = json.loads(said)
    assert code == 75
    assert [part["state"] for part in found["parts"]] == ["done", "waiting", "done", "waiting"]
    assert found["done"] == sum(part["done"] for part in found["parts"])
    code, said, err = call(url, "--once", program=check.main)
    assert (code, err) == (75, "")
    assert said.startswith(f"{url}: incomplete\n  units ")
    assert "2 done, 2 waiting of 4" in said


@pytest.mark.slow
def test_a_run_is_that_into_a_folder_chunk_by_chunk(archive, aoi, url, server, sound, call, tmp_path):
    code, said, err = call(*words(archive, aoi, url))
    assert code == 0, err
    assert f"{url} is complete" in said
    assert "picture   run.png (in this folder, since the store is remote)" in said
    assert (tmp_path / "run.png").is_file()
    found = stored(server, url)
    assert_like(found, sound)
    assert set(found) == set(sound)  # the lease is given back, and nothing temporary is left
    units = len(facts(sound))
    puts = [path for method, path in server.asked if method == "PUT" and "/lease" not in path]
    assert len([path for path in puts if "/receipts/" in path]) == units
    assert puts[-1].endswith("_run/COMPLETE.json")  # publication comes last

    assert call(url, "--verify", "full", program=check.main)[0] == 0
    dataset = pipeline.open_store(url)
    assert dataset.reflectance.dtype == np.float32
    assert float(dataset.reflectance.notnull().mean()) > 0.5
    server.faults[:] = [Fault("HEAD", "", 500, times=2), Fault("HEAD", "", "lost", after=3)]
    code, said, _ = call(*words(archive, aoi, url, "--json"))
    assert [fault.times for fault in server.faults] == [0, 0]
    assert (code, json.loads(said)["computed"], json.loads(said)["resumed"]) == (0, 0, units)
    code, _, err = call(*words(archive, aoi, url, "--seed", "7"))
    assert code == 2
    assert "seed: 0 -> 7" in err


@pytest.mark.slow
def test_parts_publication_damage_and_repair(archive, aoi, url, server, sound, call):
    assert call(*words(archive, aoi, url, "--plan-only"))[0] == 0
    assert call("--plan", url, "--shard-of", "1/2", "--cluster", "inline")[0] == 0
    code, _, err = call("--plan", url, "--finalise")
    assert code == 75
    assert "units are missing" in err
    assert call("--plan", url, "--shard-of", "2/2", "--cluster", "inline")[0] == 0
    assert call("--plan", url, "--finalise")[0] == 0
    assert_like(stored(server, url), sound)

    flipped, gone, receipt = (next(key for key in sound if key.startswith(start)) for start in
                              ("reflectance/c/0/0/0/", "quality/c/0/1", "_run/receipts/"))  # fmt: skip
    prefix = url.removeprefix("s3://bucket/")
    server.spoil(f"{prefix}/{flipped}", bytes(len(sound[flipped])))
    server.spoil(f"{prefix}/{gone}", None)
    assert call(url, program=check.main)[0] == 7
    server.spoil(f"{prefix}/{receipt}", b"{")
    code, said, _ = call(url, "--verify", "full", "--repair", program=check.main)
    assert code == 0, said
    assert_like(stored(server, url), sound)


@pytest.mark.slow
def test_what_a_server_may_do_changes_no_byte(archive, aoi, url, server, sound, call, monkeypatch):
    monkeypatch.setenv("SEN2FINE_STORE_PATIENCE_S", "5")  # the first PUT, of the lease, meets 503 three times
    server.faults[:] = [
        Fault("PUT", "", 503, times=3),
        Fault("PUT", "reflectance/c/", "lost", times=2, after=1),
        Fault("PUT", "quality/c/", 500, times=2, after=2),
        Fault("PUT", "receipts", 500, times=2, after=1),
        Fault("PUT", "receipts", "lost", times=1, after=3),
        Fault("PUT", "lease", "lost"),
        Fault("PUT", "COMPLETE", "lost"),
        Fault("GET", "c/0/0/", 503, times=2),
        Fault("GET", "receipts", "lost"),
        Fault("PUT", "zarr.json", "slow", times=2, after=4),
    ]
    code, _, err = call(*words(archive, aoi, url))
    assert code == 0, err
    assert [fault for fault in server.faults if fault.times > 0] == []
    assert_like(stored(server, url), sound)


@pytest.mark.slow
def test_an_outage_ends_with_75_names_the_host_and_costs_no_unit(archive, aoi, url, server, sound, call, monkeypatch):
    monkeypatch.setenv("SEN2FINE_STORE_PATIENCE_S", "0.3")
    server.faults[:] = [Fault("PUT", "receipts", "die", after=2)]
    code, _, err = call(*words(archive, aoi, url, "--max-outage", "0"))
    assert code == 75
    assert len(without_log(err).splitlines()) == 1
    assert "the object store does not answer" in err
    assert server.host in err
    code, _, err = call(*words(archive, aoi, url, "--max-outage", "0"))  # not yet back: said before any work
    assert code == 75
    assert server.host in err
    server.heal()
    code, said, err = call(*words(archive, aoi, url, "--json"))
    assert code == 0, err
    assert json.loads(said)["resumed"] == 2
    assert_like(stored(server, url), sound)


@pytest.mark.slow
def test_an_outage_that_passes_is_sat_out(archive, aoi, url, server, sound, call, monkeypatch):
    monkeypatch.setenv("SEN2FINE_STORE_PATIENCE_S", "0.3")
    monkeypatch.setattr("pipeline.running.unit_queue.Patience.__init__.__defaults__", (0.2, 0.2, 60.0))
    server.faults[:] = [Fault("PUT", "quality/c/", "die", after=2)]

    def revive():
        while not server.dead:
            time.sleep(0.02)
        time.sleep(0.6)
        server.dead = False

    helper = threading.Thread(target=revive, daemon=True)
    helper.start()
    code, said, err = call(*words(archive, aoi, url, "--json"))
    helper.join()
    assert code == 0, err
    assert json.loads(said)["computed"] == len(facts(sound))
    assert_like(stored(server, url), sound)


@pytest.mark.slow
def test_kill_9_then_the_same_command_and_a_second_run_beside_it(archive, aoi, url, server, sound, call):
    server.faults[:] = [Fault("PUT", "(receipts|/c/)", "slow", times=10**6)]
    command = [sys.executable, "-m", "pipeline.run", *map(str, words(archive, aoi, url, "--quiet"))]
    first = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    place, until = place_of(url), time.monotonic() + 120
    while len(place.names("_run/receipts")) < 2 and first.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    assert first.poll() is None, first.communicate()
    code, _, err = call(*words(archive, aoi, url))
    assert code == 75
    assert f"being written by process {first.pid}" in err
    os.killpg(first.pid, signal.SIGKILL)
    said = "".join(first.communicate())
    assert not [word for word in (KEY_ID, SECRET) if word in said]
    assert layout.status(url) == layout.STATUS_INCOMPLETE
    before = facts(stored(server, url))
    assert 2 <= len(before) < len(facts(sound))
    server.heal()
    code, said, err = call(*words(archive, aoi, url, "--json"))
    assert code == 0, err
    assert json.loads(said)["resumed"] == len(before)
    assert_like(stored(server, url), sound)


@pytest.mark.slow
def test_worker_processes_write_there_too(archive, aoi, url, server, sound, call):
    code, _, err = call(*words(archive, aoi, url, "--cluster", "local", "--workers", "2", "--quiet"))
    assert code == 0, err
    assert_like(stored(server, url), sound)


@pytest.mark.slow
def test_only_our_own_stores_are_overwritten(archive, aoi, url, server, sound, call):
    prefix = url.removeprefix("s3://bucket/")
    server.spoil(f"{prefix}/thesis.txt", b"thesis")
    for more in ((), ("--overwrite",)):
        code, _, err = call(*words(archive, aoi, url, *more))
        assert code == 2
        assert "not a store of this pipeline" in err
    assert stored(server, url) == {"thesis.txt": b"thesis"}
    server.spoil(f"{prefix}/thesis.txt", None)
    assert call(*words(archive, aoi, url, "--plan-only", "--seed", "7"))[0] == 0
    code, _, err = call(*words(archive, aoi, url, "--overwrite"))
    assert code == 0, err
    assert_like(stored(server, url), sound)


def test_bad_addresses_are_one_clear_line(archive, aoi, call, server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for out, code, part in (
        ("s3://nowhere/run.zarr", 6, "no such bucket"),
        ("s3://bucket", 2, "a name below the bucket"),
        ("ftp://host/run.zarr", 2, "is not a valid store address"),
        ("https://example.com/run.zarr", 2, "can only be read"),
        (f"s3://{KEY_ID}:{SECRET}@bucket/run.zarr", 2, "in the environment only"),
    ):
        found, _, err = call(*words(archive, aoi, out))
        assert (found, len(without_log(err).splitlines())) == (code, 1), err
        assert part in err
    code, _, err = call("s3://bucket/none.zarr", program=check.main)
    assert code == 2
    assert "holds no plan" in err


def test_workers_as_slurm_jobs_need_a_folder(server):
    with (
        pytest.raises(UsageError, match="a folder that all nodes see"),
        open_pool("slurm", 1, "s3://bucket/run.zarr", "d"),
    ):
        pass
