"""Run by every local Dask worker process before its first task.

In: nothing. Out: a process that leaves Ctrl-C to the driver, which then lets running units finish. Workers that the
nanny restarts later get here too.
"""

from __future__ import annotations

import signal


def dask_setup(worker: object) -> None:
    """Ignore SIGINT, in the worker's main thread, where Dask calls this."""
    del worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)
