"""Pixel audit: whether the stored DN of a scene agree with the BOA offset that its archive claims."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from pipeline.archive.read.sampling import blocks, look
from pipeline.bands import BAND_NAMES, BY_NAME, CANONICAL_OFFSET_DN, GSDS_M, NODATA_DN, RGB

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from pipeline.archive.read.access import Access
    from pipeline.archive.read.sampling import Look
    from pipeline.archive.scene import OffsetDecision, Scene

# Thresholds in stored DN, measured by `python -m tests.archive.offset_audit` on 18 real scenes (snow, desert, cloud,
# fields, forest, water, rice; two carry the offset) and 60 random crops of each, half a scene wide. The truth is never
# contradicted. It is confirmed in 17 scenes and 1018 of 1080 crops; the rest, the desert and brightest snow, are
# unknown. With 1000 DN added to the 16 without offset and taken from the other two, 14 scenes and 752 of 1080 crops are
# recognised, none is mistaken.
AUDIT_BANDS: tuple[str, ...] = ("B02", "B03", "B04", "B12")  # not B01: over water it is truly negative
_NAMED = ", ".join(AUDIT_BANDS)
_MIN_PIXELS_10M = 1000  # fewer pixels neither confirm nor contradict
_MIN_PIXELS_20M = 250
_IMPOSSIBLE_DN = 800.0  # reflectance -0.02 with the offset; lowest 5th percentile: 1093 with it; 323 without
_FLOOR_B02_B04_DN = 1350.0  # 1st percentiles with the offset: B02 948, 1140; B04 1016, 1125
_FLOOR_SPREAD_DN = 150.0  # between B02 and B04: 68 and 15 with the offset; desert without it 1096
_FLOOR_B03_DN = 1500.0  # 1044 and 1166 with the offset
_FLOOR_B12_DN = 1700.0  # 1035 and 1200 with the offset; desert without it 2698


@dataclass(frozen=True)
class OffsetAudit:
    """What the pixels say about a claimed offset. `verdict` is "agrees", "contradicts" or "unknown".

    `fact` names the record too, `seen` what else was found alone.
    """

    verdict: str
    fact: str
    seen: str = ""


@dataclass(frozen=True)
class Judgement:
    """The offset that the pixels show by themselves, None when they do not tell, and the evidence."""

    offset_dn: int | None
    fact: str
    bright: bool = False  # enough pixels, all of them too bright to tell
    remarks: tuple[str, ...] = ()

    def about(self, claimed: OffsetDecision) -> OffsetAudit:
        """The verdict on a recorded offset."""
        if self.offset_dn is None:
            return OffsetAudit("unknown", self.fact, self.fact)
        agrees = self.offset_dn == claimed.offset_dn
        said = f"the record says BOA offset {claimed.offset_dn} ({claimed.evidence})"
        fact = f"{said} {'and' if agrees else 'but'} {self.fact}"
        return OffsetAudit("agrees" if agrees else "contradicts", fact, self.fact)


def judge_offset(sample_dn: Mapping[str, NDArray[np.generic]]) -> Judgement:
    """Judge stored DN of B02, B03, B04 and B12 of one scene; arrays of any shape, 0 is nodata.

    Reflectance below -0.02 on 5 % of the ground does not exist, so DN below 800 means that no offset is in the pixels.
    The darkest ground of a scene reflects alike in blue, red and SWIR: floors together just above 1000 mean that it is.
    """
    valid = {band: dn[dn != NODATA_DN] for band, dn in sample_dn.items() if band in AUDIT_BANDS}
    least = {band: _MIN_PIXELS_10M if BY_NAME[band].gsd_m == GSDS_M[0] else _MIN_PIXELS_20M for band in valid}
    valid = {band: dn for band, dn in valid.items() if dn.size >= least[band]}
    absent = [band for band in RGB if band not in valid]
    if absent:
        return Judgement(None, f"fewer than {_MIN_PIXELS_10M} valid pixels to audit in {', '.join(absent)}")
    floor = {band: float(np.percentile(dn, 1)) for band, dn in valid.items()}
    dark = {band: float(np.percentile(dn, 5)) for band, dn in valid.items()}
    shown = "1st percentile of stored DN " + ", ".join(f"{band} {floor[band]:.0f}" for band in sorted(floor))
    lowest = min(dark, key=lambda band: dark[band])
    if dark[lowest] < _IMPOSSIBLE_DN:
        why = f"5 % of {lowest} lie below {max(dark[lowest], 1):.0f}, impossible with +1000 in the pixels"
        return Judgement(0, f"{shown}: {why}")
    if _piled_above_1000(floor):
        why = "dark ground piles up just above 1000 in every band, as with +1000 in the pixels"
        return Judgement(CANONICAL_OFFSET_DN, f"{shown}: {why}")
    return Judgement(None, f"{shown}: too bright to tell", bright=min(floor.values()) >= _IMPOSSIBLE_DN)


def audit_offset(sample_dn: Mapping[str, NDArray[np.generic]], claimed: OffsetDecision) -> OffsetAudit:
    """`judge_offset` against the offset that a record claims."""
    return judge_offset(sample_dn).about(claimed)


def _piled_above_1000(floor: Mapping[str, float]) -> bool:
    """True when the 1st percentiles look like dark ground plus 1000. Without SWIR haze looks the same: False."""
    if "B12" not in floor or min(floor[band] for band in (*RGB, "B12")) < _IMPOSSIBLE_DN:
        return False
    return (
        max(floor["B02"], floor["B04"]) <= _FLOOR_B02_B04_DN
        and abs(floor["B02"] - floor["B04"]) <= _FLOOR_SPREAD_DN
        and floor["B03"] <= _FLOOR_B03_DN
        and floor["B12"] <= _FLOOR_B12_DN
    )


def audit_scene(scene: Scene, access: Access) -> OffsetAudit:
    """Audit a scene from overviews; blocks at full resolution are read before a record is contradicted.

    Scale and offset tags of the files count too: they contradict the record unless the pixels agree with it.
    ReadError when a file cannot be read.
    """
    looks = look(scene, [band for band in AUDIT_BANDS if band in scene.hrefs], access)
    judgement = judge_offset({band: seen.dn for band, seen in looks.items()})
    if judgement.offset_dn != scene.offset.offset_dn and not judgement.bright:
        judgement = judge_offset(blocks(scene, looks, access))
    audit = judgement.about(scene.offset)
    more = _impossible(looks)
    audit = replace(audit, fact="; ".join((audit.fact, *more)), seen="; ".join((audit.seen, *more)))
    stated = {seen.offset_dn for seen in looks.values() if seen.offset_dn is not None}
    if audit.verdict == "agrees" or stated <= {scene.offset.offset_dn}:
        return audit
    said = f"the record says BOA offset {scene.offset.offset_dn} ({scene.offset.evidence})"
    tags = ", ".join(str(offset_dn) for offset_dn in sorted(stated))
    told = f"the files' own scale and offset tags say {tags}; {audit.seen}"
    return OffsetAudit("contradicts", f"{said} but {told}", told)


def judge_scene(scene: Scene, access: Access) -> Judgement:
    """What a scene's pixels show at full resolution, whatever its record says; remarks on values of all bands.

    ReadError when a file cannot be read.
    """
    looks = look(scene, [band for band in BAND_NAMES if band in scene.hrefs], access)
    audited = {band: looks[band] for band in AUDIT_BANDS if band in looks}
    judged = judge_offset(blocks(scene, audited, access)) if audited else Judgement(None, f"none of {_NAMED}")
    return replace(judged, remarks=_impossible(looks))


def _impossible(looks: Mapping[str, Look]) -> tuple[str, ...]:
    """A remark on values that cannot be reflectance, or ""."""
    shares = [f"{seen.impossible_pct:.3g} % of {band}" for band, seen in looks.items() if seen.impossible_pct > 0]
    why = "cannot be reflectance (negative DN that wrapped around, or saturated) and are read as nodata"
    return (f"{', '.join(shares)} {why}",) if shares else ()
