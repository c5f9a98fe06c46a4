"""Dask preload of every worker process that the pipeline starts, including workers that the nanny restarts.

Workers leave Ctrl-C to the driver, which lets running units finish, and redact secrets from their logs.
"""

from __future__ import annotations

import signal

from pipeline.redaction import redact_logs


def dask_setup(worker: object) -> None:
    """Ignore SIGINT and redact logs. Dask calls this in the worker's main thread."""
    del worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    redact_logs()
