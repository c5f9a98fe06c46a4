"""Checks that measure: windows per second, how much of it the device computes, memory, and the largest batch."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from tests.gpu.bench import Area, Bench, Row
from tests.gpu.checks import _first_input, _predicted

if TYPE_CHECKING:
    from collections.abc import Iterator

_CELLS = 4  # model windows along one axis
_LEAST_S = 3.0  # measured for at least so long


def throughput(bench: Bench) -> Iterator[Row]:
    """Windows computed, blended, made consistent and quantised, per system and precision."""
    for case in bench.cases:
        area = Area(bench, case, cells=1 if bench.small or case == "difffusr" else _CELLS)
        for precision in bench.precisions[: 1 if bench.small else None]:
            system = replace(bench.system(case, bench.device), precision=precision)
            area.computed(system)
            _forget_peak(bench.device)
            seconds, windows, rounds = _timed(area, system, 0.0 if bench.small else _LEAST_S)
            name = f"{case}, {precision}"
            km2 = rounds * area.window.ny * area.window.nx * (area._pass.gsd_m / 1000) ** 2
            yield Row("throughput", name, "ms per window, around it included", f"{1e3 * seconds / windows:.1f}")
            covered = 3600 * rounds * covered_km2(area) / seconds
            yield Row("throughput", name, "km2 per hour, one window per stride, one process", f"{covered:,.0f}")
            yield Row("throughput", name, "km2 per hour of this small area", f"{3600 * km2 / seconds:,.0f}")
            if (share := _busy(area, system, bench.device)) is not None:
                yield Row("throughput", name, "share of the time that the device computes", f"{100 * share:.0f} %")
                peak = torch.cuda.max_memory_allocated(bench.device) / 2**20
                yield Row("throughput", name, "peak memory of the device, MiB", f"{peak:,.0f}")


def covered_km2(area: Area) -> float:
    """The ground of all windows of the first group: a square of its stride each, as where an area is large."""
    of = area._pass
    cells = of.cells([area.window.pad(of.reach_px(area.options))])[0]
    return len(cells) * (of.groups[0].lattice.stride_px * of.groups[0].gsd_m / 1000) ** 2


def _timed(area: Area, system: object, least_s: float) -> tuple[float, int, int]:
    """(seconds, windows, rounds)."""
    began, windows, rounds = time.perf_counter(), 0, 0
    while not rounds or time.perf_counter() - began < least_s:
        windows += area.computed(system)[1]
        rounds += 1
    return time.perf_counter() - began, windows, rounds


def _forget_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)


def _busy(area: Area, system: object, device: torch.device) -> float | None:
    """Share of the wall time in which kernels run; None on a CPU."""
    if device.type != "cuda":
        return None
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.synchronize(device)
    began = time.perf_counter()
    area.computed(system)
    wall = time.perf_counter() - began  # without the profiler, which slows the host
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        area.computed(system)
        torch.cuda.synchronize(device)
    return sum(one.self_device_time_total for one in seen.key_averages()) / 1e6 / wall


def largest_batch(bench: Bench) -> Iterator[Row]:
    """The first stage of each system in growing batches, until memory ends or windows no longer get cheaper."""
    most = 2 if bench.small else 256
    for case in bench.cases:
        system = bench.system(case, bench.device)
        if system.predictor is None:
            continue
        stage, size, seen = system.stages[0], 1, []
        try:
            while size <= most and bench.left_s > 30:
                given = _first_input(stage, size, Area(bench, case), bench.device)
                _predicted(system, stage, given, size)
                _forget_peak(bench.device)
                began = time.perf_counter()
                _predicted(system, stage, given, size).cpu()
                each = (time.perf_counter() - began) / size
                seen.append((size, each, _peak_mib(bench.device)))
                if each > 1.0:
                    break
                size *= 2
            end = "not tried beyond"
        except torch.OutOfMemoryError:
            end = f"{size} do not fit"
            torch.cuda.empty_cache()
        told = ", ".join(f"{count}: {1e3 * each:.1f} ms, {mib:,.0f} MiB" for count, each, mib in seen)
        yield Row("batch", f"{case}, {stage.name}", "by size: ms per window, peak memory", f"{told}; {end}")


def _peak_mib(device: torch.device) -> float:
    return torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else 0.0
