"""The STAC 1.1 item of a finished store, as a plain dictionary whose hrefs are relative to the store's root.

Zarr groups follow radiantearth/stac-best-practices: a group is an asset, arrays are not, and the media type names the
version of the format.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from pipeline.bands import BY_NAME, DN_OFFSET, DN_SCALE, MADE, NODATA_DN, TARGET_GSD_M, finer_detail
from pipeline.store.extras import MAP_CLASS
from pipeline.store.keys import PLAN_KEY

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pystac

ITEM_KEY = "stac-item.json"  # in the store's root; Zarr readers ignore it
ZARR_TYPE = "application/vnd.zarr; version=3"
EXTENSIONS = tuple(
    f"https://stac-extensions.github.io/{name}/schema.json"
    for name in ("projection/v2.0.0", "raster/v2.0.0", "eo/v2.0.0", "processing/v1.2.0", "version/v1.2.0",
                 "datacube/v2.2.0")
)  # fmt: skip
LEGAL_NOTICE = "https://sentinels.copernicus.eu/documents/247904/690755/Sentinel_Data_Legal_Notice"
_SPDX = re.compile(r"[A-Za-z0-9.+-]+")
_DETAIL = {
    False: "a network's best estimate: smoother than the truth, without invented texture",
    True: "drawn by a network, texture included",
}
_DTYPES = {"reflectance": "uint16", "uncertainty": "uint16", "quality": "uint8", "scl": "uint8", MAP_CLASS: "uint8"}
_ABOUT = {
    "reflectance": "bottom-of-atmosphere reflectance",
    "uncertainty": "standard deviation of the generated detail over members",
    "quality": "what the RGB of a pixel rests on",
    "scl": "scene classification",
    MAP_CLASS: "class of the vector map that guided the detail",
}


@dataclass(frozen=True)
class GroupFacts:
    """One group of arrays in the store, which becomes an asset."""

    key: str  # of the asset
    path: str  # in the store, "" for the root
    title: str
    epsg: int
    gsd_m: float
    shape: tuple[int, int]  # ny, nx
    transform: tuple[float, ...]  # affine a..f
    bounds_m: tuple[float, ...]  # left, bottom, right, top
    bands: tuple[str, ...]
    times_utc: tuple[str, ...]  # ISO 8601 with Z
    arrays: Mapping[str, tuple[str, ...]]  # name -> dimensions
    generated: tuple[str, ...] = ()
    multiscales: bool = False


@dataclass(frozen=True)
class Source:
    """A source scene; `href` is "" if the address of its item is unknown."""

    id: str
    datetime_utc: str
    href: str = ""


@dataclass(frozen=True)
class ItemFacts:
    """All facts in the item. `facts` become properties with the prefix "sen2fine:"."""

    id: str
    title: str
    geometry: dict[str, Any]  # GeoJSON, EPSG:4326
    bbox: tuple[float, float, float, float]  # west, south, east, north; west > east across the antimeridian
    groups: tuple[GroupFacts, ...]
    sources: tuple[Source, ...]
    created_utc: str
    software_version: str
    licence: str = ""
    credit: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    platforms: tuple[str, ...] = ()


def build_item(facts: ItemFacts) -> dict[str, Any]:
    """Return the item as a dictionary, ready for JSON."""
    import pystac

    times = sorted({moment for group in facts.groups for moment in group.times_utc})
    sensed = sorted(source.datetime_utc for source in facts.sources) or times
    item = pystac.Item(
        id=facts.id,
        geometry=facts.geometry,
        bbox=list(facts.bbox),
        datetime=_moment(times[0]) if len(times) == 1 else None,
        properties=_properties(facts, min(sensed[0], times[0]), max(sensed[-1], times[-1])),
        stac_extensions=list(EXTENSIONS),
    )
    for group in facts.groups:
        item.add_asset(group.key, _asset(group))
    plan = pystac.Asset(f"./{PLAN_KEY}", "frozen plan: scenes, grid, settings", media_type="application/json",
                        roles=["metadata"])  # fmt: skip
    item.add_asset("plan", plan)
    item.add_links(_links(facts))
    content: dict[str, Any] = item.to_dict(include_self_link=False, transform_hrefs=False)
    return content


def _properties(facts: ItemFacts, start_utc: str, end_utc: str) -> dict[str, Any]:
    generated = list(dict.fromkeys(band for group in facts.groups for band in group.generated))
    bands = {band: BY_NAME[band].gsd_m for group in facts.groups for band in group.bands}
    spdx = _SPDX.fullmatch(facts.licence)
    properties = {
        "title": facts.title,
        "description": "Sentinel-2 L2A surface reflectance at 2.5 m. Detail finer than a band's native GSD is "
        f"{_DETAIL[_drawn(facts)]}, not measured." if generated else "Sentinel-2 L2A surface reflectance at 2.5 m, "
        f"{MADE[False]}.",
        "start_datetime": start_utc,
        "end_datetime": end_utc,
        "created": facts.created_utc,
        "license": facts.licence if spdx else "other",
        "providers": _providers(facts),
        "constellation": "sentinel-2",
        "instruments": ["msi"],
        "gsd": TARGET_GSD_M,
        "version": facts.software_version,
        # CEOS levels: gridded composites of measurements are level 3, model output is level 4
        "processing:level": "L4" if generated else "L3",
        "processing:software": {"sen2fine": facts.software_version},
        "processing:lineage": _lineage(facts),
        "sen2fine:generated_bands": generated,
        "sen2fine:native_gsd_m": bands,
        **{f"sen2fine:{name}": value for name, value in facts.facts.items()},
    }  # fmt: skip
    if len(facts.platforms) == 1:
        properties["platform"] = facts.platforms[0]
    cube = _cube(facts.groups[0])
    if len({group.epsg for group in facts.groups}) == 1:
        properties |= _projection(facts.groups[0])
    else:  # each zone has axes of its own
        cube["cube:dimensions"] = {name: cube["cube:dimensions"][name] for name in ("time", "band")}
    properties |= cube
    return {key: value for key, value in properties.items() if value not in (None, "")}


def _providers(facts: ItemFacts) -> list[dict[str, Any]]:
    source: dict[str, Any] = {"name": "European Union, ESA, Copernicus", "roles": ["producer", "licensor"]}
    if facts.credit:
        source["description"] = facts.credit
    return [source, *_map_providers(facts), {"name": "sen2fine", "roles": ["processor"]}]


def _map_providers(facts: ItemFacts) -> list[dict[str, Any]]:
    """Return the makers of the maps that conditioned the system, as far as they are known."""
    maps = facts.facts.get("conditions")
    credits = (one.get("credit") for one in maps.values()) if isinstance(maps, dict) else ()
    return [{"name": credit, "roles": ["licensor"]} for credit in dict.fromkeys(filter(None, credits))]


def _lineage(facts: ItemFacts) -> str:
    said = facts.facts
    return (
        f"{len(facts.sources)} Sentinel-2 L2A scene(s) combined per time step, brought to {TARGET_GSD_M:g} m by "
        f"{said.get('super_resolution', '')}{_estimate(facts)}; {_AGREES.get(str(said.get('consistency')), '')}"
        f"(consistency {said.get('consistency')})"
    )


def _drawn(facts: ItemFacts) -> bool:
    """Return whether the output is one draw; a mean of several, or a regression, is an estimate."""
    return facts.facts.get("members") == 1


def _estimate(facts: ItemFacts) -> str:
    """Return whether the output is a regression, one draw or a mean, as a phrase that follows the system's name."""
    members, seed = facts.facts.get("members"), facts.facts.get("seed")
    if members is None or not any(group.generated for group in facts.groups):
        return ""
    if members == 0:
        return ", best estimate by regression, nothing drawn"
    if members == 1:
        return f", one sample drawn with seed {seed}"
    return f", best estimate as the mean of {members} draws with seed {seed}"


_AGREES = {
    "sensor": "seen again by the sensor, whose MTF at Nyquist is sen2fine:mtf by band, it gives back the measured "
              "values to within noise ",
    "box": "its mean over each native pixel is the measured value ",
    "tent": "its tent-weighted mean over each native pixel is close to the measured value ",
    "none": "nothing ties it to the measured values ",
}  # fmt: skip


def _projection(group: GroupFacts) -> dict[str, Any]:
    return {
        "proj:code": f"EPSG:{group.epsg}",
        "proj:shape": list(group.shape),
        "proj:transform": list(group.transform),
        "proj:bbox": list(group.bounds_m),
    }


def _asset(group: GroupFacts) -> pystac.Asset:
    import pystac

    return pystac.Asset(
        href=f"./{group.path}",
        title=group.title,
        media_type=f"{ZARR_TYPE}; profile=multiscales" if group.multiscales else ZARR_TYPE,
        roles=["data", "reflectance"],
        extra_fields={
            "gsd": group.gsd_m,
            "raster:spatial_resolution": group.gsd_m,
            **_projection(group),
            "bands": [_band(name, group) for name in group.bands],
            **_cube(group),
        },
    )


def _cube(group: GroupFacts) -> dict[str, Any]:
    return {
        "cube:dimensions": _dimensions(group),
        "cube:variables": {
            name: {"dimensions": list(dims), "type": "data", "description": _ABOUT[name]}
            | ({"unit": "1"} if "band" in dims else {})
            for name, dims in group.arrays.items()
        },
    }


def _band(name: str, group: GroupFacts) -> dict[str, Any]:
    """Return the common metadata of a band of `reflectance`. `gsd` is that of the pixels, not of the measurement."""
    band = BY_NAME[name]
    finer = band.gsd_m > group.gsd_m
    return {
        "name": name,
        "description": finer_detail(name, generated=name in group.generated) if finer else "as measured",
        "eo:common_name": band.common_name,
        "eo:center_wavelength": round(band.wavelength_nm / 1000, 4),
        "data_type": _DTYPES["reflectance"],
        "nodata": NODATA_DN,
        "unit": "1",
        "raster:scale": DN_SCALE,
        "raster:offset": DN_OFFSET,
        "gsd": group.gsd_m,
        "sen2fine:native_gsd_m": band.gsd_m,
        "sen2fine:generated": name in group.generated,
    }


def _dimensions(group: GroupFacts) -> dict[str, Any]:
    left, bottom, right, top = group.bounds_m
    half = group.gsd_m / 2
    plane = {"type": "spatial", "reference_system": group.epsg, "step": group.gsd_m}
    return {
        "time": {
            "type": "temporal",
            "extent": [group.times_utc[0], group.times_utc[-1]],
            "values": list(group.times_utc),
        },
        "band": {"type": "bands", "values": list(group.bands)},
        "y": {**plane, "axis": "y", "extent": [bottom + half, top - half], "step": -group.gsd_m},
        "x": {**plane, "axis": "x", "extent": [left + half, right - half]},
    }


def _links(facts: ItemFacts) -> list[pystac.Link]:
    import pystac

    links = [
        pystac.Link("store", "./", media_type=ZARR_TYPE, title="Zarr store"),
        pystac.Link("license", LEGAL_NOTICE, title="Legal notice on the use of Copernicus Sentinel data"),
    ]
    if _SPDX.fullmatch(facts.licence):
        links.append(pystac.Link("license", f"https://spdx.org/licenses/{facts.licence}.html", title=facts.licence))
    for source in facts.sources:
        target = source.href or f"urn:x-sen2fine:scene:{quote(source.id)}"
        kind = "application/geo+json" if source.href else None
        links.append(pystac.Link("derived_from", target, media_type=kind, title=source.id))
    return links


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)
