"""Local Dask workers whose scheduler lives in a process of its own: one per processor, or one per GPU.

Dask's worker processes are spawned by `multiprocessing`, which runs the main module of the parent again in each of
them. If the parent were the process of a user, a script without `if __name__ == "__main__"` would start its run anew
in every worker. The parent is therefore a helper, started by `pipeline.start`. It ends with its standard input, and so
with the process that started it, however that ends. It leaves signals to that process.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from pipeline.archive.read.gateway import shared
from pipeline.errors import PipelineError, UsageError
from pipeline.start import command, environment

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from distributed import LocalCluster

_CLOSE_TIMEOUT_S = 30.0  # for workers to end after a run


@contextmanager
def local_workers(kind: str, workers: int, at_once: int = 1) -> Iterator[str]:
    """Yield the address of a scheduler with `workers` processes ("local") or with one per GPU ("cuda").

    Each computes `at_once` units at a time, in threads.
    Raises UsageError if dask-cuda cannot be used, and PipelineError if the helper ends.
    """
    import dask

    helper = subprocess.Popen(
        command(__name__, kind, str(workers), str(at_once)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment(DASK_INTERNAL_INHERIT_CONFIG=dask.config.serialize(dask.config.global_config), **shared()),
        start_new_session=True,  # Ctrl-C and signals to the group of a job are for the driver
    )
    assert helper.stdin is not None
    assert helper.stdout is not None
    with helper.stdin, helper.stdout:
        try:
            yield _address(helper.stdout.readline())
        finally:
            _end(helper)


def _address(answer: bytes) -> str:
    try:
        said: dict[str, str] = json.loads(answer)
    except ValueError as error:
        raise PipelineError(
            "the local Dask scheduler did not start",
            "a process that listens on 127.0.0.1",
            "its own messages are above; with --workers 1 none is needed",
        ) from error
    if "address" not in said:
        raise UsageError(said["found"], cure=said["cure"])
    return said["address"]


def _end(helper: subprocess.Popen[bytes]) -> None:
    """Let the helper close its workers, and kill it if that takes too long; they end with it."""
    assert helper.stdin is not None
    with suppress(OSError):
        helper.stdin.close()
    try:
        helper.wait(_CLOSE_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        helper.kill()
        helper.wait()


def main(arguments: Sequence[str]) -> int:
    """Run scheduler and workers until standard input ends. Print one line of JSON: the address, or what is wrong."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        # a handler, and not SIG_IGN, which worker processes would inherit and could then not be ended
        signal.signal(number, lambda _number, _frame: None)
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what workers print is no answer
    kind, workers, at_once = arguments
    try:
        cluster = _cuda(int(at_once)) if kind == "cuda" else _local(int(workers), int(at_once))
    except UsageError as error:
        print(json.dumps({"found": error.found, "cure": error.cure}), file=channel, flush=True)
        return error.exit_code
    with cluster:
        print(json.dumps({"address": cluster.scheduler_address}), file=channel, flush=True)
        sys.stdin.buffer.read()
    return 0


def _local(workers: int, at_once: int) -> LocalCluster:
    from distributed import LocalCluster

    return LocalCluster(
        n_workers=workers,
        threads_per_worker=at_once,
        memory_limit=0,  # memory is checked before the run; Dask would pause or kill workers by its own estimate
        host="127.0.0.1",
        dashboard_address="127.0.0.1:0",
        silence_logs=50,
    )


def _cuda(at_once: int) -> LocalCluster:
    import dask

    try:
        from dask_cuda import LocalCUDACluster
    except Exception as error:
        raise UsageError(f"dask-cuda cannot be used ({error})", cure='pip install "sen2fine[cuda]"') from error
    gpus: LocalCluster = LocalCUDACluster(
        threads_per_worker=at_once,
        device_memory_limit=0,
        memory_limit=0,  # as for local workers
        preload=dask.config.get("distributed.worker.preload"),  # its own would replace the one that is configured
        dashboard_address="127.0.0.1:0",
    )
    return gpus
