"""A STAC API of stac-fastapi on pgstac, with a PostgreSQL of its own on loopback, as root (README.md here)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.archive.stac_server import serving
from tests.servers.processes import daemons, free_ports, listens, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

PYTHON_VARIABLE = "SEN2FINE_STAC_SERVER"  # a Python that has stac-fastapi.pgstac, pypgstac[psycopg] and uvicorn
_POSTGRES = sorted(Path("/usr/lib/postgresql").glob("*/bin"))


@dataclass
class StacApi:
    """A running API."""

    url: str
    _python: str
    _environment: dict[str, str]
    _folder: Path

    def load(self, table: str, records: list[dict[str, Any]]) -> None:
        """Put collections or items into it."""
        path = self._folder / f"{table}.ndjson"
        path.write_text("\n".join(json.dumps(record) for record in records))
        words = ("load", table, str(path), "--method", "upsert")
        _pypgstac(self._python, self._environment, *words)


def missing() -> str:
    """Why no API can run here; "" when it can."""
    python = os.environ.get(PYTHON_VARIABLE, "")
    if not python:
        return f"{PYTHON_VARIABLE} names no Python with stac-fastapi.pgstac (tests/servers/README.md)"
    if not Path(python).is_file():
        return f"{PYTHON_VARIABLE}={python} is not there"
    if not _POSTGRES:
        return "no PostgreSQL in /usr/lib/postgresql (Debian: postgresql postgresql-postgis)"
    return "" if os.geteuid() == 0 else "PostgreSQL is started as its own user, by root"


def _pypgstac(python: str, environment: dict[str, str], *words: str) -> None:
    code = "import sys; from pypgstac.pypgstac import cli; sys.argv[0] = 'pypgstac'; cli()"
    done = subprocess.run(
        [python, "-c", code, *words], env=environment, capture_output=True, text=True, check=False, timeout=240
    )
    if done.returncode:
        raise RuntimeError(f"pypgstac {' '.join(words)}: {(done.stdout + done.stderr)[-3000:]}")


@contextmanager
def pgstac_api() -> Iterator[StacApi]:
    """An empty API, about ten seconds after."""
    python, binaries = os.environ[PYTHON_VARIABLE], _POSTGRES[-1]
    folder = Path(tempfile.mkdtemp(prefix="pgstac", dir="/tmp"))
    shutil.chown(folder, "postgres", "postgres")
    database, port = free_ports(2)
    owner: dict[str, Any] = {"user": "postgres", "group": "postgres", "extra_groups": (), "cwd": folder}
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("PG", "PYTHON", "POSTGRES"))},
        "PGHOST": "127.0.0.1", "PGPORT": str(database), "PGUSER": "postgres", "PGDATABASE": "postgis",
        "PGPASSWORD": "none", "ENABLED_EXTENSIONS": "query,sort,fields,filter,pagination",
    }  # fmt: skip
    try:
        with daemons(folder) as group:
            words = (binaries / "initdb", "-D", folder / "data", "-U", "postgres", "--auth", "trust", "-E", "UTF8")
            subprocess.run(list(map(str, words)), check=True, capture_output=True, **owner)
            options = ("-c", "listen_addresses=127.0.0.1", "-c", "fsync=off")
            group.start(
                "postgres", str(binaries / "postgres"), "-D", str(folder / "data"), "-p", str(database), "-k",
                str(folder), *options, **owner,
            )  # fmt: skip
            wait_for(lambda: listens(database), "postgres")
            create = [str(binaries / "createdb"), "-h", "127.0.0.1", "-p", str(database), "-U", "postgres", "postgis"]
            wait_for(lambda: subprocess.run(create, capture_output=True, check=False).returncode == 0, "database")
            _pypgstac(python, environment, "migrate")
            serve = ("-m", "uvicorn", "stac_fastapi.pgstac.app:create_app", "--factory", "--port", str(port))
            group.start("api", python, *serve, env=environment, cwd=folder)
            wait_for(lambda: listens(port), "the API")
            yield StacApi(f"http://127.0.0.1:{port}", python, environment, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def get_only(url: str) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """(address, requests) of a proxy that passes on GET and answers 405 to the rest, as some archives do."""
    requests: list[tuple[str, str]] = []

    class Proxy(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_POST(self) -> None:
            requests.append(("POST", self.path))
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self._answer(405, "application/json", b'{"detail": "Method Not Allowed"}')

        def do_GET(self) -> None:
            requests.append(("GET", self.path))
            connection = HTTPConnection(url.removeprefix("http://"), timeout=60)
            connection.request("GET", self.path, headers={"Host": self.headers["Host"], "Accept": "*/*"})
            answer = connection.getresponse()
            self._answer(answer.status, answer.headers.get("Content-Type", ""), answer.read())
            connection.close()

        def _answer(self, status: int, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    with serving(Proxy) as address:
        yield address, requests
