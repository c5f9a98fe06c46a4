"""Metadata of a local scene, from Sen2Cor's XML, a STAC item and names, with every statement about its BOA offset."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from pipeline.archive.local import names as local_names
from pipeline.archive.radiometry import baseline_number, offset_from_rule
from pipeline.archive.read import zipped
from pipeline.archive.scene import OFFSET_KEY, OffsetDecision
from pipeline.bands import CANONICAL_OFFSET_DN, DN_SCALE
from pipeline.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path
    from xml.etree.ElementTree import Element

    from pipeline.archive.local.names import Names

PRODUCT_XML = re.compile(r"MTD_MSIL2A\.xml|S2[A-D]_\w{4}_MTD_SAFL2A_\w+\.xml", re.IGNORECASE)
LEVEL_1_XML = re.compile(r"MTD_MSIL1C\.xml|S2[A-D]_\w{4}_MTD_SAFL1C_\w+\.xml", re.IGNORECASE)
TILE_XML = re.compile(r"MTD_TL\.xml|S2[A-D]_\w{4}_MTD_L2A_TL_\w+\.xml", re.IGNORECASE)
_MAX_BYTES = 20_000_000  # the largest MTD_TL.xml seen has 600 kB


@dataclass(frozen=True)
class Meta:
    """One scene's metadata; empty where the sources do not state it. `offsets`: each statement about the BOA offset."""

    id: str
    datetime_utc: str = ""
    exact: bool = True  # the time is known to the second, not only to the day
    baseline: str = ""
    cloud_pct: float | None = None
    tile: str = ""
    offsets: tuple[OffsetDecision, ...] = ()
    properties: dict[str, Any] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()


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


def from_names(scene_id: str, names: Names) -> Meta:
    """Metadata from names alone. ValueError where they contradict each other, or state Level-1."""
    local_names.require_level_2a(*names.near, local_names.product_name(names))
    moment, exact = local_names.sensing_time(names)
    found, platform = local_names.baselines(names), local_names.platform(names)
    return Meta(
        id=scene_id,
        datetime_utc=moment,
        exact=exact,
        baseline=found[0][0] if found else "",
        tile=local_names.tile(names),
        offsets=local_names.offsets(names),
        properties={"platform": platform} if platform else {},
    )


def from_item(item: dict[str, Any], named: Meta) -> Meta:
    """Metadata from a STAC item, then from names. ValueError where they give different days, or it states Level-1."""
    properties = item.get("properties") or {}
    uri, name = str(properties.get("s2:product_uri") or ""), str(item.get("id") or "")
    levels = [properties.get(key) for key in ("processing:level", "s2:product_type")]
    local_names.require_level_2a(*(str(text or "") for text in (*levels, uri, name, item.get("collection"))))
    inside = from_names("", local_names.Names((uri, name)))
    moment = properties.get("datetime") or properties.get("start_datetime")
    moment = to_utc(str(moment)) if moment else inside.datetime_utc
    _require_one_day(f"item {name}", moment, named)
    stated = _item_baseline(properties)
    cloud = properties.get("eo:cloud_cover")
    code = str(properties.get("grid:code") or properties.get("s2:mgrs_tile") or "")
    kept = ("platform", "s2:product_uri", "sat:relative_orbit")
    return Meta(
        id=name or named.id,
        datetime_utc=moment or named.datetime_utc,
        exact=bool(moment) or named.exact,
        baseline=stated or inside.baseline or named.baseline,
        cloud_pct=float(cloud) if isinstance(cloud, int | float) and 0 <= cloud <= 100 else None,
        tile=code.removeprefix("MGRS-") or inside.tile or named.tile,
        offsets=_item_offsets(item, properties, stated, inside, named),
        properties={key: properties[key] for key in kept if key in properties},
        remarks=named.remarks,
    )


def _require_one_day(source: str, moment: str, named: Meta) -> None:
    if moment and named.datetime_utc and moment[:10] != named.datetime_utc[:10]:
        raise ValueError(f"{source} says {moment[:10]} and its names say {named.datetime_utc[:10]}; expected one day")


def _item_baseline(properties: dict[str, Any]) -> str:
    """`s2:processing_baseline`, else a `processing:version` written like a baseline: "2.11" is a version of Sen2Cor."""
    version = str(properties.get("processing:version") or "")
    stated = properties.get("s2:processing_baseline")
    if stated is None or stated == "":
        return version if re.fullmatch(r"\d{2}\.\d{2}", version) else ""
    return f"{stated:05.2f}" if isinstance(stated, float) else str(stated)


def _item_offsets(
    item: dict[str, Any], properties: dict[str, Any], stated: str, inside: Meta, named: Meta
) -> tuple[OffsetDecision, ...]:
    """By the flag where there is one (Earth Search), else by declaration and baseline; then by names."""
    baseline = stated or inside.baseline or named.baseline
    if "earthsearch:boa_offset_applied" in properties:
        applied = bool(properties["earthsearch:boa_offset_applied"])
        return (offset_from_rule("earth-search-v1", baseline=baseline, declared=None, applied=applied),)
    layers = [
        layer
        for asset in (item.get("assets") or {}).values()
        if isinstance(asset, dict)
        for layer in asset.get("raster:bands") or [{"offset": asset.get("raster:offset")}]
    ]
    declared = {layer["offset"] for layer in layers if isinstance(layer.get("offset"), int | float)}
    own: tuple[OffsetDecision, ...] = ()
    if declared or baseline_number(baseline) is not None:  # assets without reflectance state 0
        lowest = min(declared) if declared else None
        own = (offset_from_rule("declared-or-baseline", baseline=baseline, declared=lowest, applied=None),)
    return (*own, *inside.offsets, *named.offsets)


def items_in(paths: list[Path]) -> list[dict[str, Any]]:
    """STAC items among JSON files, alone or in collections, except those of our own indexes, which repeat the files."""
    found = []
    for path in paths:
        try:
            record = json.loads((zipped.read(path, _MAX_BYTES) or b"").decode("utf-8-sig"))
        except (ValueError, OSError, RecursionError, UsageError):
            continue
        features = record.get("features") if isinstance(record, dict) else None
        for item in features if isinstance(features, list) else [record]:
            if _is_item(item):
                found.append(item)
    return found


def _is_item(record: object) -> bool:
    if not isinstance(record, dict) or record.get("type") != "Feature" or "stac_version" not in record:
        return False
    properties, assets = record.get("properties"), record.get("assets")
    if properties is not None and not isinstance(properties, dict):
        return False
    return isinstance(assets or {}, dict) and OFFSET_KEY not in (properties or {})


def from_safe(product_xml: Path, tile_xmls: list[Path], named: Meta) -> Meta:
    """Metadata from Sen2Cor's XML, then from names. UsageError when unreadable; ValueError for a contradiction."""
    product = _xml(product_xml)
    if product is None:
        return replace(named, remarks=(*named.remarks, f"{product_xml.name} is empty; metadata are taken from names"))
    uri = _text(product, "PRODUCT_URI") or _text(product, "PRODUCT_URI_2A")
    local_names.require_level_2a(_text(product, "PRODUCT_TYPE"), _text(product, "PROCESSING_LEVEL"), uri)
    tile = _xml(tile_xmls[0]) if len(tile_xmls) == 1 else None
    moment = (_text(tile, "SENSING_TIME") if tile is not None else "") or _text(product, "PRODUCT_START_TIME")
    _require_one_day(product_xml.name, to_utc(moment) if moment else "", named)
    quantification = _text(product, "BOA_QUANTIFICATION_VALUE") or _text(product, "L2A_BOA_QUANTIFICATION_VALUE")
    if quantification and _number(quantification) != 1 / DN_SCALE:
        raise ValueError(
            f"{product_xml.name} states {quantification} DN per unit of reflectance, not {1 / DN_SCALE:.0f}"
        )
    stated = _text(product, "PROCESSING_BASELINE")
    inside = from_names("", local_names.Names((uri,)))
    cloud = _text(product, "Cloud_Coverage_Assessment") or _text(product, "CLOUD_COVERAGE_PERCENTAGE")
    return Meta(
        id=uri.removesuffix(".SAFE") or named.id,
        datetime_utc=to_utc(moment) if moment else inside.datetime_utc or named.datetime_utc,
        baseline=stated or inside.baseline or named.baseline,
        cloud_pct=_number(cloud),
        tile=named.tile or inside.tile,
        offsets=(*_safe_offsets(product, product_xml.name, stated), *inside.offsets, *named.offsets),
        properties={
            **inside.properties, **named.properties, **({"s2:product_uri": _with_suffix(uri)} if uri else {})
        },
        remarks=named.remarks,
    )  # fmt: skip


def _number(text: str) -> float | None:
    """Text as a number; None for any other text."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _with_suffix(uri: str) -> str:
    return f"{uri.removesuffix('.SAFE')}.SAFE"


def _safe_offsets(product: Element, name: str, baseline: str) -> tuple[OffsetDecision, ...]:
    """BOA_ADD_OFFSET, which products before 04.00 lack; empty where neither it nor a baseline is stated."""
    texts = {(node.text or "").strip() for node in product.iter("BOA_ADD_OFFSET")}
    if any(_number(text) is None for text in texts):
        raise ValueError(f"{name} states BOA_ADD_OFFSET {sorted(texts)}; expected one of 0, {CANONICAL_OFFSET_DN}")
    stated = {int(float(text)) for text in texts}
    by_baseline = local_names.offset_of_baseline(baseline)
    if not stated and by_baseline is not None and by_baseline.offset_dn:
        raise ValueError(f"{name} has no BOA_ADD_OFFSET though baseline {baseline} carries one")
    if len(stated) > 1 or stated - {0, CANONICAL_OFFSET_DN}:
        raise ValueError(f"{name} states BOA_ADD_OFFSET {sorted(stated)}; expected one of 0, {CANONICAL_OFFSET_DN}")
    if stated:
        return (OffsetDecision(stated.pop(), f"BOA_ADD_OFFSET of {name}, baseline {baseline or 'unknown'}"),)
    if by_baseline is None:
        return ()
    return (OffsetDecision(0, f"{name} states no BOA_ADD_OFFSET, baseline {baseline}"),)


def _xml(path: Path) -> Element | None:
    """Root element; None for an empty file."""
    from xml.etree.ElementTree import ParseError, fromstring

    try:
        content = zipped.read(path, _MAX_BYTES) or b""
        return fromstring(content) if content.strip() else None
    except (ParseError, OSError) as error:
        raise UsageError(f"{path} cannot be read: {error}", "the metadata of a Sentinel-2 L2A product") from error


def _text(root: Element, tag: str) -> str:
    node = next(root.iter(tag), None)
    return (node.text or "").strip() if node is not None else ""
