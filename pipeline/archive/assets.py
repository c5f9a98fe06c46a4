"""The files of one STAC item: which asset holds which band at its native resolution, and what it says of itself.

In: the `assets` object of an item, aliases per band. Out: `Asset` records, rasters per GSD, the declared offset.
ValueError says what does not fit.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from pipeline.archive.scene import Raster
from pipeline.bands import BY_NAME, DN_SCALE, GSDS_M, NODATA_DN

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

SCL, SCL_GSD_M = "SCL", 20
_DN_TYPES = ("uint16", "int16")
# Query parameters of signed addresses, in lower case: AWS (SigV4, SigV2), Google, CloudFront; Azure's only next to sig.
_SIGNATURE = re.compile(r"x-(amz|goog)-.+|awsaccesskeyid|googleaccessid|signature|expires|policy|key-pair-id")
_SAS = re.compile(r"sig|s[eiprstv]|spr|srt|sip|sdd|sk[estv]|sk(oid|tid|dutid)|s[au]oid|scid|ses|rsc[cdelt]")
_SECRET = re.compile(r"(access[-_]?|id[-_]?|auth[-_]?)?token|api[-_]?key|subscription-key|password|authorization")
_MAX_SIDE_PX = 100_000  # a full granule has 10980 at 10 m


@dataclass(frozen=True)
class Asset:
    """One file of a band, with what its metadata states; None or () where it is silent."""

    key: str
    href: str
    gsd_m: float | None
    epsg: int | None
    transform: tuple[float, ...]  # six coefficients (a, b, c, d, e, f), metres
    shape: tuple[int, ...]  # (ny, nx)
    offsets: frozenset[float]  # reflectance
    scales: frozenset[float]
    nodata: float | None
    dtype: str | None


def band_assets(
    assets: Mapping[str, Any], aliases: Mapping[str, Sequence[str]], scl: Sequence[str]
) -> dict[str, Asset]:
    """{band: asset} at native GSD, in the order of the aliases, and "SCL" where present. ValueError for a wrong kind.

    Keys decide first; bands that no key names are looked up by the names in eo:bands or bands.
    """
    found: dict[str, Asset] = {}
    for band, keys in aliases.items():
        candidates = [_asset(key, assets[key]) for key in keys if key in assets]
        candidates += [] if candidates else [_asset(key, value) for key, value in _named(assets, band)]
        chosen = _native(band, candidates)
        if chosen is not None:
            _check_kind(band, chosen)
            found[band] = chosen
    for key in scl:
        if key in assets:
            found[SCL] = _asset(key, assets[key])
            break
    return found


def rasters_of(assets: Mapping[str, Asset]) -> tuple[Raster, ...]:
    """Native grid per GSD, finest first; () unless it is known for every GSD in use. ValueError when bands disagree."""
    rasters: dict[int, Raster] = {}
    unknown = set()
    for name, asset in assets.items():
        gsd_m = SCL_GSD_M if name == SCL else BY_NAME[name].gsd_m
        if not asset.transform or not asset.shape:
            unknown.add(gsd_m)
            continue
        raster = _raster(name, gsd_m, asset)
        if rasters.setdefault(gsd_m, raster) != raster:
            raise ValueError(f"{name} lies on another grid than the other {gsd_m} m bands")
    wanted = {BY_NAME[name].gsd_m for name in assets if name != SCL}
    known = wanted <= set(rasters)
    return tuple(rasters[gsd_m] for gsd_m in GSDS_M if gsd_m in wanted) if known else ()


def unsigned(href: str) -> tuple[str, bool]:
    """(the address without signature, whether it had one). Signatures end within hours, and are secrets until then.

    Paths come back as they are. ValueError when the address carries a lasting secret, which must not be stored.
    """
    parts = urlsplit(href)
    if "://" not in href or not parts.query:
        return href, False
    fields = [(unquote(field.partition("=")[0]).lower(), field) for field in parts.query.split("&")]
    secret = next((name for name, _ in fields if _SECRET.fullmatch(name)), None)
    if secret:
        raise ValueError(f"its addresses carry {secret}=...; expected addresses without credentials")
    sas = any(name == "sig" for name, _ in fields)
    kept = [field for name, field in fields if not (_SIGNATURE.fullmatch(name) or (sas and _SAS.fullmatch(name)))]
    return parts._replace(query="&".join(kept)).geturl(), len(kept) < len(fields)


def declared_offset(assets: Mapping[str, Asset]) -> float | None:
    """Reflectance offset that the metadata of the bands state, None when silent. ValueError when they contradict."""
    stated = {offset for name, asset in assets.items() if name != SCL for offset in asset.offsets}
    if len(stated) > 1:
        raise ValueError(f"bands declare different offsets {sorted(stated)}")
    return stated.pop() if stated else None


def epsg_number(fields: Mapping[str, Any]) -> int | None:
    """EPSG code of `proj:epsg` (projection extension 1) or `proj:code` (2), None when neither is set."""
    text = str(fields.get("proj:epsg") or fields.get("proj:code") or "").strip()
    found = re.fullmatch(r"(?:EPSG:)?(\d{4,6})", text, re.IGNORECASE)
    return int(found[1]) if found else None


def _native(band: str, candidates: list[Asset]) -> Asset | None:
    """First candidate at the band's native GSD, or of unstated GSD; ValueError when all are resampled copies."""
    native = BY_NAME[band].gsd_m
    fitting = [asset for asset in candidates if asset.gsd_m is None or abs(asset.gsd_m - native) < 0.01]
    if candidates and not fitting:
        raise ValueError(f"{band} is offered at {candidates[0].gsd_m:g} m only; expected its native {native} m")
    return fitting[0] if fitting else None


def _named(assets: Mapping[str, Any], band: str) -> Iterator[tuple[str, Any]]:
    """Assets of exactly one band whose metadata name it `band`, GeoTIFF before JPEG 2000."""
    hits = []
    for key, value in assets.items():
        entries = value.get("eo:bands") or value.get("bands") if isinstance(value, dict) else None
        if isinstance(entries, list) and len(entries) == 1 and isinstance(entries[0], dict):
            name = re.sub(r"^B(\d)$", r"B0\1", str(entries[0].get("name", "")).upper())
            if name == band:
                hits.append((key, value))
    yield from sorted(hits, key=lambda hit: "jp2" in str(hit[1].get("type", "")))


def _asset(key: str, value: object) -> Asset:
    if not isinstance(value, dict) or not isinstance(value.get("href"), str):
        raise ValueError(f"asset {key} has no href")
    entries = [entry for name in ("raster:bands", "bands") for entry in _objects(value.get(name))]
    layers = [value, *entries]
    transform = tuple(float(number) for number in value.get("proj:transform") or ())[:6]
    spacing = [layer["spatial_resolution"] for layer in layers if layer.get("spatial_resolution")]
    gsd_m = abs(transform[0]) if transform else value.get("gsd", spacing[0] if spacing else None)
    return Asset(
        key=key,
        href=value["href"],
        gsd_m=None if gsd_m is None else float(gsd_m),
        epsg=epsg_number(value),
        transform=transform,
        shape=tuple(int(number) for number in value.get("proj:shape") or ())[:2],
        offsets=_numbers(layers, "offset"),
        scales=_numbers(layers, "scale"),
        nodata=next((float(v["nodata"]) for v in layers if isinstance(v.get("nodata"), int | float)), None),
        dtype=next((str(v["data_type"]) for v in layers if v.get("data_type")), None),
    )


def _objects(value: object) -> list[dict[str, Any]]:
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


def _numbers(layers: list[dict[str, Any]], name: str) -> frozenset[float]:
    """Values of `name` (raster extension 1, inside raster:bands) or `raster:name` (STAC 1.1)."""
    values = [layer[key] for layer in layers for key in (name, f"raster:{name}") if key in layer]
    return frozenset(round(float(value), 9) for value in values if value is not None)


def _check_kind(band: str, asset: Asset) -> None:
    if asset.dtype is not None and asset.dtype not in _DN_TYPES:
        raise ValueError(f"{band} is {asset.dtype}; expected uint16 digital numbers")
    if any(abs(scale - DN_SCALE) > 1e-9 for scale in asset.scales):
        raise ValueError(f"{band} declares scale {sorted(asset.scales)}; expected {DN_SCALE}")
    if asset.nodata is not None and asset.nodata != NODATA_DN:
        raise ValueError(f"{band} declares nodata {asset.nodata:g}; expected {NODATA_DN}")


def _raster(name: str, gsd_m: int, asset: Asset) -> Raster:
    if len(asset.transform) < 6 or len(asset.shape) < 2:
        raise ValueError(f"{name} has a proj:transform or proj:shape that is too short")
    a, b, left_m, d, e, top_m = asset.transform
    ny, nx = asset.shape
    if b != 0 or d != 0 or a <= 0 or e >= 0:
        raise ValueError(f"{name} is rotated or not north-up: proj:transform {list(asset.transform)}")
    if abs(a - gsd_m) > 0.01 or abs(e + gsd_m) > 0.01:
        raise ValueError(f"{name} has pixels of {a:g} x {-e:g} m; expected {gsd_m} m")
    if not (math.isfinite(left_m) and math.isfinite(top_m)):
        raise ValueError(f"{name} has no finite origin")
    if not (0 < ny <= _MAX_SIDE_PX and 0 < nx <= _MAX_SIDE_PX):
        raise ValueError(f"{name} has {ny} x {nx} pixels")
    return Raster(gsd_m, left_m, top_m, ny, nx)
