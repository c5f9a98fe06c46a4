"""Which scenes a plan is made from: those over the area, and those that only model windows reach.

The value of a pixel depends on everything its model windows see. Windows, and the chunks that hold them, reach beyond
the area of interest, so scenes beside the area are found and used as a run over a larger area would use them.
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
    """How far beyond the area, in metres, the pixels lie that its output depends on.

    A stored chunk that touches the area extends up to its own side beyond it, and what a piece of ground depends on
    `windows_m` beyond it (`chain.reach_m`); `reach_px` is how far around a chunk bands are predicted. All are squares,
    hence the diagonal.
    """
    stored_px = config.chunk_px * (config.unit_chunks if config.shard else 1)
    return math.sqrt(2) * ((stored_px + reach_px) * TARGET_GSD_M + windows_m)


def grown_aoi(aoi: Aoi, by_m: float) -> Aoi:
    """The area to search in: the AOI and everything within `by_m` metres of it, under the same name and digest."""
    from shapely.geometry import mapping

    from pipeline.aoi.utm_zones import grown

    return replace(aoi, geometry=mapping(grown(aoi.shape, by_m)))


def over(shape: Geometry, scenes: Iterable[Scene]) -> list[Scene]:
    """Scenes whose footprint meets the shape (EPSG:4326)."""
    import shapely

    from pipeline.aoi.footprints import footprint_shape

    shapely.prepare(shape)
    return [scene for scene in scenes if shape.intersects(footprint_shape(scene.footprint))]


def padded(start: str | None, end: str | None) -> tuple[str | None, str | None]:
    """The period to search in, longer by one pass at both ends, so that no pass is cut in half."""
    first = None if start is None else _iso(datetime.fromisoformat(start) - MAX_GAP)
    last = None if end is None else _iso(datetime.fromisoformat(end) + MAX_GAP)
    return first, last


def whole_passes(
    scenes: Sequence[Scene], aoi: Aoi, start: str | None, end: str | None
) -> tuple[tuple[Scene, ...], int]:
    """(scenes of the passes of [start, end], number of scenes left out).

    The time of a pass is that of its earliest scene over the area; its later scenes stay with it, also past `end`.
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
