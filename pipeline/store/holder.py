"""Who holds a lease: one process on one machine, told apart from all others, and asked whether it still lives.

A host's name and a process number are not enough: containers share both. Two processes can see each other only where
the boot and the namespace of process numbers are the same, and a number is used again once its process is gone.
"""

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
    """A process that holds, or wants, a lease."""

    owner: str  # unique to one lease
    host: str
    pid: int
    machine: str  # boot and namespace of process numbers; "" where the system does not tell
    started: str  # when the process was started, in the system's own terms
    lapse_s: float  # seconds without a renewal after which others may take the lease

    def content(self) -> bytes:
        """What the lease file holds."""
        return json.dumps(asdict(self)).encode()

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"

    @property
    def is_here(self) -> bool:
        """True when this process could see the holder's process."""
        return self.host == socket.gethostname() and self.machine == _machine()

    @property
    def has_ended(self) -> bool:
        """True when the holder's process is known to be gone, or is this one and done with the lease."""
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
    """A new holder: the process that asks."""
    pid = os.getpid()
    holder = Holder(uuid4().hex, socket.gethostname(), pid, _machine(), _started(pid), lapse_s)
    _at_work.add(holder.owner)
    return holder


def done_with(holder: Holder) -> None:
    """Forget a holder of this process: what it could not give back is nobody's."""
    _at_work.discard(holder.owner)


def read_holder(content: bytes, lapse_s: float) -> Holder:
    """The holder that a lease file names; one that cannot be read, or is of an older kind, lapses after `lapse_s`."""
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
    """Seconds of a clock that only goes forward, and goes on while the machine sleeps where the system has one."""
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
    """Start of a process in clock ticks since boot; "" where the system does not tell."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""
