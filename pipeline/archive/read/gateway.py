"""A loopback gateway through which GDAL reads https files, so that GDAL itself never contacts an archive.

Reason: GDAL follows redirects anywhere and resolves names itself, and has no option against either. It sends headers,
cookies and .netrc entries of the user's configuration to any host, and NO_PROXY lets it bypass a filtering proxy. Here
GDAL is given an address on 127.0.0.1. The process behind it (`gateway_server`) checks every redirect under the host
policy, connects to checked addresses only (`guarded_http`), and relays ranges and statuses. GDAL never sees signatures
or addresses of archives.

It is a process because rasterio holds the GIL in many calls into GDAL (`overviews`, `tags`), so that a thread could not
answer them. rasterio's `opener=` would not need one, but an exception in its callbacks kills the process (rasterio
1.4.4), and a failed read of several ranges cannot be reported. A gateway takes about 30 MB and what it keeps. Forked
processes share their parent's. It answers only paths that contain its random key.

Cost: opening a file and reading 1024 x 1024 px of it (4 MB in 3 ranges) took, directly and through the gateway on two
busy cores, 100 and 160 ms without latency, 375 and 305 ms with 40 ms of latency (5.9 and 3.9 requests): the file size
is answered from its first bytes, which are read next. What was fetched is kept for a while, within bounded memory
(`gateway_server`), so processes of one machine share a gateway (`shared`). /vsis3/ stays with GDAL: buckets are listed
one by one, and the endpoint is a setting of the user, not of a catalogue.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import subprocess
import threading
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pipeline.errors import StorageError
from pipeline.start import command, environment

if TYPE_CHECKING:
    from pipeline.archive.read.host_policy import HostPolicy

# Ends every path of this process, so that GDAL can be restricted to them; it cannot be guessed.
SUFFIX = f".{secrets.token_hex(8)}"
_SHARED = "SEN2FINE_GATEWAY"  # environment variable: port and key of a gateway of the process that started this one
_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class _Gateway:
    """A running gateway. `process` is None for one that belongs to another process."""

    process: subprocess.Popen[bytes] | None
    port: int
    key: str

    def ask(self, method: str, path: str, body: str | None = None) -> bytes:
        """Response to a control request; OSError or HTTPException if the gateway has died."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=_TIMEOUT_S)
        try:
            connection.request(method, f"/{self.key}/{path}", body)
            return connection.getresponse().read()
        finally:
            connection.close()


_running: list[_Gateway] = []
_starting = threading.Lock()


def gdal_path(identity: str, address: str, policy: HostPolicy, connections: int) -> str:
    """Path by which GDAL reads the file at the signed `address`, under `policy`.

    `identity` stands for file and access rights: the same gives the same path. StorageError when no gateway starts.
    """
    name = re.sub(r"[^A-Za-z0-9._-]", "_", urlsplit(address).path.rsplit("/", 1)[-1])[:80] or "file"
    number = _number(identity)
    body = json.dumps({"address": address, "hosts": policy.hosts, "connections": connections, "reader": os.getpid()})
    for _ in range(2):
        gateway = _gateway()
        try:
            gateway.ask("POST", f"{number}/{name}", body)
        except (OSError, HTTPException):  # it was killed, perhaps for memory; GDAL's reads fail and are retried
            _stop(gateway)
            continue
        return f"/vsicurl/http://127.0.0.1:{gateway.port}/{gateway.key}/{number}/{name}{SUFFIX}"
    raise StorageError("the gateway process for remote files ends again and again", "memory for one more process")


def last_failure(identity: str) -> dict[str, Any]:
    """Last failure of a file: `refused` (found, expected, cure) or None, `trouble`, and `wait_s` of a busy host."""
    for gateway in _running:
        try:
            known: dict[str, Any] = json.loads(gateway.ask("GET", _number(identity)) or b"{}")
        except (OSError, HTTPException, ValueError):
            break
        return known
    return {}


def forget(identity: str) -> None:
    """Ask the archive anew for a file, of which the gateway keeps what it fetched."""
    for gateway in _running:
        with suppress(OSError, HTTPException):
            gateway.ask("DELETE", _number(identity))


def shared() -> dict[str, str]:
    """Environment by which processes that this one starts use its gateway; empty if it has none."""
    running = next(iter(_running), None)
    return {} if running is None else {_SHARED: f"{running.port} {running.key}"}


def _number(identity: str) -> str:
    return hashlib.sha256(identity.encode()).hexdigest()[:32]


def _gateway() -> _Gateway:
    with _starting:
        if not _running:
            _running.append(_inherited() or _start())
        return _running[0]


def _stop(gateway: _Gateway) -> None:
    with _starting:
        if gateway in _running:
            _running.remove(gateway)
            if gateway.process is not None:
                with gateway.process as process:  # waits, and closes the pipes
                    process.kill()


def _inherited() -> _Gateway | None:
    """The gateway named in the environment, once: after a failure this process starts its own."""
    port, _, key = os.environ.pop(_SHARED, "").partition(" ")
    if not key:
        return None
    _reach_loopback_directly()
    return _Gateway(None, int(port), key)


def _start() -> _Gateway:
    """Start a gateway; it exits when its stdin closes, with this process and all that were forked from it.

    It has its own session, so that Ctrl-C does not kill it while reads are being finished.
    """
    _reach_loopback_directly()
    process = subprocess.Popen(
        command("pipeline.archive.read.gateway_server"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment(),
        start_new_session=True,
    )
    assert process.stdout is not None
    words = process.stdout.readline().split()
    if len(words) != 2:
        raise StorageError("the gateway process for remote files does not start", "a process on 127.0.0.1")
    return _Gateway(process, int(words[0]), words[1].decode())


def _reach_loopback_directly() -> None:
    """Exclude loopback from the environment's proxies, which are for the gateway's own requests."""
    known = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    if known != "*" and "127.0.0.1" not in known.split(","):
        os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(filter(None, [known, "127.0.0.1"]))


def _after_fork() -> None:
    """Replace the lock, which stays locked in the child if another thread of the parent held it."""
    global _starting
    _starting = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)
