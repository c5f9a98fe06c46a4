"""Run by every Dask worker process that we start, before its first task.

In: nothing. Out: a process that leaves Ctrl-C to the driver, which then lets running units finish, and whose logs hold
no secret. Workers that the nanny restarts later get here too.
"""

from __future__ import annotations

import signal

from pipeline.redaction import redact_logs


def dask_setup(worker: object) -> None:
    """Ignore SIGINT and redact logs, in the worker's main thread, where Dask calls this."""
    del worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    redact_logs()
