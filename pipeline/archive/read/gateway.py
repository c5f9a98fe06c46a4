"""A gateway on loopback through which GDAL reads https files, so that GDAL itself talks to no archive.

Why: GDAL follows redirects wherever they lead and resolves names by itself, and has no option against either; it sends
headers, cookies and .netrc entries of the user's configuration to any host; NO_PROXY lets it past a filtering proxy.
Here GDAL is given an address on 127.0.0.1. The process there (`gateway_server`) checks every hop of a file's address
under the host policy, connects to checked addresses only (`web`), and passes on ranges and statuses. Signatures and
addresses of archives never reach GDAL.

Why a process: rasterio keeps Python's lock in many calls into GDAL (`overviews`, `tags`), so that a thread could not
answer them. rasterio's `opener=` needs none, but an exception in its callbacks ends the process (rasterio 1.4.4), and a
failed read of several ranges cannot be reported. Every process that reads has its own gateway, of about 30 MB; forked
ones share their parent's. It answers only paths that hold its random key.

The cost: opening a file and reading 1024 x 1024 px of it (4 MB in 3 ranges) took, straight and through the gateway on
two busy cores, 100 and 160 ms without latency, 375 and 305 ms with 40 ms of it (5.9 and 3.9 requests): the
question for a file's size is answered from its first bytes, which are read next. /vsis3/ stays with GDAL: buckets are
listed one by one, and the endpoint is the user's own setting, no word of a catalogue's.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import subprocess
import sys
import threading
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pipeline.errors import StorageError

if TYPE_CHECKING:
    from pipeline.archive.read.host_policy import HostPolicy

# Of every path that this process hands out, so that GDAL can be kept from all other addresses; nobody can guess it.
SUFFIX = f".{secrets.token_hex(8)}"
_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class _Gateway:
    """A running gateway."""

    process: subprocess.Popen[bytes]
    port: int
    key: str

    def ask(self, method: str, path: str, body: str | None = None) -> bytes:
        """Answer to a request of our own; OSError or HTTPException where the gateway is gone."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=_TIMEOUT_S)
        try:
            connection.request(method, f"/{self.key}/{path}", body)
            return connection.getresponse().read()
        finally:
            connection.close()


_running: list[_Gateway] = []
_starting = threading.Lock()


def gdal_path(identity: str, address: str, policy: HostPolicy, connections: int) -> str:
    """Path by which GDAL reads the file at `address`, which is signed for now, with what the policy allows.

    `identity` tells files and rights apart: the same identity gives the same path. StorageError when no gateway starts.
    """
    name = re.sub(r"[^A-Za-z0-9._-]", "_", urlsplit(address).path.rsplit("/", 1)[-1])[:80] or "file"
    number = _number(identity)
    body = json.dumps({"address": address, "hosts": policy.hosts, "connections": connections})
    for _ in range(2):
        gateway = _gateway()
        try:
            gateway.ask("POST", f"{number}/{name}", body)
        except (OSError, HTTPException):  # it was killed, perhaps for memory; GDAL's reads of it fail and come again
            _stop(gateway)
            continue
        return f"/vsicurl/http://127.0.0.1:{gateway.port}/{gateway.key}/{number}/{name}{SUFFIX}"
    raise StorageError("the gateway process for remote files ends again and again", "memory for one more process")


def last_failure(identity: str) -> dict[str, Any]:
    """Of the last read of a file: `refused` (found, expected, cure) or None, `trouble`, and `wait_s` of a busy host."""
    for gateway in _running:
        try:
            known: dict[str, Any] = json.loads(gateway.ask("GET", _number(identity)) or b"{}")
        except (OSError, HTTPException, ValueError):
            break
        return known
    return {}


def _number(identity: str) -> str:
    return hashlib.sha256(identity.encode()).hexdigest()[:32]


def _gateway() -> _Gateway:
    with _starting:
        if not _running:
            _running.append(_start())
        return _running[0]


def _stop(gateway: _Gateway) -> None:
    with _starting:
        if gateway in _running:
            _running.remove(gateway)
            gateway.process.kill()
            gateway.process.wait()


def _start() -> _Gateway:
    """A gateway that ends when this process, and all that were forked from it, are gone: then its stdin ends.

    In a session of its own, so that a Ctrl-C does not take it from reads that are to be finished.
    """
    _reach_loopback_directly()
    paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline.archive.read.gateway_server"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": paths},
        start_new_session=True,
    )
    assert process.stdout is not None
    words = process.stdout.readline().split()
    if len(words) != 2:
        raise StorageError("the gateway process for remote files does not start", "a process on 127.0.0.1")
    return _Gateway(process, int(words[0]), words[1].decode())


def _reach_loopback_directly() -> None:
    """Keep proxies of the environment, which the gateway itself uses, from between GDAL and the gateway."""
    known = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    if known != "*" and "127.0.0.1" not in known.split(","):
        os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(filter(None, [known, "127.0.0.1"]))


def _after_fork() -> None:
    """A lock that another thread of the parent held stays closed in the child."""
    global _starting
    _starting = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)
