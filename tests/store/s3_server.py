"""An S3 server on loopback, in this process, behind a proxy that fails as real ones do."""

from __future__ import annotations

import http.client
import logging
import re
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import obstore
import pytest
from moto.server import ThreadedMotoServer
from obstore.store import S3Store

BUCKET = "bucket"
KEY_ID, SECRET = "AKIAQCANARYKEYIDQ", "canarySecretOfTheObjectStore42"  # appear nowhere
_SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
_DENIED = (
    f"<Error><Code>SignatureDoesNotMatch</Code><AWSAccessKeyId>{KEY_ID}</AWSAccessKeyId>"
    f"<StringToSign>{SECRET}</StringToSign></Error>"
).encode()


@dataclass
class Fault:
    """What happens to requests of `method` for paths that `path` finds, `times` times after `after` such requests.

    `kind`: a status code; "lost" (done, but the answer never comes); "slow" (0.2 s late); "die" (the server is gone).
    """

    method: str
    path: str
    kind: int | str
    times: int = 1
    after: int = 0

    def strikes(self, method: str, path: str) -> bool:
        if method != self.method or not re.search(self.path, path):
            return False
        self.after -= 1
        if self.after >= 0 or self.times <= 0:
            return False
        self.times -= 1
        return True


@dataclass
class Server:
    """The proxy's address, the faults to come, and what was asked."""

    host: str
    direct: str
    faults: list[Fault] = field(default_factory=list)
    dead: bool = False
    asked: list[tuple[str, str]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def kind(self, method: str, path: str) -> int | str | None:
        with self.lock:
            self.asked.append((method, path))
            return next((fault.kind for fault in self.faults if fault.strikes(method, path)), None)

    def heal(self) -> None:
        self.faults.clear()
        self.asked.clear()
        self.dead = False

    def objects(self, prefix: str = "") -> dict[str, bytes]:
        """All objects, past the proxy."""
        store = S3Store(BUCKET, endpoint=self.direct, client_options={"allow_http": True})
        paths = [meta["path"] for meta in obstore.list(store, prefix or None).collect()]
        return {path: bytes(obstore.get(store, path).bytes()) for path in paths}

    def spoil(self, path: str, content: bytes | None) -> None:
        """Put other bytes, or none, in an object's place."""
        store = S3Store(BUCKET, endpoint=self.direct, client_options={"allow_http": True})
        obstore.delete(store, path) if content is None else obstore.put(store, path, content)


class Proxy(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or each answer waits 40 ms for an acknowledgement
    wbufsize = -1
    server: ThreadingHTTPServer

    def log_message(self, *_args):
        pass

    def _drop(self):
        self.close_connection = True
        self.connection.shutdown(2)

    def _answer(self, status, body, headers=()):
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        if not any(name.lower() == "content-length" for name, _ in headers):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _go(self):
        rig = self.server.rig
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        kind = rig.kind(self.command, self.path)
        if kind == "die":
            rig.dead = True
        if rig.dead:
            self._drop()
            return
        if isinstance(kind, int):
            self._answer(kind, _DENIED if kind == 403 else _SLOW_DOWN)
            return
        if kind == "slow":
            time.sleep(0.2)
        upstream = http.client.HTTPConnection(rig.direct.removeprefix("http://"), timeout=30)
        upstream.request(self.command, self.path, body, dict(self.headers.items()))
        answer = upstream.getresponse()
        content = answer.read()
        upstream.close()
        if kind == "lost":
            self._drop()
            return
        skipped = ("transfer-encoding", "connection", "date", "server")
        headers = [(name, value) for name, value in answer.getheaders() if name.lower() not in skipped]
        if self.command != "HEAD":
            headers = [(name, value) for name, value in headers if name.lower() != "content-length"]
        self._answer(answer.status, content, headers)

    def do_GET(self):
        self._go()

    def do_HEAD(self):
        self._go()

    def do_PUT(self):
        self._go()

    def do_POST(self):
        self._go()

    def do_DELETE(self):
        self._go()


class QuietServer(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        """Clients that a fault dropped hang up; that is no news."""


@contextmanager
def s3_server():
    """A server with one bucket; the environment leads to it, with a short patience."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    proxy = QuietServer(("127.0.0.1", 0), Proxy)
    _, port = moto.get_host_and_port()
    rig = proxy.rig = Server(f"127.0.0.1:{proxy.server_port}", f"http://127.0.0.1:{port}")
    thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://{rig.host}",
            "AWS_ALLOW_HTTP": "true",
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": KEY_ID,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "SEN2FINE_STORE_PATIENCE_S": "1",
        }.items():
            patch.setenv(name, value)
        upstream = http.client.HTTPConnection(rig.direct.removeprefix("http://"), timeout=30)
        upstream.request("PUT", f"/{BUCKET}")
        assert upstream.getresponse().status == 200
        upstream.close()
        try:
            yield rig
        finally:
            proxy.shutdown()
            proxy.server_close()
            moto.stop()
