"""The script that pins base images by digest, against a registry on loopback that speaks the Distribution API."""

import hashlib
import json
import re
import shutil
import subprocess
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import parse_qs, urlsplit

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "deploy" / "docker"
FILES = ("Dockerfile", "Dockerfile.cuda")
INDEX = "application/vnd.oci.image.index.v1+json"
TOKEN = "a-token-for-pulls"


def index(architecture="amd64"):
    manifest = {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": "sha256:" + "1" * 64, "size": 1}
    platform = {"architecture": architecture, "os": "linux"}
    return json.dumps(
        {"schemaVersion": 2, "mediaType": INDEX, "manifests": [manifest | {"platform": platform}]}
    ).encode()


class Registry(BaseHTTPRequestHandler):
    """Manifests by tag for whoever brings a token, which anybody gets."""

    def do_GET(self):
        rig, parts = self.server, urlsplit(self.path)
        if parts.path == "/token":
            asked = parse_qs(parts.query)
            rig.asked.append((asked["service"], asked["scope"]))
            return self.answer(200, json.dumps({"token": TOKEN}).encode(), "application/json")
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            challenge = f'Bearer realm="{rig.url}/token",service="here",scope="repository:library/python:pull"'
            return self.answer(401, b"{}", "application/json", {"WWW-Authenticate": challenge})
        found = re.fullmatch(r"/v2/library/python/manifests/([\w.-]+)", parts.path)
        if not found or found[1] not in rig.tags:
            return self.answer(404, b'{"errors": [{"code": "MANIFEST_UNKNOWN"}]}', "application/json")
        if INDEX not in self.headers["Accept"]:
            return self.answer(400, b"", "text/plain")
        body = rig.tags[found[1]]
        stated = rig.stated or "sha256:" + hashlib.sha256(body).hexdigest()
        return self.answer(200, body, rig.kind, {"Docker-Content-Digest": stated})

    def answer(self, status, body, kind, headers=()):
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **dict(headers)}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_words):
        """Say nothing."""


@pytest.fixture
def registry():
    with ThreadingHTTPServer(("127.0.0.1", 0), Registry) as server:
        server.url, server.asked, server.stated, server.kind = f"http://127.0.0.1:{server.server_port}", [], "", INDEX
        tag = re.search(r"^FROM python:([\w.-]+)", (FOLDER / FILES[0]).read_text(), re.MULTILINE)[1]
        server.tag, server.tags = tag, {tag: index()}
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def pin(registry, tmp_path):
    """Return a function that runs the script in a copy of its folder: (exit code, stdout, stderr)."""
    folder = Path(shutil.copytree(FOLDER, tmp_path / "docker"))

    def run(*words):
        done = subprocess.run(
            ["bash", str(folder / "pin.sh"), *words],
            env={"PATH": "/usr/bin:/bin", "REGISTRY": registry.url, "no_proxy": "127.0.0.1"},
            capture_output=True,
            text=True,
            timeout=60,
        )
        return done.returncode, done.stdout, done.stderr

    run.folder = folder
    return run


def pinned(folder):
    return [re.findall(r"^ARG BASE_DIGEST=(.*)$", (folder / name).read_text(), re.MULTILINE) for name in FILES]


def digest(body):
    return "sha256:" + hashlib.sha256(body).hexdigest()


def test_both_files_get_the_digest_of_the_tag_and_nothing_else_changes(pin, registry):
    before = [(pin.folder / name).read_text() for name in FILES]
    code, out, err = pin()
    assert (code, err) == (0, "")
    first = digest(registry.tags[registry.tag])
    assert pinned(pin.folder) == [[f"@{first}"]] * 2
    assert first in out
    assert registry.asked == [(["here"], ["repository:library/python:pull"])]
    for name, text in zip(FILES, before, strict=True):
        now = (pin.folder / name).read_text()
        assert re.sub(r"^(ARG BASE_DIGEST=).*$", r"\1", now, flags=re.MULTILINE) == re.sub(
            r"^(ARG BASE_DIGEST=).*$", r"\1", text, flags=re.MULTILINE
        )
        assert now.count("${BASE_DIGEST}") == 2


def test_a_tag_that_moved_is_noticed_and_pinned_anew(pin, registry):
    assert pin("--check")[0] == 1
    assert pin()[0] == 0
    assert pin("--check")[0] == 0
    registry.tags[registry.tag] = index("arm64")
    code, _, err = pin("--check")
    assert code == 1
    assert digest(index("arm64")) in err
    assert pinned(pin.folder) == [[f"@{digest(index())}"]] * 2, "a check writes nothing"
    assert pin()[0] == 0
    assert pinned(pin.folder) == [[f"@{digest(index('arm64'))}"]] * 2


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ({"stated": "sha256:" + "0" * 64}, "and sent sha256:"),
        ({"kind": "application/vnd.oci.image.manifest.v1+json"}, "expected the index of all platforms"),
        ({"tags": {}}, "answers 404"),
    ],
)
def test_what_is_not_the_index_is_never_pinned(pin, registry, fault, words):
    for name, value in fault.items():
        setattr(registry, name, value)
    before = pinned(pin.folder)
    code, _, err = pin()
    assert code == 1
    assert words in err
    assert err.count("\n") == 1
    assert pinned(pin.folder) == before


def test_tokens_of_other_places_are_asked_for_by_https_alone():
    text = (FOLDER / "pin.sh").read_text()
    assert "expected an https address" in text
    assert "--user" not in text, "no credentials"


def test_the_script_passes_shellcheck():
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    done = subprocess.run(["shellcheck", str(FOLDER / "pin.sh")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
