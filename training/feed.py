"""`python -m training.feed --data my_training.toml`: measure how fast batches are made, before a GPU waits for them.

For every preset and number of workers, it prints images per second, images per second of processor time (without
workers only), milliseconds per batch, and how long a step of `--step-ms` waits for its batch.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import PipelineError
from pipeline.parsers import CommandParser
from pipeline.terminal import show
from training import registry
from training.arguments import duration, interval, natural
from training.data.rasters import default_data

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from training.loop.batches import Draw

HEADER = f"{'preset':<24} {'workers':>7} {'images/s':>9} {'per CPU s':>9} {'ms/batch':>9} {'waits ms/step':>13}"


@dataclass(frozen=True)
class Speed:
    """Throughput of a feed. `per_cpu_s` is 0 where workers make the batches."""

    images_per_s: float
    per_cpu_s: float
    batch_ms: float
    waits_ms: float

    def line(self, preset: str, workers: int) -> str:
        """Return the row of a table below `HEADER`."""
        cpu = f"{self.per_cpu_s:9.1f}" if self.per_cpu_s else f"{'':>9}"
        return f"{preset:<24} {workers:7d} {self.images_per_s:9.1f} {cpu} {self.batch_ms:9.1f} {self.waits_ms:13.1f}"


def speed_of(
    make: Callable[[Draw], dict[str, Tensor]], workers: int, seconds: float, warm: int, step_s: float
) -> Speed:
    """Measure batches of `make` for about `seconds` at full speed, then as long with a step of `step_s` after each.

    The first `warm` batches, during which caches fill, do not count. The step is a pause, as of a device that computes.
    """
    from training.loop.batches import Feed

    with Feed(make, seed=0, workers=workers) as feed:

        def take(for_s: float, pause_s: float = 0.0) -> tuple[int, int]:
            """Take batches for so many seconds, at least one. Return their number and that of their images."""
            batches = images = 0
            ends = time.monotonic() + for_s
            while not batches or time.monotonic() < ends:
                images += len(next(iter(feed.next().values())))
                batches += 1
                time.sleep(pause_s)
            return batches, images

        for _ in range(warm):
            feed.next()
        started, cpu = time.monotonic(), time.process_time()
        batches, images = take(seconds)
        wall_s, cpu_s = time.monotonic() - started, time.process_time() - cpu
        waited = feed.waited_s
        steps, _ = take(seconds, step_s)
        return Speed(
            images_per_s=images / wall_s,
            per_cpu_s=0.0 if workers else images / max(cpu_s, 1e-9),
            batch_ms=1e3 * wall_s / batches,
            waits_ms=1e3 * (feed.waited_s - waited) / steps,
        )


def parser() -> argparse.ArgumentParser:
    """Return the argument parser of `python -m training.feed`."""
    p = CommandParser(prog="python -m training.feed", description=__doc__)
    p.add_argument(
        "--data",
        type=Path,
        default=default_data(),
        help="as of training.train (default: the folder that SEN2FINE_DATA names)",
    )
    p.add_argument(
        "--preset", action="append", choices=sorted(registry.presets()), help="may be repeated (default: all)"
    )
    p.add_argument("--workers", default="0,1,2", help="numbers of workers to try (default: %(default)s)")
    p.add_argument("--seconds", type=duration, default=10.0, help="of each measurement (default: %(default)s)")
    p.add_argument("--warm-up", type=natural, default=40, help="uncounted batches before (default: %(default)s)")
    p.add_argument("--step-ms", type=interval, default=30.0, help="length of a step (default: %(default)s)")
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. Return the exit code."""
    p = parser()
    args = p.parse_args(arguments)
    try:
        workers = [natural(text) for text in args.workers.split(",")]
    except (ValueError, argparse.ArgumentTypeError):
        p.error(f"--workers {args.workers}; expected numbers such as 0,1,2")
    try:
        measure(args.data, args.preset or sorted(registry.presets()), workers, args)
    except PipelineError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


def measure(data: Path, presets: Sequence[str], workers: Sequence[int], args: argparse.Namespace) -> None:
    """Print a row for every preset and number of workers, as they come. Raises PipelineError."""
    import torch

    from training.data.sources import load_data

    torch.set_num_threads(1)  # as in workers
    show(HEADER)
    load = cache(partial(load_data, data))
    for name in presets:
        preset = registry.presets()[name]
        task = registry.task_of(preset).build(preset, load(preset.output_gsd_m, preset.total_scale))
        for count in workers:
            speed = speed_of(task.batch, count, args.seconds, args.warm_up, args.step_ms / 1e3)
            show(speed.line(name, count))
        del task


if __name__ == "__main__":
    sys.exit(main())
