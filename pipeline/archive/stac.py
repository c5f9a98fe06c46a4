"""One STAC item, of whichever archive and version, as a `Scene`; or the reason why it cannot be one.

In: an item as a plain dictionary (it came from far away: nothing in it is believed unchecked). Out: `Scene`.
"""

from __future__ import annotations

import math
import os
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

from pipeline.archive.assets import Asset, band_assets, declared_offset, epsg_number, rasters_of, unsigned
from pipeline.archive.radiometry import offset_from_rule
from pipeline.archive.scene import BY_USER_KEY, EVIDENCE_KEY, OFFSET_KEY, OffsetDecision, Raster, Scene
from pipeline.bands import BAND_NAMES, HOUSE_ADD_OFFSET_DN
from pipeline.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.archive.access import Access
    from pipeline.archive.catalog import Catalog

PRODUCT_KEY = "sen2fine:plan_digest"  # only items of finished stores hold it
_STATED = {"datetime", "proj:epsg", "eo:cloud_cover", "s2:processing_baseline", "grid:code"}
_RESTATED = _STATED | {OFFSET_KEY, EVIDENCE_KEY, BY_USER_KEY}
_APPLIED_FLAGS = ("earthsearch:boa_offset_applied", "sentinel:boa_offset_applied")
_SHIFTED_BUCKET = "/sentinel-s2-l2a-cogs/"  # where Earth Search v1 keeps the pixels that its flag speaks of
# Product name of ESA: mission, level, datatake sensing start, baseline, relative orbit, tile, discriminator.
_PRODUCT = re.compile(
    r"(?P<mission>S2[A-D])_MSI(?P<level>L1C|L2A)_(?P<sensed>\d{8}T\d{6})_(?:N(?P<baseline>\d{4})_)?R(?P<orbit>\d{3})"
    r"_T(?P<tile>\d{2}[A-Z]{3})_(?P<made>\d{8}T\d{6})"
)
_TILE = re.compile(r"(?:^|_|-|T)(\d{1,2})([C-HJ-NP-X])([A-HJ-NP-Z]{2})(?:_|$)")


class RejectedItem(ValueError):
    """An item that cannot be used; the text says why. Never fatal for a search."""


def scene_from_item(
    item: dict[str, Any],
    catalog: Catalog,
    access: Access,
    *,
    base: str = "",
    bands: Sequence[str] = BAND_NAMES,
) -> Scene:
    """`Scene` of an item; `base` is the folder or address that relative hrefs start from. Raises RejectedItem.

    All of `bands` must be there at native GSD; other bands and SCL are taken along where present.
    """
    try:
        return _scene(item, catalog, access, base, bands)
    except RejectedItem:
        raise
    except UsageError as error:  # the href policy of Access
        raise RejectedItem(str(error)) from None
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, OverflowError) as error:
        raise RejectedItem(f"malformed item ({type(error).__name__}: {error})") from None


def _scene(item: dict[str, Any], catalog: Catalog, access: Access, base: str, bands: Sequence[str]) -> Scene:
    properties = _checked_properties(item)
    product = _product(item, properties)
    assets = band_assets(item["assets"], catalog.aliases, catalog.scl)
    absent = [band for band in bands if band not in assets]
    if absent:
        raise RejectedItem(f"bands {', '.join(absent)} are missing")
    epsg = _epsg(properties, assets)
    rasters = rasters_of(assets)
    _check_place(item["geometry"], epsg, rasters)
    start = base or self_href(item)
    hrefs = {name: storable_href(absolute_href(asset.href, start), access) for name, asset in assets.items()}
    _check_distinct(hrefs)
    baseline = _baseline(properties, product)
    return Scene(
        id=item["id"],
        datetime_utc=item_utc(properties),
        epsg=epsg,
        footprint=item["geometry"],
        hrefs=hrefs,
        rasters=rasters,
        baseline=baseline,
        offset=_offset(catalog, properties, assets, baseline),
        cloud_pct=_cloud_pct(properties),
        tile=_tile(properties, product, item["id"]),
        properties=_provenance(item, properties, product),
    )


def _checked_properties(item: dict[str, Any]) -> dict[str, Any]:
    """Properties of an item that is a Sentinel-2 L2A product with a usable id, geometry and assets."""
    if not isinstance(item, dict) or item.get("type") != "Feature":
        raise RejectedItem("not a GeoJSON Feature")
    name, properties = item.get("id"), item.get("properties")
    if not isinstance(name, str) or not re.fullmatch(r"[^\x00-\x1f\x7f/\\]{1,200}", name) or name.startswith("."):
        raise RejectedItem(f"id {str(name)[:40]!a} is not a plain name of at most 200 characters")
    if not isinstance(properties, dict):
        raise RejectedItem("no properties")
    if not isinstance(item.get("assets"), dict) or not item["assets"]:
        raise RejectedItem("no assets")
    geometry = item.get("geometry")
    if not isinstance(geometry, dict) or geometry.get("type") not in ("Polygon", "MultiPolygon"):
        raise RejectedItem("no footprint polygon")
    if PRODUCT_KEY in properties:
        raise RejectedItem("a product of this pipeline at 2.5 m; expected a Level-2A scene")
    platform = str(properties.get("platform") or properties.get("constellation") or "sentinel-2")
    if not platform.lower().replace(" ", "-").startswith("sentinel-2"):
        raise RejectedItem(f"platform {platform[:40]!r} is not Sentinel-2")
    level = f"{properties.get('s2:product_type', '')} {properties.get('product:type', '')}"
    if "1C" in level or str(properties.get("processing:level", "L2")).upper() in ("L1", "L1C"):
        raise RejectedItem("a Level-1C product; expected Level-2A")
    return properties


def _product(item: dict[str, Any], properties: dict[str, Any]) -> dict[str, str]:
    """Parts of ESA's product name, from wherever the archive keeps it; {} when it does not."""
    names = (properties.get("s2:product_uri"), properties.get("sentinel:product_id"), properties.get("eopf:product_id"))
    for name in (*names, properties.get("product_id"), item["id"]):
        found = _PRODUCT.search(str(name or ""))
        if found:
            if found["level"] == "L1C":
                raise RejectedItem("a Level-1C product; expected Level-2A")
            return {key: value for key, value in found.groupdict().items() if value}
    return {}


def item_utc(properties: dict[str, Any]) -> str:
    """Acquisition time, ISO 8601 with Z; `start_datetime` where `datetime` is null."""
    text = properties.get("datetime") or properties.get("start_datetime")
    if not isinstance(text, str):
        raise RejectedItem("no datetime")
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise RejectedItem(f"datetime {text[:40]!r} is not one ({error})") from None
    if moment.tzinfo is None:
        raise RejectedItem(f"datetime {text[:40]!r} has no time zone")
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _epsg(properties: dict[str, Any], assets: dict[str, Asset]) -> int:
    """UTM zone of the item; all bands must agree."""
    codes = {asset.epsg for asset in assets.values() if asset.epsg is not None}
    own = epsg_number(properties)
    if own is not None:
        codes.add(own)
    if not codes:
        raise RejectedItem("no CRS: neither proj:epsg nor proj:code")
    if len(codes) > 1:
        raise RejectedItem(f"its files are in different CRS: {sorted(codes)}")
    epsg = codes.pop()
    if not (32601 <= epsg <= 32660 or 32701 <= epsg <= 32760):
        raise RejectedItem(f"EPSG:{epsg} is not a UTM zone of WGS 84")
    return epsg


def _check_place(geometry: dict[str, Any], epsg: int, rasters: tuple[Raster, ...]) -> None:
    """The pixel grid must lie where the footprint says, else tile or zone are mislabelled."""
    from pyproj import Transformer
    from shapely.errors import ShapelyError
    from shapely.geometry import shape

    try:
        footprint = shape(geometry)
    except ShapelyError as error:
        raise RejectedItem(f"footprint is no polygon ({error})") from None
    if footprint.is_empty or not all(map(math.isfinite, footprint.bounds)):
        raise RejectedItem("footprint is empty or not finite")
    if not rasters:
        return
    west, south, east, north = footprint.bounds
    raster = rasters[0]
    x_m = raster.left_m + raster.nx * raster.gsd_m / 2
    y_m = raster.top_m - raster.ny * raster.gsd_m / 2
    lon, lat = Transformer.from_crs(epsg, 4326, always_xy=True).transform(x_m, y_m)
    half_deg = max(raster.nx, raster.ny) * raster.gsd_m / 111_000 + 0.01
    half_lon_deg = half_deg / max(0.1, math.cos(math.radians(min(abs(lat), 89.0))))
    turns = (0.0, 360.0, -360.0)  # footprints across the antimeridian are written in several ways
    inside_lon = any(west - half_lon_deg <= lon + turn <= east + half_lon_deg for turn in turns)
    if not (inside_lon and south - half_deg <= lat <= north + half_deg):
        raise RejectedItem(f"its pixels lie at {lon:.2f} {lat:.2f} (lon lat), far from its footprint")


def absolute_href(href: str, base: str) -> str:
    """The href itself when absolute, else relative to the address or folder `base`."""
    if not href or urlsplit(href).scheme or href.startswith("/"):
        return href
    if "://" in base:
        return urljoin(base, href)
    return os.path.normpath(os.path.join(base, href)) if base else href


def storable_href(href: str, access: Access) -> str:
    """The href without signature, allowed by the policy. RejectedItem for Azure where nobody would sign it again."""
    access.check(href)
    plain, signed = unsigned(href)
    host = urlsplit(plain).hostname or ""
    azure = host.endswith(".blob.core.windows.net") and access.signing != "planetary-computer"
    if azure and (signed or not access.lists(host)):
        raise RejectedItem(
            f"its files on {host} need a fresh signature every hour; cure: --catalog planetary-computer, or a "
            'catalogue file with signing = "planetary-computer" (or with this host listed, if it is public)'
        )
    return plain


def self_href(item: dict[str, Any]) -> str:
    """Address of the item itself, unsigned, from which relative hrefs start; "" when it does not say."""
    for link in item.get("links", []):
        if isinstance(link, dict) and link.get("rel") == "self" and str(link.get("href", "")).startswith("https://"):
            return unsigned(str(link["href"]))[0]
    return ""


def _check_distinct(hrefs: dict[str, str]) -> None:
    seen: dict[str, str] = {}
    for name, href in hrefs.items():
        if href in seen:
            raise RejectedItem(f"{seen[href]} and {name} are the same file")
        seen[href] = name


def _baseline(properties: dict[str, Any], product: dict[str, str]) -> str:
    """Processing baseline as "05.11"; "" when unknown. 99.99 (not ESA's) is kept as it is."""
    for value in (properties.get("s2:processing_baseline"), properties.get("processing:version")):
        text = f"{value:05.2f}" if isinstance(value, float) else str(value or "").strip()
        found = re.fullmatch(r"(\d{1,2})\.(\d{1,2})", text)
        if found:
            return f"{int(found[1]):02d}.{found[2]:0<2}"
    digits = product.get("baseline", "")
    return f"{digits[:2]}.{digits[2:]}" if digits else ""


def _offset(catalog: Catalog, properties: dict[str, Any], assets: dict[str, Asset], baseline: str) -> OffsetDecision:
    """Offset still to be added: the user's word, else what an index recorded, else the archive's rule."""
    if catalog.offset_override is not None:
        return OffsetDecision(catalog.offset_override, "set by the user", by_user=True)
    if OFFSET_KEY in properties:
        offset_dn = properties[OFFSET_KEY]
        if offset_dn not in (0, HOUSE_ADD_OFFSET_DN):
            raise RejectedItem(f"{OFFSET_KEY} is {offset_dn!r}; expected 0 or {HOUSE_ADD_OFFSET_DN}")
        evidence = str(properties.get(EVIDENCE_KEY, "recorded in the index"))
        by_user = catalog.kind == "file" and properties.get(BY_USER_KEY) is True  # an API's word is not the user's
        return OffsetDecision(int(offset_dn), evidence, by_user)
    flags = [properties[key] for key in _APPLIED_FLAGS if isinstance(properties.get(key), bool)]
    rule = catalog.offset_rule
    shifted = any(_SHIFTED_BUCKET in asset.href for asset in assets.values())
    if rule == "declared-or-baseline" and (flags or shifted):
        rule = "earth-search-v1"  # items of that archive met elsewhere: what they declare is known to be wrong
    return offset_from_rule(
        rule, baseline=baseline, declared=declared_offset(assets), applied=flags[0] if flags else None
    )


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


def _provenance(item: dict[str, Any], properties: dict[str, Any], product: dict[str, str]) -> dict[str, Any]:
    """What the store's provenance and the choice between reprocessings need. An index's own record passes through."""
    if OFFSET_KEY in properties:
        return {key: value for key, value in properties.items() if key not in _RESTATED}
    datatake = re.search(r"\d{8}T\d{6}", str(properties.get("s2:datatake_id") or properties.get("eopf:datatake_id")))
    orbit = properties.get("sat:relative_orbit", product.get("orbit"))
    generated = properties.get("s2:generation_time") or properties.get("processing:datetime") or product.get("made")
    found = {
        "collection": item.get("collection"),
        "platform": properties.get("platform"),
        "product": properties.get("s2:product_uri") or properties.get("sentinel:product_id"),
        "relative_orbit": int(orbit) if orbit is not None else None,
        "sensing_start": datatake[0] if datatake else product.get("sensed"),
        "generated": generated,
        "item": self_href(item) or None,
    }
    return {key: value for key, value in found.items() if value is not None}
