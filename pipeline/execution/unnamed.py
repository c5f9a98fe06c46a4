"""Chunks that no receipt names: left by units that did not end, or put there by somebody else."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pipeline.execution import pyramid
from pipeline.execution.outline import template_of
from pipeline.store import overview_records

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pipeline.execution.plan import Plan, Unit
    from pipeline.store.place import Place
    from pipeline.store.receipts import Receipt

_ADDRESS = re.compile(r"c(/\d+)+")


def unnamed_chunks(
    plan: Plan, place: Place, keys: Iterable[str], receipts: Iterable[Receipt], without: Iterable[Unit]
) -> list[str]:
    """Of all `keys` of a store: chunks of its images that neither receipts nor records of overviews name.

    Those of units `without` a receipt, and of overviews without a record, are left out: they will be written anew.
    """
    named = {_below(receipt.group, key) for receipt in receipts for key in receipt.chunks}
    for unit in without:
        named |= chunks_of(plan, unit)
    unfinished: set[str] = set()
    names = pyramid.record_names(plan)
    for name, record in zip(names, overview_records.read_many(place, plan.digest, names), strict=True):
        if record is None:
            unfinished |= pyramid.chunks_of(plan, name)
        else:
            named |= {_below(pyramid.group_of(plan, name), key) for key in record.chunks}
    arrays = tuple(_arrays(plan))
    return sorted(key for key in keys if key not in named and key not in unfinished and _is_chunk(key, arrays))


def chunks_of(plan: Plan, unit: Unit) -> set[str]:
    """Keys that a unit may write: its chunks of the 2.5 m arrays and of what was measured."""
    zone, group = plan.zone(unit.epsg), plan.group(unit.epsg)
    shape, grid = template_of(plan, zone), zone.grid.window
    step = shape.base.step_px
    places = {((chunk.row - grid.row) // step, (chunk.col - grid.col) // step) for chunk in plan.chunks(unit)}
    return {
        _below(group, level.chunk_key(name, unit.period, row, col))
        for level in (shape.base, *shape.measured)
        for name in level.arrays
        for row, col in places
    }


def _below(group: str, key: str) -> str:
    return f"{group}/{key}" if group else key


def _arrays(plan: Plan) -> Iterator[str]:
    for zone in plan.zones:
        shape = template_of(plan, zone)
        for level in (shape.base, *shape.overviews, *shape.measured):
            for name in level.arrays:
                yield _below(plan.group(zone.epsg), _below(level.path, f"{name}/"))


def _is_chunk(key: str, arrays: tuple[str, ...]) -> bool:
    array = next((prefix for prefix in arrays if key.startswith(prefix)), None)
    return array is not None and _ADDRESS.fullmatch(key.removeprefix(array)) is not None


def images_of(plan: Plan, epsg: int) -> tuple[str, ...]:
    """Names of a zone's 2.5 m images."""
    return template_of(plan, plan.zone(epsg)).arrays
