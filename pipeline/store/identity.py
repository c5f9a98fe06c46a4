"""Identify a store by its run folder, even if other programs have changed its attributes.

Lost attributes are restored from the publication record, or from the plan before publication. Existing ones stay.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import IntegrityError, UsageError
from pipeline.store import published
from pipeline.store.keys import PLAN_KEY, RUN_FOLDER
from pipeline.store.layout import STATUS_INCOMPLETE, group_name, plan_content
from pipeline.store.nodes import values_at

if TYPE_CHECKING:
    from collections.abc import Mapping

    import zarr

    from pipeline.store.place import Place

_ANEW = "python -m pipeline.check {0} --verify full --repair writes it anew from the plan"
_GROUP = re.compile(r"(utm\d\d[ns])?")


def root_attributes(place: Place) -> dict[str, Any]:
    """Return the attributes of a store's root.

    Raises UsageError if it is not a store of this pipeline, IntegrityError if its metadata is damaged.
    """
    content, record = place.read("zarr.json"), published.find(place)
    if content is None and record is None and place.size(PLAN_KEY) is None:
        raise UsageError(f"{place} is not a Zarr store", "the folder or URL that a run wrote, such as region.zarr")
    try:
        found = published.attributes_of(content)
    except ValueError as error:
        raise IntegrityError(
            f"{place.shown('zarr.json')} cannot be read ({error})", "a store's metadata", _ANEW.format(place)
        ) from error
    stated = _stated(place, record) if "plan_digest" not in found or "status" not in found else {}
    if "plan_digest" not in {**stated, **found}:
        raise UsageError(f"{place} was not written by this pipeline", "a group with the attribute plan_digest")
    return {**stated, **found}


def _stated(place: Place, record: published.Published | None) -> dict[str, Any]:
    """Return the root attributes that the run folder records."""
    if record is not None:
        return {**record.attributes.get("", {}), "plan_digest": record.plan_digest, "status": record.status}
    try:
        plan = plan_content(place) or {}
        zones = [int(zone["epsg"]) for zone in plan["zones"]]
        groups = [group_name(epsg, len(zones)) for epsg in zones]
        return {"plan_digest": str(plan["plan_digest"]), "groups": groups, "status": STATUS_INCOMPLETE}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def groups_of(place: Place, attributes: Mapping[str, Any]) -> list[str]:
    """Return the paths of the zones' groups from the root's attributes. Raises IntegrityError if they are invalid."""
    groups = attributes.get("groups", [""])
    if isinstance(groups, list) and groups and all(_GROUP.fullmatch(str(group)) for group in groups):
        return [str(group) for group in groups]
    raise IntegrityError(
        f"{place} says that its zones are {str(groups)[:80]}", 'a list such as [""] or ["utm31n"]', _ANEW.format(place)
    )


def group_attributes(place: Place, group: str, opened: zarr.Group) -> dict[str, Any]:
    """Return the attributes of a group with lost ones restored; its georeference is derived from the axes if lost."""
    found = dict(opened.attrs)
    ours = "plan_digest" in found or not _GROUP.fullmatch(group)  # levels of a zone do not name the plan
    if ours and "spatial:transform" in found and "proj:code" in found:
        return found
    record = published.find(place)
    stated = dict(record.attributes.get(group, {})) if record is not None else {}
    whole = {**stated, **found}
    return whole if "spatial:transform" in whole and "proj:code" in whole else {**_on_the_ground(opened), **whole}


def _on_the_ground(opened: zarr.Group) -> dict[str, Any]:
    """Derive the `proj:` and `spatial:` attributes of a group from its axes and CRS. Raises ValueError if it cannot."""
    from pyproj import CRS

    x, y = (values_at(opened, name).astype(np.float64) for name in ("x", "y"))
    epsg = CRS.from_wkt(str(opened["spatial_ref"].attrs["spatial_ref"])).to_epsg()
    if epsg is None or len(x) < 2 or len(y) < 2:
        raise ValueError("neither attributes nor axes say where it lies")
    step = float(x[1] - x[0])
    left, top = float(x[0]) - step / 2, float(y[0]) + step / 2
    return {
        "proj:code": f"EPSG:{epsg}",
        "spatial:transform": [step, 0.0, left, 0.0, -step, top],
        "spatial:bbox": [left, top - len(y) * step, left + len(x) * step, top],
        "spatial:shape": [len(y), len(x)],
    }


def known_as_ours(place: Place) -> bool:
    """Return whether a run left anything that identifies the store."""
    try:
        if "plan_digest" in published.attributes_of(place.read("zarr.json")):
            return True
    except (OSError, ValueError):
        pass
    return place.size(published.KEY) is not None or bool(place.names(f"{RUN_FOLDER}/receipts"))
