"""The publication record: what a finished store states about itself, and the digest of each of its small files.

Data chunks are covered by the receipts, which carry checksums of their own.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pipeline.store import sealed
from pipeline.store.keys import RUN_FOLDER
from pipeline.store.layout import STATUS_COMPLETE, STATUS_QUARANTINE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pipeline.store.place import Place

KEY = f"{RUN_FOLDER}/COMPLETE.json"
FACTS = ("valid_fraction", "scenes_used", "units", "quarantined")  # in every record
_OTHERS = ("plan_digest", "status", "attributes", "files", "kept")


@dataclass(frozen=True)
class Published:
    """Content of `_run/COMPLETE.json`. Records of older versions have no `files`."""

    plan_digest: str
    status: str
    facts: Mapping[str, Any]  # attributes that are known only at the end: FACTS and more
    attributes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # path of a group -> its attributes
    files: Mapping[str, str] = field(default_factory=dict)  # key -> sha256 of what was published
    kept: Mapping[str, str] = field(default_factory=dict)  # key -> content of files that the plan cannot restore


def digest(content: bytes) -> str:
    """Return the sha256 in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def dump(record: Published) -> bytes:
    """Return the content of the file."""
    content = {
        "plan_digest": record.plan_digest,
        "status": record.status,
        **record.facts,
        "attributes": record.attributes,
        "files": record.files,
        "kept": record.kept,
    }
    return sealed.dump(content, indent=1, sort_keys=False)  # attributes are rewritten in this order


def read(place: Place) -> Published | None:
    """Read the record of a store; None if there is none. Raises ValueError if it is damaged."""
    raw = place.read(KEY)
    if raw is None:
        return None
    content = sealed.load(raw)
    if "files" in content and not sealed.has_checksum(raw):
        raise ValueError("it has lost its checksum")
    try:
        facts = {name: value for name, value in content.items() if name not in _OTHERS}
        if absent := [name for name in FACTS if name not in facts]:
            raise KeyError(*absent)
        status = content.get("status", STATUS_QUARANTINE if facts["quarantined"] else STATUS_COMPLETE)
        attributes, files, kept = (dict(content.get(name, {})) for name in ("attributes", "files", "kept"))
        return Published(str(content["plan_digest"]), str(status), facts, attributes, files, kept)
    except (KeyError, TypeError) as error:
        raise ValueError(f"it lacks {error}") from error


def find(place: Place) -> Published | None:
    """Read the record of a store; None also if it is damaged, which `pipeline.check` reports."""
    try:
        return read(place)
    except (OSError, ValueError):
        return None


def attributes_of(zarr_json: bytes | None) -> dict[str, Any]:
    """Return the attributes in a group's zarr.json. Raises ValueError if it is damaged or missing."""
    content = json.loads(zarr_json or b"")
    attributes = content.get("attributes", {}) if isinstance(content, dict) else None
    if not isinstance(attributes, dict):
        raise ValueError("no Zarr metadata")
    return attributes
