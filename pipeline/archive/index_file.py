"""Indexes of local archives: scenes written as a STAC ItemCollection, and read back without loss.

In: scenes and a path. Out: a FeatureCollection of STAC 1.0 items (projection and eo extensions), one file.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.archive.bandfile import SCL, SCL_GSD_M
from pipeline.archive.scene import OffsetDecision, Raster, Scene
from pipeline.bands import BY_NAME
from pipeline.errors import StorageError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

OFFSET_KEY = "sen2fine:offset_dn"
EVIDENCE_KEY = "sen2fine:offset_evidence"
_EXTENSIONS = (
    "https://stac-extensions.github.io/projection/v1.1.0/schema.json",
    "https://stac-extensions.github.io/eo/v1.1.0/schema.json",
)
_MEDIA_TYPES = {
    ".jp2": "image/jp2",
    ".tif": "image/tiff; application=geotiff",
    ".tiff": "image/tiff; application=geotiff",
}
_OWN_KEYS = ("datetime", "proj:epsg", "eo:cloud_cover", "s2:processing_baseline", "grid:code", OFFSET_KEY, EVIDENCE_KEY)


def write_index(scenes: Sequence[Scene], out: Path, *, relative: bool = False) -> None:
    """Write `scenes` to `out` in one atomic step; hrefs absolute, or relative to the index. Raises StorageError."""
    folder = out.resolve().parent
    features = [to_item(scene, relative_to=folder if relative else None) for scene in scenes]
    text = json.dumps({"type": "FeatureCollection", "features": features}, indent=1, allow_nan=False)
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(out)
    except OSError as error:
        with suppress(OSError):  # where nothing can be written, nothing can be removed either
            partial.unlink()
        raise StorageError(f"{out} cannot be written: {error.strerror or error}", "a writable folder") from error


def read_index(path: Path) -> tuple[Scene, ...]:
    """Scenes of an index that `write_index` wrote. UsageError when the file is not one."""
    try:
        collection = json.loads(path.read_text(encoding="utf-8"))
        return tuple(from_item(item, folder=path.resolve().parent) for item in collection["features"])
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}", "an index file") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{path} is not an index of scenes ({type(error).__name__}: {error})",
            "a FeatureCollection of STAC items as `python -m pipeline.index` writes it",
            "write it again from the folder of scenes",
        ) from error


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


def from_item(item: dict[str, Any], *, folder: Path) -> Scene:
    """Inverse of `to_item`; relative hrefs are resolved against `folder`. KeyError names what is missing."""
    properties = dict(item["properties"])
    rasters: dict[int, Raster] = {}
    for asset in item["assets"].values():
        if "proj:shape" in asset:
            gsd_m, _, left_m, _, _, top_m = asset["proj:transform"][:6]
            rasters[round(gsd_m)] = Raster(round(gsd_m), left_m, top_m, *asset["proj:shape"])
    return Scene(
        id=item["id"],
        datetime_utc=properties["datetime"],
        epsg=properties["proj:epsg"],
        footprint=item["geometry"],
        hrefs={band: _resolved(asset["href"], folder) for band, asset in item["assets"].items()},
        rasters=tuple(rasters[gsd_m] for gsd_m in sorted(rasters)),
        baseline=properties.get("s2:processing_baseline", ""),
        offset=OffsetDecision(properties[OFFSET_KEY], properties[EVIDENCE_KEY]),
        cloud_pct=properties.get("eo:cloud_cover"),
        tile=properties.get("grid:code", "").removeprefix("MGRS-"),
        properties={key: value for key, value in properties.items() if key not in _OWN_KEYS},
    )


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


def _resolved(href: str, folder: Path) -> str:
    return href if "://" in href or Path(href).is_absolute() else str(folder / href)


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
