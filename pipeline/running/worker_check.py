"""Checks that external workers run the same software and can write to the store."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import uuid4

from pipeline.errors import PipelineError, UsageError
from pipeline.planning.plan import load_plan
from pipeline.process import arithmetic, device_name
from pipeline.redaction import redact
from pipeline.running.software import this_software
from pipeline.store.current import Fence
from pipeline.store.keys import LEASES
from pipeline.store.place import place_of
from pipeline.superres.precision import require_possible

if TYPE_CHECKING:
    from distributed import Client

_log = logging.getLogger(__name__)
_WORDS = 300  # characters of a worker's message that are shown


def require_able(client: Client, store: str, digest: str) -> None:
    """Raise UsageError with the worker's message if a connected worker cannot do the work.

    Log a warning if workers compute with different arithmetic.
    """
    try:
        answers = client.run(look, store, digest, on_error="return")
    except Exception as error:  # raised by the scheduler for anything that cannot be unpickled there
        answers = {"the scheduler": error}
    expected, arithmetics = str(this_software()), set()
    for worker, answer in sorted(answers.items(), key=lambda item: str(item[0])):
        if isinstance(answer, Able) and answer.software == expected:
            arithmetics.add(answer.arithmetic)
            continue
        if isinstance(answer, PipelineError):
            said = str(answer)
        elif isinstance(answer, BaseException):
            said = f"{type(answer).__name__}: {answer}"
        else:
            said = f"it computes with {answer.software if isinstance(answer, Able) else answer}"
        raise UsageError(
            f"{worker} cannot do the work: {redact(said)[:_WORDS]}",
            f"{expected}, and {store} mounted and writable",
            "start the workers from this environment, where they see the store under this path",
        )
    if len(arithmetics) > 1:
        _log.warning("the workers compute on %s, which round differently", " and on ".join(sorted(arithmetics)))


@dataclass(frozen=True)
class Able:
    """A worker that can do the work: its software, its processor and the number format of its networks."""

    software: str
    arithmetic: str


def look(store: str, digest: str) -> Able:
    """Check in a worker that it can compute in the plan's precision, and write to its store."""
    place = place_of(store)
    Fence(place, digest)
    precision = load_plan(place).config.precision
    require_possible(precision, device_name())
    probe = f"{LEASES}.probe-{uuid4().hex}"
    place.write(probe, b"")
    place.delete(probe)
    return Able(str(this_software()), arithmetic(precision))
