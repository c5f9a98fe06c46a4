"""Combines the metadata's BOA offset with the pixel audit: confirmed, decided, doubted, or the scene is left out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pipeline.archive.scene import DOUBTED, OPEN, STATED
from pipeline.bands import CANONICAL_OFFSET_DN

if TYPE_CHECKING:
    from pipeline.archive.offset_audit import OffsetAudit
    from pipeline.archive.scene import OffsetDecision

_PIXELS = {"agrees": "the pixels agree", "contradicts": "the pixels contradict", "unknown": "the pixels do not tell"}


@dataclass(frozen=True)
class Verdict:
    """The decision after the audit; `fault`: why the scene is left out, `note`: what to say where it stays."""

    decision: OffsetDecision
    fault: str = ""
    note: str = ""


def verdict(claimed: OffsetDecision, audit: OffsetAudit) -> Verdict:
    """Metadata and pixels together. An open offset is decided by the pixels, or stays unknown, which is a fault."""
    evidence = f"{claimed.evidence}; {_PIXELS[audit.verdict]}: {audit.seen}"
    if audit.verdict == "agrees" and "the pixels" in claimed.evidence:  # they decided when the folder was listed
        evidence = claimed.evidence
    settled = replace(claimed, evidence=evidence, standing=STATED)
    if claimed.standing == OPEN:
        return _opened(claimed, settled, audit)
    if audit.verdict == "contradicts":
        rule = f"offset {claimed.offset_dn} by rule ({claimed.evidence})"
        return Verdict(settled, fault=f"{rule}, but the pixels contradict it: {audit.seen}")
    if claimed.standing == DOUBTED and audit.verdict == "unknown":
        said = f"BOA offset {claimed.offset_dn} ({claimed.evidence}) is not confirmed by the pixels: {audit.fact}"
        return Verdict(replace(settled, standing=DOUBTED), note=said)
    return Verdict(settled)


def _opened(claimed: OffsetDecision, settled: OffsetDecision, audit: OffsetAudit) -> Verdict:
    """`claimed.offset_dn` is a guess: pixels that contradict it tell the other offset."""
    if audit.verdict == "unknown":
        return Verdict(claimed, fault=f"its BOA offset is unknown: {claimed.evidence}, and the pixels: {audit.fact}")
    offset_dn = claimed.offset_dn
    if audit.verdict == "contradicts":
        offset_dn = CANONICAL_OFFSET_DN - offset_dn
    note = f"BOA offset {offset_dn} by its pixels alone: {claimed.evidence}"
    return Verdict(replace(settled, offset_dn=offset_dn), note=note)
