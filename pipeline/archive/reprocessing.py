"""Choice between several processings of the same acquisition."""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING

from pipeline.aoi.footprints import footprint_shape
from pipeline.archive.radiometry import baseline_number

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from pipeline.archive.read.ground import Ground
    from pipeline.archive.scene import Scene

    Look = Callable[[Sequence[Scene]], Sequence[Ground | None]]

SAME_GROUND = 0.9  # intersection over union above which two footprints may be the same granule
LOST_GROUND = 0.02  # share of a scene's ground that its successor may lack: outlines differ by some pixels


def drop_superseded(scenes: Iterable[Scene], look: Look | None = None) -> tuple[list[Scene], list[tuple[str, str]]]:
    """(kept, [(id, reason)]): of one acquisition the highest ESA baseline, then the latest generation.

    An acquisition is tile + datatake sensing start + relative orbit. The superseding scene must cover the same ground:
    halves of a granule (two downlink stations) are all kept, whatever their baselines, ids and footprints. `look`
    gives the valid pixels of scenes and is asked where footprints agree; without it footprints decide. Baseline 99.99
    is not ESA's and ranks last.
    """
    groups: dict[tuple[str, str, object], list[Scene]] = defaultdict(list)
    kept: list[Scene] = []
    for scene in scenes:
        key = _acquisition(scene)
        if key is None:
            kept.append(scene)
        else:
            groups[key].append(scene)
    ordered = [sorted(group, key=_rank, reverse=True) for group in groups.values()]
    seen = _looked_at(ordered, look)
    dropped: list[tuple[str, str]] = []
    for group in ordered:
        winners: list[int] = []
        for place, scene in enumerate(group):
            rival = next((i for i in winners if _supersedes(group[i], scene, seen)), None)
            if rival is None:
                winners.append(place)
            else:
                dropped.append((scene.id, _reason(scene, group[rival])))
        kept.extend(group[place] for place in winners)
    return kept, dropped


def with_distinct_ids(scenes: Sequence[Scene]) -> list[Scene]:
    """The scenes, renamed where several have one id: ID@collection, or ID~digest of its files within a collection.

    The name depends on the scene and on which scenes share its id, not on their order.
    """
    named: dict[str, list[Scene]] = defaultdict(list)
    for scene in scenes:
        named[scene.id].append(scene)
    return [scene if len(named[scene.id]) == 1 else _renamed(scene, named[scene.id]) for scene in scenes]


def _renamed(scene: Scene, namesakes: list[Scene]) -> Scene:
    collection = scene.properties.get("collection")
    beside = [other.properties.get("collection") for other in namesakes]
    alone = collection is not None and beside.count(collection) == 1
    suffix = "@" + re.sub(r"[^\w.-]", "_", str(collection)) if alone else f"~{_digest(scene)[:8]}"
    return replace(scene, id=f"{scene.id}{suffix}")


def _digest(scene: Scene) -> str:
    return hashlib.sha256("\n".join(sorted(scene.hrefs.values())).encode()).hexdigest()


def _acquisition(scene: Scene) -> tuple[str, str, object] | None:
    """Key of the acquisition, None where the archive does not tell."""
    sensed = scene.properties.get("sensing_start")
    if not scene.tile or not sensed:
        return None
    return scene.tile, str(sensed), scene.properties.get("relative_orbit")


def _rank(scene: Scene) -> tuple[float, str, str, str]:
    number = baseline_number(scene.baseline) or 0.0
    return number, str(scene.properties.get("generated", "")), scene.id, _digest(scene)


def _looked_at(groups: list[list[Scene]], look: Look | None) -> dict[str, Ground | None] | None:
    """{digest of files: ground} of scenes whose footprints let one supersede another; None without `look`."""
    if look is None:
        return None
    doubtful = {
        _digest(scene): scene
        for group in groups
        for i, one in enumerate(group)
        for other in group[i + 1 :]
        if _alike(one, other)
        for scene in (one, other)
    }
    return dict(zip(doubtful, look(list(doubtful.values())), strict=True))


def _supersedes(winner: Scene, scene: Scene, seen: dict[str, Ground | None] | None) -> bool:
    if not _alike(winner, scene):
        return False
    if seen is None:
        return True
    one, other = seen[_digest(winner)], seen[_digest(scene)]
    if one is None or other is None:  # a scene that cannot be read supersedes nothing
        return False
    return other.unseen_by(one) <= LOST_GROUND


def _alike(winner: Scene, scene: Scene) -> bool:
    """Whether two footprints cover the same ground."""
    first, second = footprint_shape(winner.footprint), footprint_shape(scene.footprint)
    common, union = first.intersection(second).area, first.union(second).area
    if union <= 0 or common / union < SAME_GROUND:
        return False
    return bool(1 - common / second.area <= LOST_GROUND)


def _reason(scene: Scene, rival: Scene) -> str:
    collection = rival.properties.get("collection")
    where = f" of collection {collection}" if rival.id == scene.id and collection else ""
    return (
        f"superseded by {rival.id}{where} (baseline {rival.baseline or 'unknown'}, "
        f"this one {scene.baseline or 'unknown'}, same acquisition)"
    )
