"""The area of a local archive: its footprint and bounds, and a run over all of it where no area is given."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.aoi.aoi import MAX_AREA_KM2, aoi_from_bbox, aoi_from_shapes
from pipeline.aoi.footprints import footprint_shape
from pipeline.aoi.utm_zones import MAX_LAT, MIN_LAT, merged
from pipeline.bands import TARGET_GSD_M
from pipeline.errors import NoDataError, UsageError
from pipeline.terminal import counted
from pipeline.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shapely import Geometry

    from pipeline.aoi.aoi import Aoi
    from pipeline.archive.scene import Scene
    from pipeline.config import RunConfig

FLAG = "--whole-archive"
UNASKED_KM2 = 100.0  # larger areas are computed on request alone
_HALF_TURN_DEG = 180.0


def footprint(scenes: Sequence[Scene]) -> Geometry:
    """Return the ground that the scenes cover together, in degrees, split at the antimeridian."""
    import shapely

    shapes = [part for scene in scenes for part in shapely.get_parts(footprint_shape(scene.footprint))]
    return merged([shape for shape in shapes if shape.geom_type == "Polygon"])


def bounds(shape: Geometry) -> tuple[float, float, float, float]:
    """Return (west, south, east, north) in degrees; west is larger than east across the antimeridian."""
    import shapely

    west, south, east, north = shape.bounds
    if east - west > _HALF_TURN_DEG:  # parts on both sides of it
        parts = [part.bounds for part in shapely.get_parts(shape)]
        west, east = min(part[0] for part in parts if part[0] >= 0), max(part[2] for part in parts if part[2] <= 0)
    return west, south, east, north


def geojson(shape: Geometry, name: str, scenes: int) -> bytes:
    """Return a footprint as GeoJSON that `--aoi` takes."""
    from shapely.geometry import mapping

    properties = {"name": name, "scenes": scenes, "software": f"sen2fine {VERSION}"}
    feature = {"type": "Feature", "properties": properties, "geometry": mapping(shape)}
    return (json.dumps({"type": "FeatureCollection", "features": [feature]}, indent=1) + "\n").encode()


def whole_archive(
    config: RunConfig, *, allowed: bool = False, ask: bool = False, max_area_km2: float = MAX_AREA_KM2
) -> Aoi:
    """Return the area of all scenes of the configuration's period, cloud cover and catalogue, which must be local.

    Beyond UNASKED_KM2 it must be `allowed`, or confirmed on the terminal if there is one to `ask`. Raises UsageError
    otherwise, and NoDataError if there are no scenes.
    """
    from pipeline.archive.catalog import SAMPLE, load_catalog

    catalog = load_catalog(config.catalog)
    if catalog.kind not in (SAMPLE, "file"):
        cure = "only an archive on this machine may be computed as a whole"
        raise UsageError("no area given", "either --aoi FILE or --bbox W,S,E,N", cure)
    scenes = _scenes(config)
    if not scenes:
        raise NoDataError(f"{config.catalog} has no scene of this period and cloud cover", "other --start and --end")
    area = aoi_from_shapes([footprint(scenes)], Path(catalog.name).stem, max_area_km2=max_area_km2)
    if area.area_km2 > UNASKED_KM2 and not allowed:
        _confirm(_size(config, area, len(scenes)), ask=ask)
    return area


def _scenes(config: RunConfig) -> tuple[Scene, ...]:
    """Return the scenes that a run without limits of place would use."""
    from pipeline.aoi.period import parse_period
    from pipeline.archive.catalog import load_catalog
    from pipeline.archive.search import search

    catalog = load_catalog(config.catalog)
    if config.offset is not None:
        catalog = catalog.with_offset(config.offset)
    everywhere = aoi_from_bbox(-180, MIN_LAT, 180, MAX_LAT, max_area_km2=math.inf)
    period = parse_period(config.start or None, config.end or None)
    found = search(catalog, everywhere, *period, config.max_cloud, bands=config.band_names)
    return tuple(scene for scene in found.scenes if scene.id not in config.exclude)


def _size(config: RunConfig, area: Aoi, scenes: int) -> str:
    gigabytes = area.area_km2 * 1e6 / TARGET_GSD_M**2 * len(config.band_names) * 2 / 1e9
    what = f"all of {config.catalog}, {counted(scenes, 'scene')} over {area.area_km2:,.0f} km2"
    return f"{what}, {gigabytes:,.1f} GB a time step before compression"


def _confirm(size: str, *, ask: bool) -> None:
    """Ask on the terminal. Raises UsageError if the answer is not yes, or if nobody can answer."""
    if ask:
        print(f"no area given: {size}. Compute all of it? [y/N] ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() in ("y", "yes"):
            return
    raise UsageError(
        f"no area given, which means {size}",
        f"--aoi or --bbox, or at most {UNASKED_KM2:g} km2 without them",
        f"{FLAG} computes all of it, and --dry-run says at what cost",
    )
