"""Determine what a place holds before anything in it is continued or deleted."""

from __future__ import annotations

import json
from enum import Enum
from typing import TYPE_CHECKING

from pipeline.store.files import is_temporary
from pipeline.store.keys import BEGINNING_KEY, LEASES, PLAN_KEY, RUN_FOLDER

if TYPE_CHECKING:
    from pipeline.store.place import Place


class Standing(Enum):
    """What a place holds."""

    EMPTY = "nothing but leases"
    BEGINNING = "a store whose beginning was interrupted"
    BEGUN = "a store with its plan"
    ORPHANED = "a store of ours that has lost its plan"
    FOREIGN = "something else"


def standing(place: Place) -> Standing:
    """Return what a place holds, without changing it."""
    if place.size(PLAN_KEY) is not None:
        return Standing.BEGUN
    if all(key.startswith(LEASES) or key == f"{RUN_FOLDER}/" or _half_written(key) for key in place.walk()):
        return Standing.EMPTY
    if place.size(BEGINNING_KEY) is not None:
        return Standing.BEGINNING
    return Standing.ORPHANED if _signed(place) else Standing.FOREIGN


def _half_written(key: str) -> bool:
    """Return whether a key is a temporary file that a killed run left in the run folder."""
    return key.startswith(f"{RUN_FOLDER}/") and is_temporary(key)


def _signed(place: Place) -> bool:
    """Return whether metadata or receipts show that a run of ours wrote here."""
    if any(key.endswith(".json") for key in place.names(f"{RUN_FOLDER}/receipts")):
        return True
    try:
        attributes = json.loads(place.read("zarr.json") or b"").get("attributes", {})
    except (OSError, ValueError, AttributeError):
        return False
    return isinstance(attributes, dict) and "plan_digest" in attributes
