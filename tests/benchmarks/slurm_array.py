"""25 km2 as a local SLURM array of four tasks, one of them killed half-way, compared with a single run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from pipeline.planning.parts import Part
from pipeline.planning.plan import load_plan
from pipeline.store import layout
from tests.benchmarks.scene import area_geojson, repeated_scene
from tests.conftest import DATA
from tests.deploy.local_slurm import local_slurm, queued
from tests.running.conftest import chunk_digests

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

KILLED, PARTS, LIMIT_S = 3, 4, 900


def array_against_one_run(folder: Path) -> dict[str, str]:
    """Run both and return {figure: value}. Raise AssertionError if a step does not go as expected."""
    index, real = repeated_scene(folder, DATA, side_m=6000)
    aoi = area_geojson(folder / "aoi.geojson", 32632, 600_480, 5_094_480, 5000)
    words = ("--aoi", aoi, "--catalog", index, "--max-cloud", 100, "--unit-chunks", 2)
    one, jobs = folder / "one.zarr", folder / "jobs.zarr"
    _program("pipeline.run", *words, "--out", one)
    _program("pipeline.run", *words, "--out", jobs, "--plan-only")
    part = [unit.id for unit in Part(KILLED, PARTS).units(load_plan(jobs))]

    def done() -> int:
        return sum((jobs / "_run" / "receipts" / f"{unit}.json").exists() for unit in part)

    with local_slurm():
        _program("pipeline.submit", "--plan", jobs, "--target", "slurm", "--array", PARTS)
        _wait(lambda: done() >= len(part) // 2)
        lease = json.loads((jobs / "_run" / f"lease-{KILLED}-of-{PARTS}.json").read_text())
        os.kill(lease["pid"], signal.SIGKILL)
        _wait(lambda: not queued())
        before = done()
        assert before < len(part), "the task was killed too late"
        again = json.loads(_program("pipeline.submit", "--plan", jobs, "--target", "slurm", "--array", PARTS, "--json"))
        assert again["parts_to_do"] == [KILLED]
        _wait(lambda: not queued())
    mine, theirs = chunk_digests(jobs), chunk_digests(one)
    return {
        "imagery": "real tiles repeated" if real else "synthetic land",
        "units in all, and of the killed task": f"{sum(1 for _ in load_plan(one).units())}, {len(part)}",
        "units of that task done when it was killed": str(before),
        "status": layout.status(jobs),
        "chunks, and of these different from one run": f"{len(theirs)}, {_different(mine, theirs)}",
    }


def _different(mine: dict[str, int], theirs: dict[str, int]) -> int:
    return sum(mine.get(key) != theirs.get(key) for key in mine.keys() | theirs.keys())


def _program(module: str, *words: object) -> str:
    command = [sys.executable, "-m", module, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _wait(true: Callable[[], bool]) -> None:
    until = time.monotonic() + LIMIT_S
    while not true():
        assert time.monotonic() < until, f"in the queue: {queued()}"
        time.sleep(0.05)
