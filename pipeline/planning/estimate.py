"""Cost estimate of a plan: units, windows, pixels, bytes, memory and time. Reads and writes no pixels."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.bands import BAND_NAMES, GSDS_M, TARGET_GSD_M, bands_at
from pipeline.planning.expenses import Reads, objects_of, reads_of
from pipeline.planning.shaping import THREAD_SHARE
from pipeline.planning.store_template import template_of
from pipeline.planning.unit_job import block_px, with_scene
from pipeline.process import device_name, processors
from pipeline.superres.chain import at_gsd
from pipeline.superres.precision import FLOAT32, possible
from pipeline.superres.registry import spec_of
from pipeline.superres.system import AHEAD, load, units_at_once
from pipeline.superres.tiles import ROWS_PX
from pipeline.superres.weights import memory_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.grid.finished_rasters import Rasters
    from pipeline.grid.grid import Window
    from pipeline.planning.plan import Plan
    from pipeline.superres.chain import Group, Output
    from pipeline.superres.passes import Pass
    from pipeline.superres.spec import Memory

# Peak memory of a worker, measured by tests.benchmarks: the interpreter with torch, zarr and dask, GDAL's block cache,
# and what the gateway to remote files keeps for it. Each system declares the additional memory of its networks.
_BASE_MIB = 400.0
_GDAL_CACHE_MIB = 64.0
_KEPT_MIB = 64.0
# Compression ratios of zstd level 1 on 2.5 m values of real scenes by `lite`: 1.25 for 25 km2, 1.28 for the sample, and
# 2.13 for the uncertainty of 4 members. Quality and classification take less than a thousandth.
_COMPRESSION = {"reflectance": 1.25, "uncertainty": 2.1}
# Processor seconds around the networks: reading, blending, projecting, writing, overviews. From the receipts of
# `--sr bicubic`, 12 bands of repeated real patches, one worker: 1.6, 5.9 and 18.9 s for units of 1.5, 26 and 101 km2,
# and 0.1 s per km2 for overviews; 5.5 s for four units of scattered patches. Two processes that had to start and import
# first took 4.7 s more each than one that had planned.
_KM2_S = 0.3  # per km2 of 12 bands stored at 2.5 m
_UNIT_S = 0.8
_LOAD_S, _START_S = 0.5, 5.0  # per process: the one that planned, or one that is started
_AROUND_GPU = 1.15  # GPU time with what it waits for, over that of the networks
_SUMS = 6  # of the draws of a window: total, first of a pair, three of the spread; and the spread itself, handed over
_LONG_S = 20.0  # a timed run that took longer is not repeated
_LEVELS = 1.35  # all stored bytes over those at 2.5 m: overviews add 0.32, the measured input 0.03; same scenes


@dataclass(frozen=True)
class Estimate:
    """Cost of a plan."""

    scenes: int
    zones: int
    periods: int
    units: int
    windows: int
    area_km2: float  # of what is computed in one time step
    output_pixels: int  # at 2.5 m, per band, all time steps
    finer: dict[str, int]  # the same of finer groups, by GSD in metres
    output_mib: float  # uncompressed
    stored_mib: float  # expected on disk
    overlap: float  # model pixels computed per output pixel
    worker_mib: float  # expected peak of one worker that computes one unit
    seconds_per_window: float  # wall time, measured with one thread
    seconds: float  # expected, with `workers`
    workers: int  # units that are computed at a time, if there are as many
    device: str  # that the time is of: "cpu" or "cuda"
    precision: str  # likewise, of the networks
    hours: float  # processor time of all cores, or time of all GPUs, together; 0 if not timed
    read_requests: int  # to the archive, or reads of files
    read_mib: float
    objects: int  # with data, chunks or shards, that the store will hold
    thread_mib: float = 0.0  # more for each further thread of a unit
    unit_mib: float = 0.0  # more for each further unit that a worker computes at once
    at_once: int = 1  # units that a worker can compute at once
    together: bool = False  # whether the workers are on one machine, where several may share a unit

    @property
    def processes(self) -> int:
        """Number of worker processes, each of which computes `at_once` units."""
        most = max(1, self.workers // self.at_once)
        return max(1, min(most, self.units)) if self.together else most

    @property
    def threads(self) -> int:
        """Number of threads that compute the windows of a unit, no more than this machine has processors."""
        most = min(self.workers // (self.processes * self.at_once), processors())
        return max(1, most) if self.together else 1

    @property
    def process_mib(self) -> float:
        """Expected peak of one worker process, in MiB."""
        threads_mib = self.at_once * (self.threads - 1) * self.thread_mib
        return self.worker_mib + (self.at_once - 1) * self.unit_mib + threads_mib

    def to_json(self) -> dict[str, Any]:
        """Return the estimate as a dictionary."""
        return asdict(self)


def estimate(plan: Plan, workers: int, *, timed: bool = True, together: bool = False) -> Estimate:
    """Estimate the cost of a plan. If `timed`, run one window of each pass on this machine to estimate the time.

    Reads and objects are counted only then too: it takes 3 s for 10,000 units, and every part of an array asks for the
    memory of its workers. `together`: the workers are on one machine, where several may share a unit.
    """
    parts = [_Part.of(plan, one) for one in plan.model_passes()]
    units, windows = sum(part.units for part in parts), sum(sum(part.cells) for part in parts)
    times = [time_window(plan, part.of_pass.number) if timed else WindowTime(0.0, 0.0) for part in parts]
    spent, busy = (
        sum(sum(part.cells) * one for part, one in zip(parts, each, strict=True)) * (plan.draws or 1)
        for each in ([one.wall_s for one in times], [one.busy_s for one in times])
    )
    periods = sum(len(zone.periods) for zone in plan.zones)
    arrays = ["reflectance", *(["uncertainty"] if template_of(plan, plan.zones[0]).with_uncertainty else [])]
    compressed = sum(1 / _COMPRESSION[name] for name in arrays)
    # A mosaic holds one scene and the result at a time. A median holds all scenes over a place, rarely more than ten.
    medians = [len(p.scene_ids) for zone in plan.zones for p in zone.periods if p.composite == "median"]
    scenes = max(2, min(10, max(medians, default=0)))
    around_s = _around_s(parts, len(arrays), workers) if timed else 0.0
    reads = reads_of(plan) if timed else Reads(0, 0.0)
    pixels, memory = parts[0].pixels, memory_of(plan.system)
    at_once = units_at_once(spec_of(plan.system.name), device_name())
    batch = plan.batch if device_name() == "cpu" else 1  # a GPU has memory of its own for the others
    thread_mib = max(_windows_mib(memory, part.of_pass, plan.draws, batch) for part in parts)
    units_mib = [unit_mib(memory, p.held_px, p.of_pass, plan.draws, scenes, batch) for p in parts]
    if at_once > 1:
        units_mib = [one + (AHEAD - 1) * thread_mib for one in units_mib]
    return Estimate(
        scenes=len(plan.scenes),
        zones=len(plan.zones),
        periods=periods,
        units=units,
        windows=windows,
        area_km2=round(pixels * TARGET_GSD_M**2 / 1e6 / max(1, periods / len(plan.zones)), 2),
        output_pixels=pixels,
        finer={f"{output.gsd_m:g}": round(part.count(output)) for part in parts for output in part.of_pass.finer},
        output_mib=round(sum(part.bytes * len(arrays) + part.stored_pixels for part in parts) / 2**20, 1),
        stored_mib=round(sum(part.bytes for part in parts) * compressed * _LEVELS / 2**20, 1),
        overlap=round(_base_px(parts[0].of_pass.groups, parts[0].cells) / max(1, pixels), 2),
        worker_mib=round(base_mib(memory) + max(units_mib)),
        seconds_per_window=round(spent / windows / (plan.draws or 1) if windows else 0.0, 3),
        seconds=round((spent + around_s) / _speed(workers, units, at_once, together=together), 1),
        workers=workers,
        device=device_name(),
        precision=precision_timed(plan, device_name()),
        hours=round((busy * _AROUND_GPU if device_name() == "cuda" else busy + around_s) / 3600, 6),
        read_requests=reads.requests,
        read_mib=reads.mib,
        objects=objects_of(plan) if timed else 0,
        thread_mib=round(thread_mib),
        unit_mib=round(max(units_mib)),
        at_once=at_once,
        together=together,
    )


def _around_s(parts: Sequence[_Part], arrays: int, workers: int) -> float:
    """Return the processor seconds of all that is done besides the networks, of all workers together."""
    values = sum(part.bytes for part in parts) / 2 * arrays
    km2 = values / len(BAND_NAMES) * TARGET_GSD_M**2 / 1e6
    units = sum(part.units for part in parts)
    processes = max(1, min(workers, units))
    return _KM2_S * km2 + _UNIT_S * units + (_START_S * processes if processes > 1 else _LOAD_S)


def _speed(workers: int, units: int, at_once: int, *, together: bool) -> float:
    """Return by how much a run is faster than windows one by one: by processors, or by GPUs whose work is counted."""
    if at_once == 1:
        return speed_up(min(workers, processors()) if together else workers, units, together=together)
    import torch

    return max(1, min(units, workers // at_once, torch.cuda.device_count()))


@dataclass(frozen=True)
class _Part:
    """Counts of one pass of a plan."""

    of_pass: Pass
    units: int
    cells: list[int]  # windows by group
    pixels: int  # of the pass
    held_px: int  # the most that one unit holds at a time

    @classmethod
    def of(cls, plan: Plan, of_pass: Pass) -> _Part:
        units = list(plan.units_of(of_pass.number))
        parts = {unit: plan.parts(unit) for unit in units}
        cells = [0] * len(of_pass.groups)
        reach = of_pass.reach_px(plan.options())
        for unit in units:
            wanted = [part.pad(reach) for part in parts[unit]]
            for i, (group, found) in enumerate(zip(of_pass.groups, of_pass.cells(wanted), strict=True)):
                windows = [at_gsd(group.lattice.window(*cell), group.gsd_m, TARGET_GSD_M) for cell in found]
                cells[i] += len(found) if of_pass.source_gsd_m else with_scene(plan, unit, windows)
        pixels = sum(part.ny * part.nx for unit in units for part in parts[unit])
        held = max((_held_px(of_pass, plan.window(unit), plan.config.chunk_px, reach) for unit in units), default=0)
        return cls(of_pass, len(units), cells, pixels, held)

    @property
    def bytes(self) -> float:
        """Uncompressed bytes of one array with all bands."""
        return sum(2 * len(output.bands) * self.count(output) for output in self.of_pass.outputs)  # uint16

    @property
    def stored_pixels(self) -> float:
        """Pixels over all GSDs."""
        return sum(self.count(output) for output in self.of_pass.outputs)

    def count(self, output: Output) -> float:
        """Pixels of an output."""
        return self.pixels * (self.of_pass.gsd_m / output.gsd_m) ** 2


def speed_up(workers: int, units: int, *, together: bool) -> float:
    """Return how many workers' work is done at a time. Workers on one machine may share units, in threads."""
    processes = max(1, min(workers, units))
    threads = workers // processes if together else 1
    return processes * (1 + THREAD_SHARE * (threads - 1))


def _held_px(of_pass: Pass, unit: Window, chunk_px: int, reach_px: int) -> int:
    """Return the px that are held at a time while a unit is computed.

    These are the rows that wait for the next row of windows to complete some chunks, and that row of windows: over the
    block that is finished next, or over the unit if it has several groups of stages, which run one after another.
    """
    wide, gsd_m = unit.nx + 2 * reach_px, of_pass.gsd_m
    ramp = max(round(group.lattice.ramp_px * group.gsd_m / gsd_m) for group in of_pass.groups)
    stride = max(round(group.lattice.stride_px * group.gsd_m / gsd_m) for group in of_pass.groups)
    rows = unit.ny + 2 * reach_px
    waiting = min(rows, chunk_px + 2 * reach_px + ramp + ROWS_PX)
    front = wide if len(of_pass.groups) > 1 else min(wide, block_px(unit.nx, chunk_px) + 2 * reach_px)
    return wide * waiting + front * min(rows - waiting, stride)


def _base_px(groups: Sequence[Group], cells: Sequence[int]) -> float:
    """Return the number of 2.5 m pixels that the networks compute, taken from the group that covers most."""
    return max(
        (
            count * (group.lattice.window_px * group.gsd_m / TARGET_GSD_M) ** 2
            for group, count in zip(groups, cells, strict=True)
        ),
        default=0.0,
    )


def _windows_mib(memory: Memory, of_pass: Pass, members: int, batch: int) -> float:
    """Return the memory in MiB of the windows that one thread computes at once.

    With several members these are also the running sums of their mean and spread (`superres.members`), and the spread
    of a window that is done.
    """
    floats = 0.0
    for group in of_pass.groups:
        values = sum(len(output.bands) * (group.gsd_m / output.gsd_m) ** 2 for output in group.outputs)
        more = _SUMS * values if members > 1 and group.varying else 0.0
        floats = max(floats, group.lattice.window_px**2 * (memory.floats_per_px + more))
    return batch * floats * 4 / 2**20


def units_at_gpu(plan: Plan) -> int:
    """Return how many units of a plan one process computes at once where it has a GPU."""
    return units_at_once(spec_of(plan.system.name), "cuda")


def base_mib(memory: Memory) -> float:
    """Return the memory in MiB of one worker without the units that it computes."""
    return _BASE_MIB + _GDAL_CACHE_MIB + _KEPT_MIB + memory.weights_mib


def unit_mib(memory: Memory, held_px: int, of_pass: Pass, members: int, scenes: int, batch: int) -> float:
    """Return the memory in MiB that a unit takes which holds `held_px` pixels of a pass, computed in one thread."""
    gsd_m = of_pass.gsd_m
    handed = sum(
        len(group.handed) * (gsd_m / group.gsd_m) ** 2 * (max(1, members) if group.varying else 1)
        for group in of_pass.groups
    )
    if of_pass.source_gsd_m:
        read = len(of_pass.natives) * (gsd_m / of_pass.source_gsd_m) ** 2 * 2
    else:
        read = sum(len(bands_at(gsd, BAND_NAMES)) * (gsd_m / gsd) ** 2 for gsd in GSDS_M) * 2 * scenes
    blended = sum(
        (len(output.bands) * (4 + 4 * (members > 1)) + 8) * (gsd_m / output.gsd_m) ** 2 for output in of_pass.outputs
    )
    return held_px * (blended + read + 4 * handed) / 2**20 + _windows_mib(memory, of_pass, members, batch)


class WindowTime(NamedTuple):
    """Seconds that one window and one member take: by the clock, and of the processor or GPU that they occupy."""

    wall_s: float
    busy_s: float


def time_window(plan: Plan, number: int = 0) -> WindowTime:
    """Return the time of one window of a pass on this machine, the second of two runs.

    The input is random DN. A long run is not repeated, since what the first one loads hardly counts there.
    """
    from pipeline.grid.grid import Window
    from pipeline.process import prepare_process
    from pipeline.superres import superres

    prepare_process()
    device, one = device_name(), plan.model_passes()[number]
    system = load(plan.system, device, precision_timed(plan, device))
    middle = round(one.groups[0].lattice.stride_px // 2 * one.groups[0].gsd_m / one.gsd_m)
    cell = Window(middle, middle, one.source_px, one.source_px).snap_out(one.source_px)
    options = replace(plan.options(), members=min(plan.draws, 1), consistency="none")
    rasters = _made_up(plan, one, one.read_window(cell.pad(one.reach_px(options))))
    state = next(iter(plan.states.values()), None)
    wall = busy = 0.0
    for _ in range(2):
        started, cpu_started = time.perf_counter(), time.process_time()
        superres.super_resolve(rasters, cell, system, plan.config.band_names, options, lambda _w: state, number=number)
        wall, busy = time.perf_counter() - started, time.process_time() - cpu_started
        if wall > _LONG_S:
            break
    windows = (len(cells) for cells in one.cells([cell.pad(one.reach_px(options))]))
    count = sum(-(-count // plan.batch) * plan.batch for count in windows)  # batches are filled up
    return WindowTime(wall / count, (wall if system.device.type == "cuda" else min(wall, busy)) / count)


def precision_timed(plan: Plan, device: str) -> str:
    """Return the precision in which a window is timed: the plan's, or float32 where only a GPU elsewhere has that."""
    asked = plan.config.precision
    return asked if possible(asked, device) else FLOAT32


def _made_up(plan: Plan, of_pass: Pass, window: Window) -> Rasters:
    """Return random DN over a window of a pass."""
    import numpy as np

    from pipeline.grid.finished_rasters import FinishedRasters
    from pipeline.grid.native_rasters import NativeRasters, factor_at
    from pipeline.superres.masks import QUALITY_GENERATED

    rng = np.random.default_rng(0)
    if of_pass.source_gsd_m:
        bands, shape = of_pass.natives, window.coarsen(of_pass.source_px).shape
        dn = rng.integers(1500, 4000, (len(bands), *shape), dtype=np.uint16)
        return FinishedRasters(window, of_pass.source_px, bands, dn, np.full(shape, QUALITY_GENERATED, np.uint8))
    names = {gsd: bands_at(gsd, plan.inputs) for gsd in GSDS_M if bands_at(gsd, plan.inputs)}
    native = {
        gsd: rng.integers(1500, 4000, (len(bands), *window.coarsen(factor_at(gsd)).shape), dtype=np.uint16)
        for gsd, bands in names.items()
    }
    return NativeRasters(window, native, names)
