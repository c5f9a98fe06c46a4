"""Checks that compare: a device with the CPU, one batch with another, and what the host waits for."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from pipeline.grid import arrays
from pipeline.grid.arrays import fetched, fetched_uint16, on_device
from pipeline.grid.grid import Window
from pipeline.grid.noise import normal_field
from pipeline.grid.sensor import sensor
from pipeline.superres.consistency import project_to_dn, round_to_dn
from pipeline.superres.contract import agreeing
from pipeline.superres.masks import QUALITY_GENERATED
from pipeline.superres.spec import StageInput
from tests.benchmarks.precision import Apart
from tests.gpu.bench import BROKEN, HOLDS, LEFT_OUT, MEASURED, Area, Bench, Row
from tests.superres.fakes import cut_from

if TYPE_CHECKING:
    from collections.abc import Iterator

CPU = torch.device("cpu")
# Mean difference to the CPU in float32 that is allowed, in DN. Sums of convolutions run in another order on a device;
# single pixels at edges say little, so only the mean has a limit. Small networks are untrained, and round as they like.
MOST_DN = {"float32": 0.1, "tf32": 2.0, "float16": 2.0, "bfloat16": 12.0}
BATCHES = (1, 2, 4, 8, 16)


def verdict(*, holds: bool) -> str:
    """The word for what has to hold."""
    return HOLDS if holds else BROKEN


def equality(bench: Bench) -> Iterator[Row]:
    """Every system in every precision against the CPU in float32, and against itself."""
    for case in bench.cases:
        if case == "difffusr" and not bench.small:  # minutes of a CPU; its parts are those of the small one
            continue
        area = Area(bench, case)
        expected, _ = area.computed(bench.system(case, CPU))
        generated = float((expected.quality == QUALITY_GENERATED).mean())
        told = MEASURED if case == "bicubic" else verdict(holds=generated > 0)
        yield Row("equality", case, "share of pixels with generated detail", f"{generated:.2f}", told)
        for precision in bench.precisions:
            system = replace(bench.system(case, bench.device), precision=precision)
            found, again = area.computed(system)[0], area.computed(system)[0]
            apart = Apart.of(expected.dn, found.dn)
            near = verdict(holds=apart.mean <= MOST_DN[precision])
            near = MEASURED if bench.small and precision != "float32" else near
            figure = "share of DN unlike the CPU's / mean / largest"
            yield Row("equality", f"{case}, {precision}", figure, str(apart), near)
            same = np.array_equal(found.dn, again.dn)
            yield Row("equality", f"{case}, {precision}", "twice the same", str(same), verdict(holds=same))


def steps(bench: Bench) -> Iterator[Row]:
    """What surrounds the networks, step by step: values unlike NumPy's."""
    device, rng = bench.device, np.random.default_rng(0)
    window = Window(-79_992, 12_000, 96, 96) if bench.small else Window(-79_992, 12_000, 480, 480)
    words = {"seed": 2**64 - 1, "channels": 3, "step": 7, "member": 3, "stream": 9}
    one, other = normal_field(window, **words), fetched(normal_field(window, **words, device=device))
    unlike = int((one != other).sum())
    few = unlike <= one.size * 1e-5  # where float64 functions of two libraries differ, one in 1e8 rounds otherwise
    yield Row("steps", "noise", "values unlike NumPy's", f"{unlike} of {one.size:,}", verdict(holds=few))
    for factor in (4, 8, 24):
        native = rng.integers(0, 9000, (2, *window.coarsen(factor).shape)).astype(np.uint16)
        native[:, 0, 0], native[:, 1, 1] = 0, 65535
        image = native.repeat(factor, 1).repeat(factor, 2) + rng.normal(0, 500, (2, *window.shape))
        image = image.astype(np.float32)
        for name, to_dn in (("rounding", round_to_dn), ("block means", project_to_dn)):
            moved = to_dn(on_device(image, device), on_device(native, device), factor)
            unlike = int((to_dn(image, native, factor) != fetched_uint16(moved)).sum())
            few = unlike == 0 if to_dn is round_to_dn else unlike <= image.size * 1e-5
            what = f"{unlike} of {image.size:,}"
            yield Row("steps", f"{name}, factor {factor}", "DN unlike NumPy's", what, verdict(holds=few))
        yield _sensor(window, factor, device)


def _sensor(window: Window, factor: int, device: torch.device) -> Row:
    """Two bands corrected at once on the device, and one by one with NumPy."""
    rng, area = np.random.default_rng(0), window.pad(16 * factor)
    dn = [rng.integers(0, 4000, area.coarsen(factor).shape).astype(np.uint16) for _ in range(2)]
    image = np.stack([one.repeat(factor, 0).repeat(factor, 1) for one in dn]) + rng.normal(0, 200, (2, *area.shape))
    image = image.astype(np.float32)
    placed = [on_device(one, device) for one in dn]

    def over(held: list) -> object:
        return lambda i, part: held[i][part.coarsen(factor).slices(area.coarsen(factor))]

    sensors = [sensor(0.2, factor), sensor(0.3, factor)]
    expected = agreeing(cut_from(image, area), window, sensors, over(dn), ())
    found = fetched(agreeing(cut_from(on_device(image, device), area), window, sensors, over(placed), ()))
    unlike = int((found != expected).sum())
    what = f"{unlike} of {expected.size:,}"
    return Row("steps", f"sensor, factor {factor}", "values unlike NumPy's", what, verdict(holds=unlike == 0))


def batches(bench: Bench) -> Iterator[Row]:
    """Whether the pixels of a window depend on its place in a batch, on its companions and on the batch's size."""
    sizes = BATCHES[:3] if bench.small else BATCHES
    for case in bench.cases:
        system = bench.system(case, bench.device)
        if system.predictor is None or (case == "difffusr" and not bench.small):
            continue
        stage = system.stages[0]
        given = _first_input(stage, max(sizes), Area(bench, case), bench.device)
        whole = {size: _predicted(system, stage, given, size) for size in sizes}
        for size in sizes[1:]:
            order = torch.arange(size).roll(1).tolist()
            moved = _predicted(system, stage, _taken(given, order), size)
            same = torch.equal(moved, whole[size][order])
            alike = "place and companions change nothing"
            yield Row("batches", f"{case}, {size} windows", alike, str(same), verdict(holds=same))
        unlike = [f"{size}: {(whole[size][:1] - whole[1]).abs().max().item() * 1e4:.4f}" for size in sizes[1:]]
        yield Row("batches", case, "largest difference to a batch of one, DN, by size", ", ".join(unlike))


def _first_input(stage: object, count: int, area: Area, device: torch.device) -> StageInput:
    """A batch of random windows for the first stage of a system."""
    generator, lattice = torch.Generator().manual_seed(0), stage.lattice

    def drawn(channels: int, gsd_m: float) -> torch.Tensor:
        side = round(lattice.window_px * stage.gsd_m / gsd_m)
        return (0.05 + 0.3 * torch.rand((count, channels, side, side), generator=generator)).to(device)

    images = {one.name: drawn(len(one.bands), one.gsd_m) for one in stage.reads}
    fields: dict[tuple, torch.Tensor] = {}

    def noise(step: int, channels: int, coarser: int = 1) -> torch.Tensor:
        key, side = (step, channels, coarser), lattice.window_px // coarser
        if key not in fields:
            seed = torch.Generator().manual_seed(step * 1024 + coarser)
            fields[key] = torch.randn((count, channels, side, side), generator=seed).to(device)
        return fields[key]

    present = frozenset(band for one in stage.reads for band in one.bands) | frozenset(images)
    side = round(lattice.window_px * stage.gsd_m / 10)
    valid = torch.ones((count, 1, side, side), dtype=torch.bool, device=device)
    options = area.bench.system(area.case, device).options
    return StageInput(images, present, valid, noise if stage.stochastic else None, area.state, options)


def _taken(given: StageInput, rows: list[int]) -> StageInput:
    """The windows of these rows."""
    noise = given.noise
    drawn = None if noise is None else lambda *words, **more: noise(*words, **more)[rows]
    return replace(
        given, images={name: image[rows] for name, image in given.images.items()}, valid=given.valid[rows], noise=drawn
    )


def _predicted(system: object, stage: object, given: StageInput, size: int) -> torch.Tensor:
    """Reflectance of the first windows of a batch."""
    with torch.inference_mode():
        return system.predict(stage, _taken(given, list(range(size))))


def waiting(bench: Bench) -> Iterator[Row]:
    """What makes the host wait for the device while windows are computed and blended; nothing should."""
    for case in bench.cases:
        if bench.device.type != "cuda":
            yield Row("waiting", case, "places where the host waits for the device", "not on a CPU", LEFT_OUT)
            continue
        area, system = Area(bench, case), bench.system(case, bench.device)
        area.blended(system)  # constants are made and algorithms are chosen
        torch.cuda.synchronize()
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                area.blended(system)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        places = sorted({f"{one.filename.rpartition('/')[2]}:{one.lineno}" for one in told})
        value = ", ".join(places) or "none"
        yield Row("waiting", case, "places where the host waits for the device", value, verdict(holds=not places))


def tensors_on_the_cpu(bench: Bench) -> Iterator[Row]:
    """The device's own code around the networks, run on the CPU: the same DN as with NumPy."""
    for case in bench.cases[:2]:
        area, system = Area(bench, case), bench.system(case, CPU)
        expected = area.computed(system)[0]
        numpy_there, arrays.takes_numpy = arrays.takes_numpy, lambda _device: False
        try:
            found = area.computed(system)[0]
        finally:
            arrays.takes_numpy = numpy_there
        same = np.array_equal(expected.dn, found.dn)
        yield Row("steps", f"{case}, tensors on the CPU", "the same DN as with NumPy", str(same), verdict(holds=same))
