"""Loopback stand-ins of the Hugging Face Hub and of the storage that it redirects to, with the faults of both."""

import hashlib
import time
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler
from urllib.parse import unquote, urlsplit

from tests.archive.stac_server import serving

COMMIT, LATER = "a" * 40, "b" * 40
SIGNATURE = "X-Amz-Signature=very-secret"


class HubServer:
    """One model repository, its files by commit, the fault to show, and every request as (host, method, path, range).

    The hub answers HEAD /OWNER/REPO/resolve/REVISION/PATH with the file's digest, size and commit and a redirect to
    another host; small files, which are not in large-file storage, it serves itself.
    """

    def __init__(self, repo, files):
        self.repo, self.commits = repo, {COMMIT: files}
        self.revisions = {"main": COMMIT, "v1": COMMIT, "refs/pr/1": COMMIT}
        self.fault, self.faults = "", 0
        self.large = True
        self.requests = []
        self.url = self.storage_url = ""

    def asked(self, host=None):
        return [request for request in self.requests if host in (None, request[0])]

    def content(self, digest):
        everything = [content for files in self.commits.values() for content in files.values()]
        return next((content for content in everything if hashlib.sha256(content).hexdigest() == digest), None)

    def answer_hub(self, method, path):
        """(status, headers, body) of the hub."""
        if self.fault in REFUSALS:
            status, code = REFUSALS[self.fault]
            return status, {"X-Error-Code": code} if code else {}, b""
        parts = path.strip("/").split("/resolve/")
        if parts[0] != self.repo or len(parts) != 2:
            return 404, {"X-Error-Code": "RepoNotFound"}, b""
        revision, _, name = parts[1].partition("/")
        commit = self.revisions.get(unquote(revision), unquote(revision))
        if commit not in self.commits:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b""
        headers = {"X-Repo-Commit": commit}
        if name not in self.commits[commit]:
            return 404, {**headers, "X-Error-Code": "EntryNotFound"}, b""
        if self.fault == "no commit":
            headers = {}
        return self.found(self.commits[commit][name], headers)

    def found(self, content, headers):
        digest = hashlib.sha256(content).hexdigest()
        if not self.large:
            return 200, {**headers, "ETag": f'"{digest[:40]}"', "Content-Length": str(len(content))}, content
        linked = {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(content)), "ETag": '"other"'}
        return 302, {**headers, **linked, "Location": f"{self.storage_url}/blobs/{digest}?{SIGNATURE}"}, b""

    def answer_storage(self, path, start):
        """(status, headers, body, bytes to send of it) of the storage, from byte `start` on."""
        content = self.content(path.rsplit("/", 1)[-1])
        if self.fault == "storage busy" or content is None:
            return 503 if content is not None else 404, {}, b"", 0
        if self.fault == "damaged":
            content = content[:-1] + bytes([content[-1] ^ 1])
        if self.fault == "short":
            content = content[:-10]
        body = content[start:]
        self.faults += 1
        cut = self.fault == "truncated" or (self.fault == "truncated once" and self.faults == 1)
        ranged = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if start else {}
        keep = 0 if cut and start else len(body) // 2
        return 206 if start else 200, ranged, body, keep if cut else len(body)


REFUSALS = {
    "down": (503, ""),
    "busy": (429, ""),
    "unauthorised": (401, ""),
    "forbidden": (403, ""),
    "gated": (403, "GatedRepo"),
    "hidden": (401, "RepoNotFound"),
    "teapot": (418, ""),
}


def _handler(server, host):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_args):
            pass

        def do_HEAD(self):
            self._reply()

        def do_GET(self):
            self._reply()

        def _reply(self):
            path, asked = urlsplit(self.path).path, self.headers.get("Range", "")
            server.requests.append((host, self.command, path, asked))
            if host == "hub":
                status, headers, body = server.answer_hub(self.command, path)
                sent = len(body)
            else:
                start = int(asked.removeprefix("bytes=").partition("-")[0] or 0)
                status, headers, body, sent = server.answer_storage(path, start)
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            with suppress(BrokenPipeError, ConnectionResetError):
                if self.command == "GET":
                    self.wfile.write(body[:sent])
            self.close_connection = self.close_connection or sent < len(body)

    return Handler


@contextmanager
def hub_server(repo, files):
    """A running `HubServer`: the hub at `url`, its storage at another address."""
    server = HubServer(repo, files)
    with serving(_handler(server, "hub")) as url, serving(_handler(server, "storage")) as storage_url:
        server.url, server.storage_url = url, storage_url.replace("127.0.0.1", "localhost")  # another host by name
        yield server


def point_at(url, monkeypatch):
    """Make huggingface_hub take `url` for the hub, as HF_ENDPOINT does for a process that has not imported it yet."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")


@contextmanager
def connected(url, folder, monkeypatch):
    """huggingface_hub with this hub, an empty cache in `folder`, no token, no proxy, no waiting between retries."""
    from huggingface_hub import close_session, constants

    point_at(url, monkeypatch)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(folder / "no token"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setattr(time, "sleep", lambda _seconds: None)
    close_session()
    yield
    close_session()
