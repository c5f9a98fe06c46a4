"""Validation of STAC items by pystac, without a network: its own schemas, and those in stac_schemas/."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pystac
from pystac.validation import validate_dict
from pystac.validation.stac_validator import JsonSchemaSTACValidator

_SCHEMAS = Path(__file__).parent / "stac_schemas"


def extension_schemas() -> dict[str, dict[str, Any]]:
    """{address: schema} of the extensions that are at hand."""
    found = {}
    for path in sorted(_SCHEMAS.glob("*.json")):
        name, version = path.stem.rsplit("-", 1)
        found[f"https://stac-extensions.github.io/{name}/{version}/schema.json"] = json.loads(path.read_text())
    return found


def validate(item: dict[str, Any], without: tuple[str, ...] = ()) -> list[str]:
    """Addresses of the schemas that the item fits. pystac.STACValidationError when it does not.

    `without`: extensions whose schema is not at hand; any other missing one is an error.
    """
    schemas = extension_schemas()
    known = [uri for uri in item["stac_extensions"] if not any(f"/{name}/" in uri for name in without)]
    assert set(known) <= set(schemas), set(known) - set(schemas)
    validator = JsonSchemaSTACValidator()
    validator.schema_cache.update(schemas)
    result = validate_dict({**item, "stac_extensions": known}, validator=validator)
    assert pystac.Item.from_dict(item).id == item["id"]
    return list(map(str, result))
