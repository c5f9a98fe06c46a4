"""Record of a training in stages: what each stage was given, and the digest of the weights that it ended with.

It is a JSON file in the folder of the stages. The same command goes on from it; other files, settings or another order
are refused, because the weights would no longer be those of the record.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from pipeline.errors import IntegrityError, UsageError
from training.loop.savepoint import storing

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

RECORD = "stages.json"
FORMAT_VERSION = 1
_SHOWN = 120  # maximum characters of a value in a message
_CURE = "the files, settings and order of before, or another --out"


@dataclass(frozen=True)
class StageRecord:
    """What one stage is given. `weights` is the SHA-256 of its bundle, "" until it has finished.

    data: SHA-256 of the training file. settings: those of the preset as the stage has them. files: SHA-256 of the files
    that its recipe names, by setting. begun_from: SHA-256 of the bundle given with --init, of the first stage.
    """

    name: str
    data: str
    settings: dict[str, Any]
    budget: dict[str, Any]
    rate: float
    seed: int
    files: dict[str, str] = field(default_factory=dict)
    begun_from: str = ""
    weights: str = ""


@dataclass
class Record:
    """The stages in their order, in `folder`."""

    folder: Path
    stages: list[StageRecord] = field(default_factory=list)

    @property
    def path(self) -> Path:
        """The file."""
        return self.folder / RECORD

    def finish(self, number: int, weights: str) -> None:
        """Record that a stage has ended with a bundle of this SHA-256."""
        self.stages[number] = replace(self.stages[number], weights=weights)

    def write(self) -> None:
        """Write the file, replaced atomically. Raises StorageError."""
        content = {"format_version": FORMAT_VERSION, "stages": [asdict(stage) for stage in self.stages]}
        partial = self.path.with_suffix(".partial")
        with storing(self.path):
            self.folder.mkdir(parents=True, exist_ok=True)
            partial.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
            partial.replace(self.path)


def opened(folder: Path, wanted: Sequence[StageRecord]) -> Record:
    """Return the record of a folder with the stages `wanted`; those that it has must be the first of these.

    Raises UsageError if they differ or the file cannot be read.
    """
    record = Record(folder, list(wanted))
    if not record.path.is_file():
        return record
    before = _read(record.path)
    names, now = ([stage.name for stage in stages] for stages in (before, wanted))
    if now[: len(names)] != names:
        raise UsageError(
            f"{record.path} has the stages {', '.join(names)}", f"{', '.join(now)} as now, or fewer of them", _CURE
        )
    for number, (old, new) in enumerate(zip(before, wanted, strict=False)):
        _check(record.path, old, new)
        record.stages[number] = old
    return record


def check_weights(path: Path, stage: StageRecord) -> None:
    """Raise IntegrityError unless the bundle of a finished stage is still the recorded one."""
    found = digest_of(path) if path.is_file() else "missing"
    if found != stage.weights:
        raise IntegrityError(
            f"{path} of stage {stage.name} is {found}",
            f"SHA-256 {stage.weights}",
            "restore it, or train in another --out",
        )


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(path: Path) -> list[StageRecord]:
    try:
        content = json.loads(path.read_text())
        if content["format_version"] != FORMAT_VERSION:
            raise ValueError(f"format {content['format_version']}")
        return [StageRecord(**stage) for stage in content["stages"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{path} is no readable record ({error!s:.{_SHOWN}})", "one that this version wrote"
        ) from error


def _check(path: Path, old: StageRecord, new: StageRecord) -> None:
    """Raise UsageError for the first difference of what a stage was given."""
    before, now = (dict(_flat(asdict(replace(stage, weights="")))) for stage in (old, new))
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            was, value = (str(of.get(name, "not set"))[:_SHOWN] for of in (before, now))
            raise UsageError(f"{path}: stage {old.name} began with {name} = {was}", f"{value} as now", _CURE)


def _flat(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Yield values of nested dicts by dotted names."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{above}{name}.")
        else:
            yield above + name, value
