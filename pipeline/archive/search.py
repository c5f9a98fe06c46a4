"""Search for scenes, whatever the kind of archive."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.archive.catalog import SAMPLE, RetryPolicy
from pipeline.archive.reprocessing import drop_superseded, with_distinct_ids
from pipeline.archive.stac.files import file_items
from pipeline.archive.stac.item import RejectedItem, scene_from_item
from pipeline.bands import BAND_NAMES, SCL
from pipeline.redaction import redact

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pipeline.aoi.aoi import Aoi
    from pipeline.archive.catalog import Catalog
    from pipeline.archive.reprocessing import Look
    from pipeline.archive.scene import Scene

_EXAMPLES = 3  # items named per reason in a summary


@dataclass(frozen=True)
class SearchResult:
    """Scenes by time then id; `notes` for the log; `rejected` as (item id, reason)."""

    scenes: tuple[Scene, ...]
    notes: tuple[str, ...] = ()
    rejected: tuple[tuple[str, str], ...] = ()


def search(
    catalog: Catalog,
    aoi: Aoi,
    start: str | None,
    end: str | None,
    max_cloud: float | None,
    *,
    ids: Sequence[str] = (),
    bands: Sequence[str] = BAND_NAMES,
    retry_policy: RetryPolicy | None = None,
    look: Look | None = None,
) -> SearchResult:
    """Scenes that touch the AOI within [start, end] (ISO 8601 with Z) and up to `max_cloud` percent.

    Period, cloud and place are filtered here whatever the archive returned; unknown cloud passes. `ids` keeps only
    these scenes. `look` gives the valid pixels of scenes, which decide whether one supersedes another. Raises
    Unreachable when the archive does not answer, UpstreamError when it refuses or loses items.
    """
    notes: list[str] = []
    rejected: list[tuple[str, str]] = []
    if catalog.kind == SAMPLE:
        from pipeline.archive.local.scan import sample_scenes

        scenes = list(sample_scenes())
    else:
        items = items_of(catalog, aoi, start, end, ids, retry_policy or RetryPolicy(), notes)
        scenes = _parsed(items, catalog, bands, rejected)
    scenes = _wanted(scenes, aoi, (start, end), max_cloud, ids, notes)
    kept, superseded = drop_superseded(scenes, look)
    notes.extend(_without_scl(kept))
    ordered = sorted(with_distinct_ids(kept), key=lambda scene: (scene.datetime_utc, scene.id))
    return SearchResult(tuple(ordered), tuple(notes), tuple(rejected) + tuple(superseded))


def items_of(
    catalog: Catalog,
    aoi: Aoi,
    start: str | None,
    end: str | None,
    ids: Sequence[str],
    retry_policy: RetryPolicy,
    notes: list[str],
) -> Iterable[tuple[dict[str, Any], str]]:
    """(item, base of its relative hrefs) from the network or from files."""
    if catalog.kind == "file":
        return file_items(Path(catalog.url))
    from pipeline.archive.stac.api import api_items

    return api_items(catalog, aoi, start, end, ids or catalog.ids, retry_policy, notes)


def _parsed(
    items: Iterable[tuple[dict[str, Any], str]],
    catalog: Catalog,
    bands: Sequence[str],
    rejected: list[tuple[str, str]],
) -> list[Scene]:
    """Scenes of the items; the others go to `rejected`. Identical copies count once."""
    access = catalog.access()
    scenes: dict[tuple[str, frozenset[tuple[str, str]]], Scene] = {}
    for item, base in items:
        name = _name(item)
        try:
            scene = scene_from_item(item, catalog, access, base=base, bands=bands)
        except RejectedItem as error:
            rejected.append((name, redact(str(error))))
            continue
        scenes.setdefault((scene.id, frozenset(scene.hrefs.items())), scene)
    return list(scenes.values())


def _name(item: object) -> str:
    """Id of an item for messages, cut and printable, because it is remote input."""
    name = str(item.get("id", "?")) if isinstance(item, dict) else "?"
    return "".join(char if char.isprintable() else "?" for char in name[:200])


def _without_scl(scenes: Sequence[Scene]) -> list[str]:
    """A note on scenes whose clouds cannot be masked."""
    names = [scene.id for scene in scenes if SCL not in scene.hrefs]
    if not names:
        return []
    shown = ", ".join(names[:_EXAMPLES]) + (" ..." if len(names) > _EXAMPLES else "")
    return [
        f"{_counted(len(names), 'scene')} without scene classification (SCL), so that clouds are not removed: {shown}"
    ]


def _wanted(
    scenes: list[Scene],
    aoi: Aoi,
    period: tuple[str | None, str | None],
    max_cloud: float | None,
    ids: Sequence[str],
    notes: list[str],
) -> list[Scene]:
    """Scenes of the requested place, period and cloud cover; notes count the others by reason."""
    from datetime import datetime

    from pipeline.aoi.footprints import footprint_shape

    start, end = (datetime.fromisoformat(text) if text else None for text in period)
    left: Counter[str] = Counter()
    kept = []
    for scene in scenes:
        moment = datetime.fromisoformat(scene.datetime_utc)
        if ids and scene.id not in ids:
            left["not among the ids asked for"] += 1
        elif (start and moment < start) or (end and moment.replace(microsecond=0) > end):
            left["outside the period"] += 1
        elif not footprint_shape(scene.footprint).intersects(aoi.shape):
            left["outside the area"] += 1
        elif max_cloud is not None and scene.cloud_pct is not None and scene.cloud_pct > max_cloud:
            left[f"cloudier than {max_cloud:g} %"] += 1
        else:
            kept.append(scene)
    notes.extend(f"{_counted(count, 'scene')} left out: {reason}" for reason, count in sorted(left.items()))
    unknown = sum(scene.cloud_pct is None for scene in kept)
    if max_cloud is not None and unknown:
        notes.append(
            f"{_counted(unknown, 'scene')} kept although {'its' if unknown == 1 else 'their'} cloud cover is unknown"
        )
    absent = [name for name in ids if name not in {scene.id for scene in scenes}]
    if absent:
        notes.append(f"not found: {', '.join(absent[:10])}{' ...' if len(absent) > 10 else ''}")
    return kept


def summarised(rejected: Sequence[tuple[str, str]]) -> list[str]:
    """One line per reason for the log, most frequent first: "300 items left out: lacks B05 (S2A_x, S2A_y ...)"."""
    names: dict[str, list[str]] = {}
    for name, reason in rejected:
        names.setdefault(reason, []).append(name)
    lines = []
    for reason, found in sorted(names.items(), key=lambda entry: (-len(entry[1]), entry[0])):
        examples = ", ".join(found[:_EXAMPLES]) + (" ..." if len(found) > _EXAMPLES else "")
        lines.append(f"{_counted(len(found), 'item')} left out: {reason} ({examples})")
    return lines


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
