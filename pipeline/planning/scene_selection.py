"""Selection of the scenes of a plan: those over the AOI and those that only the halo of model windows reaches.

A pixel depends on everything within its model windows, which reach beyond the AOI. Scenes beside the AOI are therefore
searched and used too, so that pixels equal those of a run over a larger area.
"""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING

from pipeline.archive.passes import MAX_GAP, passes
from pipeline.bands import TARGET_GSD_M

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from shapely import Geometry

    from pipeline.aoi.aoi import Aoi
    from pipeline.archive.scene import Scene
    from pipeline.config import RunConfig


def reach_m(config: RunConfig, windows_m: float, reach_px: int = 0) -> float:
    """Return the distance in metres beyond the AOI of the input pixels that its output depends on.

    It adds the side of a stored chunk or shard, which may extend that far beyond the AOI, the halo `reach_px` predicted
    around a chunk, and the halo `windows_m` of model windows (`chain.reach_m`). All are squares, hence the diagonal.
    """
    stored_px = config.chunk_px * (config.shard_chunks or 1)
    return math.sqrt(2) * ((stored_px + reach_px) * TARGET_GSD_M + windows_m)


def grown_aoi(aoi: Aoi, by_m: float) -> Aoi:
    """Return the AOI grown by `by_m` metres, as the area to search, with the same name and digest."""
    from shapely.geometry import mapping

    from pipeline.aoi.utm_zones import grown

    return replace(aoi, geometry=mapping(grown(aoi.shape, by_m)))


def over(shape: Geometry, scenes: Iterable[Scene]) -> list[Scene]:
    """Return the scenes whose footprint intersects the shape (EPSG:4326)."""
    import shapely

    from pipeline.aoi.footprints import footprint_shape

    shapely.prepare(shape)
    return [scene for scene in scenes if shape.intersects(footprint_shape(scene.footprint))]


def padded(start: str | None, end: str | None) -> tuple[str | None, str | None]:
    """Return the period to search, extended at both ends by `MAX_GAP`, so that no pass is cut in half."""
    first = None if start is None else _iso(datetime.fromisoformat(start) - MAX_GAP)
    last = None if end is None else _iso(datetime.fromisoformat(end) + MAX_GAP)
    return first, last


def whole_passes(
    scenes: Sequence[Scene], aoi: Aoi, start: str | None, end: str | None
) -> tuple[tuple[Scene, ...], int]:
    """Return the scenes of the satellite passes within [start, end], and the number of scenes left out.

    The time of a pass is that of its earliest scene over the AOI. Its later scenes are kept, even past `end`.
    """
    inside = {scene.id for scene in over(aoi.shape, scenes)}
    first, last = (None if text is None else datetime.fromisoformat(text) for text in (start, end))
    kept: set[str] = set()
    for one in passes(scenes):
        core = next((scene for scene in one.scenes if scene.id in inside), None)
        at = datetime.fromisoformat((core or one.scenes[0]).datetime_utc).replace(microsecond=0)
        if (first is None or at >= first) and (last is None or at <= last):
            kept |= {scene.id for scene in one.scenes}
    return tuple(scene for scene in scenes if scene.id in kept), len(scenes) - len(kept)


def _iso(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
