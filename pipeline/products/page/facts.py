"""Facts about a run for the report page: its plan, receipts, and quarantined units.

They are read from small JSON files of the run. If these are missing, the store's attributes are used.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.bands import GSDS_M
from pipeline.errors import IntegrityError
from pipeline.products.page.source import factor_of, subgroup
from pipeline.store.keys import RUN_FOLDER
from pipeline.store.layout import STATUS_COMPLETE, STATUS_QUARANTINE, band_parts, plan_content, verify_chunks
from pipeline.store.nodes import array_at
from pipeline.store.overview_records import read_all
from pipeline.store.receipts import Ledger, Receipt
from pipeline.store.selection import periods

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from pipeline.grid.grid import Window
    from pipeline.products.page.source import Zone
    from pipeline.store.overview_records import Record

_SHOWN_FAULTS = 3
_ARRAYS = ("reflectance", "quality", "uncertainty")  # 2.5 m arrays that the page shows


@dataclass(frozen=True)
class QuarantinedUnit:
    """A quarantined unit: the reason, and the command that reproduces the failure."""

    unit: str
    error: str
    attempts: int
    reproduce: str


@dataclass(frozen=True)
class Facts:
    """Facts about one run. Receipts cover all zones and times; `scenes` only the shown zone and time."""

    status: str
    aoi_name: str
    created_utc: str
    config: Mapping[str, Any]
    attributes: Mapping[str, Any]  # of the zone's group
    scenes: tuple[tuple[str, Mapping[str, Any]], ...]
    receipts: tuple[Receipt, ...]
    units: int | None  # of the plan; None if the store does not state it
    quarantined: tuple[QuarantinedUnit, ...]
    overviews: Mapping[str, Record]  # of all zones and times, by block

    @property
    def complete(self) -> bool:
        """True if every unit is stored or quarantined."""
        return self.status in (STATUS_COMPLETE, STATUS_QUARANTINE)

    @property
    def stage_seconds(self) -> dict[str, float]:
        """Seconds by stage over all units and overviews."""
        total = {"overviews": sum(record.seconds for record in self.overviews.values())} if self.overviews else {}
        for receipt in self.receipts:
            for name, seconds in receipt.seconds.items():
                total[name] = total.get(name, 0.0) + seconds
        return total

    @property
    def chunks(self) -> list[Mapping[str, list[int]]]:
        """Stored chunks of units and overviews: {chunk key: [bytes, crc32]}."""
        return [*(receipt.chunks for receipt in self.receipts), *(one.chunks for one in self.overviews.values())]

    @property
    def peak_mib(self) -> float:
        """Largest resident set of a worker, in MiB."""
        return max((receipt.peak_rss_mib for receipt in self.receipts), default=0.0)


def read_facts(zone: Zone) -> Facts:
    """Read the facts about the run of `zone`."""
    plan = _plan(zone)
    attributes = zone.attributes
    digest = str(attributes.get("plan_digest", ""))
    units, config = attributes.get("units"), plan.get("config")
    return Facts(
        status=str(attributes.get("status", "")),
        aoi_name=str(plan.get("aoi_name") or _place_name(str(attributes.get("title", "")))),
        created_utc=str(plan.get("created_utc", "")),
        config=config if isinstance(config, dict) else {},
        attributes=attributes,
        scenes=_scenes(zone),
        receipts=tuple(Ledger(zone.place, digest).read_all()),
        units=units if isinstance(units, int) else None,
        quarantined=_quarantined(zone, digest),
        overviews=read_all(zone.place, digest),
    )


def _place_name(title: str) -> str:
    return title.partition(" over ")[2] or title or "store"


def _plan(zone: Zone) -> dict[str, Any]:
    """Return the plan as a dictionary, empty if it is missing or damaged, which `pipeline.check` reports."""
    try:
        return plan_content(zone.place) or {}
    except (OSError, ValueError):
        return {}


def _json(zone: Zone, key: str) -> dict[str, Any]:
    """Read a small JSON file of the run; empty if it is missing or damaged."""
    try:
        content = json.loads(zone.place.read(key) or b"{}")
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _scenes(zone: Zone) -> tuple[tuple[str, Mapping[str, Any]], ...]:
    """Return the scenes of the shown time step in plan order, best first."""
    known = zone.attributes.get("scenes")
    scenes = known if isinstance(known, dict) else {}
    steps = periods(zone.attributes)
    named = steps[zone.time].get("scenes") if zone.time < len(steps) else None
    names = [str(name) for name in named] if isinstance(named, list) else list(scenes)
    return tuple((name, scenes[name] if isinstance(scenes.get(name), dict) else {}) for name in names)


def _quarantined(zone: Zone, digest: str) -> tuple[QuarantinedUnit, ...]:
    named = zone.attributes.get("quarantined")
    units = [str(unit) for unit in named] if isinstance(named, list) else []
    kept = {unit: QuarantinedUnit(unit, "the reason was not kept", 0, "") for unit in units}
    for key in zone.place.names(f"{RUN_FOLDER}/quarantine"):
        record = _json(zone, key)
        unit = str(record.get("unit", ""))
        if record.get("plan_digest") == digest and (named is None or unit in kept):
            attempts = record.get("attempts")
            kept[unit] = QuarantinedUnit(
                unit,
                str(record.get("error", "")),
                attempts if isinstance(attempts, int) else 0,
                str(record.get("reproduce", "")),
            )
    return tuple(kept[unit] for unit in sorted(kept))


def require_chunks(zone: Zone, facts: Facts, window: Window, context_gsd_m: int | None = None) -> frozenset[str]:
    """Compare the chunks within `window` with the receipts. Return the keys of chunks without a receipt.

    Those are left by unfinished units and must be read as nodata. Raises IntegrityError if a chunk named by a receipt
    is missing or has another size, or if a complete store has chunks without a receipt. Zarr reads missing chunks as
    nodata, which would hide damage.

    `context_gsd_m` is the GSD of an overview of the whole zone that is shown as well.
    """
    arrays = {name: (array_at(zone.group, name), 1) for name in _ARRAYS if name in zone.group}
    for gsd in GSDS_M:
        group = subgroup(zone, f"measured/{gsd}m")
        if group is not None:
            arrays[f"measured/{gsd}m/reflectance"] = (array_at(group, "reflectance"), factor_of(gsd))
    # Side of a chunk in 2.5 m pixels.
    steps = {path: (array.shards or array.chunks)[-1] * factor for path, (array, factor) in arrays.items()}
    within = dict.fromkeys(steps, window)
    group = subgroup(zone, f"overviews/{context_gsd_m}m") if context_gsd_m else None
    if group is not None and context_gsd_m is not None:
        path, array = f"overviews/{context_gsd_m}m/reflectance", array_at(group, "reflectance")
        steps[path] = (array.shards or array.chunks)[-1] * factor_of(context_gsd_m)
        within[path] = zone.whole
    stored = [receipt.chunks for receipt in facts.receipts if receipt.group == zone.name]
    if group is not None:
        stored += [record.chunks for name, record in facts.overviews.items() if name.startswith(f"z{zone.epsg}-")]
    faults: list[str] = []
    named: set[str] = set()
    for chunks in stored:
        shown = {key: fact for key, fact in chunks.items() if _within(key, steps, zone.time, within)}
        faults += verify_chunks(zone.place, shown, full=False, group=zone.name)
        named |= shown.keys()
    unnamed = _unnamed(zone, named, steps, within) if named or facts.receipts else frozenset()
    if facts.status == STATUS_COMPLETE:
        faults += [f"{key} is named by no receipt" for key in sorted(unnamed)]
    if faults:
        more = f" and {len(faults) - _SHOWN_FAULTS} more" if len(faults) > _SHOWN_FAULTS else ""
        raise IntegrityError(
            f"{zone.place}: {', '.join(faults[:_SHOWN_FAULTS])}{more}",
            "what the receipts name",
            f"python -m pipeline.check {zone.place} --verify full --repair",
        )
    return unnamed


def _unnamed(
    zone: Zone, named: Collection[str], steps: Mapping[str, int], within: Mapping[str, Window]
) -> frozenset[str]:
    """Return the keys of existing chunks within the windows that no receipt names."""
    found = set()
    for path, step in steps.items():
        window, middles = within[path], band_parts(array_at(zone.group, path))
        rows = range(window.row // step, -(-window.row_end // step))
        cols = range(window.col // step, -(-window.col_end // step))
        lead = f"{path}/c/{zone.time}"
        keys = [f"{lead}/{middle}{row}/{col}" for middle in middles for row in rows for col in cols]
        keys = [key for key in keys if key not in named]
        lead = f"{zone.name}/" if zone.name else ""
        with ThreadPoolExecutor(zone.place.hands) as pool:
            sizes = pool.map(zone.place.size, [lead + key for key in keys])
            found |= {key for key, size in zip(keys, sizes, strict=True) if size is not None}
    return frozenset(found)


def _within(key: str, steps: Mapping[str, int], time: int, within: Mapping[str, Window]) -> bool:
    """Return whether the chunk "path/c/time/[band/]row/col" of an array intersects its window."""
    path, _, address = key.partition("/c/")
    parts = address.split("/")
    if path not in steps or not all(part.isdecimal() for part in parts) or int(parts[0]) != time:
        return False
    step, window = steps[path], within[path]
    row, col = int(parts[-2]) * step, int(parts[-1]) * step
    return row < window.row_end and row + step > window.row and col < window.col_end and col + step > window.col
