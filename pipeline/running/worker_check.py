"""Checks that external workers run the same software and can write to the store."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import uuid4

from pipeline.errors import PipelineError, UsageError
from pipeline.redaction import redact
from pipeline.running.software import this_software
from pipeline.store.current import Fence
from pipeline.store.keys import LEASES
from pipeline.store.place import place_of

if TYPE_CHECKING:
    from distributed import Client

_WORDS = 300  # characters of a worker's message that are shown


def require_able(client: Client, store: str, digest: str) -> None:
    """Raise UsageError with the worker's message if a connected worker cannot do the work."""
    try:
        answers = client.run(look, store, digest, on_error="return")
    except Exception as error:  # raised by the scheduler for anything that cannot be unpickled there
        answers = {"the scheduler": error}
    expected = str(this_software())
    for worker, answer in sorted(answers.items(), key=lambda item: str(item[0])):
        if answer == expected:
            continue
        if isinstance(answer, PipelineError):
            said = str(answer)
        elif isinstance(answer, BaseException):
            said = f"{type(answer).__name__}: {answer}"
        else:
            said = f"it computes with {answer}"
        raise UsageError(
            f"{worker} cannot do the work: {redact(said)[:_WORDS]}",
            f"{expected}, and {store} mounted and writable",
            "start the workers from this environment, where they see the store under this path",
        )


def look(store: str, digest: str) -> str:
    """Check in a worker that it can write to the store of the plan. Return its software."""
    place = place_of(store)
    Fence(place, digest)
    probe = f"{LEASES}.probe-{uuid4().hex}"
    place.write(probe, b"")
    place.delete(probe)
    return str(this_software())
