"""Which BOA offset still has to be added to a scene's stored DN: the written rule of each archive.

In: what a catalogue says of one scene (processing baseline, declared offset, "already applied" flag).
Out: an `OffsetDecision`. Raises ValueError, with both facts, where they contradict each other.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.archive.scene import OffsetDecision
from pipeline.bands import DN_SCALE, HOUSE_ADD_OFFSET_DN, NODATA_DN, RGB

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from pipeline.archive.access import Access
    from pipeline.archive.scene import Scene

# Processing baseline from which L2A products carry BOA_ADD_OFFSET = -1000 (Sentinel-2 Products Specification, 04.00).
OFFSET_BASELINE = 4.0
# Baseline numbers at or above this are not ESA's: CDSE lists reprocessings by its operator as 99.99.
FOREIGN_BASELINE = 90.0

# Pixel audit. Thresholds in stored DN, set on 24 real scenes (snow, desert, cloud, fields, forest, water; two carry the
# offset) and 60 random crops of each, half a scene wide: the truth is never contradicted, in none of 24 scenes and 1440
# crops, and confirmed in 23 scenes (the desert is too bright). With 1000 DN added to the 22 scenes without offset, 16
# are recognised and 6 are unknown; with it taken from the other two, both are recognised.
AUDIT_BANDS: tuple[str, ...] = ("B02", "B03", "B04", "B12")  # not B01: over water it is truly negative
_MIN_PIXELS = 100
_IMPOSSIBLE_DN = 800.0  # reflectance -0.02 with the offset; lowest 5th percentile: 1093 with it; 323 without
_FLOOR_B02_B04_DN = 1350.0  # 1st percentiles with the offset: B02 948, 1140; B04 1016, 1125
_FLOOR_SPREAD_DN = 150.0  # between B02 and B04: 68 and 15 with the offset; desert without it 1096
_FLOOR_B03_DN = 1500.0  # 1044 and 1166 with the offset
_FLOOR_B12_DN = 1700.0  # 1035 and 1200 with the offset; desert without it 2698
OFFSET_RULES: tuple[str, ...] = ("always", "baseline", "declared-or-baseline", "earth-search-v1", "none")


def baseline_number(baseline: str) -> float | None:
    """Read "05.11", "5.11" or "N0511" as 5.11; None when the text is not a baseline or not one of ESA's (99.99)."""
    match = re.fullmatch(r"N?(\d{2})(\d{2})|(\d{1,2}\.\d{1,2})", baseline.strip())
    if match is None:
        return None
    number = float(match[3] or f"{match[1]}.{match[2]}")
    return number if 0 < number < FOREIGN_BASELINE else None


def offset_from_rule(rule: str, *, baseline: str, declared: float | None, applied: bool | None) -> OffsetDecision:
    """Offset in DN (0 or -1000) by an archive's written rule; facts per archive: catalogs/README.md.

    `declared` is the reflectance offset of the metadata (raster:bands or raster:offset), `applied` the flag
    earthsearch:boa_offset_applied. ValueError names both facts when they contradict, or the one that is missing.
    """
    if rule == "none":
        return OffsetDecision(0, "rule none: the archive delivers DN without offset")
    if rule == "always":
        return OffsetDecision(HOUSE_ADD_OFFSET_DN, "rule always: every product of this collection carries the offset")
    if rule == "baseline":
        return _by_baseline(baseline)
    if rule == "declared-or-baseline":
        return _by_declaration(baseline, declared, applied)
    if rule == "earth-search-v1":
        return _by_flag(baseline, applied)
    msg = f"offset rule {rule!r} is unknown; expected one of {', '.join(OFFSET_RULES)}"
    raise ValueError(msg)


def _expected_dn(baseline: str) -> int | None:
    """Offset that ESA's product of this baseline carries; None when the baseline does not say."""
    number = baseline_number(baseline)
    if number is None:
        return None
    return HOUSE_ADD_OFFSET_DN if number >= OFFSET_BASELINE else 0


def _by_baseline(baseline: str) -> OffsetDecision:
    expected = _expected_dn(baseline)
    if expected is None:
        msg = f"processing baseline {baseline!r} does not say whether the BOA offset is in the DN"
        raise ValueError(msg)
    relation = ">=" if expected else "<"
    return OffsetDecision(expected, f"processing baseline {baseline} {relation} 04.00")


def _by_declaration(baseline: str, declared: float | None, applied: bool | None) -> OffsetDecision:
    """Take the declared offset where there is one, checked against the baseline; the baseline alone otherwise."""
    if applied:
        return OffsetDecision(0, "flag boa_offset_applied is true")
    if declared is None:
        return _by_baseline(baseline)
    offset_dn = round(declared / DN_SCALE)
    if offset_dn not in (0, HOUSE_ADD_OFFSET_DN):
        msg = f"declared offset {declared} is {offset_dn} DN; expected 0 or {HOUSE_ADD_OFFSET_DN}"
        raise ValueError(msg)
    expected = _expected_dn(baseline)
    if expected is None:
        return OffsetDecision(
            offset_dn, f"declared offset {declared}; baseline {baseline or 'absent'} cannot confirm it"
        )
    if expected != offset_dn:
        msg = f"declared offset {declared} ({offset_dn} DN) contradicts processing baseline {baseline} ({expected} DN)"
        raise ValueError(msg)
    return OffsetDecision(offset_dn, f"declared offset {declared}, confirmed by processing baseline {baseline}")


def _by_flag(baseline: str, applied: bool | None) -> OffsetDecision:
    """Earth Search v1: only the flag counts, and only where it is true (Element84/earth-search#9, #66, #71)."""
    if applied:
        return OffsetDecision(0, "flag earthsearch:boa_offset_applied is true")
    decision = _by_baseline(baseline)
    if decision.offset_dn == 0:
        return decision
    flag = "false" if applied is False else "absent"
    doubt = "this flag is known to be unreliable, the pixel audit must confirm"
    return OffsetDecision(
        decision.offset_dn, f"{decision.evidence} and flag earthsearch:boa_offset_applied is {flag}; {doubt}"
    )


def to_house_dn(stored: NDArray[np.uint16], offset_dn: int) -> NDArray[np.uint16]:
    """Stored DN -> DN of the convention reflectance = DN * 1e-4 - 0.1; any shape, `offset_dn` 0 or -1000.

    0 stays nodata, valid pixels stay at least 1 and at most 65535 (reflectance 6.4535).
    """
    shift = offset_dn - HOUSE_ADD_OFFSET_DN
    if shift == 0:
        return stored
    shifted = np.clip(stored.astype(np.int32) + shift, 1, np.iinfo(np.uint16).max)
    return np.where(stored == NODATA_DN, NODATA_DN, shifted).astype(np.uint16)


@dataclass(frozen=True)
class OffsetAudit:
    """What the pixels say about a claimed offset. `verdict` is "agrees", "contradicts" or "unknown"."""

    verdict: str
    fact: str


def audit_offset(sample_dn: Mapping[str, NDArray[np.uint16]], claimed: OffsetDecision) -> OffsetAudit:
    """Judge `claimed` by stored DN of B02, B03, B04 and B12 of one scene; arrays of any shape, 0 is nodata.

    Reflectance below -0.02 on 5 % of the ground does not exist, so DN below 800 means that no offset is in the pixels.
    The darkest ground of a scene reflects alike in blue, red and SWIR: floors together just above 1000 mean that it is.
    """
    valid = {band: dn[dn != NODATA_DN] for band, dn in sample_dn.items() if band in AUDIT_BANDS}
    valid = {band: dn for band, dn in valid.items() if dn.size >= _MIN_PIXELS}
    absent = [band for band in RGB if band not in valid]
    if absent:
        return OffsetAudit("unknown", f"fewer than {_MIN_PIXELS} valid pixels to audit in {', '.join(absent)}")
    floor = {band: float(np.percentile(dn, 1)) for band, dn in valid.items()}
    dark = {band: float(np.percentile(dn, 5)) for band, dn in valid.items()}
    shown = "1st percentile of stored DN " + ", ".join(f"{band} {floor[band]:.0f}" for band in sorted(floor))
    lowest = min(dark, key=lambda band: dark[band])
    if dark[lowest] < _IMPOSSIBLE_DN:
        found, why = 0, f"5 % of {lowest} lie below {max(dark[lowest], 1):.0f}, impossible with +1000 in the pixels"
    elif _piled_above_1000(floor):
        found, why = (
            HOUSE_ADD_OFFSET_DN,
            "dark ground piles up just above 1000 in every band, as with +1000 in the pixels",
        )
    else:
        return OffsetAudit("unknown", f"{shown}: too bright to tell")
    agrees = found == claimed.offset_dn
    said = f"the record says BOA offset {claimed.offset_dn} ({claimed.evidence})"
    joint = "and" if agrees else "but"
    return OffsetAudit("agrees" if agrees else "contradicts", f"{said} {joint} {shown}: {why}")


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
    """Audit a scene on a cheap, decimated look at its files. ReadError when one of them cannot be read."""
    from pipeline.archive.bandfile import BandFile, glance

    bands = [band for band in AUDIT_BANDS if band in scene.hrefs]
    return audit_offset({band: glance(BandFile.of(scene, band), access) for band in bands}, scene.offset)
