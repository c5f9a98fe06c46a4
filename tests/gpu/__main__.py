"""`python -m tests.gpu [--json FILE]`: what only a GPU can tell, in less than eight minutes, as a Markdown table.

Equality of every system with the CPU, in every precision; every step around the networks against NumPy; batches; places
where the host waits for the device; windows per second, the share of time that the device computes, memory and the
largest batch; 25 km2 by `--cluster cuda` with one worker, inline, and with the worker killed. It needs nothing but this
repository: ground is synthetic, weights are those that are shipped, and random ones in the published shapes of the
core model.

Exits with 0 if all holds, 1 if something does not, and 3 without a GPU. `--device cpu --small` runs what a CPU can tell
on small networks, so that the command itself is known to work.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from pipeline.errors import EXIT_NO_DATA, EXIT_OK

EXIT_BROKEN = 1


def parser() -> argparse.ArgumentParser:
    from tests.gpu import checks, runs, speed

    p = argparse.ArgumentParser(
        "python -m tests.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="(default: %(default)s)")
    p.add_argument("--small", action="store_true", help="small networks, few windows")
    p.add_argument("--only", nargs="*", metavar="CHECK", help="some checks: " + ", ".join(CHECKS))
    p.add_argument("--minutes", type=float, default=8.0, help="leave out what does not fit (default: %(default)g)")
    p.add_argument("--json", type=Path, metavar="FILE", help="also write the rows to this file")
    CHECKS.update(
        steps=checks.steps,
        tensors=checks.tensors_on_the_cpu,
        equality=checks.equality,
        batches=checks.batches,
        waiting=checks.waiting,
        throughput=speed.throughput,
        runs=runs.whole_runs,
        largest=speed.largest_batch,
    )
    return p


CHECKS: dict = dict.fromkeys(("steps", "tensors", "equality", "batches", "waiting", "throughput", "runs", "largest"))


def main(argv: list[str] | None = None) -> int:
    """Run the checks and return the exit code."""
    arguments = parser().parse_args(argv)
    import torch

    from pipeline.process import arithmetic, prepare_process
    from tests.gpu.bench import BROKEN, LEFT_OUT, Bench, Row

    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("no GPU: torch sees none; --device cpu --small runs what a CPU can tell", file=sys.stderr)
        return EXIT_NO_DATA
    unknown = [name for name in arguments.only or () if name not in CHECKS]
    if unknown:
        print(f"no check {', '.join(unknown)}; expected some of {', '.join(CHECKS)}", file=sys.stderr)
        return 2
    prepare_process()
    rows: list[Row] = []
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    print(f"{arithmetic()}; {versions}\n\n| check | case | figure | value | |\n|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(torch.device(arguments.device), arguments.small, Path(folder), 60 * arguments.minutes)
        for name in arguments.only or CHECKS:
            for row in _run(name, bench, Row, LEFT_OUT, BROKEN):
                rows.append(row)
                print(f"| {' | '.join((row.check, row.case, row.figure, row.value, row.verdict))} |", flush=True)
    if arguments.json:
        told = {"arithmetic": arithmetic(), "torch": torch.__version__, "rows": [asdict(row) for row in rows]}
        arguments.json.write_text(json.dumps(told, indent=1))
    return EXIT_BROKEN if any(row.verdict == BROKEN for row in rows) else EXIT_OK


def _run(name: str, bench, row, left_out: str, broken: str):
    """Rows of one check while time is left. A check that fails is a row: the others are still of use."""
    import torch

    found = CHECKS[name](bench)
    while True:
        if bench.left_s <= 0:
            yield row(name, "", "", "time is up", left_out)
            return
        try:
            yield next(found)
        except StopIteration:
            return
        except Exception as error:
            yield row(
                name, "", f"{type(error).__name__}", str(error).splitlines()[0][:200] if str(error) else "", broken
            )
            if bench.device.type == "cuda":
                torch.cuda.empty_cache()
            return


if __name__ == "__main__":
    sys.exit(main())
