"""Which BOA offset still has to be added to a scene's stored DN: the written rule of each archive.

In: what a catalogue says of one scene (processing baseline, declared offset, "already applied" flag).
Out: an `OffsetDecision`. Raises ValueError, with both facts, where they contradict each other.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

from pipeline.archive.scene import OffsetDecision
from pipeline.bands import DN_SCALE, HOUSE_ADD_OFFSET_DN, NODATA_DN

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Processing baseline from which L2A products carry BOA_ADD_OFFSET = -1000 (Sentinel-2 Products Specification, 04.00).
OFFSET_BASELINE = 4.0
# Baseline numbers at or above this are not ESA's: CDSE lists reprocessings by its operator as 99.99.
FOREIGN_BASELINE = 90.0
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
