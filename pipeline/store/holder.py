"""The process that holds a lease: its identity, and whether it still runs."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from uuid import uuid4

_at_work: set[str] = set()  # owners of the leases that this process holds or wants


@dataclass(frozen=True)
class Holder:
    """A process that holds, or wants, a lease.

    Host name and process number do not identify it, since containers may share both. Processes see each other only with
    the same boot and the same PID namespace, and the system reuses the number of a process that has ended.
    """

    owner: str  # unique to one lease
    host: str
    pid: int
    machine: str  # boot ID and PID namespace; "" if unknown
    started: str  # start of the process in clock ticks since boot; "" if unknown
    lapse_s: float  # seconds without a renewal after which others may take the lease

    def content(self) -> bytes:
        """Return the content of the lease file."""
        return json.dumps(asdict(self)).encode()

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"

    @property
    def is_here(self) -> bool:
        """Whether this process can see the holder's process."""
        return self.host == socket.gethostname() and self.machine == _machine()

    @property
    def has_ended(self) -> bool:
        """Whether the holder is known to have ended, or is this process and no longer uses the lease."""
        if not self.is_here or self.pid <= 0:
            return False
        if self.pid == os.getpid() and self.started == _started(self.pid):
            return self.owner not in _at_work
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass
        return bool(self.started) and _started(self.pid) not in (self.started, "")


def this_process(lapse_s: float) -> Holder:
    """Return a new holder for this process."""
    pid = os.getpid()
    holder = Holder(uuid4().hex, socket.gethostname(), pid, _machine(), _started(pid), lapse_s)
    _at_work.add(holder.owner)
    return holder


def done_with(holder: Holder) -> None:
    """Forget a holder of this process. If its lease file could not be deleted, others may take it."""
    _at_work.discard(holder.owner)


def read_holder(content: bytes, lapse_s: float) -> Holder:
    """Parse a lease file. A holder that is unreadable, or of an older format, lapses after `lapse_s`."""
    try:
        held = json.loads(content)
        return Holder(
            str(held["owner"]),
            str(held["host"]),
            int(held["pid"]),
            str(held.get("machine", "")),
            str(held.get("started", "")),
            float(held.get("lapse_s", lapse_s)),
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return Holder(hashlib.sha256(content).hexdigest()[:32], "an unknown machine", 0, "unknown", "", lapse_s)


def clock_s() -> float:
    """Return seconds of a monotonic clock that also counts during suspend, if the system has one."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return ""


def _started(pid: int) -> str:
    """Return the start of a process in clock ticks since boot; "" if unknown."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""
