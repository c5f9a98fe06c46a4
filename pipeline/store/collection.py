"""The STAC 1.1 Collection of several stores. Databases such as pgstac need it before the items."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.bands import MADE, TARGET_GSD_M
from pipeline.store.stac_item import LEGAL_NOTICE

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_CIRCLE_DEG = 360.0


def collection_path(index: Path) -> Path:
    """Return the path of the collection of an index of items: "stores_collection.json" for "stores.json"."""
    return index.with_name(f"{index.stem}_collection.json")


def collection_of(name: str, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the collection of `items`, with their extent, licence and providers."""
    licences = sorted({str(item["properties"].get("license", "other")) for item in items})
    boxes, times = [item["bbox"] for item in items], [_span(item) for item in items]
    providers = {entry["name"]: entry for item in items for entry in item["properties"].get("providers", [])}
    interval = [min(start for start, _ in times), max(end for _, end in times)]
    licence = {"rel": "license", "href": LEGAL_NOTICE, "title": "Legal notice on the use of Copernicus Sentinel data"}
    return {
        "type": "Collection",
        "stac_version": "1.1.0",
        "stac_extensions": [],
        "id": name,
        "title": name,
        "description": "Sentinel-2 L2A surface reflectance at 2.5 m. Detail finer than a band's native GSD is "
        f"{MADE[True]} or {MADE[False]}, as each item says, not measured.",
        "license": licences[0] if len(licences) == 1 else "other",
        "providers": list(providers.values()),
        "extent": {"spatial": {"bbox": [covering(boxes)]}, "temporal": {"interval": [interval]}},
        "summaries": {"gsd": [TARGET_GSD_M], "constellation": ["sentinel-2"], "instruments": ["msi"]},
        "links": [licence],
    }


def named(item: dict[str, Any], name: str, collection: Path, *, relative: bool) -> dict[str, Any]:
    """Return the item with the name of its collection and a link to it."""
    href = collection.name if relative else str(collection.resolve())
    link = {"rel": "collection", "href": href, "type": "application/json"}
    return {**item, "collection": name, "links": [*item["links"], link]}


def covering(boxes: Sequence[Sequence[float]]) -> list[float]:
    """Return the smallest box (west, south, east, north) around boxes; west > east across the antimeridian.

    >>> covering([[170, -5, 175, 0], [-178, -9, -176, -1]])
    [170, -9, -176.0, 0]
    """
    spans = sorted((box[0], box[2] + (_CIRCLE_DEG if box[2] < box[0] else 0)) for box in boxes)
    west, east = spans[0][0], max(end for _, end in spans)
    best, reach = (_CIRCLE_DEG - (east - west), west, east), spans[0][1]
    for start, end in spans[1:]:
        if start - reach > best[0]:  # leave out the widest gap between boxes
            best = (start - reach, start, reach + _CIRCLE_DEG)
        reach = max(reach, end)
    _, west, east = best
    south, north = min(box[1] for box in boxes), max(box[3] for box in boxes)
    return [west, south, east - _CIRCLE_DEG if east > 180 else east, north]


def _span(item: dict[str, Any]) -> tuple[str, str]:
    found = item["properties"]
    start, end = found.get("start_datetime") or found["datetime"], found.get("end_datetime") or found["datetime"]
    return str(start), str(end)
