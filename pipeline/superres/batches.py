"""Windows in batches of a fixed size, filled up where there are fewer, so that pixels depend on their own window only.

Libraries choose their algorithms by the shape of a batch, so another size changes the last bits: the size belongs to
the plan. At a fixed size, a window comes out the same whatever its place in the batch and whatever else is in it.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from pipeline.errors import PipelineError
from pipeline.superres.spec import StageInput
from pipeline.superres.system import AHEAD, AT_ONCE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from pipeline.superres.chain import Group
    from pipeline.superres.spec import Memory, NoiseSource, Stage
    from pipeline.superres.system import System

T = TypeVar("T")
Steps = Generator[tuple["Stage", StageInput], "Tensor", T]  # of one window: asks for predictions, returns its result
_LARGEST = 8  # more windows fill no GPU better, and more of the last batch of a strip is then filled up
_GPU_SHARE = 1 / 8  # of a GPU's memory for the batches of one process; up to four of these and other users share it
# Float32 values per pixel of a window that a thread holds while the networks compute for another: rasters, inputs of
# the stage, the interpolation, and the running mean and spread of 12 bands (`tests/superres/test_batches.py`).
_HELD_FLOATS_PER_PX = 100.0


def size_for(memory: Memory, window_px: int, device_name: str) -> int:
    """Return how many windows of `window_px` networks of a system compute at once on a device: 1 on a CPU, at most 8.

    A process computes `AT_ONCE` units there in `AHEAD` threads each. The networks serve one thread at a time, and all
    others may hold a batch that is prepared or computed. Batches of 2 and 4 take more CPU seconds than windows one by
    one (`tests.benchmarks.batches`).
    """
    import torch

    if device_name == "cpu":
        return 1
    floats_per_px = memory.floats_per_px + (AT_ONCE * AHEAD - 1) * _HELD_FLOATS_PER_PX
    one_bytes = window_px**2 * floats_per_px * 4
    fitting, size = _GPU_SHARE * torch.cuda.get_device_properties(device_name).total_memory / one_bytes, 1
    while 2 * size <= min(fitting, _LARGEST):
        size *= 2
    return size


def run(windows: Sequence[Callable[[], Steps[T]]], system: System, size: int) -> list[T]:
    """Run up to `size` windows of one group side by side, and return their results in order.

    All ask for the same predictions in the same order. Windows whose scenes have different states are computed in
    batches of their own. Raises ValueError for more windows than `size`.
    """
    import torch

    if len(windows) > size:
        msg = f"{len(windows)} windows in a batch of {size}"
        raise ValueError(msg)
    results: dict[int, T] = {}
    with torch.inference_mode():
        running = dict(enumerate(window() for window in windows))
        asked = {i: _advance(i, steps, None, results) for i, steps in running.items()}
        while len(results) < len(running):
            given = {i: question for i, question in asked.items() if question is not None}
            for i, answer in _predicted(given, system, size).items():
                asked[i] = _advance(i, running[i], answer, results)
    return [results[i] for i in range(len(windows))]


def _advance(i: int, steps: Steps[T], answer: Tensor | None, results: dict[int, T]) -> tuple[Stage, StageInput] | None:
    """Answer a window. Return what it asks next, or None and its result in `results`."""
    try:
        return next(steps) if answer is None else steps.send(answer)
    except StopIteration as end:
        results[i] = end.value
        return None


def _predicted(given: dict[int, tuple[Stage, StageInput]], system: System, size: int) -> dict[int, Tensor]:
    """Return the predictions (1, bands, T, T) that windows ask for."""
    found: dict[int, Tensor] = {}
    left = dict(given)
    while left:
        stage, first = next(iter(left.values()))
        alike = [i for i, (_, one) in left.items() if one.state == first.state and one.present == first.present]
        out = system.predict(stage, batch_of([left.pop(i)[1] for i in alike], size))
        found |= {i: out[place : place + 1] for place, i in enumerate(alike)}
    return found


def batch_of(inputs: Sequence[StageInput], size: int) -> StageInput:
    """Return windows of a stage as one batch of `size`, of which the last window fills what is left."""
    import torch

    if size == 1:
        return inputs[0]
    filled = [*inputs, *[inputs[-1]] * (size - len(inputs))]

    def noise(step: int, channels: int, coarser: int = 1) -> Tensor:
        drawn = [source(step, channels, coarser) for source in sources]
        return torch.cat([*drawn, *[drawn[-1]] * (size - len(drawn))])

    sources: list[NoiseSource] = [one.noise for one in inputs if one.noise is not None]
    return replace(
        filled[0],
        images={name: torch.cat([one.images[name] for one in filled]) for name in filled[0].images},
        valid=torch.cat([one.valid for one in filled]),
        noise=noise if sources else None,
    )


def within_memory(compute: Callable[[], T], system: System, group: Group, size: int) -> T:
    """Return the result of one batch. If GPU memory runs out, empty torch's cache and try once more.

    The size of batches is fixed, since pixels would depend on another. Raises PipelineError if one does not fit.
    """
    import torch

    try:
        return compute()
    except torch.OutOfMemoryError:
        pass  # leave the handler first, which frees what the traceback holds
    torch.cuda.empty_cache()
    try:
        return compute()
    except torch.OutOfMemoryError as error:
        side = group.lattice.window_px
        windows = f"a window of {side} x {side} px" if size == 1 else f"a batch of {size} windows of {side} x {side} px"
        found = f"{windows} of {system.name} does not fit into the memory of {system.device}"
        smaller = "" if size == 1 else f"a new store with --batch {size // 2}, "
        raise PipelineError(
            f"{found} ({str(error).partition('. ')[0]})",
            f"free memory for one {'window' if size == 1 else 'batch'}",
            f"end other processes on that GPU, {smaller}use one worker per GPU, or another --sr",
        ) from None
