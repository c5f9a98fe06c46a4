"""Stopping and going on: signals, kills at any moment, damage, other settings."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline import check
from pipeline.check import examine
from pipeline.planning.plan import load_plan
from pipeline.run import main
from pipeline.store import layout
from pipeline.store.keys import RUN_FOLDER
from tests.running.conftest import chunk_digests, config_for, run

BANDS = ("B02", "B03", "B04")
COMMON = (
    "--sr",
    "bicubic",
    "--chunk-px",
    "120",
    "--unit-chunks",
    "1",
    "--max-cloud",
    "100",
    "--bands",
    ",".join(BANDS),
)


def command(archive, aoi, store, *more):
    return [
        sys.executable,
        "-m",
        "pipeline.run",
        "--aoi",
        str(aoi),
        "--catalog",
        str(archive),
        "--out",
        str(store),
        *COMMON,
        *more,
    ]


def start(archive, aoi, store, *more):
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command(archive, aoi, store, *more), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True, env=env,
    )  # fmt: skip


INLINE = ("--cluster", "inline")  # where workers tell nothing; they take ten seconds of a processor to start


def go_on(archive, aoi, store, *more):
    """The same command in this process; returns its exit code."""
    return main(command(archive, aoi, store, *more)[3:])


def receipts(store):
    folder = store / RUN_FOLDER / "receipts"
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.json")} if folder.is_dir() else {}


def wait_for_receipts(store, count, process, limit_s=120):
    until = time.monotonic() + limit_s
    while time.monotonic() < until and process.poll() is None:
        if len(receipts(store)) >= count:
            return
        time.sleep(0.02)
    pytest.fail(f"{len(receipts(store))} receipts, expected {count}; {process.communicate()}")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, archive, aoi):
    store = tmp_path_factory.mktemp("calm") / "calm.zarr"
    run(config_for(archive, bands=BANDS, unit_chunks=1), aoi, store)
    return chunk_digests(store)


@pytest.mark.slow
@pytest.mark.parametrize("cluster", ["inline", "local"])
def test_kill_9_and_the_same_command_give_the_same_bytes(archive, aoi, tmp_path, undisturbed, cluster, capsys):
    """Killed twice in one process; once with workers, which take ten seconds of a processor to start."""
    store = tmp_path / "killed.zarr"
    for at_least in (1, 4) if cluster == "inline" else (2,):
        process = start(archive, aoi, store, "--cluster", cluster, "--workers", "2")
        wait_for_receipts(store, at_least, process)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    before = receipts(store)
    assert layout.status(store) == layout.STATUS_INCOMPLETE
    assert go_on(archive, aoi, store, "--json", "--cluster", "inline") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["resumed"] == len(before)
    assert report["computed"] == report["units"] - len(before)
    after = receipts(store)
    assert {name: after[name] for name in before} == before  # nothing that was done is done again
    assert chunk_digests(store) == undisturbed
    assert not list(store.rglob("*.partial"))
    assert examine(store, "full").found.damaged == {}


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_drains_exits_75_and_continues(archive, aoi, tmp_path, undisturbed, number):
    store = tmp_path / "stopped.zarr"
    process = start(archive, aoi, store, "--cluster", "local", "--workers", "2")
    wait_for_receipts(store, 1, process)
    os.killpg(process.pid, signal.SIGINT) if number == signal.SIGINT else process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 75, errors
    assert "run the same command again" in errors
    assert "Traceback" not in errors
    assert 0 < len(receipts(store)) < sum(1 for _ in load_plan(store).units())
    assert go_on(archive, aoi, store, "--cluster", "inline") == 0
    assert chunk_digests(store) == undisturbed


@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_its_unit_done_again(archive, aoi, tmp_path, undisturbed):
    import psutil

    store = tmp_path / "worker.zarr"
    process = start(archive, aoi, store, "--cluster", "local", "--workers", "2")
    wait_for_receipts(store, 1, process)
    workers = [
        child
        for child in psutil.Process(process.pid).children(recursive=True)
        if "spawn_main" in " ".join(child.cmdline())
    ]
    assert workers
    workers[0].kill()
    _, errors = process.communicate(timeout=180)
    assert process.returncode == 0, errors
    assert chunk_digests(store) == undisturbed


@pytest.mark.slow
def test_damage_is_found_and_mended(archive, aoi, tmp_path, undisturbed, capsys):
    store = tmp_path / "damaged.zarr"
    run(config_for(archive, bands=BANDS, unit_chunks=1), aoi, store)
    flipped, cut, gone = sorted(path for path in (store / "reflectance" / "c").rglob("*") if path.is_file())[:3]
    content = bytearray(flipped.read_bytes())
    content[len(content) // 2] ^= 4
    flipped.write_bytes(bytes(content))
    cut.write_bytes(cut.read_bytes()[:-10])
    gone.unlink()
    assert check.main([str(store)]) == 7
    capsys.readouterr()
    assert check.main([str(store), "--verify", "full"]) == 7
    assert capsys.readouterr().out.count("  damaged  ") == 3
    assert go_on(archive, aoi, store, "--verify", "full", "--json", "--cluster", "inline") == 0
    assert json.loads(capsys.readouterr().out)["computed"] == 3
    assert chunk_digests(store) == undisturbed
    assert check.main([str(store), "--verify", "full"]) == 0


@pytest.mark.slow
def test_a_finished_run_again_computes_nothing(archive, aoi, tmp_path, capsys):
    """Here and in a process of its own."""
    store = tmp_path / "twice.zarr"
    assert go_on(archive, aoi, store, "--json", *INLINE) == 0
    outcomes = [json.loads(capsys.readouterr().out)]
    again = subprocess.run(command(archive, aoi, store, "--json", *INLINE), capture_output=True, text=True)
    outcomes.append(json.loads(again.stdout))
    assert outcomes[0]["computed"] == outcomes[0]["units"] == outcomes[1]["resumed"]
    assert outcomes[1]["computed"] == 0


@pytest.mark.slow
def test_resuming_does_not_search_again(archive, aoi, tmp_path, capsys):
    """New scenes in the archive do not change a run that has begun."""
    from pathlib import Path

    store, index = tmp_path / "frozen.zarr", Path(archive).with_name("copy.json")
    index.write_text(Path(archive).read_text())
    assert go_on(index, aoi, store, *INLINE) == 0
    assert "searching" in capsys.readouterr().err
    index.write_text("{}")
    assert go_on(index, aoi, store, *INLINE) == 0
    assert "searching" not in capsys.readouterr().err


@pytest.mark.slow
def test_other_settings_are_refused_with_what_differs(archive, aoi, tmp_path, capsys):
    store = tmp_path / "other.zarr"
    run(config_for(archive, bands=BANDS, unit_chunks=1), aoi, store)
    before = chunk_digests(store)
    assert go_on(archive, aoi, store, "--seed", "7") == 2
    assert "seed: 0 -> 7" in capsys.readouterr().err
    assert chunk_digests(store) == before
    assert go_on(archive, aoi, store, "--seed", "7", "--overwrite", *INLINE) == 0
    assert load_plan(store).config.seed == 7


@pytest.mark.parametrize("content", ["file", "folder", "zarr"])
def test_what_is_not_ours_is_never_touched(archive, aoi, tmp_path, content, capsys):
    import zarr

    target = tmp_path / "precious"
    if content == "file":
        target.write_text("thesis")
    elif content == "folder":
        target.mkdir()
        (target / "thesis.txt").write_text("thesis")
    else:
        zarr.create_group(target, attributes={"mine": True})
    before = {path: path.read_bytes() for path in [target, *target.rglob("*")] if path.is_file()}
    for more in ((), ("--overwrite",)):
        assert go_on(archive, aoi, target, *more) == 2
        assert "not a store of this pipeline" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in [target, *target.rglob("*")] if path.is_file()} == before


def test_check_of_an_unfinished_store_says_75_and_what_is_to_do(archive, aoi, tmp_path):
    from pipeline.aoi.aoi import read_aoi
    from pipeline.planning.planner import make_plan
    from pipeline.running.driver import prepare

    store = tmp_path / "begun.zarr"
    prepare(make_plan(config_for(archive, bands=BANDS), read_aoi(str(aoi))), store)
    outcome = subprocess.run([sys.executable, "-m", "pipeline.check", str(store)], capture_output=True, text=True)
    assert outcome.returncode == 75
    assert "to do" in outcome.stdout
    nothing = subprocess.run([sys.executable, "-m", "pipeline.check", str(tmp_path)], capture_output=True, text=True)
    assert nothing.returncode == 2
    assert "holds no plan" in nothing.stderr


@pytest.mark.slow
def test_two_runs_of_one_store_do_not_meet(archive, aoi, tmp_path, capsys):
    from pipeline.store.lease import lease

    store = tmp_path / "held.zarr"
    run(config_for(archive, bands=BANDS, unit_chunks=1), aoi, store)
    with lease(store):
        before = chunk_digests(store)
        second = subprocess.run(command(archive, aoi, store), capture_output=True, text=True)
        assert second.returncode == 75
        assert f"process {os.getpid()}" in second.stderr
        for more in (("--overwrite",), ("--overwrite", "--plan-only")):
            capsys.readouterr()
            assert go_on(archive, aoi, store, *more) == 75
            said = capsys.readouterr().err
            assert f"process {os.getpid()}" in said
            assert "delete" not in said + second.stderr
        assert chunk_digests(store) == before
    assert go_on(archive, aoi, store) == 0
    assert not (store / RUN_FOLDER / "lease.json").exists()


@pytest.fixture(scope="module")
def sound(archive, aoi, tmp_path_factory):
    store = tmp_path_factory.mktemp("sound") / "sound.zarr"
    run(config_for(archive, bands=BANDS, unit_chunks=5), aoi, store)
    return store


@pytest.mark.parametrize("damage", ["x/c/0", "band/c/0", "x/zarr.json", "spatial_ref/zarr.json"])
def test_full_verification_covers_axes_and_metadata(sound, tmp_path, damage):
    store = Path(shutil.copytree(sound, tmp_path / "axes.zarr"))
    assert examine(store, "full").exit_code == 0
    (store / damage).unlink()
    report = examine(store, "full")
    assert report.exit_code == 7
    assert damage in report.found.damaged


@pytest.mark.slow
def test_a_failing_picture_does_not_fail_a_finished_store(archive, aoi, tmp_path, capsys):
    store = tmp_path / "plain.zarr"
    run(config_for(archive, bands=BANDS, unit_chunks=1), aoi, store)
    chunk = next(path for path in sorted((store / "reflectance" / "c").rglob("*")) if path.is_file())
    chunk.write_bytes(bytes(chunk.stat().st_size))
    assert go_on(archive, aoi, store) == 0
    said = capsys.readouterr().err
    assert "--verify full" in said
    assert "Traceback" not in said
