"""Search for images other than Sentinel-2, such as NAIP aerial photographs, with one file per item.

Search, access rules and retries are those of scenes. Bands and grid are not assumed; they come from the file header.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from pipeline.aoi.footprints import footprint_shape
from pipeline.archive.catalog import RetryPolicy
from pipeline.archive.search import items_of
from pipeline.archive.stac.hrefs import RejectedItem, absolute_href, self_href, storable_href
from pipeline.archive.stac.item_place import item_footprint, item_utc
from pipeline.errors import UsageError
from pipeline.redaction import redact

if TYPE_CHECKING:
    from pipeline.aoi.aoi import Aoi
    from pipeline.archive.catalog import Catalog
    from pipeline.archive.read.access import Access


@dataclass(frozen=True)
class RasterItem:
    """One file of one item. `href` is unsigned: `Access.href` makes it readable."""

    id: str
    datetime_utc: str  # ISO 8601 with Z
    href: str


@dataclass(frozen=True)
class RasterSearch:
    """Items by time then id; `notes` for the log; `rejected` as (item id, reason)."""

    items: tuple[RasterItem, ...]
    notes: tuple[str, ...]
    rejected: tuple[tuple[str, str], ...]


def search_rasters(
    catalog: Catalog,
    aoi: Aoi,
    start: str | None,
    end: str | None,
    *,
    asset: str,
    collection: str = "",
    retry_policy: RetryPolicy | None = None,
) -> RasterSearch:
    """Files of `asset` whose items touch the AOI within [start, end] (ISO 8601 with Z). Raises as `search.search`.

    `collection` replaces the catalogue's own; in a file it selects the items that name it.
    """
    wanted = replace(catalog, collection=collection) if collection else catalog
    notes: list[str] = []
    rejected: list[tuple[str, str]] = []
    found: dict[str, RasterItem] = {}
    access = wanted.access()
    for item, base in items_of(wanted, aoi, start, end, (), retry_policy or RetryPolicy(), notes):
        name = str(item.get("id", "?"))[:200] if isinstance(item, dict) else "?"
        try:
            if _touches(item, aoi, (start, end)) and (not collection or item.get("collection") in (None, collection)):
                raster = _raster(item, asset, access, base)
                if found.setdefault(raster.id, raster) != raster:
                    raise RejectedItem("another item has the same id and another file")
        except (RejectedItem, UsageError) as error:
            rejected.append((name, redact(str(error))))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            rejected.append((name, f"malformed item ({type(error).__name__}: {error})"))
    ordered = sorted(found.values(), key=lambda raster: (raster.datetime_utc, raster.id))
    return RasterSearch(tuple(ordered), tuple(notes), tuple(rejected))


def _touches(item: dict[str, Any], aoi: Aoi, period: tuple[str | None, str | None]) -> bool:
    """True when place and time match the request, whatever the archive returned."""
    start, end = (datetime.fromisoformat(text) if text else None for text in period)
    moment = datetime.fromisoformat(item_utc(item["properties"]))
    if (start and moment < start) or (end and moment.replace(microsecond=0) > end):
        return False
    return bool(footprint_shape(item_footprint(item)).intersects(aoi.shape))


def _raster(item: dict[str, Any], asset: str, access: Access, base: str) -> RasterItem:
    assets = item["assets"]
    if asset not in assets:
        raise RejectedItem(f"no asset {asset!r}; it has {', '.join(sorted(map(str, assets))[:10]) or 'none'}")
    href = absolute_href(str(assets[asset]["href"]), base or self_href(item))
    return RasterItem(str(item["id"]), item_utc(item["properties"]), storable_href(href, access))
