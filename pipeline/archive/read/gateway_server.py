"""The process behind `gateway`: serves files of archives to GDAL on loopback, under the host policy.

Started by `pipeline.start`. It prints its port and key on stdout, and exits when its stdin closes, with the last of the
process that started it and those forked from that.

What it fetched is kept in memory, up to `KEPT_BYTES` for each process that reads: units and strips touch the same
blocks, and GDAL keeps nothing of a file that it has closed. A file is asked for again when it is opened after
`_FRESH_S`, or when a read has failed, so that damaged bytes are not read twice.
"""

from __future__ import annotations

import json
import secrets
import socket
import struct
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

from pipeline.archive.read.connection import connection_fault, readable
from pipeline.archive.read.gateway_files import CONTENT_RANGE, KEPT_BYTES, RANGE, Route, Routes, contradiction
from pipeline.archive.read.host_policy import Refused
from pipeline.archive.read.rate_limit import retry_after_s
from pipeline.redaction import redact, redact_logs

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from requests import Response

_CHUNK_BYTES = 1 << 18
_START_BYTES = 32768  # what GDAL reads first (GDAL_INGESTED_BYTES_AT_OPEN)
_FRESH_S = 600.0
_BUSY = (429, 503)
_PASSED_ON = ("Content-Type", "Accept-Ranges", "Last-Modified", "ETag")


class Handler(BaseHTTPRequestHandler):
    """Paths /KEY/NUMBER/NAME: GET and HEAD read the file, POST registers it.

    /KEY/NUMBER: GET gives its last failure, DELETE forgets its bytes; /KEY: DELETE forgets those of all files.
    """

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

    def do_DELETE(self) -> None:
        """Forget what is known of a file."""
        key, number, _ = self._parts()
        if key:
            self.routes.forget(number)
        self._status(204 if key else 404)

    def do_HEAD(self) -> None:
        """The size of a file, from its first bytes, which are kept for the read that follows."""
        route = self._route()
        if route is None:
            return
        with route.under_way.alone(0, _START_BYTES - 1):
            if route.size is not None and time.monotonic() < route.fresh_until:
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
        wanted = RANGE.fullmatch(asked)
        if wanted is None or not wanted[2] or int(wanted[2]) - int(wanted[1]) >= KEPT_BYTES // 4:
            self._ask(route, asked, self._relay)
            return
        first, last = int(wanted[1]), int(wanted[2])
        if route.size is not None:
            last = min(last, max(first, route.size - 1))
        with route.under_way.alone(first, last):
            self._give(route, first, last)

    def _give(self, route: Route, first: int, last: int) -> None:
        """A range, of which only what is missing is requested."""
        number = self._parts()[1]
        head, tail = self.routes.kept.known(number, first, last)
        if len(head) > last - first:
            self._part(route, first, head)
            return

        def complete(route: Route, answer: Response) -> None:
            if answer.status_code != 206 or route.size is None:
                self._relay(route, answer)
                return
            begin, length = first + len(head), _length(answer)
            if head and self.routes.kept.known(number, first, begin - 1)[0] != head:
                self._break_off(route, ConnectionError("the file changed while it was read"))
                return
            known = self.routes.kept.known(number, begin + length, last)[0] if tail else b""  # unless forgotten since
            rest = tail if known == tail else b""
            self._begin_part(route, first, len(head) + length + len(rest))
            body = self._through(route, answer, head, length)
            if body is not None:
                self.routes.kept.put(number, begin, body)
                self._send(rest)

        self._ask(route, f"bytes={first + len(head)}-{last - len(tail)}", complete)

    def _part(self, route: Route, first: int, body: bytes) -> None:
        """Answer with bytes of the file from `first` on."""
        route.trouble = ""
        self._begin_part(route, first, len(body))
        self._send(body)

    def _begin_part(self, route: Route, first: int, length: int) -> None:
        """Status and headers of `length` bytes of the file from `first` on."""
        self._answer(206, {"Content-Range": f"bytes {first}-{first + length - 1}/{route.size}"}, str(length))

    def _send(self, body: bytes) -> None:
        try:
            self.wfile.write(body)
        except ConnectionError:  # GDAL closed the connection
            self.close_connection = True

    def _through(self, route: Route, answer: Response, head: bytes, length: int) -> bytes | None:
        """Pass on `head` and the body of a part as it comes. Return the body; None if it did not come whole."""
        parts = []
        try:
            self.wfile.write(head)
            for chunk in answer.raw.stream(_CHUNK_BYTES, decode_content=False):
                self.wfile.write(chunk)
                parts.append(chunk)
        except ConnectionError:  # GDAL closed the connection
            self.close_connection = True
            return None
        except Exception as error:
            self._break_off(route, error)
            return None
        return self._whole(route, b"".join(parts), length)

    def _whole(self, route: Route, body: bytes, length: int) -> bytes | None:
        """The body; None, and the connection broken off, if it is not of the announced length."""
        if len(body) != length:
            self._break_off(route, ConnectionError(f"the server sent {len(body)} of {length} bytes"))
            return None
        route.trouble = ""
        return body

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
            status, before = answer.status_code, (route.size, route.version)
            fault = contradiction(route, asked, answer) if status < 300 else ""
            if status >= 300:
                route.wait_s = retry_after_s(answer.headers) if status in _BUSY else 0.0
                route.trouble = ""
                self._status(status if status >= 400 else 502)
            elif fault:
                self.routes.forget(self._parts()[1])
                self._break_off(route, ConnectionError(fault))
            else:
                if before != (route.size, route.version):
                    self.routes.kept.forget(self._parts()[1])
                use(route, answer)

    def _size(self, route: Route, answer: Response) -> None:
        ranges = {}
        if answer.status_code == 206 and route.size is not None:
            try:
                start = answer.raw.read(_START_BYTES, decode_content=False)
            except Exception as error:
                self._break_off(route, error)
                return
            if self._whole(route, start, _length(answer)) is None:
                return
            number = self._parts()[1]
            if start != self.routes.kept.known(number, 0, len(start) - 1)[0]:
                self.routes.kept.forget(number)  # another file by now
                self.routes.kept.put(number, 0, start)
            route.fresh_until = time.monotonic() + _FRESH_S
        if answer.status_code == 206:
            ranges = {"Accept-Ranges": "bytes"}
        route.trouble = ""
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
        fault = connection_fault(error)
        route.trouble = redact(fault[0] if fault else readable(error))
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _length(answer: Response) -> int:
    """Bytes of a part, by its Content-Range, which `contradiction` has looked at."""
    got = CONTENT_RANGE.fullmatch(answer.headers["Content-Range"])
    assert got is not None
    return int(got[2]) + 1 - int(got[1])


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
