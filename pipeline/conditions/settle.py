"""Check the maps of a run before anything else, and freeze them by digest."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.conditions import raster_map
from pipeline.conditions.credit import credit_of
from pipeline.conditions.frozen import Frozen, freeze
from pipeline.conditions.vector_layers import layers_of
from pipeline.superres.declared import require_known

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pipeline.superres.declared import Condition


def settle(conditions: Sequence[Condition], given: Mapping[str, str], system: str) -> tuple[Frozen, ...]:
    """Return the records of the maps `given` by name.

    Raises UsageError for unknown, missing or unsuitable maps, and ReadError for unreadable ones.
    """
    require_known(conditions, tuple(given), system)
    found = []
    for one in conditions:
        if one.name not in given:
            continue
        frozen = freeze(one, given[one.name])
        _look(one, Path(frozen.where))
        found.append(replace(frozen, credit=credit_of(Path(frozen.where), one.kind)))
    return tuple(found)


def _look(condition: Condition, path: Path) -> None:
    if condition.kind == "vector":
        layers_of(path)
        return
    with raster_map.opened(str(path), condition.name, placed=not condition.whole) as source:
        raster_map.require_fit(condition, str(path), source.count, bool(source.crs) or condition.whole)
