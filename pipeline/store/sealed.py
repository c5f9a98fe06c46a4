"""JSON files that carry a checksum of their own content, so that damage is noticed on read."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

CHECKSUM = "checksum"


def dump(content: Mapping[str, Any], *, indent: int | None = None, sort_keys: bool = True) -> bytes:
    """Return `content` and its sha256 as JSON. Raises ValueError for values that JSON cannot represent."""
    text = json.dumps({**content, CHECKSUM: _digest(content)}, indent=indent, sort_keys=sort_keys, allow_nan=False)
    return text.encode()


def load(raw: bytes) -> dict[str, Any]:
    """Return the content that `dump` wrote, without the checksum. Raises ValueError if it is damaged.

    Files of older versions have no checksum and are accepted as they are.
    """
    content = json.loads(raw)
    if not isinstance(content, dict):
        raise ValueError("no JSON object")
    stated = content.pop(CHECKSUM, None)
    if stated is not None and stated != _digest(content):
        raise ValueError("its content does not fit its checksum")
    return content


def has_checksum(raw: bytes) -> bool:
    """Return whether the JSON holds a checksum."""
    content = json.loads(raw)
    return isinstance(content, dict) and CHECKSUM in content


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
