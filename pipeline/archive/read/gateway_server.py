"""The process behind `gateway`: serves files of archives to GDAL on loopback, under the host policy.

Started by `pipeline.start`. It prints its port and key on stdout, and exits when its
stdin closes, with the last process that uses it.
"""

from __future__ import annotations

import json
import re
import secrets
import socket
import struct
import sys
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from pipeline.archive.read.guarded_http import guarded, open_url
from pipeline.archive.read.host_policy import HostPolicy, Refused
from pipeline.archive.read.rate_limit import retry_after_s
from pipeline.redaction import redact, redact_logs

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from requests import Response, Session

_CHUNK_BYTES = 1 << 18
_START_BYTES = 32768  # what GDAL reads first (GDAL_INGESTED_BYTES_AT_OPEN)
_START_S = 5.0
_BUSY = (429, 503)
_PASSED_ON = ("Content-Type", "Accept-Ranges", "Last-Modified", "ETag")
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


@dataclass
class Route:
    """One file: its signed address, and the last failure if there was one."""

    address: str
    policy: HostPolicy
    connections: int
    refused: tuple[str, str, str] | None = None  # found, expected, cure
    trouble: str = ""
    wait_s: float = 0.0
    size: int | None = None
    start: bytes = b""  # first bytes of the file, from the question for its size to the read that follows
    start_until: float = 0.0  # on the monotonic clock; after that it is requested again
    moved: dict[str, str] = field(default_factory=dict)  # address -> where its redirects ended

    def answer(self, session: Session, headers: dict[str, str]) -> Response:
        """The file's response. A redirect target is cached until it gives an error, as its signature expires too."""
        address = self.address
        known = self.moved.get(address)
        if known:
            answer = open_url(session, known, headers)
            if answer.status_code < 400:
                return answer
            answer.close()
            self.moved = {}
        answer = open_url(session, address, headers)
        if answer.status_code < 400 and str(answer.url) != address:
            self.moved = {address: str(answer.url)}
        return answer

    def state(self) -> dict[str, Any]:
        """The failure as the reader is told."""
        return {"refused": self.refused, "trouble": self.trouble, "wait_s": self.wait_s}


class Routes:
    """Registered files by number, and the sessions that they share."""

    def __init__(self, key: str) -> None:
        self.key = key
        self._routes: dict[str, Route] = {}
        self._sessions: dict[tuple[HostPolicy, int], Session] = {}
        self._lock = threading.Lock()

    def register(self, number: str, address: str, hosts: list[str], connections: int) -> None:
        """Register a file, or update the signed address of a known one."""
        with self._lock:
            route = self._routes.setdefault(number, Route(address, HostPolicy(tuple(hosts)), connections))
            route.address = address

    def get(self, number: str) -> Route | None:
        """The file of that number."""
        return self._routes.get(number)

    def session(self, route: Route) -> Session:
        """Guarded session with kept connections, shared by files of the same policy."""
        from requests import Session as Plain

        with self._lock:
            key = route.policy, route.connections
            if key not in self._sessions:
                self._sessions[key] = guarded(Plain(), *key)
            return self._sessions[key]


class Handler(BaseHTTPRequestHandler):
    """Paths /KEY/NUMBER/NAME: GET and HEAD read the file, POST registers it; /KEY/NUMBER: its last failure."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    routes: Routes

    def log_message(self, *_: object) -> None:
        """Nothing."""

    def do_POST(self) -> None:
        """Register a file."""
        key, number, _ = self._parts()
        if key:
            self.routes.register(number, **json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self._status(204 if key else 404)

    def do_HEAD(self) -> None:
        """The size of a file, from its first bytes, which are kept for the read that follows."""
        route = self._route()
        if route is None:
            return
        if route.start and time.monotonic() < route.start_until:  # GDAL asks twice
            self._answer(200, {"Accept-Ranges": "bytes"}, str(route.size))
        else:
            self._ask(route, f"bytes=0-{_START_BYTES - 1}", self._size)

    def do_GET(self) -> None:
        """A range of a file."""
        route = self._route()
        if route is None:
            return
        if not self._parts()[2]:
            body = json.dumps(route.state()).encode()
            self._answer(200, {"Content-Type": "application/json"}, str(len(body)))
            self.wfile.write(body)
            return
        asked = self.headers.get("Range", "")
        start, route.start = route.start, b""
        wanted = _RANGE.fullmatch(asked)
        last = int(wanted[2] or -1) if wanted and wanted[1] == "0" else -1
        if 0 <= last < len(start) and time.monotonic() < route.start_until:
            self._answer(206, {"Content-Range": f"bytes 0-{last}/{route.size}"}, str(last + 1))
            self.wfile.write(start[: last + 1])
            return
        self._ask(route, asked, self._relay)

    def _parts(self) -> tuple[str, str, str]:
        """(key, number, name) of the path; ("", "", "") where the key is not ours."""
        key, number, name = (*self.path.lstrip("/").split("/", 2), "", "")[:3]
        return (key, number, name) if secrets.compare_digest(key.encode(), self.routes.key.encode()) else ("", "", "")

    def _route(self) -> Route | None:
        route = self.routes.get(self._parts()[1])
        if route is None:
            self._status(404)
        return route

    def _ask(self, route: Route, asked: str, use: Callable[[Route, Response], None]) -> None:
        """Request a range of the file and pass the response to `use`; otherwise answer with a status, or break off."""
        headers = {"Accept-Encoding": "identity"} | ({"Range": asked} if asked else {})
        try:
            answer = route.answer(self.routes.session(route), headers)
        except Refused as error:
            route.refused = error.found, error.expected, error.cure
            self._status(451)
            return
        except Exception as error:
            self._break_off(route, error)
            return
        with answer:
            status = answer.status_code
            fault = _contradiction(route, asked, answer) if status < 300 else ""
            if status >= 300:
                route.wait_s = retry_after_s(answer.headers) if status in _BUSY else 0.0
                route.trouble = ""
                self._status(status if status >= 400 else 502)
            elif fault:
                self._break_off(route, ConnectionError(fault))
            else:
                use(route, answer)

    def _size(self, route: Route, answer: Response) -> None:
        start = b""
        if answer.status_code == 206 and route.size is not None:
            try:
                start = answer.raw.read(_START_BYTES, decode_content=False)
            except Exception as error:
                self._break_off(route, error)
                return
        ranges = {"Accept-Ranges": "bytes"} if answer.status_code == 206 else {}
        route.start, route.start_until, route.trouble = start, time.monotonic() + _START_S, ""
        self._answer(200, _passed_on(answer) | ranges, "" if route.size is None else str(route.size))

    def _relay(self, route: Route, answer: Response) -> None:
        """Status, headers and body of the answer; a short body breaks the connection."""
        length = answer.headers.get("Content-Length", "")
        chunked = not length.isdigit()  # else the end could not be told from a broken connection
        ranges = {name: answer.headers[name] for name in ("Content-Range",) if name in answer.headers}
        self._answer(answer.status_code, _passed_on(answer) | ranges, length)
        try:
            for chunk in answer.raw.stream(_CHUNK_BYTES, decode_content=False):
                self.wfile.write(b"%x\r\n%b\r\n" % (len(chunk), chunk) if chunked else chunk)
            if chunked:
                self.wfile.write(b"0\r\n\r\n")
        except ConnectionError:  # GDAL closed the connection
            self.close_connection = True
        except Exception as error:
            self._break_off(route, error)
        else:
            route.trouble = ""

    def _answer(self, status: int, headers: dict[str, str], length: str) -> None:
        """Status and headers; without a length the body is chunked."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, "".join(char for char in value if char.isprintable())[:200])
        if status != 204:
            self.send_header(*(("Content-Length", length) if length.isdigit() else ("Transfer-Encoding", "chunked")))
        self.end_headers()

    def _status(self, status: int) -> None:
        self._answer(status, {}, "0")

    def _break_off(self, route: Route, error: Exception) -> None:
        """Reset the connection, so that no reader takes a part for the whole; the route keeps the reason."""
        route.trouble = redact(str(error)) or type(error).__name__
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _contradiction(route: Route, asked: str, answer: Response) -> str:
    """Why a response cannot be part of the requested file; "" when it can. GDAL does not check this.

    A range must start where requested, and the file must keep its size while it is read; opening it again, which
    starts with its first bytes, accepts a new size.
    """
    wanted, got = _RANGE.fullmatch(asked), _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", ""))
    length = answer.headers.get("Content-Length", "")
    if answer.status_code != 206 or wanted is None:
        route.size = int(length) if length.isdigit() else None
        return ""
    if got is None:
        return "the server answers a range without saying which"
    if got[1] != wanted[1] or (wanted[2] and int(got[2]) > int(wanted[2])):
        return f"the server answers bytes {got[1]}-{got[2]} where {wanted[1]}-{wanted[2]} were asked for"
    if length.isdigit() and int(length) != int(got[2]) - int(got[1]) + 1:
        return f"the server announces {length} bytes for bytes {got[1]}-{got[2]}"
    total = None if got[3] == "*" else int(got[3])
    if wanted[1] == "0":
        route.size = total
    elif total is not None and route.size not in (None, total):
        return f"the file changed while it was read: it had {route.size} bytes and has {total}"
    return ""


def _passed_on(answer: Response) -> dict[str, str]:
    """Headers that GDAL may see."""
    return {name: answer.headers[name] for name in _PASSED_ON if name in answer.headers}


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, *_: object) -> None:
        """Ignore: the reader closed the connection."""


def main(arguments: Sequence[str] = ()) -> int:
    """Serve until stdin ends."""
    del arguments
    redact_logs()
    routes = Routes(secrets.token_urlsafe(24))
    server = _Server(("127.0.0.1", 0), type("Bound", (Handler,), {"routes": routes}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_address[1], routes.key, flush=True)
    sys.stdin.buffer.read()
    return 0
