"""What a plan will cost: units, windows, pixels, bytes, memory, time. Nothing is read or written.

In: a `Plan`. Out: an `Estimate`. Imports plan, outline and superres.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from pipeline.bands import BAND_NAMES, BLOCK_60M, GSDS_M, TARGET_GSD_M, bands_at
from pipeline.execution.outline import template_of
from pipeline.superres.chain import cells_by_group, read_window
from pipeline.superres.registry import spec_of
from pipeline.superres.system import load

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.execution.plan import Plan, Unit
    from pipeline.superres.chain import Group

# Peak memory of a worker, measured by tests.benchmarks: interpreter with torch, zarr and dask; GDAL's block cache, that
# fills up over many units. What networks need on top is declared by their system.
_BASE_MIB = 400.0
_GDAL_CACHE_MIB = 256.0
# zstd level 1 on 2.5 m values of real scenes, `lite`: 25 km2 1.25, the sample 1.28 and, of 4 members, 2.13. Quality and
# classification take less than a thousandth.
_COMPRESSION = {"reflectance": 1.25, "uncertainty": 2.1}
_LEVELS = 1.35  # stored bytes with overviews (0.32 more) and the measured input (0.03) over those of 2.5 m, likewise


@dataclass(frozen=True)
class Estimate:
    """Cost of a plan."""

    scenes: int
    zones: int
    periods: int
    units: int
    windows: int
    area_km2: float  # of active chunks, once
    output_pixels: int  # per band and time step
    output_mib: float  # uncompressed
    stored_mib: float  # expected on disk
    overlap: float  # model pixels computed per output pixel
    worker_mib: float  # expected peak of one worker
    seconds_per_window: float  # measured here, one thread
    seconds: float  # expected, with `workers`
    workers: int

    def to_json(self) -> dict[str, Any]:
        """Plain dictionary."""
        return asdict(self)


def estimate(plan: Plan, workers: int, *, timed: bool = True) -> Estimate:
    """Count the plan's work; `timed` runs one window of the system on this machine to estimate seconds."""
    groups, units = plan.groups(), list(plan.units())
    windows = [plan.window(unit) for unit in units]
    cells = _cells(plan, groups, units)
    pixels = sum(chunk.ny * chunk.nx for unit in units for chunk in plan.chunks(unit))
    periods = sum(len(zone.periods) for zone in plan.zones)
    bands = len(plan.config.band_names)
    arrays = ["reflectance", *(["uncertainty"] if template_of(plan, plan.zones[0]).with_uncertainty else [])]
    band_bytes = bands * 2  # uint16
    largest = max((window.ny * window.nx for window in windows), default=0)
    # a mosaic holds one scene and the result at a time; a median all that lie over one place, rarely more than ten
    medians = [len(p.scene_ids) for zone in plan.zones for p in zone.periods if p.composite == "median"]
    scenes = max(2, min(10, max(medians, default=0)))
    per_window = seconds_per_window(plan) if timed else 0.0
    per_member = plan.draws or 1
    return Estimate(
        scenes=len(plan.scenes),
        zones=len(plan.zones),
        periods=periods,
        units=len(units),
        windows=sum(cells),
        area_km2=round(pixels * TARGET_GSD_M**2 / 1e6 / max(1, periods / len(plan.zones)), 2),
        output_pixels=pixels,
        output_mib=round(pixels * (band_bytes * len(arrays) + 1) / 2**20, 1),
        stored_mib=round(pixels * band_bytes * sum(1 / _COMPRESSION[name] for name in arrays) * _LEVELS / 2**20, 1),
        overlap=round(_base_px(groups, cells) / max(1, pixels), 2),
        worker_mib=round(worker_mib(plan.system.name, largest, groups, bands, plan.draws, scenes)),
        seconds_per_window=round(per_window, 3),
        seconds=round(sum(cells) * per_window * per_member / max(1, min(workers, len(units))), 1),
        workers=workers,
    )


def _cells(plan: Plan, groups: Sequence[Group], units: Sequence[Unit]) -> list[int]:
    """Windows that each group computes, over all units."""
    found = [0] * len(groups)
    for unit in units:
        wanted = [chunk.pad(plan.reach_px) for chunk in plan.chunks(unit)]
        for i, cells in enumerate(cells_by_group(groups, wanted)):
            found[i] += len(cells)
    return found


def _base_px(groups: Sequence[Group], cells: Sequence[int]) -> float:
    """Pixels of 2.5 m that pass through networks: those of the group that covers most."""
    return max(
        (
            count * (group.lattice.window_px * group.gsd_m / TARGET_GSD_M) ** 2
            for group, count in zip(groups, cells, strict=True)
        ),
        default=0.0,
    )


def worker_mib(system: str, unit_px: int, groups: Sequence[Group], bands: int, members: int, scenes: int) -> float:
    """Expected peak memory of one worker in MiB for a unit of `unit_px` output pixels."""
    memory = spec_of(system).memory
    window_px = max((group.lattice.window_px for group in groups), default=0)
    handed = sum(
        len(group.handed) * (TARGET_GSD_M / group.gsd_m) ** 2 * (max(1, members) if group.varying else 1)
        for group in groups
    )
    native_dn = sum(len(bands_at(gsd, BAND_NAMES)) * (TARGET_GSD_M / gsd) ** 2 for gsd in GSDS_M) * 2 * scenes
    blended = bands * (4 + 2 + 4 * (members > 1)) + 8
    arrays = unit_px * (blended + native_dn + 4 * handed) + window_px**2 * memory.floats_per_px * 4
    return _BASE_MIB + _GDAL_CACHE_MIB + memory.weights_mib + arrays / 2**20


def seconds_per_window(plan: Plan) -> float:
    """Wall seconds of one window of one member on this machine, second of two runs, on made-up numbers."""
    import numpy as np

    from pipeline.execution.worker_process import device_name, prepare_process
    from pipeline.grid.grid import Window
    from pipeline.grid.native_rasters import NativeRasters, factor_at
    from pipeline.superres import superres

    prepare_process()
    system, groups = load(plan.system, device_name()), plan.groups()
    middle = groups[0].lattice.stride_px // 2
    cell = Window(middle, middle, BLOCK_60M, BLOCK_60M).snap_out(BLOCK_60M)
    options = replace(plan.options(), members=min(plan.draws, 1), consistency="none")
    window = read_window(groups, cell)
    names = {gsd: bands_at(gsd, plan.inputs) for gsd in GSDS_M if bands_at(gsd, plan.inputs)}
    rng = np.random.default_rng(0)
    dn = {
        gsd: rng.integers(1500, 4000, (len(bands), *window.coarsen(factor_at(gsd)).shape), dtype=np.uint16)
        for gsd, bands in names.items()
    }
    native = NativeRasters(window, dn, names)
    state = next(iter(plan.states.values()), None)
    spent = 0.0
    for _ in range(2):
        started = time.perf_counter()
        found = superres.super_resolve(native, cell, system, plan.config.band_names, options, lambda _w: state)
        spent = time.perf_counter() - started
    return spent / max(1, found.windows)
