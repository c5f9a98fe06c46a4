"""Overviews of a run. The unit that completes a block builds its overviews; publication builds the rest.

A unit records its own receipt before it reads its neighbours', so of two units that finish together at least one sees
both receipts. If both build the block, they write the same bytes.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise, repeat
from typing import TYPE_CHECKING

from pipeline.errors import IntegrityError
from pipeline.planning.store_template import template_of
from pipeline.planning.units import Address, Unit
from pipeline.running.timing import Stages
from pipeline.store import overview_records, overviews
from pipeline.store.layout import verify_chunks
from pipeline.store.levels import BLOCK_CHUNKS
from pipeline.store.overview_records import Record
from pipeline.store.place import place_of
from pipeline.store.receipts import Ledger

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from pipeline.planning.plan import Plan
    from pipeline.planning.units import Zone
    from pipeline.store.levels import Level
    from pipeline.store.place import Place, Where

_DAMAGE = (RuntimeError, ValueError, OSError)  # what zarr raises for stored bytes that cannot be decoded


class Block(Address):
    """A block of whole chunks of one time step that share their overviews. Row and column count blocks."""


def build_if_last(plan: Plan, store: Place, unit: Unit, stages: Stages) -> None:
    """Build the blocks of `unit` whose other units all have receipts. Damaged blocks are left for publication.

    `stages` is the clock of the unit, so that the times of its receipt and of its blocks add up to its total time.
    """
    if unit.number:  # later passes change nothing at 2.5 m
        return
    ledger = Ledger(store, plan.digest)
    for block in _blocks_of(plan, unit):
        units = units_of(plan, block)
        if all(other == unit or ledger.read(other.id) is not None for other in units):
            try:
                _build(plan, store, block, units, stages)
            except _DAMAGE:
                continue


def missing_blocks(plan: Plan, store: Where, without: Collection[str] = ()) -> list[Block]:
    """Return the blocks whose record does not list exactly their units, apart from the units `without` receipts."""
    found = list(_blocks(plan))
    records = overview_records.read_many(place_of(store), plan.digest, [block.id for block in found])
    return [
        block
        for block, record in zip(found, records, strict=True)
        if record is None or set(record.units) != {unit.id for unit in units_of(plan, block)} - set(without)
    ]


def is_complete(plan: Plan, store: Where, without: Collection[str] = ()) -> bool:
    """Return True if all overviews are there, those of blocks and the levels beyond."""
    place = place_of(store)
    beyond = overview_records.read_many(place, plan.digest, _late_names(plan))
    return None not in beyond and not missing_blocks(plan, place, without)


def complete(plan: Plan, store: Where, without: Collection[str] = ()) -> None:
    """Build the missing blocks, then the levels beyond blocks. Raises IntegrityError if stored bytes are damaged."""
    place, aside, stages = place_of(store), set(without), Stages()
    for block in missing_blocks(plan, place, aside):
        try:
            _build(plan, place, block, [unit for unit in units_of(plan, block) if unit.id not in aside], stages)
        except _DAMAGE as error:
            raise IntegrityError(
                f"the overviews of block {block.id} cannot be made: stored bytes are damaged ({error})",
                "chunks as their receipts say",
                f"python -m pipeline.check {store} --verify full --repair",
            ) from error
    for zone in plan.zones:
        for period in range(len(zone.periods)):
            _build_late(plan, place, zone, period, stages)


def faults(plan: Plan, store: Where, *, full: bool) -> dict[str, list[str]]:
    """Return {"overviews of ID": faults} for every record that is missing or does not match its chunks."""
    place = place_of(store)
    names = record_names(plan)
    with ThreadPoolExecutor(place.hands) as pool:
        wrong = list(pool.map(_wrong, repeat(plan), repeat(place), names, repeat(full)))
    return {f"overviews of {name}": what for name, what in zip(names, wrong, strict=True) if what}


def _wrong(plan: Plan, place: Place, name: str, full: bool) -> list[str]:
    record = overview_records.read(place, plan.digest, name)
    if record is None:
        return [f"{overview_records.key_of(name)} is missing or damaged"]
    return verify_chunks(place, record.chunks, full=full, group=group_of(plan, name))


def record_names(plan: Plan) -> list[str]:
    """Return the names of all overview records of a finished store."""
    return [*(block.id for block in _blocks(plan)), *_late_names(plan)]


def chunks_of(plan: Plan, name: str) -> set[str]:
    """Return the keys of all chunks that the record `name` may list."""
    zone = plan.zone(_epsg(name))
    numbers = {part[0]: int(part[1:]) for part in name.split("-") if part[1:].isdecimal()}
    late, size = "r" not in numbers, _side(plan) * plan.config.chunk_px
    keys: set[str] = set()
    for level in template_of(plan, zone).overviews:
        if level.late != late:
            continue
        height, width = level.raster.shape
        rows, cols = (range(-(-length // level.step_px)) for length in (height, width))
        if not late:
            step, side = level.step_px, size // level.factor
            rows, cols = (range(numbers[axis] * side // step, -(-(numbers[axis] + 1) * side // step)) for axis in "rc")
        keys |= {
            key
            for array in level.arrays
            for row in rows
            for col in cols
            for key in level.chunk_keys(array, numbers["t"], row, col)
        }
    group = plan.group(zone.epsg)
    return {f"{group}/{key}" if group else key for key in keys}


def group_of(plan: Plan, name: str) -> str:
    """Return the path of the zone's group that a record belongs to."""
    return plan.group(_epsg(name))


def _epsg(name: str) -> int:
    return int(name[1:].split("-")[0])


def discard_faulty(plan: Plan, store: Where, *, full: bool) -> None:
    """Delete the records of damaged overviews, so that publication builds them again."""
    place = place_of(store)
    for name in faults(plan, place, full=full):
        overview_records.forget(place, name.removeprefix("overviews of "))


def units_of(plan: Plan, block: Block) -> list[Unit]:
    """Return the plan's units that intersect a block."""
    zone, side = plan.zone(block.epsg), _side(plan)
    rows = _parts(zone.row_breaks, block.row * side, (block.row + 1) * side)
    cols = _parts(zone.col_breaks, block.col * side, (block.col + 1) * side)
    units = (Unit(block.epsg, row, col, block.period) for row in rows for col in cols)
    return [unit for unit in units if plan.is_active(unit)]


def _blocks_of(plan: Plan, unit: Unit) -> Iterator[Block]:
    zone, side = plan.zone(unit.epsg), _side(plan)
    top, below = zone.row_breaks[unit.row], zone.row_breaks[unit.row + 1]
    left, right = zone.col_breaks[unit.col], zone.col_breaks[unit.col + 1]
    for row in range(top // side, -(-below // side)):
        for col in range(left // side, -(-right // side)):
            yield Block(unit.epsg, row, col, unit.period)


def _blocks(plan: Plan) -> Iterator[Block]:
    """Yield all blocks with at least one unit."""
    side = _side(plan)
    for zone in plan.zones:
        for period in range(len(zone.periods)):
            for row in range(-(-zone.row_breaks[-1] // side)):
                for col in range(-(-zone.col_breaks[-1] // side)):
                    block = Block(zone.epsg, row, col, period)
                    if units_of(plan, block):
                        yield block


def _side(plan: Plan) -> int:
    """Return the number of chunks along one side of a block."""
    return plan.config.shard_chunks or BLOCK_CHUNKS


def _parts(breaks: tuple[int, ...], first: int, end: int) -> range:
    """Return the indices of the intervals between `breaks` that intersect [first, end)."""
    return range(bisect_right(breaks, first) - 1, min(bisect_left(breaks, end), len(breaks) - 1))


def _build(plan: Plan, store: Place, block: Block, units: list[Unit], stages: Stages) -> None:
    zone, group = plan.zone(block.epsg), plan.group(block.epsg)
    levels = tuple(level for level in template_of(plan, zone).overviews if not level.late)
    size = _side(plan) * plan.config.chunk_px
    chunks: dict[str, list[int]] = {}
    if levels:
        rows, cols = (slice(at * size, (at + 1) * size) for at in (block.row, block.col))
        chunks = overviews.build_block(store, group, block.period, levels, rows, cols)
    record = Record(plan.digest, tuple(unit.id for unit in units), chunks, *stages.lap_of_one("overviews"))
    overview_records.write(store, block.id, record)


def _late(plan: Plan, zone: Zone) -> list[tuple[Level, Level]]:
    """Return (source, level) for each level beyond blocks."""
    shape = template_of(plan, zone)
    chain = (shape.base, *shape.overviews)
    return [(source, level) for source, level in pairwise(chain) if level.late]


def _late_names(plan: Plan) -> list[str]:
    zones = [zone for zone in plan.zones if _late(plan, zone)]
    return [_late_name(zone, period) for zone in zones for period in range(len(zone.periods))]


def _late_name(zone: Zone, period: int) -> str:
    return f"z{zone.epsg}-t{period}-coarsest"


def _build_late(plan: Plan, store: Place, zone: Zone, period: int, stages: Stages) -> None:
    chunks: dict[str, list[int]] = {}
    pairs = _late(plan, zone)
    for source, level in pairs:
        chunks.update(overviews.build_late(store, plan.group(zone.epsg), period, source, level))
    if pairs:
        record = Record(plan.digest, (), chunks, *stages.lap_of_one("overviews"))
        overview_records.write(store, _late_name(zone, period), record)
