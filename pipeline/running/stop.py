"""Graceful stop: signals set a flag that is checked where a run can stop without loss."""

from __future__ import annotations

import logging
import os
import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pipeline.errors import Interrupted
from pipeline.plain import counted

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

_log = logging.getLogger(__name__)
_NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


_thread = threading.local()


def end_with(abandoned: threading.Event) -> None:
    """Make units that this thread computes end before their next window once the event is set."""
    _thread.abandoned = abandoned


def require_wanted() -> None:
    """Raise Interrupted if nobody waits any more for the units of this thread."""
    abandoned: threading.Event | None = getattr(_thread, "abandoned", None)
    if abandoned is not None and abandoned.is_set():
        raise Interrupted("stopped at once", cure="run the same command again to continue")


class Stop:
    """Remembers that the user asked to stop. A second SIGINT stops at once."""

    def __init__(self) -> None:
        self.asked = False
        self.outage = ""  # an unreachable archive or store, and its last error
        self.running = 0  # units that a stop waits for

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        del frame
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True

    def acknowledge(self, number: int) -> None:
        """Say what the signal `number` makes the run do."""
        count = self.running
        doing = f"finishing {counted(count, 'unit')}" if count else "stopping"
        facts = {"stage": "stop", "signal": signal.Signals(number).name, "running": count}
        if number == signal.SIGINT:
            _log.warning("%s; Ctrl-C again stops at once", doing, extra={"facts": facts})
        else:
            _log.warning("%s, as %s asks", doing, facts["signal"], extra={"facts": facts})


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """Request a stop on SIGINT, SIGTERM and SIGUSR1 (SLURM's warning before its time limit); main thread only.

    A thread acknowledges the first signal at once, since the main thread may be in a call that lasts.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    ours, theirs = os.pipe()
    os.set_blocking(theirs, False)
    woken = signal.set_wakeup_fd(theirs, warn_on_full_buffer=False)
    watcher = threading.Thread(target=_acknowledge, args=(ours, stop), name="signals", daemon=True)
    watcher.start()
    before = {number: signal.signal(number, stop) for number in _NUMBERS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(woken)
        os.close(theirs)  # ends the thread
        watcher.join()
        os.close(ours)


def _acknowledge(pipe: int, stop: Stop) -> None:
    """Acknowledge the first signal that the interpreter reports through `pipe`, until its other end is closed."""
    said = False
    while found := os.read(pipe, 1):
        if found[0] in _NUMBERS and not said:
            said = True
            stop.acknowledge(found[0])
