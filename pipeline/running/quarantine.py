"""Quarantine of failing units. They are retried once in a separate process, then set aside so that the rest can finish.

Each quarantined unit has a JSON file under `_run/quarantine`, with the command that reproduces the failure.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from pipeline import start
from pipeline.errors import IntegrityError, PipelineError, ReadError, StorageError, Unreachable, UsageError
from pipeline.redaction import redact
from pipeline.store import sealed
from pipeline.store.keys import RUN_FOLDER
from pipeline.store.place import place_of

if TYPE_CHECKING:
    from pipeline.planning.units import Unit
    from pipeline.store.place import Where

ALLOWED_SHARE = 0.01  # of a run's units; more failures have a common cause
_FOLDER = f"{RUN_FOLDER}/quarantine"
_ISOLATION_TIMEOUT_S = 3600.0
_KINDS = {kind.exit_code: kind for kind in (UsageError, ReadError, StorageError, IntegrityError, Unreachable)}


@dataclass(frozen=True)
class Quarantined:
    """Record of one quarantined unit: error, number of attempts, and the command to reproduce the failure."""

    unit: str
    plan_digest: str
    error: str
    attempts: int
    reproduce: str


def allowed(units: int) -> int:
    """Return how many of `units` a run may quarantine: 1 %, at least one."""
    return max(1, int(units * ALLOWED_SHARE))


def command(unit: Unit, store: Where) -> list[str]:
    """Return the command by which a user computes one unit alone."""
    return [sys.executable, "-m", "pipeline.running.single", str(store), unit.id]


def worth_isolating(error: BaseException) -> bool:
    """Return False for unreadable files, which another process cannot read either."""
    return not isinstance(error, ReadError)


def isolated(unit: Unit, store: Where) -> PipelineError | None:
    """Compute a unit in a separate process. Return None if it succeeds and has written its receipt, else the error."""
    try:
        done = subprocess.run(
            start.command("pipeline.running.single", str(store), unit.id),
            capture_output=True,
            text=True,
            timeout=_ISOLATION_TIMEOUT_S,
            check=False,
            env=start.environment(),
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
    """The quarantined units of one plan."""

    def __init__(self, store: Where, plan_digest: str) -> None:
        self._place, self._digest = place_of(store), plan_digest

    @staticmethod
    def key(unit: str) -> str:
        """Return the key of a unit's record."""
        return f"{_FOLDER}/{unit}.json"

    def add(self, unit: Unit, error: BaseException, attempts: int) -> None:
        """Write the record of a unit."""
        record = Quarantined(
            unit.id, self._digest, redact(str(error)), attempts, shlex.join(["python", *command(unit, self._place)[1:]])
        )
        self._place.write(self.key(unit.id), sealed.dump(asdict(record), indent=1))

    def read(self) -> dict[str, Quarantined]:
        """Return {unit id: record} of all quarantined units of this plan. Damaged records are ignored."""
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
        """Delete the record of a unit, so that it is tried again."""
        self._place.delete(self.key(unit))
