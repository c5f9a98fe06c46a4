"""The software that computed the units of a store. It is recorded there and compared before another run continues.

Another version of this package, of torch or of numpy may give different pixels.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import UsageError
from pipeline.store import sealed
from pipeline.store.keys import RUN_FOLDER
from pipeline.version import VERSION

if TYPE_CHECKING:
    from pipeline.planning.plan import Plan
    from pipeline.store.place import Place

FOLDER = f"{RUN_FOLDER}/software"
_RECEIPTS = f"{RUN_FOLDER}/receipts"
_DECIDING = ("archive", "grid", "models", "superres", "bands.py", "running/unit.py", "store/overviews.py")
_RECORD = re.compile(r"[0-9a-f]{16}\.json")  # names of records; other files are ignored
_COMPARED = ("version", "code", "torch", "numpy")  # the other fields do not decide pixels


@dataclass(frozen=True)
class Software:
    """The software of a process."""

    version: str  # of this package
    code: str  # digest of this package's modules that decide pixels
    torch: str
    numpy: str
    python: str = ""

    @property
    def name(self) -> str:
        """Name of the record, equal for software that computes the same pixels."""
        compared = {name: getattr(self, name) for name in _COMPARED}
        return hashlib.sha256(json.dumps(compared, sort_keys=True).encode()).hexdigest()[:16]

    def __str__(self) -> str:
        return f"sen2fine {self.version} (code {self.code[:8]}) with torch {self.torch} and numpy {self.numpy}"


@lru_cache(maxsize=1)
def this_software() -> Software:
    """Return the software of this process. CPU and GPU builds of one torch release count as the same."""
    return Software(VERSION, _code_digest(), _release("torch"), _release("numpy"), platform.python_version())


def require_same(plan: Plan, place: Place, *, done: int, mixed: bool = False) -> None:
    """Record this software before it computes a unit of `plan`. Raises UsageError if other software computed some.

    `done` is the number of done units. `mixed` allows other software.
    """
    mine = this_software()
    if mine.name in {found.name for found in _records(plan, place).values()}:
        return
    key = f"{FOLDER}/{mine.name}.json"
    place.write(key, _record(plan, mine, mixed=mixed))  # write before reading: of two runs, one sees the other
    others = [found for found in _records(plan, place).values() if found.name != mine.name]
    if not mixed and (found := _unlike(plan, others, done, place)):
        place.delete(key)
        raise _refused(place, found)


def require_same_code(plan: Plan, place: Place, *, mixed: bool = False) -> None:
    """Raise UsageError if other code of this package computed the units of the overviews to build.

    torch and numpy may differ, since overviews use integers only.
    """
    mine, found = this_software(), list(_records(plan, place).values())
    if not mixed and found and (mine.version, mine.code) not in {(one.version, one.code) for one in found}:
        raise _refused(place, str(found[0]))


def _refused(place: Place, found: str) -> UsageError:
    return UsageError(
        f"{place} was computed by {found}; this is {this_software()}, which may give other pixels",
        "one version of the software for all units of a store",
        "install that version, begin another store, or mix them knowingly with --mixed-software",
    )


def mixed_words(plan: Plan, place: Place) -> list[str]:
    """Return descriptions of all software that computed a store, or [] if it is only one."""
    found = sorted(str(software) for software in _records(plan, place).values())
    return found if len(found) > 1 else []


def _unlike(plan: Plan, others: list[Software], done: int, place: Place) -> str:
    """Return a description of other software that computed existing units, or ""."""
    lost = damaged(place)
    if (others or lost) and not place.names(_RECEIPTS):
        return ""
    if others or lost:
        return str(others[0]) if others else f"software that is not known ({place.shown(lost[0])} is damaged)"
    return f"sen2fine {plan.version}" if done and plan.version != VERSION else ""  # earlier versions kept no record


def _records(plan: Plan, place: Place) -> dict[str, Software]:
    """Return {key: software} of the intact records of a plan."""
    return {key: _parsed(content)[1] for key, content in contents(plan, place).items()}


def contents(plan: Plan, place: Place) -> dict[str, bytes]:
    """Return {key: content} of the intact records of a plan."""
    found = {}
    for key, content in _files(place).items():
        with suppress(ValueError):
            if _parsed(content)[0] == plan.digest:
                found[key] = content
    return found


def damaged(place: Place) -> list[str]:
    """Return the keys of unreadable records."""
    wrong = []
    for key, content in _files(place).items():
        try:
            _parsed(content)
        except ValueError:
            wrong.append(key)
    return wrong


def _files(place: Place) -> dict[str, bytes]:
    names = (key for key in place.names(FOLDER) if _RECORD.fullmatch(key.rpartition("/")[2]))
    return {key: place.read(key) or b"" for key in names}


def _parsed(content: bytes) -> tuple[str, Software]:
    """Return (plan digest, software) of a record. Raises ValueError if it is damaged."""
    record = sealed.load(content)
    try:
        return str(record["plan_digest"]), Software(**record["software"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"no record of software ({error})") from error


def _record(plan: Plan, software: Software, *, mixed: bool) -> bytes:
    at = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    content = {"plan_digest": plan.digest, "software": asdict(software), "first_used_utc": at, "mixed": mixed}
    return sealed.dump(content, indent=1)


def _code_digest() -> str:
    root, found = Path(__file__).resolve().parent.parent, hashlib.sha256()
    for name in _DECIDING:
        at = root / name
        for path in sorted(at.rglob("*.py")) if at.is_dir() else [at]:
            found.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return found.hexdigest()


def _release(package: str) -> str:
    try:
        return version(package).partition("+")[0]
    except PackageNotFoundError:
        return ""
