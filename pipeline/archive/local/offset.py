"""BOA offset of a local scene: reconciles XML, item, names, tags and pixels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.archive.offset_audit import judge_scene
from pipeline.archive.read import zipped
from pipeline.archive.read.access import Access
from pipeline.archive.scene import OffsetDecision
from pipeline.bands import CANONICAL_OFFSET_DN

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.archive.offset_audit import Judgement
    from pipeline.archive.scene import Scene

AUDIT_KEY = "sen2fine:offset_audit"  # scene property: what the pixels say about its offset


def decided(
    scene: Scene, stated: Sequence[OffsetDecision], override: OffsetDecision | None
) -> tuple[Scene, tuple[str, ...]]:
    """(scene with its offset, remarks). ValueError if nothing states it, or sources or pixels contradict each other.

    `stated`: every statement found. The date is not one, since old scenes are reprocessed with the offset.
    """
    judgement = judge_scene(scene, local_access(scene))
    chosen = override or _chosen(stated, judgement)
    audit = judgement.about(chosen)
    if audit.verdict == "contradicts" and override is None:
        other = CANONICAL_OFFSET_DN - chosen.offset_dn
        raise ValueError(
            f"{audit.fact}; cure: --offset {other} if the pixels are right, --offset {chosen.offset_dn} if not"
        )
    properties = {**scene.properties, AUDIT_KEY: f"{audit.verdict}: {audit.seen}"}
    return replace(scene, offset=chosen, properties=properties), judgement.remarks


def local_access(scene: Scene) -> Access:
    """Access to the folders, or the archives, that hold the scene's files."""
    roots = set()
    for href in scene.hrefs.values():
        inside = zipped.split(Path(href))
        roots.add(str(Path(href).parent if inside is None else inside[0].parent))
    return Access(roots=tuple(sorted(roots)))


def _chosen(stated: Sequence[OffsetDecision], judgement: Judgement) -> OffsetDecision:
    """One decision from all statements; the pixels settle a contradiction, and may prove an offset of 0 alone."""
    offsets = {decision.offset_dn for decision in stated}
    if len(offsets) == 1:
        return stated[0]
    said = "; ".join(dict.fromkeys(f"{decision.offset_dn} by {decision.evidence}" for decision in stated))
    if offsets and judgement.offset_dn is not None:
        return OffsetDecision(judgement.offset_dn, f"the pixels settle what disagrees ({said}): {judgement.fact}")
    if offsets:
        raise ValueError(
            f"its sources disagree on the BOA offset ({said}) and the pixels cannot tell: {judgement.fact}; "
            "cure: --offset 0 or --offset -1000, whichever is right"
        )
    if judgement.offset_dn == 0:
        return OffsetDecision(0, f"no processing baseline; the pixels show it: {judgement.fact}")
    likely = " (which the pixels suggest)" if judgement.offset_dn is not None else ""
    raise ValueError(
        f"nothing tells its BOA offset, no XML, item, name or tag, and the pixels do not prove it: {judgement.fact}; "
        f"cure: --offset {CANONICAL_OFFSET_DN} for products of baseline 04.00 or later as ESA delivers them{likely}, "
        "--offset 0 for older ones and where 1000 was taken off"
    )
