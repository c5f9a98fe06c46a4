"""What a store holds beside one image of every time step: several images of each, and the map that guided them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pipeline.planning.units import MapLayout
from pipeline.store.extras import MapRaster

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.conditions.frozen import Frozen
    from pipeline.planning.plan import Plan
    from pipeline.planning.units import Zone
    from pipeline.superres.declared import Condition, Variants
    from pipeline.superres.passes import Pass


def in_variants(zone: Zone, variants: Variants) -> Zone:
    """Return the zone with a time step for each image of a time step; the images of one follow each other.

    Each is computed, recorded and verified as any other time step. Readers put them along a dimension of their own.
    """
    if not variants.numbers:
        return zone
    steps = [
        replace(period, label=f"{period.label}-{variants.name}{number}", variant=number)
        for period in zone.periods
        for number in variants.numbers
    ]
    return replace(zone, periods=tuple(steps))


def map_layout(declared: Sequence[Condition], given: Sequence[Frozen], passes: Sequence[Pass]) -> MapLayout | None:
    """Return the map to store: the first one of exclusive classes, where a group is stored at the GSD it is read at."""
    named = {one.name for one in given}
    for one in declared:
        if one.name not in named or one.kind != "vector" or not one.exclusive:
            continue
        for of in passes:
            stored = {output.gsd_m for output in of.finer}
            for stage in (stage for group in of.groups for stage in group.stages):
                for read in stage.reads:
                    if read.condition == one.name and read.gsd_m in stored:
                        return MapLayout(one.name, read.gsd_m)
    return None


def map_raster(plan: Plan) -> MapRaster | None:
    """Return what the store says of the map that it holds, if any."""
    from pipeline.superres.registry import spec_of

    layout = plan.map_stored
    if layout is None:
        return None
    declared = next(one for one in spec_of(plan.system.name).conditions if one.name == layout.condition)
    frozen = next(one for one in plan.conditions if one.name == layout.condition)
    return MapRaster(layout.gsd_m, declared.channels, frozen.credit)
