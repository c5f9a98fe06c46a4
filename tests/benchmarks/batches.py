"""CPU seconds per window of `lite` in batches of 1, 2 and 4 on one thread, and with weights in torch's own order."""

from __future__ import annotations

import time
from dataclasses import replace

import torch

from pipeline.superres.batches import batch_of
from pipeline.superres.registry import spec_of
from pipeline.superres.spec import StageInput
from pipeline.superres.system import System, built
from pipeline.superres.weights import bundles_of, choose

SIZES = (1, 2, 4)
_TRIES = 2


def rows() -> list[tuple[str, str, str]]:
    """Return one row for each size and order."""
    choice = choose("lite")
    torch.set_num_threads(1)
    found = []
    for label, order in (
        ("channels last, as shipped", torch.channels_last),
        ("channels first", torch.contiguous_format),
    ):
        system = built(spec_of("lite"), bundles_of(choice), torch.device("cpu"), dict(choice.options))
        for network in (system.predictor.resolver, system.predictor.fuser):
            for module in (one for one in vars(network).values() if isinstance(one, torch.nn.Module)):
                module.to(memory_format=order)
        for size in SIZES:
            found.append(("one window of lite", f"CPU seconds, batches of {size}, {label}", _seconds(system, size)))
    return found


def _seconds(system: System, size: int) -> str:
    """Return the fewest CPU seconds per window of each stage."""
    made: dict[str, torch.Tensor] = {}
    spent = []
    for stage in system.stages:
        window = StageInput(
            images={one.name: _image(one, stage, made) for one in stage.reads},
            present=frozenset(band for one in stage.reads for band in one.bands),
            valid=torch.ones((1, 1, stage.lattice.window_px // 4, stage.lattice.window_px // 4), dtype=torch.bool),
        )
        batch = batch_of([replace(window) for _ in range(size)], size)
        least = float("inf")
        with torch.inference_mode():
            for _ in range(_TRIES):
                started = time.process_time()
                found = system.predict(stage, batch)
                least = min(least, time.process_time() - started)
        made |= {f"{stage.name}/{band}": found[:1, i : i + 1] for i, band in enumerate(stage.gives)}
        spent.append(f"{stage.name} {least / size:.3f}")
    return ", ".join(spent)


def _image(given, stage, made) -> torch.Tensor:
    """Return smooth reflectance of the right shape, or what an earlier stage gave."""
    if given.stage:
        return torch.cat([made[f"{given.source}/{band}"] for band in given.bands], 1)
    side = round(stage.lattice.window_px * stage.gsd_m / given.gsd_m)
    draw = torch.Generator().manual_seed(0)
    return 0.1 + 0.05 * torch.rand((1, len(given.bands), side, side), generator=draw)
