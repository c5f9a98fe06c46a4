"""Chunks that no receipt names: left by unfinished units, or written by something else."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pipeline.planning.store_template import template_of
from pipeline.running import build_overviews
from pipeline.store import overview_records

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pipeline.grid.grid import Window
    from pipeline.planning.plan import Plan
    from pipeline.planning.units import Unit
    from pipeline.store.levels import Level
    from pipeline.store.place import Place
    from pipeline.store.receipts import Receipt

_ADDRESS = re.compile(r"c(/\d+)+")


def unnamed_chunks(
    plan: Plan, place: Place, keys: Iterable[str], receipts: Iterable[Receipt], without: Iterable[Unit]
) -> list[str]:
    """Return those `keys` of a store that are chunks of its arrays but named by no receipt or overview record.

    Chunks of units `without` a receipt and of overviews without a record are left out. They will be written again.
    """
    named = {_below(receipt.group, key) for receipt in receipts for key in receipt.chunks}
    for unit in without:
        named |= chunks_of(plan, unit)
    unfinished: set[str] = set()
    names = build_overviews.record_names(plan)
    for name, record in zip(names, overview_records.read_many(place, plan.digest, names), strict=True):
        if record is None:
            unfinished |= build_overviews.chunks_of(plan, name)
        else:
            named |= {_below(build_overviews.group_of(plan, name), key) for key in record.chunks}
    arrays = tuple(_arrays(plan))
    return sorted(key for key in keys if key not in named and key not in unfinished and _is_chunk(key, arrays))


def chunks_of(plan: Plan, unit: Unit) -> set[str]:
    """Return the keys that a unit may write: its chunks of the arrays of its pass, and of the measured input."""
    group, shape = plan.group(unit.epsg), template_of(plan, plan.zone(unit.epsg))
    grid, chunks = plan.grid(unit), plan.chunks(unit)
    keys: set[str] = set()
    for level in levels_of(plan, unit):
        parts = round(grid.gsd_m / level.raster.gsd_m)
        keys |= _keys(level, unit.period, [chunk.refine(parts) for chunk in chunks], grid.window.refine(parts))
    if not unit.number:
        step = shape.base.step_px
        places = {((chunk.row - grid.window.row) // step, (chunk.col - grid.window.col) // step) for chunk in chunks}
        keys |= {
            key
            for level in shape.measured
            for name in level.arrays
            for row, col in places
            for key in level.chunk_keys(name, unit.period, row, col)
        }
    return {_below(group, key) for key in keys}


def levels_of(plan: Plan, unit: Unit) -> list[Level]:
    """Return the levels at 2.5 m and finer that a unit's pass fills."""
    shape = template_of(plan, plan.zone(unit.epsg))
    finer = [shape.level(gsd_m) for gsd_m, _ in plan.passes[unit.number].finer]
    return finer if unit.number else [shape.base, *finer]


def _keys(level: Level, period: int, parts: Iterable[Window], whole: Window) -> set[str]:
    """Return the keys of a level's objects that hold `parts` of it (absolute windows, like `whole`)."""
    step, keys = level.step_px, set()
    for part in parts:
        rows = range((part.row - whole.row) // step, -(-(part.row_end - whole.row) // step))
        cols = range((part.col - whole.col) // step, -(-(part.col_end - whole.col) // step))
        places = [(row, col) for row in rows for col in cols]
        keys |= {key for name in level.arrays for at in places for key in level.chunk_keys(name, period, *at)}
    return keys


def _below(group: str, key: str) -> str:
    return f"{group}/{key}" if group else key


def _arrays(plan: Plan) -> Iterator[str]:
    for zone in plan.zones:
        shape = template_of(plan, zone)
        for level in shape.levels:
            for name in level.arrays:
                yield _below(plan.group(zone.epsg), _below(level.path, f"{name}/"))


def _is_chunk(key: str, arrays: tuple[str, ...]) -> bool:
    array = next((prefix for prefix in arrays if key.startswith(prefix)), None)
    return array is not None and _ADDRESS.fullmatch(key.removeprefix(array)) is not None
