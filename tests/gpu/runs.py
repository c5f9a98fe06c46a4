"""Whole runs of 25 km2 as a user starts them: a cluster of one worker, a worker that is killed, one process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psutil

from pipeline.store.keys import RUN_FOLDER
from tests.archive.synthetic import make_archive, make_scene
from tests.benchmarks.scene import EPSG, LEFT_M, TOP_M, area_geojson
from tests.conftest import REPOSITORY
from tests.gpu.bench import LEFT_OUT, Bench, Row
from tests.gpu.checks import verdict
from tests.running.conftest import chunk_digests

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_RESERVE_S = 20.0  # of the time left, for the table


@dataclass(frozen=True)
class _Ground:
    """An archive of one synthetic scene, and an area within it."""

    index: Path
    aoi: Path
    side_m: int
    words: tuple[str, ...]

    @classmethod
    def of(cls, bench: Bench) -> _Ground:
        side_m = 600 if bench.small else 5000
        size = -(-(side_m + 1200) // 60) * 60
        scene = make_scene(bench.folder, scene_id="S2A_LAND", left_m=LEFT_M, top_m=TOP_M, size_m=size, epsg=EPSG)
        index = make_archive(bench.folder, [scene])
        top = TOP_M - side_m - 480
        aoi = area_geojson(bench.folder / "aoi.geojson", EPSG, LEFT_M + 480, top, side_m)
        small = ("--sr", "bicubic", "--chunk-px", "120", "--unit-chunks", "1", "--bands", "B02,B03,B04")
        return cls(index, aoi, side_m, small if bench.small else ("--unit-chunks", "2"))

    def command(self, store: Path, cluster: str, *more: str) -> list[str]:
        """A run on a cluster of one worker."""
        words = ("--aoi", self.aoi, "--catalog", self.index, "--out", store, "--max-cloud", 100, "--json", "--quiet")
        started = [sys.executable, "-m", "pipeline.run", *map(str, words), *self.words, "--cluster", cluster]
        return [*started, "--workers", "1", *more]


def whole_runs(bench: Bench) -> Iterator[Row]:
    """The default system through the cluster of the device, with and without a killed worker, and inline: one store."""
    ground, cluster = _Ground.of(bench), "cuda" if bench.device.type == "cuda" else "local"
    what = f"{(ground.side_m / 1000) ** 2:.3g} km2, --cluster {cluster}, one worker"
    began = time.monotonic()
    report = _finished(_started(ground.command(bench.folder / "cluster.zarr", cluster)), bench)
    if report is None:
        yield Row("runs", what, "a finished store", "no", verdict(holds=False))
        return
    wall = time.monotonic() - began
    yield Row("runs", what, "wall seconds", f"{wall:.1f}")
    yield Row("runs", what, "km2 per hour, start included", f"{3600 * (ground.side_m / 1000) ** 2 / wall:,.0f}")
    spent = {name: round(seconds, 1) for name, seconds in report["stage_seconds"].items()}
    yield Row("runs", what, "worker seconds by stage", ", ".join(f"{name} {value}" for name, value in spent.items()))
    expected = chunk_digests(bench.folder / "cluster.zarr")
    for name, run in (("inline", _inline), ("worker killed", _killed)):
        if bench.left_s < wall + _RESERVE_S:
            yield Row("runs", f"{what}: {name}", "the same store", "time is up", LEFT_OUT)
            continue
        store = bench.folder / f"{name.replace(' ', '_')}.zarr"
        told = run(ground, store, cluster, bench)
        same = bool(expected) and chunk_digests(store) == expected
        yield Row("runs", f"{what}: {name}", f"the same store{told}", str(same), verdict(holds=same))


def _inline(ground: _Ground, store: Path, _cluster: str, bench: Bench) -> str:
    _finished(_started(ground.command(store, "inline")), bench)
    return ""


def _killed(ground: _Ground, store: Path, cluster: str, bench: Bench) -> str:
    """Kill the worker after the first unit. The run goes on with another worker; if it stops, continue it."""
    run = _started(ground.command(store, cluster))
    while run.poll() is None and not list((store / RUN_FOLDER / "receipts").glob("*")):
        time.sleep(0.05)
    victims = _workers(run)
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    report = _finished(run, bench)
    again = ""
    if report is None:
        again = ", continued by the same command"
        _finished(_started(ground.command(store, cluster)), bench)
    return f" after {len(victims)} worker killed{again}"


def _workers(run: subprocess.Popen) -> list[int]:
    """Processes of a run's workers: those that a nanny has spawned, among its descendants."""
    found = []
    for child in psutil.Process(run.pid).children(recursive=True):
        words = " ".join(child.cmdline())
        if "spawn_main" in words or "multiprocessing-fork" in words:
            found.append(child.pid)
    return found[:1]


def _started(words: list[str]) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen(
        words, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def _finished(run: subprocess.Popen, bench: Bench) -> dict | None:
    """The report of a run that succeeded in the time that is left, else None; what it said goes to stderr."""
    try:
        out, err = run.communicate(timeout=max(1.0, bench.left_s - _RESERVE_S))
    except subprocess.TimeoutExpired:
        run.terminate()
        out, err = run.communicate()
    if run.returncode:
        print(err, file=sys.stderr)
        return None
    return json.loads(out)
