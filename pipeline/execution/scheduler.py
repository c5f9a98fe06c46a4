"""Dask schedulers that are there already: reached in private, or not at all.

In: an address. Out: a client. Imports errors; distributed only inside functions.
"""

from __future__ import annotations

import ipaddress
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from pipeline.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from distributed import Client

INSECURE_VARIABLE = "SEN2FINE_INSECURE_SCHEDULER"  # 1 lets in schedulers of other machines without encryption
_CONNECT_TIMEOUT = "30s"
_ENCRYPTED = ("tls", "wss")


@contextmanager
def existing_scheduler(address: str, workers_timeout_s: float) -> Iterator[Client]:
    """A client of the scheduler at `address`, which must have a worker within the time-out. UsageError otherwise."""
    from distributed import Client

    _require_privacy(address)
    try:
        client = Client(address, timeout=_CONNECT_TIMEOUT)
        client.wait_for_workers(1, timeout=workers_timeout_s)
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


def _require_privacy(address: str) -> None:
    """UsageError for a scheduler that others can reach and that asks them for no certificate."""
    parts = urlsplit(address if "://" in address else f"tcp://{address}")
    if parts.scheme in _ENCRYPTED or _is_loopback(parts.hostname or "") or os.environ.get(INSECURE_VARIABLE) == "1":
        return
    raise UsageError(
        f"--cluster {address} is not encrypted, and whoever reaches such a scheduler runs code as its owner",
        "tls://HOST:PORT, or an address of the loopback interface",
        f"deploy/README.md shows how to make certificates; on a network that is yours alone, set {INSECURE_VARIABLE}=1",
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
