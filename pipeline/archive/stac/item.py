"""Converts a STAC item of any archive and version into a `Scene`, or rejects it with the reason.

Items are remote input; every field is checked before use.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from pipeline.archive.radiometry import Undecided, offset_from_rule
from pipeline.archive.scene import BY_USER_KEY, EVIDENCE_KEY, MARK_KEY, OFFSET_KEY, OPEN, OffsetDecision, Scene
from pipeline.archive.stac.assets import Asset, band_assets, declared_offset, rasters_of, zarr_assets
from pipeline.archive.stac.declarations import baseline_of, is_sentinel_2, other_level, product_of
from pipeline.archive.stac.hrefs import RejectedItem, first_storable, self_href
from pipeline.archive.stac.index_marks import is_ours
from pipeline.archive.stac.item_place import check_place, item_epsg, item_footprint, item_utc
from pipeline.bands import BAND_NAMES, CANONICAL_OFFSET_DN, DN_SCALE
from pipeline.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pipeline.archive.catalog import Catalog
    from pipeline.archive.read.access import Access

__all__ = ["RejectedItem", "scene_from_item"]

PRODUCT_KEY = "sen2fine:plan_digest"  # only items of finished stores hold it
_STATED = {"datetime", "proj:epsg", "eo:cloud_cover", "s2:processing_baseline", "grid:code"}
_RESTATED = _STATED | {OFFSET_KEY, EVIDENCE_KEY, BY_USER_KEY, MARK_KEY}
_APPLIED_FLAGS = ("earthsearch:boa_offset_applied", "sentinel:boa_offset_applied")
_SHIFTED_BUCKET = "/sentinel-s2-l2a-cogs/"  # where Earth Search v1 keeps the pixels to which its flag applies
_TILE = re.compile(r"(?:^|_|-|T)(\d{1,2})([C-HJ-NP-X])([A-HJ-NP-Z]{2})(?:_|$)")


def scene_from_item(
    item: dict[str, Any],
    catalog: Catalog,
    access: Access,
    *,
    base: str = "",
    bands: Sequence[str] = BAND_NAMES,
) -> Scene:
    """`Scene` of an item; `base` is the folder or address that relative hrefs start from. Raises RejectedItem.

    All of `bands` must be present at native GSD; other bands and SCL are included where present.
    """
    try:
        return _scene(item, catalog, access, base, bands)
    except RejectedItem:
        raise
    except UsageError as error:  # the href policy of Access
        raise RejectedItem(str(error)) from None
    except ValueError as error:  # what `assets` and `radiometry` find
        raise RejectedItem(str(error)) from None
    except (TypeError, KeyError, AttributeError, IndexError, OverflowError, RuntimeError) as error:
        raise RejectedItem(f"malformed item ({type(error).__name__}: {error})") from None


def _scene(item: dict[str, Any], catalog: Catalog, access: Access, base: str, bands: Sequence[str]) -> Scene:
    properties = _checked_properties(item)
    assets = band_assets(item["assets"], catalog.aliases, catalog.scl)
    stated_hrefs = {name: asset.hrefs[0] for name, asset in assets.items()}
    wrong_level = other_level(item, stated_hrefs)
    if wrong_level:
        raise RejectedItem(wrong_level)
    _check_bands(item, assets, bands)
    footprint = item_footprint(item)
    epsg = item_epsg(properties, assets)
    rasters = rasters_of(assets)
    check_place(footprint, epsg, rasters)
    start = base or self_href(item)
    hrefs = {name: first_storable(asset.hrefs, start, access) for name, asset in assets.items()}
    _check_distinct(hrefs)
    ours = is_ours(item)
    baseline, offset = _radiometry(item, catalog, assets, stated_hrefs, ours)
    product = product_of(item)
    return Scene(
        id=item["id"],
        datetime_utc=item_utc(properties),
        epsg=epsg,
        footprint=footprint,
        hrefs=hrefs,
        rasters=rasters,
        baseline=baseline,
        offset=offset,
        cloud_pct=_cloud_pct(properties),
        tile=_tile(properties, product, item["id"]),
        properties=_provenance(item, properties, product, ours),
    )


def _checked_properties(item: dict[str, Any]) -> dict[str, Any]:
    """Properties of an item of Sentinel-2 that has a usable id and assets."""
    if not isinstance(item, dict) or item.get("type") != "Feature":
        raise RejectedItem("not a GeoJSON Feature")
    name, properties = item.get("id"), item.get("properties")
    plain = isinstance(name, str) and re.fullmatch(r"[^\x00-\x1f\x7f/\\]{1,200}", name) and name.isprintable()
    if not plain or str(name).startswith("."):
        raise RejectedItem(f"id {str(name)[:40]!a} is not a plain name of at most 200 characters")
    if not isinstance(properties, dict):
        raise RejectedItem("no properties")
    if not isinstance(item.get("assets"), dict) or not item["assets"]:
        raise RejectedItem("no assets")
    if PRODUCT_KEY in properties:
        raise RejectedItem("a product of this pipeline at 2.5 m; expected a Level-2A scene")
    if not is_sentinel_2(properties):
        platform = str(properties.get("platform") or properties.get("constellation"))
        raise RejectedItem(f"platform {platform[:40]!r} is not Sentinel-2")
    return properties


def _check_bands(item: dict[str, Any], assets: Mapping[str, Asset], bands: Sequence[str]) -> None:
    absent = [band for band in bands if band not in assets]
    if absent and zarr_assets(item["assets"]):
        raise RejectedItem(
            "its bands are arrays of a Zarr store (EOPF), which are not read; expected a GeoTIFF or JPEG 2000 file per "
            "band; cure: another catalogue, such as --catalog cdse"
        )
    if absent:
        raise RejectedItem(f"bands {', '.join(absent)} are missing")


def _check_distinct(hrefs: dict[str, str]) -> None:
    seen: dict[str, str] = {}
    for name, href in hrefs.items():
        if href in seen:
            raise RejectedItem(f"{seen[href]} and {name} are the same file")
        seen[href] = name


def _radiometry(
    item: dict[str, Any], catalog: Catalog, assets: Mapping[str, Asset], hrefs: Mapping[str, str], ours: bool
) -> tuple[str, OffsetDecision]:
    """(baseline, offset still to be added): from the user, else from our own index, else by the archive's rule.

    Missing or contradictory metadata leave the offset open: the pixels decide, or the scene is not used.
    """
    baseline, fault = "", ""
    try:
        baseline = baseline_of(item, hrefs)
    except Undecided as error:
        fault = str(error)
    if catalog.offset_override is not None:
        return baseline, OffsetDecision(catalog.offset_override, "set by the user", by_user=True)
    recorded = _recorded(item["properties"])
    if ours and recorded is not None:
        return baseline, recorded
    try:
        if fault:
            raise Undecided(fault)
        return baseline, _by_rule(catalog, item["properties"], assets, baseline, recorded)
    except Undecided as error:
        return baseline, OffsetDecision(0, str(error), standing=OPEN)


def _by_rule(
    catalog: Catalog,
    properties: dict[str, Any],
    assets: Mapping[str, Asset],
    baseline: str,
    recorded: OffsetDecision | None,
) -> OffsetDecision:
    """By the archive's rule. An offset recorded by another user's index is a declaration like any other."""
    flags = [properties[key] for key in _APPLIED_FLAGS if isinstance(properties.get(key), bool)]
    rule = catalog.offset_rule
    shifted = any(_SHIFTED_BUCKET in href for asset in assets.values() for href in asset.hrefs)
    if rule == "declared-or-baseline" and (flags or shifted):
        rule = "earth-search-v1"  # items of that archive found elsewhere: their declarations are known to be wrong
    declared = declared_offset(assets, properties) if rule != "earth-search-v1" else None
    if recorded is not None:
        word = recorded.offset_dn * DN_SCALE
        if declared is not None and declared != word:
            raise Undecided(f"declared offset {declared} contradicts {OFFSET_KEY} {recorded.offset_dn}")
        declared = word
    return offset_from_rule(rule, baseline=baseline, declared=declared, applied=flags[0] if flags else None)


def _recorded(properties: dict[str, Any]) -> OffsetDecision | None:
    """The decision that an index recorded; RejectedItem when it is none."""
    if OFFSET_KEY not in properties:
        return None
    offset_dn = properties[OFFSET_KEY]
    if type(offset_dn) not in (int, float) or offset_dn not in (0, CANONICAL_OFFSET_DN):
        raise RejectedItem(f"{OFFSET_KEY} is {offset_dn!r}; expected 0 or {CANONICAL_OFFSET_DN}")
    evidence = str(properties.get(EVIDENCE_KEY, "recorded in the index"))
    return OffsetDecision(int(offset_dn), evidence, properties.get(BY_USER_KEY) is True)


def _cloud_pct(properties: dict[str, Any]) -> float | None:
    """Cloud cover in percent; None when absent, not a number, out of range, or marked invalid by the archive."""
    value = properties.get("eo:cloud_cover")
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 100:
        return None
    return None if properties.get("sentinel:valid_cloud_cover") is False else float(value)


def _tile(properties: dict[str, Any], product: dict[str, str], name: str) -> str:
    """MGRS tile as "05VNK", "" when unknown."""
    parts = [
        "".join(str(properties.get(f"{prefix}:{key}", "")) for key in ("utm_zone", "latitude_band", "grid_square"))
        for prefix in ("mgrs", "sentinel")
    ]
    for text in (str(properties.get("s2:mgrs_tile", "")), str(properties.get("grid:code", "")), *parts):
        found = _TILE.search(text)
        if found:
            return f"{int(found[1]):02d}{found[2]}{found[3]}"
    if "tile" in product:
        return product["tile"]
    found = _TILE.search(name)
    return f"{int(found[1]):02d}{found[2]}{found[3]}" if found else ""


def _provenance(
    item: dict[str, Any], properties: dict[str, Any], product: dict[str, str], ours: bool
) -> dict[str, Any]:
    """Properties for provenance and the choice between reprocessings. Those from our own index are kept as they are."""
    if ours:
        return {key: value for key, value in properties.items() if key not in _RESTATED}
    datatake = re.search(r"\d{8}T\d{6}", str(properties.get("s2:datatake_id") or properties.get("eopf:datatake_id")))
    generated = properties.get("s2:generation_time") or properties.get("processing:datetime") or product.get("made")
    found = {
        "collection": _text(item.get("collection")),
        "platform": _text(properties.get("platform")),
        "product": _text(properties.get("s2:product_uri")) or _text(properties.get("sentinel:product_id")),
        "relative_orbit": _orbit(properties.get("sat:relative_orbit")) or _orbit(product.get("orbit")),
        "sensing_start": datatake[0] if datatake else product.get("sensed"),
        "generated": _text(generated),
        "item": self_href(item) or None,
    }
    return {key: value for key, value in found.items() if value is not None}


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _orbit(value: object) -> int | None:
    """Relative orbit as a number, also from "65", 65.0 or "R065"; None otherwise."""
    found = re.fullmatch(r"R?(\d{1,3})(?:\.0)?", str(value).strip().upper())
    return int(found[1]) if found else None
