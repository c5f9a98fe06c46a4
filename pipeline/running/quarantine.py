"""Units that fail for reasons of their own: tried alone once more, then set aside so that the rest can finish.

In: a unit and its error. Out: one JSON file per quarantined unit under `_run/quarantine`, with the command that shows
the failure again. Imports plan, place and errors.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from pipeline.errors import IntegrityError, PipelineError, ReadError, StorageError, Unreachable, UsageError
from pipeline.redaction import redact
from pipeline.store import sealed
from pipeline.store.keys import RUN_FOLDER
from pipeline.store.place import place_of

if TYPE_CHECKING:
    from pipeline.planning.units import Unit
    from pipeline.store.place import Where

ALLOWED_SHARE = 0.01  # of a run's units; more have one cause, which no quarantine cures
_FOLDER = f"{RUN_FOLDER}/quarantine"
_ISOLATION_TIMEOUT_S = 3600.0
_KINDS = {kind.exit_code: kind for kind in (UsageError, ReadError, StorageError, IntegrityError, Unreachable)}


@dataclass(frozen=True)
class Quarantined:
    """One unit set aside: why, after how many tries, and how to see it fail again."""

    unit: str
    plan_digest: str
    error: str
    attempts: int
    reproduce: str


def allowed(units: int) -> int:
    """How many of `units` a run may set aside: 1 %, and one in small runs."""
    return max(1, int(units * ALLOWED_SHARE))


def command(unit: Unit, store: Where) -> list[str]:
    """The command that computes one unit alone."""
    return [sys.executable, "-m", "pipeline.running.single", str(store), unit.id]


def worth_isolating(error: BaseException) -> bool:
    """False for a file that cannot be read: that is known by now, and no other process reads it better."""
    return not isinstance(error, ReadError)


def isolated(unit: Unit, store: Where) -> PipelineError | None:
    """Compute a unit in a process of its own; None when it succeeds (its receipt is then written), else why not."""
    try:
        done = subprocess.run(
            command(unit, store), capture_output=True, text=True, timeout=_ISOLATION_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return PipelineError(f"unit {unit.id}: still at work alone after {_ISOLATION_TIMEOUT_S:.0f} s")
    if done.returncode == 0:
        return None
    if done.returncode < 0:
        return PipelineError(
            f"unit {unit.id}: its process was killed by signal {-done.returncode} even when alone",
            cure="if memory ran out, use a smaller --unit-chunks",
        )
    words = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
    said = redact(words[-1].removeprefix("error: ").removeprefix(f"unit {unit.id}: "))
    return _KINDS.get(done.returncode, PipelineError)(f"unit {unit.id}: {said}")


class Quarantine:
    """The units that one plan has set aside."""

    def __init__(self, store: Where, plan_digest: str) -> None:
        self._place, self._digest = place_of(store), plan_digest

    @staticmethod
    def key(unit: str) -> str:
        """Where the record of a unit lies."""
        return f"{_FOLDER}/{unit}.json"

    def add(self, unit: Unit, error: BaseException, attempts: int) -> None:
        """Set a unit aside."""
        record = Quarantined(
            unit.id, self._digest, redact(str(error)), attempts, shlex.join(["python", *command(unit, self._place)[1:]])
        )
        self._place.write(self.key(unit.id), sealed.dump(asdict(record), indent=1))

    def read(self) -> dict[str, Quarantined]:
        """{unit id: record} of all units set aside by this plan; damaged records are as good as none."""
        found = {}
        for key in self._place.names(_FOLDER):
            try:
                record = Quarantined(**sealed.load(self._place.read(key) or b""))
            except (OSError, ValueError, TypeError):
                continue
            if record.plan_digest == self._digest and key == self.key(record.unit):
                found[record.unit] = record
        return found

    def release(self, unit: str) -> None:
        """Take a unit out, to be tried again."""
        self._place.delete(self.key(unit))
