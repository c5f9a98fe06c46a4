"""`python -m tests.benchmarks`: seconds, memory and stage shares, written as a Markdown table.

Cases: importing; opening a large store; planning 10 000 and 100 000 units; 10 000 units that do nothing, through a
cluster; one model window; seams; the embedded sample from command to verified store; 25 km2 of real tiles repeated into
one scene (synthetic land where the real imagery is absent); pixels that go through the networks; requests and bytes
against the least, through a server on loopback; networks of the shapes of others; memory over growing areas; what a
country and the world's land would cost; 25 km2 as a SLURM array with one task killed; what the sensor would measure of
real scenes' output; chunks of all bands or of one; DN of shorter number formats against float32; networks that wait,
as for a GPU, beside reading and writing; batches of windows; one, two and four workers. `--sr wavediffur --option
scale=16 --side-m 1000` change the case area25.
Wall seconds depend on the machine and on what else it does; shares, counts and memory hardly do.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from tests.benchmarks.run_costs import around_s, factor, planned_factors, stages
from tests.benchmarks.scene import area_geojson, repeated_scene, timed_plan, wide_plan
from tests.conftest import DATA, REPOSITORY

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from pipeline.config import RunConfig

PYTHON = sys.executable
WIDE_M = 239_000
Row = tuple[str, str, str]


def main() -> int:
    p = argparse.ArgumentParser("python -m tests.benchmarks", description=__doc__)
    p.add_argument("--only", choices=tuple(CASES), nargs="*", help="some cases (all)")
    p.add_argument("--workers", type=int, default=2)
    p.add_argument("--out", type=Path, help="also write the table to this file")
    p.add_argument("--sr", default="lite", help="system of the case area25 (lite)")
    p.add_argument("--option", action="append", default=[], metavar="NAME=VALUE", help="its options")
    p.add_argument("--side-m", type=int, default=5000, help="its side (5000)")
    arguments = p.parse_args()
    chosen = {"sr": arguments.sr, "options": tuple(arguments.option), "side_m": arguments.side_m}
    cases: dict[str, Callable[[Path, int], list[Row]]] = {**CASES, "area25": partial(area25, **chosen)}
    lines = [f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}", ""]
    lines += ["| case | figure | value |", "|---|---|---|"]
    print("\n".join(lines), flush=True)
    names, above = arguments.only or tuple(CASES), len(lines)
    for name in names:
        rows = _here(cases[name], arguments.workers) if len(names) == 1 else _apart(name, arguments, above)
        for row in rows:
            lines.append(row)
            print(row, flush=True)
    if arguments.out:
        arguments.out.write_text("\n".join(lines) + "\n")
    return 0


def _here(case: Callable[[Path, int], Iterable[Row]], workers: int) -> Iterator[str]:
    """Run a case in this process. Yield its rows as lines."""
    with tempfile.TemporaryDirectory() as folder:
        for row in case(Path(folder), workers):
            yield f"| {' | '.join(row)} |"


def _apart(name: str, arguments: argparse.Namespace, above: int) -> Iterator[str]:
    """Run a case in a process of its own, which the peak memory of other cases does not show in. Yield its rows.

    `above` is the number of lines before them. Raises SystemExit on failure, whose message stderr has.
    """
    options = [word for option in arguments.option for word in ("--option", option)]
    words = ["--workers", arguments.workers, "--sr", arguments.sr, *options, "--side-m", arguments.side_m]
    command = [PYTHON, "-m", "tests.benchmarks", "--only", name, *map(str, words)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as case:
        assert case.stdout is not None
        for line in islice(case.stdout, above, None):
            yield line.rstrip("\n")
    if case.returncode:
        raise SystemExit(case.returncode)


def _command(*words: str | Path, folder: Path) -> tuple[float, float, str]:
    """Run a Python command. Return (wall seconds, CPU seconds with children, stdout). Raise SystemExit on failure."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run([PYTHON, *map(str, words)], cwd=folder, capture_output=True, text=True, check=False,
                          env={**os.environ, "PYTHONPATH": str(REPOSITORY)})  # fmt: skip
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(done.stderr)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return wall, cpu, done.stdout


def importing(folder: Path, workers: int) -> list[Row]:
    del workers
    runs = [_command("-c", "import pipeline", folder=folder)[0] for _ in range(5)]
    bare = [_command("-c", "pass", folder=folder)[0] for _ in range(5)]
    return [("import pipeline", "median seconds over a bare interpreter", f"{sorted(runs)[2] - sorted(bare)[2]:.3f}")]


def _in_units(chunk_px: int, unit_chunks: int) -> RunConfig:
    """Return the settings of units of `unit_chunks` chunks."""
    from pipeline.config import RunConfig

    return RunConfig(sr="bicubic", chunk_px=chunk_px, unit_chunks=unit_chunks)


def planning(folder: Path, workers: int) -> list[Row]:
    """Plan a square of 239 km in 10 000 units of 2.4 km and in 100 000 units of 0.7 km."""
    del workers
    rows = []
    for chunk_px, unit_chunks in ((240, 4), (288, 1)):
        _, units, spent_s = timed_plan(folder, WIDE_M, _in_units(chunk_px, unit_chunks))
        rows.append(("planning", f"CPU seconds for {units:,} units", f"{spent_s:.2f}"))
    return rows


def scheduling(folder: Path, workers: int) -> list[Row]:
    """Run 10 000 units that do nothing through a local cluster."""
    from tests.benchmarks.scheduling import run_idle_units

    count = 10_000
    seconds, memory = run_idle_units(wide_plan(folder, WIDE_M, _in_units(240, 4)), folder, workers, count)
    return [
        ("scheduling", f"units per second, {count:,} units that do nothing", f"{count / seconds:.0f}"),
        ("scheduling", "driver's memory in MiB at its start, middle and end",
         f"{memory[0]:.0f}, {memory[len(memory) // 2]:.0f}, {memory[-1]:.0f}"),
    ]  # fmt: skip


def window(folder: Path, workers: int) -> list[Row]:
    """Time one lattice window of 480 x 480 px on one thread."""
    import dataclasses

    from pipeline.aoi.aoi import read_aoi
    from pipeline.config import RunConfig
    from pipeline.planning.estimate import time_window
    from pipeline.planning.planner import make_plan
    from tests.archive.synthetic import make_archive, make_scene

    del workers
    index = make_archive(folder, [make_scene(folder, scene_id="S2A_BENCH", size_m=2400)])
    aoi = read_aoi(str(area_geojson(folder / "aoi.geojson", 32632, 600_300, 5_098_500, 600)))
    rows = []
    for system in ("lite", "bicubic"):
        plan = make_plan(dataclasses.replace(RunConfig(catalog=str(index)), sr=system), aoi)
        rows.append(("one window", f"{system}, wall seconds", f"{time_window(plan).wall_s:.2f}"))
    return rows


def seams(folder: Path, workers: int) -> list[Row]:
    """Measure seams: super-resolve one scene on two lattices, whose ramps lie at different places, and compare."""
    import dataclasses

    import numpy as np

    from pipeline.archive.read.access import Access
    from pipeline.archive.read.cube import read_period
    from pipeline.bands import GSDS_M, bands_at
    from pipeline.grid.grid import Grid
    from pipeline.grid.lattice import Lattice
    from pipeline.superres import superres
    from pipeline.superres.options import Options
    from pipeline.superres.passes import passes_of
    from pipeline.superres.system import load
    from pipeline.superres.weights import choose
    from tests.benchmarks.scene import real_or_synthetic

    del workers
    scene = real_or_synthetic(folder, DATA)
    raster = next(r for r in scene.rasters if r.gsd_m == 10)
    inner = (raster.left_m + 1500, raster.top_m - 3300, raster.left_m + 3300, raster.top_m - 1500)
    grid = Grid.covering(scene.epsg, inner, scene.phase)
    names = tuple(band for gsd in GSDS_M for band in bands_at(gsd) if band in scene.hrefs)
    system = load(choose("lite"), "cpu")
    images = {}
    for label, lattice in (("shipped", system.stages[0].lattice), ("other", Lattice(480, 336, 48, 48))):
        stages = tuple(dataclasses.replace(stage, lattice=lattice) for stage in system.stages)
        chosen = dataclasses.replace(system, stages=stages)
        (of,) = passes_of(stages, names)
        reach = of.read_window(grid.window.pad(of.reach_px(Options())))
        roots = tuple({str(Path(href).parent) for href in scene.hrefs.values()})
        pixels = read_period((scene,), "mosaic", grid.of(reach), names, Access(roots=roots))
        images[label] = superres.super_resolve(pixels, grid.window, chosen, names, Options()).dn.astype(float)
    red = names.index("B04")
    steps = {label: np.abs(np.diff(image[red], axis=1)).mean(0) for label, image in images.items()}
    columns = np.arange(grid.window.col + 1, grid.window.col_end)
    at_ramp = np.abs((columns + 192) % 384 - 192) <= 24
    apart = np.abs(images["shipped"][red] - images["other"][red])
    within, elsewhere = (steps["shipped"][there].mean() / steps["other"][there].mean() for there in (at_ramp, ~at_ramp))
    case, difference = "lattice, lite, B04", f"{apart.mean():.2f}, {np.percentile(apart, 99):.0f}"
    return [
        (case, "mean gradient over that of lattice (480, 336, 48, 48), within ramps and elsewhere",
         f"{within:.4f}, {elsewhere:.4f}"),
        (case, "mean and 99th percentile of the difference to that lattice, DN", difference),
        (case, "mean gradient, DN", f"{steps['shipped'].mean():.1f}"),
    ]  # fmt: skip


def sample(folder: Path, workers: int) -> list[Row]:
    region = REPOSITORY / "catalogs" / "sample" / "region.geojson"
    wall, cpu, out = _command("-m", "pipeline.run", "--aoi", region, "--catalog", "sample", "--out", "s.zarr",
                              "--workers", workers, "--json", folder=folder)  # fmt: skip
    checked, _, _ = _command("-m", "pipeline.check", "s.zarr", "--verify", "full", folder=folder)
    report = json.loads(out)
    return [
        ("sample, 12 bands, lite", "wall seconds from command to finished store", f"{wall:.1f}"),
        ("sample, 12 bands, lite", "wall seconds to verify every byte", f"{checked:.1f}"),
        ("sample, 12 bands, lite", "CPU seconds", f"{cpu:.1f}"),
        ("sample, 12 bands, lite", "largest worker, MiB", f"{report['peak_worker_mib']:.0f}"),
        *stages("sample, 12 bands, lite", report, cpu),
    ]


def area25(
    folder: Path, workers: int, sr: str = "lite", options: tuple[str, ...] = (), side_m: int = 5000
) -> list[Row]:
    index, real = repeated_scene(folder, DATA, side_m=side_m + 1000)
    aoi = area_geojson(folder / "aoi.geojson", 32632, 600_480, 5_100_000 - side_m - 520, side_m)
    km2, given = side_m**2 / 1e6, [word for option in options for word in ("--option", option)]
    system = " ".join((sr, *options))
    what = f"{km2:g} km2 of {'real tiles repeated' if real else 'synthetic land'}, {system}, {workers} workers"
    wall, cpu, out = _command("-m", "pipeline.run", "--aoi", aoi, "--catalog", index, "--out", "a.zarr", "--max-cloud",
                              100, "--workers", workers, "--sr", sr, *given, "--json", folder=folder)  # fmt: skip
    report = json.loads(out)
    return [
        (what, "wall seconds from command to finished store", f"{wall:.1f}"),
        (what, "km2 per hour", f"{km2 / wall * 3600:.0f}"),
        (what, "CPU seconds", f"{cpu:.1f}"),
        (what, "core-seconds per km2, of the whole command", f"{cpu / km2:.2f}"),
        (what, "pixels through the networks per pixel stored", f"{factor(folder / 'a.zarr'):.2f}"),
        (what, "worker seconds per km2 around the model", f"{around_s(report) / km2:.3f}"),
        (what, "units", str(report["units"])),
        (what, "MiB stored", f"{report['stored_bytes'] / 2**20:.0f}"),
        (what, "largest worker, MiB", f"{report['peak_worker_mib']:.0f}"),
        *stages(what, report, cpu),
    ]


def memory(folder: Path, workers: int) -> list[Row]:
    """Measure the peak memory of the largest worker over growing areas.

    Bicubic keeps the case short; the arrays have the same size.
    """
    rows = []
    for side_m in (5000, 10_000, 20_000):
        place = folder / str(side_m)
        place.mkdir()
        index, _ = repeated_scene(place, DATA, side_m=side_m + 1000)
        top = 5_100_000 - side_m - 480
        aoi = area_geojson(place / "aoi.geojson", 32632, 600_480, top, side_m)
        _, _, out = _command(
            *("-m", "pipeline.run", "--aoi", aoi, "--catalog", index, "--out", "m.zarr", "--sr", "bicubic"),
            *("--max-cloud", 100, "--workers", workers, "--json"),
            folder=place,
        )
        peak = json.loads(out)["peak_worker_mib"]
        rows.append((f"{side_m**2 / 1e6:.0f} km2, bicubic", "largest worker, MiB", f"{peak:.0f}"))
    return rows


def reading(folder: Path, workers: int) -> list[Row]:
    """Count requests and bytes of 25 and 100 km2 by one worker and by `workers`."""
    from tests.benchmarks.reading import rows

    return rows(folder, sorted({1, workers}))


def factors(folder: Path, workers: int) -> list[Row]:
    """Plan squares of 25 to 10 000 km2, and count the pixels that go through the networks."""
    return planned_factors(folder, workers)


def peers(_folder: Path, _workers: int) -> list[Row]:
    """Time the networks alone, ours and of the shapes of others."""
    from tests.benchmarks.peers import rows

    return rows()


def opening(folder: Path, _workers: int) -> list[Row]:
    """Time opening a store of 120 km x 120 km and 10 000 chunks, with all imports already done."""
    import pipeline
    from pipeline.bands import BAND_NAMES
    from pipeline.grid.grid import Grid
    from pipeline.store import layout, template

    grid = Grid.covering(32632, (600_000.0, 4_980_000.0, 720_000.0, 5_100_000.0))
    shape = template.Template(grid, BAND_NAMES, ("2024-06-17T10:20:31Z",), 480, BAND_NAMES,
                              attributes={"plan_digest": "d", "groups": [""]})  # fmt: skip
    template.create(folder / "a.zarr", "", shape)
    layout.finish(folder / "a.zarr", [""], {})
    pipeline.open_store(folder / "a.zarr")
    started, before = time.perf_counter(), time.process_time()
    ds = pipeline.open_store(folder / "a.zarr")
    wall, cpu = time.perf_counter() - started, time.process_time() - before
    chunks = ds.reflectance.data.npartitions
    return [(f"opening a store of {chunks} chunks", "seconds (CPU)", f"{wall:.2f} ({cpu:.2f})")]


def scale(folder: Path, _workers: int) -> list[Row]:
    """Estimate the cost of a country and of the world's land. The latter is 60 times one plan per UTM zone."""
    from tests.benchmarks.scale import GERMANY_KM2, LAND_KM2, UTM_ZONES, cost

    for name in ("country", "zone"):
        (folder / name).mkdir()
    country, per_window = cost(folder / "country", GERMANY_KM2)
    zone, _ = cost(folder / "zone", LAND_KM2 / UTM_ZONES, per_window)
    rows = []
    for case, one, plans in (("Germany", country, 1), ("the world's land, 60 plans", zone, UTM_ZONES)):
        rows += [
            (case, "km2", f"{one.area_km2 * plans:,.0f}"),
            (case, "units", f"{one.units * plans:,}"),
            (case, "TiB stored, 12 bands, one date, with overviews", f"{one.stored_tib * plans:,.2f}"),
            (
                case,
                "chunks of reflectance at 2.5 m, one object each (16 in one with --shard)",
                f"{one.chunks * plans:,}",
            ),
            (case, "reads of COG blocks of 1024 px", f"{one.reads * plans:,}"),
            (case, f"core-hours at {per_window:.2f} s per window", f"{one.core_hours * plans:,.0f}"),
            (case, "GPU-hours for each s/km2 that a GPU takes", f"{one.area_km2 * plans / 3600:,.0f}"),
            (case, "CPU seconds of planning, each plan", f"{one.planning_s:.1f}"),
            (case, "MiB of the planning process", f"{one.planning_mib:.0f}"),
        ]
    return rows


def slurm(folder: Path, _workers: int) -> list[Row]:
    """Run a SLURM array of four tasks and kill one. Needs SLURM and munge (apt-get install slurm-wlm munge)."""
    from tests.benchmarks.slurm_array import array_against_one_run
    from tests.deploy.local_slurm import missing

    if missing():
        return [("25 km2 as a SLURM array of four", "not run", missing())]
    return [("25 km2 as a SLURM array of four", *row) for row in array_against_one_run(folder).items()]


def sensor(folder: Path, _workers: int) -> list[Row]:
    """Compare the re-observed default output of every real Level-2A scene with the input. Needs the shared data."""
    from tests.benchmarks.sensor import rows

    return rows(folder)


def chunk_bands(folder: Path, _workers: int) -> list[Row]:
    """Store one area with chunks of all bands and with chunks of one, and read some of the bands of each."""
    from tests.benchmarks.chunk_bands import rows

    return [("chunks of all bands or of one", *row) for row in rows(folder)]


def precision(_folder: Path, _workers: int) -> Iterator[Row]:
    """Compute an area of 240 m with every shipped system in shorter number formats, and compare with float32."""
    from tests.benchmarks.precision import rows

    return rows(DATA)


def overlap(folder: Path, _workers: int) -> Iterator[Row]:
    """Run a system whose networks only wait, for 0.3, 1 and 3 times the rest."""
    from tests.benchmarks.overlap import measure

    return (("networks that wait", *row) for row in measure(folder))


def batches(_folder: Path, _workers: int) -> list[Row]:
    """Time windows of `lite` in batches."""
    from tests.benchmarks.batches import rows

    return rows()


def workers(folder: Path, _workers: int) -> list[Row]:
    """Run 25 km2 with one, two and four workers."""
    from tests.benchmarks.workers import rows

    return rows(folder, _command)


CASES = {
    "importing": importing,
    "opening": opening,
    "planning": planning,
    "scheduling": scheduling,
    "window": window,
    "seams": seams,
    "sample": sample,
    "area25": area25,
    "factors": factors,
    "reading": reading,
    "peers": peers,
    "memory": memory,
    "scale": scale,
    "slurm": slurm,
    "sensor": sensor,
    "chunk_bands": chunk_bands,
    "precision": precision,
    "overlap": overlap,
    "batches": batches,
    "workers": workers,
}

if __name__ == "__main__":
    sys.exit(main())
