"""Daemons of a test: started with a log of their own, stopped by their own ids."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

_STOP_S = 10.0


def absent(programs: Sequence[str], folders: Sequence[str] = ()) -> list[str]:
    """Those of the programs that are not installed."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin", *folders])
    return [name for name in programs if shutil.which(name, path=path) is None]


def free_ports(count: int) -> list[int]:
    """Ports on loopback that nobody listens on."""
    taken = [socket.socket() for _ in range(count)]
    try:
        for one in taken:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in taken]
    finally:
        for one in taken:
            one.close()


class Daemons:
    """Running daemons, stopped last first."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._running: list[subprocess.Popen[bytes]] = []

    def start(self, name: str, *words: str, **options: object) -> subprocess.Popen[bytes]:
        """Start one; its output is in NAME.log."""
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, **options)
        self._running.append(process)
        return process

    def last_words(self) -> str:
        """Ends of all logs."""
        logs = sorted(self.folder.glob("*.log"))
        return "\n".join(f"{log.name}: {log.read_text(errors='replace')[-1500:]}" for log in logs)

    def stop(self) -> None:
        """Stop all."""
        for process in reversed(self._running):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(_STOP_S)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


@contextmanager
def daemons(folder: Path) -> Iterator[Daemons]:
    """Daemons that are gone at the end."""
    group = Daemons(folder)
    try:
        yield group
    except TimeoutError as error:
        raise TimeoutError(f"{error}\n{group.last_words()}") from None
    finally:
        group.stop()


def wait_for(ready: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
    """Wait until `ready()`; TimeoutError says what did not come."""
    until = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > until:
            raise TimeoutError(f"{what} is not ready after {seconds:g} s")
        time.sleep(0.2)


def listens(port: int) -> bool:
    """Whether anybody answers on a port of loopback."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
