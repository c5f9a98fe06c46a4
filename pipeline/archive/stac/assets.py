"""Assets of a STAC item: which one holds which band at its native resolution, and what its metadata states."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from pipeline.archive.scene import Raster
from pipeline.archive.stac.scl_assets import scl_keys
from pipeline.bands import BY_NAME, DN_SCALE, GSDS_M, NODATA_DN, SCL
from pipeline.grid.native_rasters import SCL_GSD_M

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_DN_TYPES = ("uint16", "int16")
# Query parameters of signed addresses, in lower case: AWS (SigV4, SigV2), Google, CloudFront; Azure's only next to sig.
_SIGNATURE = re.compile(r"x-(amz|goog)-.+|awsaccesskeyid|googleaccessid|signature|expires|policy|key-pair-id")
_SAS = re.compile(r"sig|s[eiprstv]|spr|srt|sip|sdd|sk[estv]|sk(oid|tid|dutid)|s[au]oid|scid|ses|rsc[cdelt]")
_EPSG = re.compile(
    r"(?:EPSG:+|urn:ogc:def:crs:EPSG:[\d.]*:|https?://www\.opengis\.net/def/crs/EPSG/[\d.]+/)?(\d{4,6})(?:\.0)?",
    re.IGNORECASE,
)
# Parameters that may stay in an address that is stored: versions and forms of a file. Everything else may be a secret.
_HARMLESS_NAMES = ("version", "versionid", "v", "format", "f", "download", "raw", "alt")
_HARMLESS = re.compile("|".join(_HARMLESS_NAMES))
_SEARCH_NAMES = frozenset(
    {"collections", "collection", "ids", "bbox", "datetime", "limit", "query", "filter", "filter-lang", "sortby",
     "fields", "intersects"}
)  # fmt: skip
_MAX_FIELD_CHARS = 80
_PATH_PARAMETER = re.compile(r";[^/;]*=")
_MAX_SIDE_PX = 100_000  # a full granule has 10980 at 10 m


@dataclass(frozen=True)
class Asset:
    """One file of a band, with its stated metadata; None or () where absent."""

    key: str
    hrefs: tuple[str, ...]  # its own, then its alternates
    gsd_m: float | None
    epsg: int | None
    transform: tuple[float, ...]  # six coefficients (a, b, c, d, e, f), metres
    shape: tuple[int, ...]  # (ny, nx)
    offsets: frozenset[float]  # reflectance
    nodata: float | None
    dtype: str | None
    stated_gsd: bool = False  # `gsd_m` is stated, not derived from the pixel size


def band_assets(
    assets: Mapping[str, Any], aliases: Mapping[str, Sequence[str]], scl: Sequence[str]
) -> dict[str, Asset]:
    """{band: asset} at native GSD, in the order of the aliases, and "SCL" where present. ValueError for a wrong kind.

    Keys decide first, then keys that differ only in case and punctuation; bands that no key names are looked up by the
    names in eo:bands or bands.
    """
    candidates = {band: _candidates(assets, band, keys) for band, keys in aliases.items()}
    gsds = {asset.gsd_m for found in candidates.values() for asset in found if asset.stated_gsd}
    natives = {BY_NAME[band].gsd_m for band, found in candidates.items() if any(asset.stated_gsd for asset in found)}
    whole_product = len(gsds) == 1 and len(natives) > 1  # one gsd for bands of 10, 20 and 60 m is the product's
    found: dict[str, Asset] = {}
    for band, offered in candidates.items():
        chosen = _native(band, [replace(a, gsd_m=None) if whole_product and a.stated_gsd else a for a in offered])
        if chosen is not None:
            _check_kind(band, chosen)
            found[band] = chosen
    classes = scl_asset(assets, scl)
    if classes is not None:
        found[SCL] = classes
    return found


def scl_asset(assets: Mapping[str, Any], known: Sequence[str]) -> Asset | None:
    """The scene classification at 20 m; None where none is found. `known` are keys that the archive uses."""
    for key in scl_keys(assets, known):
        try:
            asset = _asset(key, assets[key])
        except ValueError:
            continue
        product_gsd = asset.stated_gsd and asset.gsd_m == GSDS_M[0]  # many write it for every asset
        if asset.gsd_m is None or product_gsd or abs(asset.gsd_m - SCL_GSD_M) < 0.01:
            return asset
    return None


def zarr_assets(assets: Mapping[str, Any]) -> bool:
    """True where assets are Zarr stores or arrays, as in EOPF products."""
    objects = [value for value in assets.values() if isinstance(value, dict)]
    return any("zarr" in str(v.get("type", "")).lower() or ".zarr" in str(v.get("href", "")).lower() for v in objects)


def _candidates(assets: Mapping[str, Any], band: str, keys: Sequence[str]) -> list[Asset]:
    exact = [_asset(key, assets[key]) for key in keys if key in assets]
    if exact:
        return exact
    plain = {_plain(key) for key in keys}
    alike = [(key, value) for key, value in assets.items() if _plain(key) in plain]
    return [_asset(key, value) for key, value in alike or _named(assets, band)]


def _plain(key: str) -> str:
    """A key without case and punctuation; "B2" reads as "b02"."""
    return re.sub(r"^b(\d)(?=$|[126]0m$)", r"b0\1", re.sub(r"[^a-z0-9]", "", key.lower()))


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
    """(the address without signature and fragment, whether it was signed). Signatures are secrets, and expire.

    Paths come back as they are. ValueError when the address has a query parameter that is neither part of a signature
    nor known to be harmless: it may be a permanent secret, which must not be stored, and may select another file.
    """
    parts = urlsplit(href)
    if "://" not in href:
        return href, False
    if _PATH_PARAMETER.search(unquote(parts.path)):
        raise ValueError("its addresses carry parameters in their path (;name=...); expected addresses without them")
    fields = [(unquote(field.partition("=")[0]).lower(), field) for field in parts.query.split("&") if field]
    sas = any(name == "sig" for name, _ in fields)
    kept = [
        (name, field) for name, field in fields if not (_SIGNATURE.fullmatch(name) or (sas and _SAS.fullmatch(name)))
    ]
    for name, field in kept:
        if not (_HARMLESS.fullmatch(name) and len(field) <= _MAX_FIELD_CHARS):
            shown = ascii(name[:40]) if "=" in field else "without a name"
            raise ValueError(
                f"its addresses carry the query parameter {shown}, which may be a secret; expected none, or one "
                f"of {', '.join(_HARMLESS_NAMES)}; cure: a catalogue whose addresses need no key, or files on disk"
            )
    query = "&".join(field for _, field in kept)
    return parts._replace(query=query, fragment="").geturl(), len(kept) < len(fields)


def without_query(href: str) -> str:
    """An address without query, fragment and user, as recorded in provenance."""
    parts = urlsplit(href)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def carries_secret(address: str) -> bool:
    """True for an address with a query parameter that is not a search's and may be a secret."""
    try:
        parts = urlsplit(address)
        fields = [field for field in parts.query.split("&") if field.partition("=")[0].lower() not in _SEARCH_NAMES]
        return unsigned(parts._replace(query="&".join(fields)).geturl())[1]
    except ValueError:
        return True


def declared_offset(assets: Mapping[str, Asset], properties: Mapping[str, Any]) -> float | None:
    """Reflectance offset stated for the bands, or for the whole item; None when silent. ValueError when they differ."""
    stated = {offset for name, asset in assets.items() if name != SCL for offset in asset.offsets}
    if len(stated) > 1:
        raise ValueError(f"bands declare different offsets {sorted(stated)}")
    whole = _offsets("the item", [properties, *_objects(properties.get("raster:bands"))], prefixed_only=True)
    if stated and whole and whole != stated:
        raise ValueError(f"the item declares offset {sorted(whole)} and its bands {sorted(stated)}")
    both = sorted(stated | whole)
    if len(both) > 1:
        raise ValueError(f"the item declares different offsets {both}")
    return both[0] if both else None


def epsg_number(fields: Mapping[str, Any]) -> int | None:
    """EPSG code of proj:epsg, proj:code (also as URN or address), proj:wkt2 or proj:projjson; None without one."""
    text = str(fields.get("proj:epsg") or fields.get("proj:code") or "").strip()
    found = _EPSG.fullmatch(text)
    if found:
        return int(found[1])
    definition = fields.get("proj:wkt2") or fields.get("proj:projjson")
    if text or not isinstance(definition, str | dict):
        return None
    from pyproj import CRS
    from pyproj.exceptions import CRSError

    try:
        crs = CRS.from_user_input(definition)
        code = crs.to_epsg() or crs.to_epsg(min_confidence=25)
    except CRSError:
        return None
    return None if code is None else int(code)


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
    transform = _transform(key, value.get("proj:transform"))
    spacing = [layer["spatial_resolution"] for layer in layers if layer.get("spatial_resolution")]
    gsd = abs(transform[0]) if transform else value.get("gsd") or (spacing[0] if spacing else None)
    return Asset(
        key=key,
        hrefs=(value["href"], *_alternates(value)),
        gsd_m=None if gsd is None else _number(key, "gsd", gsd),
        epsg=epsg_number(value),
        transform=transform,
        shape=tuple(int(n) for n in _list(key, "proj:shape", value.get("proj:shape")))[:2],
        offsets=_offsets(key, layers),
        nodata=next((float(v["nodata"]) for v in layers if isinstance(v.get("nodata"), int | float)), None),
        dtype=next((str(v["data_type"]) for v in layers if v.get("data_type")), None),
        stated_gsd=gsd is not None and not transform,
    )


def _alternates(value: dict[str, Any]) -> list[str]:
    """Addresses of the alternate-assets extension."""
    others = value.get("alternate")
    found = others.values() if isinstance(others, dict) else []
    return [other["href"] for other in found if isinstance(other, dict) and isinstance(other.get("href"), str)]


def _transform(key: str, value: object) -> tuple[float, ...]:
    """proj:transform as (a, b, c, d, e, f); GDAL's order (c, a, b, f, d, e), which many use, is recognised."""
    numbers = tuple(_list(key, "proj:transform", value))[:6]
    if len(numbers) < 6:
        return numbers
    c, a, b, f, d, e = numbers
    if a > 0 > e and b == 0 and d == 0:  # in the order of the specification, a and e would be 0
        return a, b, c, d, e, f
    return numbers


def _list(key: str, name: str, value: object) -> list[float]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise ValueError(f"asset {key} has {name} {str(value)[:40]!r}; expected a list of numbers")
    return [_number(key, name, number) for number in value]


def _number(key: str, name: str, value: object) -> float:
    """A number, also as text; ValueError naming the field otherwise."""
    try:
        number = math.nan if isinstance(value, bool) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"asset {key} has {name} {str(value)[:40]!r}; expected finite numbers")
    return number


def _objects(value: object) -> list[dict[str, Any]]:
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


def _offsets(key: str, layers: Sequence[Mapping[str, Any]], *, prefixed_only: bool = False) -> frozenset[float]:
    """Reflectance offsets of raster extension 1 (inside raster:bands) or 2 (`raster:offset`).

    Scale 1 leaves the DN as they are: with offset 0 it states nothing, with -1000 the offset in DN. An offset of -1000
    with scale 0.0001 is also in DN. ValueError for another scale.
    """
    found = set()
    for layer in layers:
        for prefix in ("raster:",) if prefixed_only and layer is layers[0] else ("", "raster:"):
            scale = layer.get(f"{prefix}scale")
            offset = layer.get(f"{prefix}offset")
            scale = None if scale is None else _number(key, f"{prefix}scale", scale)
            offset = None if offset is None else _number(key, f"{prefix}offset", offset)
            in_dn = offset is not None and abs(offset) >= 1
            if scale == 1 and (in_dn or not offset):
                offset = offset or None
            elif scale is not None and abs(scale - DN_SCALE) > 1e-9:
                raise ValueError(f"{key} declares scale {scale:g} and offset {offset}; expected scale {DN_SCALE}")
            if offset is not None:
                found.add(round(offset * DN_SCALE if in_dn else offset, 9))
    return frozenset(found)


def _check_kind(band: str, asset: Asset) -> None:
    if asset.dtype is not None and asset.dtype not in _DN_TYPES:
        raise ValueError(f"{band} is {asset.dtype}; expected uint16 digital numbers")
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
