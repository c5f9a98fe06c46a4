"""The files that a gateway serves: their addresses, their failures, and what is kept of them."""

from __future__ import annotations

import os
import re
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pipeline.archive.read.guarded_http import guarded, open_url
from pipeline.archive.read.host_policy import HostPolicy
from pipeline.archive.read.kept_ranges import KeptRanges, UnderWay

if TYPE_CHECKING:
    from requests import Response, Session

KEPT_BYTES = 64 * 2**20  # for each reading process: two rows of blocks over 11 km, 12 bands, 1024 px, deflated
RANGE = re.compile(r"bytes=(\d+)-(\d*)")
CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


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
    version: tuple[str, str] = ("", "")  # ETag and Last-Modified
    fresh_until: float = 0.0  # on the monotonic clock: until then, opening the file needs no request
    moved: dict[str, str] = field(default_factory=dict)  # address -> where its redirects ended
    under_way: UnderWay = field(default_factory=UnderWay)

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
        self.kept = KeptRanges(KEPT_BYTES)
        self._readers: set[int] = set()
        self._routes: dict[str, Route] = {}
        self._sessions: dict[tuple[HostPolicy, int], Session] = {}
        self._lock = threading.Lock()

    def register(self, number: str, address: str, hosts: list[str], connections: int, reader: int) -> None:
        """Register a file, or update the signed address of a known one. `reader` is the process that wants it."""
        with self._lock:
            self._readers.add(reader)
            self.kept.most_bytes = KEPT_BYTES * min(len(self._readers), os.cpu_count() or 1)
            route = self._routes.setdefault(number, Route(address, HostPolicy(tuple(hosts)), connections))
            route.address = address

    def get(self, number: str) -> Route | None:
        """The file of that number."""
        return self._routes.get(number)

    def forget(self, number: str) -> None:
        """Ask for a file anew when it is next read; for all files if `number` is empty."""
        with self._lock:
            numbers = [number] if number else list(self._routes)
        for one in numbers:
            if route := self.get(one):
                route.fresh_until = 0.0
            self.kept.forget(one)

    def session(self, route: Route) -> Session:
        """Guarded session with kept connections, shared by files of the same policy."""
        from requests import Session as Plain

        with self._lock:
            key = route.policy, route.connections
            if key not in self._sessions:
                self._sessions[key] = guarded(Plain(), *key)
            return self._sessions[key]


def contradiction(route: Route, asked: str, answer: Response) -> str:
    """Why a response cannot be part of the requested file; "" when it can. GDAL does not check this.

    A range must start where requested, and the file must keep its size and its version while it is read; opening it
    again, which starts with its first bytes, accepts new ones.
    """
    wanted, got = RANGE.fullmatch(asked), CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", ""))
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
    version = answer.headers.get("ETag", ""), answer.headers.get("Last-Modified", "")
    if wanted[1] == "0":
        route.size, route.version = total, version
    elif total is not None and route.size not in (None, total):
        return f"the file changed while it was read: it had {route.size} bytes and has {total}"
    elif _differ(version, route.version):
        return f"the file changed while it was read: it is of {' '.join(version)}, and was of {' '.join(route.version)}"
    return ""


def _differ(one: tuple[str, str], other: tuple[str, str]) -> bool:
    """Whether all that both responses say differs: copies of a file on several servers may have tags of their own."""
    said = [(a, b) for a, b in zip(one, other, strict=True) if a and b]
    return bool(said) and all(a != b for a, b in said)
