"""Indexes of local archives: scenes written as a STAC ItemCollection, read back without loss by `search.search`."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from pipeline.archive.scene import BY_USER_KEY, EVIDENCE_KEY, OFFSET_KEY
from pipeline.archive.stac.index_marks import marked
from pipeline.bands import BY_NAME, SCL
from pipeline.errors import StorageError
from pipeline.grid.native_rasters import SCL_GSD_M
from pipeline.temporary import require_ours

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pipeline.archive.scene import Raster, Scene

_EXTENSIONS = (
    "https://stac-extensions.github.io/projection/v1.1.0/schema.json",
    "https://stac-extensions.github.io/eo/v1.1.0/schema.json",
)
_MEDIA_TYPES = {
    ".jp2": "image/jp2",
    ".tif": "image/tiff; application=geotiff",
    ".tiff": "image/tiff; application=geotiff",
}


def write_index(scenes: Sequence[Scene], out: Path, *, relative: bool = False) -> None:
    """Write `scenes` to `out` in one atomic step; hrefs absolute, or relative to the index.

    Raises StorageError, and UsageError where another file is in the way.
    """
    folder = out.resolve().parent
    features = [marked(to_item(scene, relative_to=folder if relative else None)) for scene in scenes]
    text = json.dumps({"type": "FeatureCollection", "features": features}, indent=1, allow_nan=False)
    require_ours(out)
    partial = out.with_name(f".{out.name}.{uuid4().hex}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(out)
    except OSError as error:
        with suppress(OSError):  # a folder that cannot be written to cannot be cleaned either
            partial.unlink()
        raise StorageError(f"{out} cannot be written: {error.strerror or error}", "a writable folder") from error


def to_item(scene: Scene, *, relative_to: Path | None = None) -> dict[str, Any]:
    """STAC 1.0 item of a scene; hrefs relative to a folder where one is given."""
    rasters = {raster.gsd_m: raster for raster in scene.rasters}
    properties = {
        **scene.properties,
        "datetime": scene.datetime_utc,
        "proj:epsg": scene.epsg,
        OFFSET_KEY: scene.offset.offset_dn,
        EVIDENCE_KEY: scene.offset.evidence,
    }
    if scene.offset.by_user:
        properties[BY_USER_KEY] = True
    if scene.cloud_pct is not None:
        properties["eo:cloud_cover"] = scene.cloud_pct
    if scene.baseline:
        properties["s2:processing_baseline"] = scene.baseline
    if scene.tile:
        properties["grid:code"] = f"MGRS-{scene.tile}"
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "stac_extensions": list(_EXTENSIONS),
        "id": scene.id,
        "geometry": scene.footprint,
        "bbox": _bbox(scene.footprint),
        "properties": properties,
        "links": [],
        "assets": {band: _asset(band, href, rasters, relative_to) for band, href in scene.hrefs.items()},
    }


def _asset(band: str, href: str, rasters: dict[int, Raster], relative_to: Path | None) -> dict[str, Any]:
    gsd_m = SCL_GSD_M if band == SCL else BY_NAME[band].gsd_m
    asset: dict[str, Any] = {
        "href": href if relative_to is None else Path(os.path.relpath(href, relative_to)).as_posix(),
        "type": _MEDIA_TYPES.get(Path(href).suffix.lower(), "application/octet-stream"),
        "roles": ["data"],
        "gsd": gsd_m,
    }
    if band in BY_NAME:
        asset["eo:bands"] = [{"name": band, "common_name": BY_NAME[band].common_name}]
    raster = rasters.get(gsd_m)
    if raster is not None:
        asset["proj:shape"] = [raster.ny, raster.nx]
        asset["proj:transform"] = [gsd_m, 0, raster.left_m, 0, -gsd_m, raster.top_m]
    return asset


def _bbox(geometry: dict[str, Any]) -> list[float]:
    """[west, south, east, north] of a GeoJSON geometry."""
    pairs = list(_positions(geometry["coordinates"]))
    longitudes, latitudes = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    return [min(longitudes), min(latitudes), max(longitudes), max(latitudes)]


def _positions(coordinates: Sequence[Any]) -> Iterable[Sequence[float]]:
    if coordinates and isinstance(coordinates[0], (int, float)):
        yield coordinates
        return
    for part in coordinates:
        yield from _positions(part)
