"""What a folder says of its scene besides pixels: Sen2Cor's XML, a STAC item lying beside, or only names.

In: paths and names. Out: `Meta`, with the BOA offset decided where these sources can. ValueError where they contradict.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from pipeline.archive.radiometry import baseline_number, offset_from_rule
from pipeline.archive.scene import OffsetDecision
from pipeline.bands import DN_SCALE, HOUSE_ADD_OFFSET_DN
from pipeline.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path
    from xml.etree.ElementTree import Element

PRODUCT_XML = "MTD_MSIL2A.xml"
TILE_XML = "MTD_TL.xml"
_MAX_BYTES = 20_000_000  # the largest MTD_TL.xml seen has 600 kB; nothing sane comes near
# Product and patch names: S2A_MSIL2A_20170617T113321_N0205_R080_T29UPU_...; BigEarthNet writes T93021 for 09:30:21 and
# T94161 for what cannot be 09:41:61.
_MOMENT = re.compile(r"(?<!\d)(20\d{2})(\d{2})(\d{2})T(\d{1,2})(\d{2})(\d{2})(?!\d)")
_BASELINE = re.compile(r"(?<![A-Za-z0-9])N(\d{4})(?![A-Za-z0-9])")
_TILE = re.compile(r"(?<![A-Za-z0-9])T(\d{2}[C-X][A-Z]{2})(?![A-Za-z0-9])")
_PLATFORM = re.compile(r"(?<![A-Za-z0-9])S2([A-D])(?=_)")


@dataclass(frozen=True)
class Meta:
    """One scene's metadata; empty where the source is silent, `offset` None where nothing decides it."""

    id: str
    datetime_utc: str = ""
    baseline: str = ""
    cloud_pct: float | None = None
    tile: str = ""
    offset: OffsetDecision | None = None
    properties: dict[str, Any] = field(default_factory=dict)


def to_utc(text: str) -> str:
    """ISO 8601 date or time -> "2017-06-17T11:33:21Z"; without zone it is UTC. UsageError when it is not one."""
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError as error:
        raise UsageError(
            f"datetime {text!r} cannot be read", "for example 2024-06-17 or 2024-06-17T10:30:00Z"
        ) from error
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    return moment.isoformat(timespec="milliseconds" if moment.microsecond else "seconds").replace("+00:00", "Z")


def from_names(scene_id: str, *names: str) -> Meta:
    """What product-like names say: sensing time, baseline, tile, platform; the first name that knows wins."""
    moment, baseline = _first(_MOMENT, names), _first(_BASELINE, names)
    tile, platform = _first(_TILE, names), _first(_PLATFORM, names)
    number = f"{baseline[1][:2]}.{baseline[1][2:]}" if baseline else ""
    return Meta(
        id=scene_id,
        datetime_utc=_moment(moment) if moment else "",
        baseline=number,
        tile=tile[1] if tile else "",
        offset=_by_baseline(number) if number else None,
        properties={"platform": f"sentinel-2{platform[1].lower()}"} if platform else {},
    )


def _first(pattern: re.Pattern[str], names: tuple[str, ...]) -> re.Match[str] | None:
    return next((found for name in names if (found := pattern.search(name))), None)


def _moment(found: re.Match[str]) -> str:
    year, month, day, hour, minute, second = (int(part) for part in found.groups())
    return to_utc(datetime(year, month, day, hour, minute, min(second, 59), tzinfo=UTC).isoformat())


def _by_baseline(baseline: str) -> OffsetDecision | None:
    if baseline_number(baseline) is None:
        return None
    return offset_from_rule("baseline", baseline=baseline, declared=None, applied=None)


def from_item(item: dict[str, Any], fallback_id: str) -> Meta:
    """What a STAC item says. ValueError where its offset statements contradict each other."""
    properties = item.get("properties") or {}
    baseline = str(properties.get("s2:processing_baseline") or properties.get("processing:version") or "")
    cloud = properties.get("eo:cloud_cover")
    code = str(properties.get("grid:code") or properties.get("s2:mgrs_tile") or "")
    named = from_names("", str(properties.get("s2:product_uri") or ""), str(item.get("id") or ""))
    moment = properties.get("datetime") or properties.get("start_datetime")
    return Meta(
        id=str(item.get("id") or fallback_id),
        datetime_utc=to_utc(str(moment)) if moment else named.datetime_utc,
        baseline=baseline or named.baseline,
        cloud_pct=float(cloud) if isinstance(cloud, int | float) and 0 <= cloud <= 100 else None,
        tile=code.removeprefix("MGRS-") or named.tile,
        offset=_item_offset(item, properties, baseline or named.baseline),
        properties={k: properties[k] for k in ("platform", "s2:product_uri", "sat:relative_orbit") if k in properties},
    )


def _item_offset(item: dict[str, Any], properties: dict[str, Any], baseline: str) -> OffsetDecision | None:
    """By the flag where there is one (Earth Search), else by declaration and baseline; None when both are silent."""
    if "earthsearch:boa_offset_applied" in properties:
        applied = bool(properties["earthsearch:boa_offset_applied"])
        return offset_from_rule("earth-search-v1", baseline=baseline, declared=None, applied=applied)
    stated = {
        layer["offset"]
        for asset in (item.get("assets") or {}).values()
        for layer in asset.get("raster:bands") or [{"offset": asset.get("raster:offset")}]
        if isinstance(layer.get("offset"), int | float)
    }
    declared = min(stated) if stated else None  # assets without reflectance state 0
    if declared is None and baseline_number(baseline) is None:
        return None
    return offset_from_rule("declared-or-baseline", baseline=baseline, declared=declared, applied=None)


def item_beside(folder: Path) -> dict[str, Any] | None:
    """The one STAC item among the folder's JSON files; None when there is none or several."""
    items = [item for path in sorted(folder.glob("*.json")) if (item := _item(path)) is not None]
    return items[0] if len(items) == 1 else None


def _item(path: Path) -> dict[str, Any] | None:
    if path.stat().st_size > _MAX_BYTES:
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, OSError):
        return None
    is_item = isinstance(record, dict) and record.get("type") == "Feature" and "stac_version" in record
    return record if is_item else None


def from_safe(product_xml: Path) -> Meta:
    """What Sen2Cor's metadata say. UsageError when the XML is unreadable; ValueError when it contradicts itself."""
    product = _xml(product_xml)
    tile_xmls = sorted(product_xml.parent.rglob(TILE_XML))
    tile = _xml(tile_xmls[0]) if len(tile_xmls) == 1 else None
    uri = (_text(product, "PRODUCT_URI") or product_xml.parent.name).removesuffix(".SAFE")
    named = from_names(uri, uri, product_xml.parent.name)
    moment = (_text(tile, "SENSING_TIME") if tile is not None else "") or _text(product, "PRODUCT_START_TIME")
    baseline = _text(product, "PROCESSING_BASELINE") or named.baseline
    quantification = _text(product, "BOA_QUANTIFICATION_VALUE")
    if quantification and float(quantification) != 1 / DN_SCALE:
        raise ValueError(
            f"{product_xml.name} states {quantification} DN per unit of reflectance, not {1 / DN_SCALE:.0f}"
        )
    cloud = _text(product, "Cloud_Coverage_Assessment")
    return Meta(
        id=uri,
        datetime_utc=to_utc(moment) if moment else named.datetime_utc,
        baseline=baseline,
        cloud_pct=float(cloud) if cloud else None,
        tile=named.tile,
        offset=_safe_offset(product, baseline),
        properties={**named.properties, "s2:product_uri": f"{uri}.SAFE"},
    )


def _safe_offset(product: Element, baseline: str) -> OffsetDecision:
    stated = {int(float(node.text or "0")) for node in product.iter("BOA_ADD_OFFSET")}
    number = baseline_number(baseline)
    if (
        not stated
        and number is not None
        and offset_from_rule("baseline", baseline=baseline, declared=None, applied=None).offset_dn
    ):
        raise ValueError(f"{PRODUCT_XML} has no BOA_ADD_OFFSET though baseline {baseline} carries one")
    if len(stated) > 1 or stated - {0, HOUSE_ADD_OFFSET_DN}:
        raise ValueError(
            f"{PRODUCT_XML} states BOA_ADD_OFFSET {sorted(stated)}; expected one of 0, {HOUSE_ADD_OFFSET_DN}"
        )
    if not stated:
        return OffsetDecision(0, f"{PRODUCT_XML} states no BOA_ADD_OFFSET, baseline {baseline or 'unknown'}")
    return OffsetDecision(stated.pop(), f"BOA_ADD_OFFSET of {PRODUCT_XML}, baseline {baseline or 'unknown'}")


def _xml(path: Path) -> Element:
    from xml.etree.ElementTree import ParseError, parse

    try:
        if path.stat().st_size > _MAX_BYTES:
            raise UsageError(f"{path} has {path.stat().st_size} bytes", f"at most {_MAX_BYTES}")
        return parse(path).getroot()
    except (ParseError, OSError) as error:
        raise UsageError(f"{path} cannot be read: {error}", "the metadata of a Sentinel-2 L2A product") from error


def _text(root: Element, tag: str) -> str:
    node = next(root.iter(tag), None)
    return (node.text or "").strip() if node is not None else ""
