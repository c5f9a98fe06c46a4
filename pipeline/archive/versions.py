"""Which of several processings of the same acquisition to use.

In: scenes of one search. Out: the scenes to keep, and the others with the reason.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from pipeline.archive.footprints import overlap
from pipeline.archive.radiometry import baseline_number

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pipeline.archive.scene import Scene

SAME_GROUND = 0.9  # intersection over union above which two footprints are the same granule


def drop_superseded(scenes: Iterable[Scene]) -> tuple[list[Scene], list[tuple[str, str]]]:
    """(kept, [(id, reason)]): of one acquisition the highest ESA baseline, then the latest generation.

    An acquisition is tile + datatake sensing start + relative orbit. Two granules of the same baseline on different
    ground (two downlink stations, each with a half) are both kept. Baseline 99.99 is not ESA's and ranks last.
    """
    groups: dict[tuple[str, str, object], list[Scene]] = defaultdict(list)
    kept: list[Scene] = []
    for scene in scenes:
        key = _acquisition(scene)
        if key is None:
            kept.append(scene)
        else:
            groups[key].append(scene)
    dropped: list[tuple[str, str]] = []
    for group in groups.values():
        best_first = sorted(group, key=_rank, reverse=True)
        winners: list[Scene] = []
        for scene in best_first:
            rival = next((winner for winner in winners if _supersedes(winner, scene)), None)
            if rival is None:
                winners.append(scene)
            else:
                dropped.append((scene.id, _reason(scene, rival)))
        kept.extend(winners)
    return kept, dropped


def _acquisition(scene: Scene) -> tuple[str, str, object] | None:
    """Key of the acquisition, None where the archive does not tell."""
    sensed = scene.properties.get("sensing_start")
    if not scene.tile or not sensed:
        return None
    return scene.tile, str(sensed), scene.properties.get("relative_orbit")


def _rank(scene: Scene) -> tuple[float, str, str]:
    return baseline_number(scene.baseline) or 0.0, str(scene.properties.get("generated", "")), scene.id


def _supersedes(winner: Scene, scene: Scene) -> bool:
    if (baseline_number(winner.baseline) or 0.0) != (baseline_number(scene.baseline) or 0.0):
        return True
    return overlap(winner.footprint, scene.footprint) >= SAME_GROUND


def _reason(scene: Scene, rival: Scene) -> str:
    return (
        f"superseded by {rival.id} (baseline {rival.baseline or 'unknown'}, "
        f"this one {scene.baseline or 'unknown'}, same acquisition)"
    )
