"""Attributes in types that NetCDF can hold: text, numbers, and lists of numbers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


def flat(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return attributes with all other types as JSON text, which `json.loads` decodes.

    >>> flat({"seed": 0, "notes": [], "scenes": {"a": 1}, "shape": [4, 2], "groups": ["utm31n"]})
    {'seed': 0, 'notes': '[]', 'scenes': '{"a": 1}', 'shape': [4, 2], 'groups': '["utm31n"]'}
    """
    return {name: value if _plain(value) else json.dumps(value) for name, value in attributes.items()}


def _plain(value: object) -> bool:
    if isinstance(value, list):
        return bool(value) and all(_number(item) for item in value)
    return isinstance(value, str) or _number(value)


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
