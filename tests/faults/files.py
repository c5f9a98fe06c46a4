"""A file server on loopback that serves byte ranges and shows the faults that real archives show."""

from __future__ import annotations

import random
import socket
import struct
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler

from tests.archive.stac_server import serving


class Faults:
    """What the server does wrong. `rule(name, count, request)` returns a mode, or None to serve rightly.

    `count` is how often this file was asked for before. Modes: a status such as "503", or "429/30" with a Retry-After;
    "reset", "truncated", "corrupt". `peak` is how many requests waited for an answer at once.
    """

    def __init__(self, rule=lambda name, count, request: None):
        self.rule = rule
        self.requests = []
        self.counts = {}
        self.lock = threading.Lock()
        self.running = self.peak = 0

    @contextmanager
    def at_work(self):
        """A request that has come and has no answer yet. Ends before the first byte is sent, or the next could come."""
        with self.lock:
            self.running += 1
            self.peak = max(self.peak, self.running)
        try:
            yield
        finally:
            with self.lock:
                self.running -= 1

    def mode(self, request, name):
        with self.lock:
            count = self.counts.get(name, 0)
            self.counts[name] = count + 1
            self.requests.append((time.monotonic(), request.command, request.path))
        return self.rule(name, count, request)


def once(mode, name_part, times=1):
    """Rule: the first `times` requests of every file whose name holds `name_part` go wrong."""
    return lambda name, count, _request: mode if name_part in name and count < times else None


def always(mode, name_part):
    """Rule: every request of such files goes wrong."""
    return lambda name, _count, _request: mode if name_part in name else None


def chaos(seed, errors=0.05, short=0.01, latency_s=0.005):
    """Rule: latency on all, and seeded shares of 503 and of truncated answers."""
    rng, lock = random.Random(seed), threading.Lock()

    def rule(_name, _count, _request):
        time.sleep(latency_s)
        with lock:
            draw = rng.random()
        return "503" if draw < errors else "truncated" if draw < errors + short else None

    return rule


def handler_of(folder, faults):
    """Handler that serves `folder` by ranges, wrongly where `faults` says so."""

    class Files(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # else every answer waits 40 ms for the acknowledgement of its headers

        def log_message(self, *_args):
            pass

        def do_HEAD(self):
            self.do_GET()

        def do_GET(self):
            path = folder / self.path.split("?")[0].lstrip("/")
            with faults.at_work():
                mode = faults.mode(self, path.name)
            if mode and mode[0].isdigit():
                self._refuse(*mode.split("/"))
            elif not path.is_file():
                self._refuse("404")
            elif mode == "reset":
                self._reset()
            else:
                self._serve(path.read_bytes(), mode)

        def _reset(self):
            """RST instead of an answer; closing alone would leave the reader waiting for its own time-out."""
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.rfile.close()  # it holds the socket open
            self.connection.close()

        def _refuse(self, code, retry_after=None):
            self.send_response(int(code))
            if retry_after:
                self.send_header("Retry-After", retry_after)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def _serve(self, content, mode):
            first, last = 0, len(content) - 1
            asked = self.headers.get("Range")
            if asked:
                low, _, high = asked.removeprefix("bytes=").partition("-")
                first, last = int(low), min(int(high or last), last)
            body = content[first : last + 1]
            if mode == "corrupt" and first > 0:  # the header stays whole
                body = bytes(255 - byte for byte in body)
            self.send_response(206 if asked else 200)
            self.send_header("Accept-Ranges", "bytes")
            if asked:
                self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "HEAD":
                return
            if mode == "truncated":
                self.wfile.write(body[: len(body) // 2])
                self.close_connection = True
                return
            self.wfile.write(body)

    return Files


@contextmanager
def file_server(folder, faults):
    """Address of a server over `folder`."""
    with serving(handler_of(folder, faults)) as url:
        yield url
