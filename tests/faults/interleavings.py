"""`python -m tests.faults.interleavings --count 50 --seed 0`: drivers that meet at one store, at random moments.

Two or three drivers, on one machine or on several, are started, killed, stopped for a while and started again on one
store, each with one of two plans, some with --overwrite. Whatever they do to each other, a store that calls itself
complete is sound by full verification and holds the pixels of exactly one plan, and whoever comes afterwards can finish
it. Drivers are processes of their own, forked from one that has imported everything.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import re
import signal
import sys
import tempfile
import time
import traceback
import zlib
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

LAPSE_S = 2.5
_PLANS = {"box": ("--consistency", "box"), "none": ("--consistency", "none")}
_IMAGES = re.compile(r"^(reflectance|quality|scl)/c/")
_LIMIT_S = 240.0


@dataclass
class Driver:
    """One command, and what happens to it."""

    plan: str
    host: str
    overwrite: bool
    start_s: float
    kill_s: float | None = None  # after its start
    pause_s: tuple[float, float] | None = None  # after its start, and for how long
    code: int | None = None
    said: str = ""

    def __str__(self) -> str:
        facts = [f"{self.start_s:4.1f} s {self.plan} on {self.host}"]
        facts += ["--overwrite"] if self.overwrite else []
        facts += [f"stopped at {self.pause_s[0]:.1f} for {self.pause_s[1]:.1f} s"] if self.pause_s else []
        facts += [f"killed at {self.kill_s:.1f} s"] if self.kill_s is not None else []
        return f"{', '.join(facts)} -> {self.code}"


@dataclass
class Scene:
    """What all interleavings share."""

    archive: Path
    aoi: Path
    folder: Path
    sound: dict[str, dict[str, int]] = field(default_factory=dict)  # plan -> {key: crc32} of an undisturbed run

    def words(self, store: str, plan: str, *more: str) -> list[str]:
        """Arguments of a run."""
        return [
            *("--aoi", str(self.aoi), "--catalog", str(self.archive), "--out", store, "--sr", "bicubic"),
            *("--bands", "B02,B03,B04", "--chunk-px", "120", "--unit-chunks", "1", "--max-cloud", "100"),
            *("--cluster", "inline", "--quiet", *_PLANS[plan], *more),
        ]


def make_scene_in(folder: Path) -> Scene:
    """A small archive, and an AOI of some twenty units."""
    from tests.archive.synthetic import make_archive, make_scene
    from tests.running.conftest import LEFT, TOP, box, write_aoi

    (folder / "archive").mkdir()
    made = make_scene(folder / "archive", scene_id="S2A_ONE", seed=3, size_m=1800, cloud_fraction=0.1)
    archive = make_archive(folder / "archive", [made])
    aoi = write_aoi(folder / "region.geojson", box(LEFT + 217, TOP - 1490, LEFT + 1533, TOP - 311))
    scene = Scene(archive, aoi, folder)
    for plan in _PLANS:
        store = str(folder / f"{plan}.zarr")
        code, said = call("pipeline.run", scene.words(store, plan), folder)
        if code:
            raise AssertionError(said)
        scene.sound[plan] = images(store)
    assert scene.sound["box"].keys() == scene.sound["none"].keys()
    assert not set(scene.sound["box"].values()) & set(scene.sound["none"].values()) - common(scene)
    return scene


def common(scene: Scene) -> set[int]:
    """Checksums that both plans have: classes do not depend on the consistency."""
    return {crc for key, crc in scene.sound["box"].items() if not key.startswith("reflectance")}


def images(store: str) -> dict[str, int]:
    """{key: crc32} of a store's 2.5 m chunks."""
    from pipeline.store.place import place_of

    place = place_of(store)
    return {key: zlib.crc32(place.read(key) or b"") for key in place.walk() if _IMAGES.match(key)}


def _act(program: str, words: list[str], host: str, log: str, environment: dict[str, str]) -> None:
    """In a process of its own: one command on a host."""
    import importlib

    from pipeline.store import holder

    os.environ.update(environment)
    os.environ["SEN2FINE_LEASE_S"] = str(LAPSE_S)
    real = holder._machine
    holder._machine = lambda: f"{real()}/{host}"
    os.chdir(Path(log).parent)  # pictures of stores in object stores are written where a run is
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    try:
        code = importlib.import_module(program).main(words)
    except BaseException:
        traceback.print_exc()
        code = 99
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _start(program: str, words: list[str], host: str, log: Path) -> multiprocessing.Process:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pipeline.run", "pipeline.check", "pipeline.running.driver", "pipeline.view",
                                    "pipeline.planning.planner", "pipeline.running.quicklook", "stackstac",
                                    "pipeline.archive.read.cube", "rasterio", "torch", "zarr", "xarray"])  # fmt: skip
    environment = {name: value for name, value in os.environ.items() if name.startswith(("AWS_", "SEN2FINE_"))}
    process = context.Process(target=_act, args=(program, words, host, str(log), environment))
    process.start()
    return process


def call(program: str, words: list[str], folder: Path, host: str = "afterwards") -> tuple[int, str]:
    """Run a command to its end: (exit code, what it said)."""
    log = Path(tempfile.mkstemp(suffix=".log", dir=folder)[1])
    process = _start(program, words, host, log)
    process.join(_LIMIT_S)
    if process.is_alive():
        process.kill()
        process.join()
        raise AssertionError(f"{program} does not end: {log.read_text()}")
    return process.exitcode, log.read_text()


def drivers(rng: random.Random, run_s: float) -> list[Driver]:
    """Two or three drivers, and those that go on for the killed ones. `run_s`: how long an undisturbed run takes."""
    made = []
    for _ in range(rng.choice((2, 3))):
        one = Driver(
            plan=rng.choice(tuple(_PLANS)),
            host=rng.choice(("a", "b")),
            overwrite=rng.random() < 0.4,
            start_s=rng.choice((0.0, rng.uniform(0, run_s))),
        )
        fate = rng.random()
        if fate < 0.45:
            one.kill_s = rng.uniform(0.1, run_s)
            if rng.random() < 0.7:
                again = one.start_s + one.kill_s + rng.uniform(0, 1.0)
                made.append(Driver(one.plan, rng.choice((one.host, "c")), overwrite=False, start_s=again))
        elif fate < 0.65:
            one.pause_s = (rng.uniform(0.1, run_s), rng.uniform(0.5, 2.5 * LAPSE_S))
        made.append(one)
    return sorted(made, key=lambda one: one.start_s)


def play(scene: Scene, store: str, cast: list[Driver]) -> None:
    """Let the drivers loose on a store, until all have ended."""
    events: list[tuple[float, int, str]] = []
    for number, one in enumerate(cast):
        events.append((one.start_s, number, "start"))
        if one.kill_s is not None:
            events.append((one.start_s + one.kill_s, number, "kill"))
        if one.pause_s is not None:
            events += [(one.start_s + one.pause_s[0], number, "stop"),
                       (one.start_s + sum(one.pause_s), number, "continue")]  # fmt: skip
    logs = [Path(tempfile.mkstemp(suffix=".log", dir=scene.folder)[1]) for _ in cast]
    processes: dict[int, multiprocessing.Process] = {}
    began = time.monotonic()
    for at_s, number, what in sorted(events):
        time.sleep(max(0.0, began + at_s - time.monotonic()))
        if what == "start":
            more = ["--overwrite"] if cast[number].overwrite else []
            words = scene.words(store, cast[number].plan, *more)
            processes[number] = _start("pipeline.run", words, cast[number].host, logs[number])
        elif processes[number].is_alive():
            os.kill(processes[number].pid, {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}.get(what, signal.SIGCONT))
    for number, process in processes.items():
        process.join(_LIMIT_S)
        cast[number].said = logs[number].read_text()
        if process.is_alive():
            process.kill()
            raise AssertionError(f"driver {number} does not end: {cast[number].said}")
        cast[number].code = process.exitcode


def judge(scene: Scene, store: str, cast: list[Driver]) -> str:
    """What became of the store: "complete" or "finished afterwards". AssertionError where anything is wrong."""
    from pipeline.planning.plan import load_plan
    from pipeline.store import layout
    from pipeline.store.ownership import Standing, standing
    from pipeline.store.place import place_of

    for one in cast:
        assert one.code in (0, 2, 75, -signal.SIGKILL), f"{one}: {one.said}"
        assert "Traceback" not in one.said, one.said
        assert one.code != 2 or "was begun with other settings" in one.said, one.said
        assert "holds no plan" not in one.said, one.said
    place, what = place_of(store), "complete"
    begun = standing(place) is Standing.BEGUN
    if not begun or layout.status(place) != layout.STATUS_COMPLETE:
        what = "finished afterwards"
        plan = load_plan(place).config.consistency if begun else "box"
        code, said = call("pipeline.run", scene.words(store, plan), scene.folder)
        assert code == 0, said
    code, said = call("pipeline.check", [store, "--verify", "full"], scene.folder)
    assert code == 0, said
    plan = load_plan(place).config.consistency
    assert images(store) == scene.sound[plan], f"pixels of another plan than {plan}"
    left = [key for key in place.walk() if key.startswith("_run/lease.json") or key.startswith("_run/lease-")]
    assert not left, left
    return what


def main(argv: list[str] | None = None) -> int:
    """Play and judge; says the seed of what fails. Returns the number of failures, at most 1."""
    parser = argparse.ArgumentParser("python -m tests.faults.interleavings", description=__doc__)
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--s3", action="store_true", help="into an object store")
    arguments = parser.parse_args(argv)
    failures = 0
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        scene = make_scene_in(folder)
        if arguments.s3:
            from tests.store.s3_server import s3_server

            stack.enter_context(s3_server())
        for seed in range(arguments.seed, arguments.seed + arguments.count):
            store = f"s3://bucket/{seed}/run.zarr" if arguments.s3 else str(folder / f"{seed}.zarr")
            cast = drivers(random.Random(seed), run_s=8.0 if arguments.s3 else 4.0)
            try:
                play(scene, store, cast)
                what = judge(scene, store, cast)
            except AssertionError as error:
                failures, what = failures + 1, f"WRONG: {error}"
            print(f"seed {seed}: {what}", *(f"    {one}" for one in cast), sep="\n", flush=True)
    print(f"{arguments.count} interleavings, {failures} wrong")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
