"""STAC items of exported GeoTIFFs: one per zone and time step, beside its files.

Items use STAC 1.0 with `proj:epsg`, `raster:bands` and `eo:bands`, which stackstac and odc-stac read. stackstac 0.5
does not support their successors in STAC 1.1. pystac migrates them on reading.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.bands import BY_NAME, DN_OFFSET, DN_SCALE, NODATA_DN, NODATA_SPREAD, finer_detail
from pipeline.store.gdal_names import COLOURS, band_title
from pipeline.store.place import write_atomic
from pipeline.store.selection import CLASSES, periods

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pipeline.store.selection import Slab

COG_TYPE = "image/tiff; application=geotiff; profile=cloud-optimized"
EXTENSIONS = tuple(
    f"https://stac-extensions.github.io/{name}/schema.json"
    for name in ("projection/v1.1.0", "raster/v1.1.0", "eo/v1.1.0", "classification/v1.1.0")
)
_EDGE_POINTS = 21  # per side of a footprint, since edges straight in metres bow in degrees
_IDENTITY = ("datetime", "proj:epsg", "proj:shape", "proj:transform", "sen2fine:plan_digest")


@dataclass(frozen=True)
class Written:
    """A written file: its slab, its bands, and class names from 0 on."""

    path: Path
    slab: Slab
    bands: tuple[str, ...]
    meanings: tuple[str, ...] = ()


def asset_key(slab: Slab, bands: Sequence[str]) -> str:
    """Return the key of a file's asset: its single band, with the variable unless reflectance, else the variable."""
    if len(bands) != 1:
        return slab.variable
    return bands[0] if slab.variable == "reflectance" else f"{bands[0]}_{slab.variable}"


def item_of(name: str, files: Sequence[Written]) -> dict[str, Any]:
    """Return the item of the files of one zone, time step and window."""
    slab = files[0].slab
    geometry, bbox = footprint(slab)
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "stac_extensions": list(EXTENSIONS),
        "id": name,
        "geometry": geometry,
        "bbox": bbox,
        "properties": _properties(slab),
        "links": [],
        "assets": {asset_key(file.slab, file.bands): _asset(file) for file in files},
    }


def may_extend(path: Path, slab: Slab) -> bool:
    """Return whether an existing item has the slab's grid, run and time, so that assets can be added to it."""
    earlier, properties = _read(path), _properties(slab)
    return earlier is not None and all(_property(earlier, key) == properties.get(key) for key in _IDENTITY)


def write_item(path: Path, item: dict[str, Any], slab: Slab) -> None:
    """Write an item. Assets of an earlier export of the same grid stay if their files exist. Raises StorageError."""
    earlier = _read(path)
    if earlier is not None and may_extend(path, slab):
        kept = {
            key: asset
            for key, asset in earlier["assets"].items()
            if (path.parent / str(asset.get("href", ""))).is_file()
        }
        item = {**item, "assets": {**kept, **item["assets"]}}
    write_atomic(path, json.dumps(item, indent=1, allow_nan=False).encode())


def _read(path: Path) -> dict[str, Any] | None:
    """Return the item in a file, or None."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    whole = isinstance(content, dict) and isinstance(content.get("assets"), dict)
    return content if whole and all(isinstance(asset, dict) for asset in content["assets"].values()) else None


def _property(item: dict[str, Any], key: str) -> object:
    properties = item.get("properties")
    return properties.get(key) if isinstance(properties, dict) else None


def _properties(slab: Slab) -> dict[str, Any]:
    stated, steps = slab.attributes, periods(slab.attributes)
    scenes = [str(name) for name in steps[slab.time_index].get("scenes", [])] if slab.time_index < len(steps) else []
    known = stated["scenes"] if isinstance(stated.get("scenes"), dict) else {}
    moments = sorted(str(known[name]["datetime"]) for name in scenes if name in known)
    spanned = {"start_datetime": moments[0], "end_datetime": moments[-1]} if len(set(moments)) > 1 else {}
    ny, nx = slab.window.shape
    a, _, left, _, e, top = slab.transform
    found = {
        "datetime": slab.time_utc,
        **spanned,
        "created": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "title": f"{stated.get('title', '')}, {slab.label}".removeprefix(", "),
        "constellation": "sentinel-2",
        "instruments": ["msi"],
        "gsd": slab.gsd_m,
        "proj:epsg": slab.epsg,
        "proj:shape": [ny, nx],
        "proj:transform": list(slab.transform),
        "proj:bbox": [left, top + ny * e, left + nx * a, top],
        "sen2fine:scenes": scenes,
        "sen2fine:plan_digest": stated.get("plan_digest", ""),
        "sen2fine:status": stated.get("status", ""),
        "sen2fine:super_resolution": stated.get("super_resolution", ""),
        "sen2fine:license": stated.get("license", ""),
        "sen2fine:credit": stated.get("credit", ""),
    }
    return {key: value for key, value in found.items() if value not in ("", [])}


def _asset(file: Written) -> dict[str, Any]:
    slab, bands = file.slab, file.bands
    title = band_title(bands[0], slab.variable) if len(bands) == 1 else slab.variable
    more = {"classification:classes": _classes(file)} if file.meanings else {}
    if bands:
        more = {"eo:bands": [_eo_band(name, slab) for name in bands]}
    return {
        "href": f"./{file.path.name}",
        "type": COG_TYPE,
        "title": title,
        "roles": ["data", *(["reflectance"] if slab.variable == "reflectance" else [])],
        "raster:bands": [_raster_band(slab)] * max(1, len(bands)),
        **more,
    }


def _classes(file: Written) -> list[dict[str, Any]]:
    return [
        {"value": value, "name": word, "description": word.replace("_", " "), "color-hint": bytes(colour).hex().upper()}
        for value, (word, colour) in enumerate(zip(file.meanings, COLOURS[file.slab.variable], strict=False))
    ]


def _raster_band(slab: Slab) -> dict[str, Any]:
    shared = {"spatial_resolution": slab.gsd_m, "sampling": "area"}
    if slab.variable in CLASSES:
        return {**shared, "data_type": "uint8", "nodata": NODATA_DN}
    reflectance = slab.variable == "reflectance"
    return {
        **shared,
        "data_type": "uint16",
        "nodata": NODATA_DN if reflectance else NODATA_SPREAD,
        "scale": DN_SCALE,
        "offset": DN_OFFSET if reflectance else 0.0,
        "unit": "1",
    }


def _eo_band(name: str, slab: Slab) -> dict[str, Any]:
    band = BY_NAME[name]
    return {
        "name": name,
        "common_name": band.common_name,
        "center_wavelength": round(band.wavelength_nm / 1000, 4),
        "description": finer_detail(name, generated=name in slab.generated),
    }


def footprint(slab: Slab) -> tuple[dict[str, Any], list[float]]:
    """Return (geometry, bbox) of a slab's window in degrees. Across the antimeridian it is cut, with west > east."""
    import shapely
    from pyproj import Transformer
    from shapely.geometry import mapping

    ny, nx = slab.window.shape
    a, _, left, _, e, top = slab.transform
    x, y = left + np.linspace(0, nx * a, _EDGE_POINTS), top + np.linspace(0, ny * e, _EDGE_POINTS)
    edge_x = np.concatenate([x, np.full(_EDGE_POINTS, x[-1]), x[::-1], np.full(_EDGE_POINTS, x[0])])
    edge_y = np.concatenate([np.full(_EDGE_POINTS, y[0]), y, np.full(_EDGE_POINTS, y[-1]), y[::-1]])
    lon, lat = Transformer.from_crs(slab.epsg, 4326, always_xy=True).transform(edge_x, edge_y)
    crosses = lon.max() - lon.min() > 180
    lon = np.where(crosses & (lon < 0), lon + 360, lon)
    shape = shapely.Polygon(np.column_stack([lon, lat])).normalize()
    west, south, east, north = shape.bounds
    if crosses:
        parts = [shape.intersection(shapely.box(0, -90, 180, 90)), shape.intersection(shapely.box(180, -90, 360, 90))]
        moved = shapely.transform(parts[1], lambda xy: xy - [360, 0])
        shape, east = shapely.MultiPolygon([parts[0], moved]), east - 360
    geometry = json.loads(json.dumps(mapping(shapely.set_precision(shape, 1e-7))))
    return geometry, [round(float(value), 7) for value in (west, south, east, north)]
