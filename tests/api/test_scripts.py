"""Runs with several workers from where users start them, in a folder that holds modules called as ours."""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time

import psutil
import pytest

from pipeline.errors import PipelineError, UsageError
from pipeline.running import local_cluster
from pipeline.running.local_cluster import local_workers
from tests.api.conftest import python, user_environment

SCRIPT = textwrap.dedent("""
    print("started", flush=True)
    import sen2fine
    ds = sen2fine.run(
        "region.geojson", "sample.zarr", catalog="sample", sr="bicubic", bands="B04", chunk_px=240, unit_chunks=1,
        cluster="local", workers=2,
    )
    print(dict(ds.sizes)["x"], ds.attrs["units"], flush=True)
""")
SAID = "started\n480 4\n"


@pytest.fixture
def folder(region):
    """The folder of a user with modules of their own, which must not be imported in any process."""
    here = region.parent
    mine = f"open({str(here / 'imported')!r}, 'a').write(__name__)\nraise SystemExit('the user\\'s was imported')\n"
    (here / "pipeline.py").write_text(mine)
    (here / "training").mkdir()
    (here / "training" / "__init__.py").write_text(mine)
    (here / "script.py").write_text(SCRIPT)
    yield here
    assert not (here / "imported").exists()


@pytest.mark.slow
@pytest.mark.parametrize("way", ["a script", "python -c", "standard input", "python -m"])
def test_a_run_without_a_guard_starts_once(folder, way):
    """One worker is spawned as two are; two are those of the script and of the notebook below."""
    code = SCRIPT if way == "a script" else SCRIPT.replace("workers=2", "workers=1")
    (folder / "script.py").write_text(code)
    words = {
        "a script": ["script.py"],
        "python -c": ["-c", code],
        "standard input": ["-"],
        "python -m": ["-m", "script"],
    }
    stdin = code if way == "standard input" else None
    code, out, said = python("-W", "error::RuntimeWarning", *words[way], cwd=folder, stdin=stdin)
    assert (code, out) == (0, SAID), said
    assert said == ""


@pytest.mark.slow
def test_a_run_in_a_notebook_shows_one_line(folder):
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    client = """
        import json, sys, nbclient, nbformat
        book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(sys.stdin.read())])
        nbclient.NotebookClient(book, timeout=300, kernel_name="python3").execute()
        print(json.dumps(book.cells[0].outputs))
    """
    code, out, said = python("-c", textwrap.dedent(client), cwd=folder, stdin=SCRIPT)
    assert code == 0, said
    outputs = json.loads(out)
    assert (
        re.sub(
            r"dashboard of the workers: http://\S+\n",
            "",
            "".join("".join(one["text"]) for one in outputs if one["output_type"] == "stream"),
        )
        == SAID
    )
    lines = [one["data"]["text/plain"] for one in outputs if one["output_type"] == "display_data"]
    assert lines == [""]  # one line, updated and in the end cleared


@pytest.mark.slow
def test_units_that_failed_are_tried_alone_by_our_own_module(folder):
    """The process that tries a unit alone, and the gateway, start beside the user's modules too."""
    code = textwrap.dedent("""
        import sen2fine
        from pipeline.archive.read import gateway
        from pipeline.planning.plan import load_plan
        from pipeline.running import quarantine
        ds = sen2fine.run("region.geojson", "a.zarr", catalog="sample", sr="bicubic", cluster="inline")
        print(quarantine.isolated(next(iter(load_plan("a.zarr").units())), "a.zarr"))
        print(gateway._start().process.poll())
    """)
    code, out, said = python("-c", code, cwd=folder)
    assert (code, out) == (0, "None\nNone\n"), said


def children_of(process):
    return psutil.Process(process.pid).children(recursive=True)


def until(true, seconds=60):
    ends = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < ends
        time.sleep(0.05)
    return found


@pytest.fixture
def cluster():
    """A process that holds two local workers until it is told to end."""
    code = textwrap.dedent("""
        import sys
        from pathlib import Path
        from pipeline.running.local_cluster import local_workers
        with local_workers("local", 2) as address:
            print(address, flush=True)
            sys.stdin.read()
    """)
    words = [sys.executable, "-c", code]
    with subprocess.Popen(words, env=user_environment(), stdin=-1, stdout=-1, text=True) as process:
        yield process
        process.kill()


@pytest.mark.slow
@pytest.mark.parametrize("end", ["stdin", "killed"])
def test_workers_end_with_the_process_that_started_them(cluster, end):
    address = cluster.stdout.readline()
    assert address.startswith("tcp://127.0.0.1:")
    started = children_of(cluster)
    assert len([p for p in started if "spawn_main" in " ".join(p.cmdline())]) == 2
    if end == "killed":
        cluster.kill()
    else:
        cluster.stdin.close()
    until(lambda: not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in started))


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("dask_cuda") is not None, reason="dask-cuda is there")
def test_what_the_helper_refuses_is_the_drivers_error():
    with pytest.raises(UsageError, match="dask-cuda cannot be used") as caught, local_workers("cuda", 0):
        pass
    assert caught.value.cure == 'pip install "sen2fine[cuda]"'


def test_a_helper_that_does_not_start_is_one_line(monkeypatch):
    monkeypatch.setattr(local_cluster, "command", lambda *words: [sys.executable, "-c", "raise SystemExit(3)"])
    with pytest.raises(PipelineError, match="the local Dask scheduler did not start"), local_workers("local", 1):
        pass


@pytest.mark.slow
def test_signals_are_left_to_the_driver(cluster):
    """Ctrl-C in a terminal reaches all processes of the foreground group; units are to be finished."""
    cluster.stdout.readline()
    helper = next(p for p in children_of(cluster) if "local_cluster" in " ".join(p.cmdline()))
    assert os.getpgid(helper.pid) != os.getpgid(cluster.pid)
    for number in (signal.SIGINT, signal.SIGTERM):
        helper.send_signal(number)
    time.sleep(1)
    assert helper.is_running()
    assert len([p for p in children_of(cluster) if "spawn_main" in " ".join(p.cmdline())]) == 2
