"""What a plan will cost: units, windows, pixels, bytes, memory, time. Nothing is read or written.

In: a `Plan`. Out: an `Estimate`. Imports plan, outline and superres.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from pipeline.bands import BAND_NAMES, GSDS_M, TARGET_GSD_M, bands_at
from pipeline.execution.outline import template_of
from pipeline.superres import systems

if TYPE_CHECKING:
    from pipeline.execution.plan import Plan

# Peak memory of a worker, measured by tests.benchmarks: interpreter with torch, zarr and dask; GDAL's block cache, that
# fills up over many units; weights and float32 values alive per window pixel at the peak of each system's networks.
_BASE_MIB = 400.0
_GDAL_CACHE_MIB = 256.0
_SYSTEM_MIB = {"lite": 20.0, "bicubic": 0.0, "difffusr": 700.0}
_WINDOW_FLOATS = {"lite": 200.0, "bicubic": 100.0, "difffusr": 2000.0}
_LARGE_MIB, _LARGE_FLOATS = max(_SYSTEM_MIB.values()), max(_WINDOW_FLOATS.values())  # of systems that users bring
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
    lattice = systems.lattice_of(plan.system)
    units = list(plan.units())
    windows = [plan.window(unit) for unit in units]
    reach = plan.reach_px
    cells = sum(len(lattice.cells_touching_any(plan.chunks(unit), reach)) for unit in units)
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
        windows=cells,
        area_km2=round(pixels * TARGET_GSD_M**2 / 1e6 / max(1, periods / len(plan.zones)), 2),
        output_pixels=pixels,
        output_mib=round(pixels * (band_bytes * len(arrays) + 1) / 2**20, 1),
        stored_mib=round(pixels * band_bytes * sum(1 / _COMPRESSION[name] for name in arrays) * _LEVELS / 2**20, 1),
        overlap=round(cells * lattice.window_px**2 / max(1, pixels), 2),
        worker_mib=round(worker_mib(plan.system.name, largest, lattice.window_px, bands, plan.draws, scenes)),
        seconds_per_window=round(per_window, 3),
        seconds=round(cells * per_window * per_member / max(1, min(workers, len(units))), 1),
        workers=workers,
    )


def worker_mib(system: str, unit_px: int, window_px: int, bands: int, members: int, scenes: int) -> float:
    """Expected peak memory of one worker in MiB for a unit of `unit_px` output pixels."""
    native_dn = sum(len(bands_at(gsd, BAND_NAMES)) * (TARGET_GSD_M / gsd) ** 2 for gsd in GSDS_M) * 2 * scenes
    blended = bands * (4 + 2 + 4 * (members > 1)) + 8
    arrays = unit_px * (blended + native_dn) + window_px**2 * _WINDOW_FLOATS.get(system, _LARGE_FLOATS) * 4
    return _BASE_MIB + _GDAL_CACHE_MIB + _SYSTEM_MIB.get(system, _LARGE_MIB) + arrays / 2**20


def seconds_per_window(plan: Plan) -> float:
    """Wall seconds of one window of one member on this machine, second of two runs, on made-up numbers."""
    import numpy as np

    from pipeline.execution.worker_process import device_name, prepare_process
    from pipeline.grid.grid import Window
    from pipeline.grid.native_rasters import NativeRasters, factor_at
    from pipeline.superres import superres

    prepare_process()
    system = systems.load(plan.system, device_name())
    lattice = system.lattice
    cell = Window(lattice.stride_px // 2, lattice.stride_px // 2, 24, 24).snap_out(24)
    options = replace(plan.options(), members=min(plan.draws, 1), consistency="none")
    window = superres.read_window(lattice, cell)
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
        superres.super_resolve(native, cell, system, plan.config.band_names, options, lambda _w: state)
        spent = time.perf_counter() - started
    return spent
