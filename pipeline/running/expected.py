"""The small files that a plan's store must hold: Zarr metadata, coordinates and the STAC item."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.planning.store_template import template_of
from pipeline.running.stac_publish import write_item
from pipeline.store import layout, template
from pipeline.store.memory import MemoryPlace

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from pipeline.planning.plan import Plan
    from pipeline.store.place import Where


def groups_of(plan: Plan) -> list[str]:
    """Return the paths of the zones' groups; only the root if there is one zone."""
    return [plan.group(zone.epsg) for zone in plan.zones]


def write_template(plan: Plan, store: Where) -> None:
    """Write groups, arrays and coordinates into an empty or new store."""
    if "" not in groups_of(plan):
        template.create_root(store, {"groups": groups_of(plan), "plan_digest": plan.digest})
    for zone in plan.zones:
        template.create(store, plan.group(zone.epsg), template_of(plan, zone))
    layout.consolidate(store)


def expected_files(plan: Plan, facts: Mapping[str, Any] | None = None, status: str = "") -> dict[str, bytes]:
    """Return {key: content} of a store after `prepare`, or, with `facts`, as published with this status."""
    place = MemoryPlace()
    write_template(plan, place)
    if facts is not None:
        layout.finish(place, groups_of(plan), facts, status)
        write_item(plan, place)
    return place.contents()
