"""Connection to an existing Dask scheduler, which must be encrypted or local."""

from __future__ import annotations

import ipaddress
import logging
import os
import time
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from pipeline.errors import Interrupted, PipelineError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from distributed import Client

    from pipeline.planning.units import Unit
    from pipeline.running.stop import Stop

_log = logging.getLogger(__name__)
INSECURE_VARIABLE = "SEN2FINE_INSECURE_SCHEDULER"  # 1 allows unencrypted schedulers on other machines
_CONNECT_TIMEOUT = "30s"
_STEP_S = 1.0
_ENCRYPTED = ("tls", "wss")


@contextmanager
def existing_scheduler(address: str, workers_timeout_s: float, stop: Stop | None = None) -> Iterator[Client]:
    """Connect to the scheduler at `address`. Raises UsageError if it has no worker within the timeout.

    Raises Interrupted if `stop` is requested while waiting.
    """
    from distributed import Client

    _require_privacy(address)
    try:
        client = Client(address, timeout=_CONNECT_TIMEOUT)
        _wait_for_a_worker(client, workers_timeout_s, stop)
    except (TypeError, RuntimeError) as error:  # tls:// without certificates, or tcp:// where encryption is required
        raise UsageError(
            f"{address} and Dask's settings disagree ({str(error)[:120]})",
            "certificates under distributed.comm.tls for a tls:// address, and only for one",
            "deploy/README.md shows the settings",
        ) from error
    except (OSError, ValueError) as error:
        raise UsageError(
            f"no Dask scheduler with workers at {address} ({error})",
            "an address such as tls://host:8786",
            "start one with `dask scheduler` and `dask worker`, or use --cluster local",
        ) from error
    with client:
        yield client


def _wait_for_a_worker(client: Client, timeout_s: float, stop: Stop | None) -> None:
    """Wait in short steps, to handle signals in between. Raises TimeoutError if no worker connects in time."""
    until = time.monotonic() + timeout_s
    try:
        while True:
            try:
                client.wait_for_workers(1, timeout=min(_STEP_S, max(0.01, until - time.monotonic())))
            except TimeoutError:
                if time.monotonic() >= until:
                    raise
            else:
                return
            if stop is not None and stop.asked:
                raise Interrupted("stopped while waiting for workers", cure="run the same command again to continue")
    except BaseException:
        client.close(timeout=_STEP_S)
        raise


def _require_privacy(address: str) -> None:
    """Raise UsageError for a scheduler that others can reach without a certificate."""
    parts = urlsplit(address if "://" in address else f"tcp://{address}")
    if parts.scheme in _ENCRYPTED or _is_loopback(parts.hostname or "") or os.environ.get(INSECURE_VARIABLE) == "1":
        return
    raise UsageError(
        f"--cluster {address} is not encrypted, and anyone who reaches such a scheduler can run code as its owner",
        "tls://HOST:PORT, or an address of the loopback interface",
        f"deploy/README.md shows how to make certificates; on a network that is yours alone, set {INSECURE_VARIABLE}=1",
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def tell_dashboard(client: Client, *, started: bool) -> None:
    """Log the address of the dashboard, if there is one. A cluster `started` here has one only if bokeh is installed.

    An existing scheduler gives an address, whatever it is installed with.
    """
    address = client.dashboard_link if find_spec("bokeh") or not started else ""
    if address:
        _log.info("dashboard of the workers: %s", address, extra={"facts": {"dashboard": address, "keep": True}})


def explained(error: BaseException, unit: Unit) -> BaseException:
    """Explain the death of a worker; return other errors unchanged."""
    from distributed import KilledWorker

    if not isinstance(error, KilledWorker):
        return error
    return PipelineError(
        f"unit {unit.id}: its worker process died",
        cure="if memory ran out, use fewer --workers or a smaller --unit-chunks; --dry-run shows the need. If a GPU "
        "failed, the worker's log says so",
    )
