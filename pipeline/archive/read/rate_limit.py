"""Per-host rate limiting with shared back-off and a retry budget.

There is one `Host` per name and process, shared by its threads. Processes that read side by side divide a host's
connections between them (`share`). Each gets a whole number of connections, at least one, so that more processes than
connections exceed the limit; pauses still slow them down.
"""

from __future__ import annotations

import os
import threading
import time
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Protocol

from pipeline.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    class Headers(Protocol):
        """Headers of an answer, by name in any case."""

        def get(self, name: str, default: str, /) -> str:
            """Value, or the default."""
            ...


PROCESSES_VARIABLE = "SEN2FINE_PROCESSES"  # number of processes that read side by side, where no pool tells
MAX_RETRY_AFTER_S = 300.0  # longer requests to wait are cut to this
BUDGET_RETRIES = 100  # retries allowed per host,
BUDGET_SHARE = 0.1  # plus this many per read

clock = time.monotonic
sleep = time.sleep

_hosts: dict[str, Host] = {}
_hosts_lock = threading.Lock()
_processes: list[int] = []  # empty until `share` was called


def share(processes: int) -> None:
    """Set the number of processes that read from the same hosts, this one included."""
    _processes[:] = [max(1, processes)]


def connections_here(granted: int) -> int:
    """Share of this process in the connections that a host allows.

    >>> share(3), connections_here(8), connections_here(2)
    (None, 2, 1)
    """
    processes = _processes[0] if _processes else _processes_by_environment()
    return max(1, granted // processes)


def _processes_by_environment() -> int:
    value = os.environ.get(PROCESSES_VARIABLE, "1")
    if not value.isdigit() or int(value) < 1:
        raise UsageError(f"{PROCESSES_VARIABLE}={value!a}", "a number of processes, at least 1")
    return int(value)


class Host:
    """State of this process at one host. Thread-safe."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._condition = threading.Condition()
        self._reading = 0
        self._until = 0.0  # on `clock`; no read starts before
        self._asking = False
        self._reads = self._retries = 0

    @contextmanager
    def turn(self, granted: int) -> Iterator[None]:
        """Context of one read: waits for the end of the host's pause and for a free connection."""
        self._begin(granted)
        try:
            yield
        finally:
            with self._condition:
                self._reading -= 1
                self._condition.notify_all()

    def _begin(self, granted: int) -> None:
        while True:
            while (left_s := self._until - clock()) > 0:
                sleep(left_s)
            with self._condition:
                if self._until > clock():
                    continue
                if not self._asking and self._reading < connections_here(granted):
                    self._reading += 1
                    self._reads += 1
                    return
                self._condition.wait()

    def pause(self, ask: Callable[[], float]) -> None:
        """Pause all reads from a busy host for `ask()` seconds. It is called once, however many reads were refused.

        `ask` may be slow, and may itself query the host; other refused reads wait for its answer.
        """
        with self._condition:
            while self._asking:
                self._condition.wait()
                if self._until > clock():
                    return
            if self._until > clock():
                return
            self._asking = True
        wait_s = 0.0
        try:
            wait_s = ask()
        finally:
            with self._condition:
                self._asking = False
                self._until = max(self._until, clock() + wait_s)
                self._condition.notify_all()

    def may_retry(self) -> bool:
        """Count one retry; False when the budget, 100 and a tenth of all reads, is spent."""
        with self._condition:
            if self._retries >= BUDGET_RETRIES + int(BUDGET_SHARE * self._reads):
                return False
            self._retries += 1
            return True


class HostSlot:
    """Access to a host for reads of one file; `granted` connections. `ask` gives how long the host is busy, in s."""

    def __init__(self, host: Host, granted: int, ask: Callable[[], float] = lambda: 0.0) -> None:
        self._host, self._granted, self._ask = host, granted, ask

    def turn(self) -> AbstractContextManager[None]:
        """Context of one read."""
        return self._host.turn(self._granted)

    def pause(self, least_s: float) -> None:
        """Pause a busy host for as long as it asks, at least `least_s`."""
        self._host.pause(lambda: max(least_s, self._ask()))

    def may_retry(self) -> bool:
        """As `Host.may_retry`."""
        return self._host.may_retry()


def retry_after_s(headers: Headers) -> float:
    """Seconds of a Retry-After header, in either form (RFC 9110, 10.2.3), 0 without one; at most MAX_RETRY_AFTER_S."""
    value = str(headers.get("Retry-After", "")).strip()
    try:
        asked_s = float(value)
    except ValueError:
        try:
            asked_s = (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):  # not a date either; one without a zone cannot be compared
            return 0.0
    return min(asked_s, MAX_RETRY_AFTER_S) if asked_s > 0 else 0.0  # NaN compares false


def host_of(name: str) -> Host:
    """The host of that name, the same for all threads of this process."""
    with _hosts_lock:
        return _hosts.setdefault(name, Host(name))


def forget() -> None:
    """Reset all hosts and shares."""
    with _hosts_lock:
        _hosts.clear()
    _processes.clear()
