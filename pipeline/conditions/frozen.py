"""The plan's record of a map: its path and the digest of its content."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.conditions.vector_format import VECTOR_SUFFIXES
from pipeline.errors import UsageError

if TYPE_CHECKING:
    from pipeline.superres.declared import Condition

_BLOCK = 1 << 20
RASTER_SUFFIXES = (".tif", ".tiff", ".jp2")
_BESIDE = (".dbf", ".shx", ".prj", ".cpg")  # other files of a shapefile


@dataclass(frozen=True)
class Frozen:
    """A map by the name of its condition. `sha256` covers its content, for a shapefile that of all its files.

    `credit` names its makers and licence, as they wish to be named.
    """

    name: str
    kind: str  # "vector" or "raster"
    where: str  # absolute path
    sha256: str
    credit: str = ""

    def to_json(self) -> dict[str, str]:
        """Return a dictionary. Without a credit it is that of older plans, which recorded none."""
        return {name: value for name, value in asdict(self).items() if name != "credit" or value}


def freeze(condition: Condition, given: str) -> Frozen:
    """Return the record of a map. Raises UsageError if it is not a file of the condition's kind or is unreadable."""
    if "://" in given:
        raise UsageError(
            f"--condition {condition.name}={given}",
            "a file on this machine",
            "fetch it first: what it holds may change",
        )
    path = Path(given).expanduser().resolve()
    suffixes = tuple(VECTOR_SUFFIXES) if condition.kind == "vector" else RASTER_SUFFIXES
    if path.suffix.lower() not in suffixes:
        raise UsageError(
            f"--condition {condition.name}={given} is no {condition.kind} file",
            f"{condition.about} in a file that ends on {', '.join(suffixes)}",
        )
    return Frozen(condition.name, condition.kind, str(path), content_digest(path))


def content_digest(path: Path) -> str:
    """Return the sha256 of a file, or of all files of a shapefile. Raises UsageError if it cannot be read."""
    digest = hashlib.sha256()
    try:
        for part in _parts(path):
            with part.open("rb") as file:
                while block := file.read(_BLOCK):
                    digest.update(block)
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror or error})", "a file with a map") from error
    return digest.hexdigest()


def _parts(path: Path) -> list[Path]:
    if not path.is_file():
        raise UsageError(f"{path} does not exist" if not path.exists() else f"{path} is no file", "a file with a map")
    if path.suffix.lower() != ".shp":
        return [path]
    return [path, *(beside for suffix in _BESIDE if (beside := path.with_suffix(suffix)).is_file())]
