"""BOA offset rules: which offset still has to be added to a scene's stored DN, by the written rule of each archive."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

from pipeline.archive.scene import DOUBTED, OffsetDecision
from pipeline.bands import CANONICAL_OFFSET_DN, DN_SCALE, NODATA_DN

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Processing baseline from which L2A products carry BOA_ADD_OFFSET = -1000 (Sentinel-2 Products Specification, 04.00).
OFFSET_BASELINE = 4.0
# Baseline numbers at or above this are not ESA's: CDSE lists reprocessings by its operator as 99.99.
FOREIGN_BASELINE = 90.0
_ROUND_BASELINES = {(2, "1"), (5, "1")}  # 02.10 and 05.10; no archive has an L2A of 02.01 or 05.01
OFFSET_RULES: tuple[str, ...] = ("always", "baseline", "declared-or-baseline", "earth-search-v1", "none")


class Undecided(ValueError):
    """A scene's metadata do not determine its BOA offset: they are silent, or two statements contradict each other."""


def canonical_baseline(value: object) -> str:
    """Any spelling of a processing baseline as "05.09": 5.9, "5.09", "N0509", "0509", 509; "" for what is none.

    A JSON number loses its last zero, so one decimal stands for the baseline that exists: 5.1 is 05.10, 5.9 is 05.09.
    """
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return ""
    text = str(value).strip().upper().removeprefix("N")
    found = re.fullmatch(r"(\d{1,2})\.(\d{1,2})|(\d{1,2})(\d{2})|(\d)", text, re.ASCII)
    if found is None:
        return ""
    major, minor = found[1] or found[3] or found[5], found[2] or found[4] or "00"
    if len(minor) == 1:
        minor = f"{minor}0" if (int(major), minor) in _ROUND_BASELINES or minor == "0" else f"0{minor}"
    return f"{int(major):02d}.{minor}"


def baseline_number(baseline: str) -> float | None:
    """Read "05.11", "5.11" or "N0511" as 5.11; None when the text is not a baseline or not one of ESA's (99.99)."""
    text = canonical_baseline(baseline)
    number = float(text) if text else 0.0
    return number if 0 < number < FOREIGN_BASELINE else None


def expected_offset_dn(baseline: str) -> int | None:
    """Offset that ESA's product of this baseline carries; None when the baseline does not say."""
    number = baseline_number(baseline)
    if number is None:
        return None
    return CANONICAL_OFFSET_DN if number >= OFFSET_BASELINE else 0


def offset_from_rule(rule: str, *, baseline: str, declared: float | None, applied: bool | None) -> OffsetDecision:
    """Offset in DN (0 or -1000) by an archive's written rule; facts per archive: catalogs/README.md.

    `declared` is the reflectance offset of the metadata (raster:bands or raster:offset), `applied` the flag
    earthsearch:boa_offset_applied. Undecided names both facts when they contradict, or the one that is missing;
    ValueError an offset that no product has.
    """
    if rule == "none":
        return OffsetDecision(0, "rule none: the archive delivers DN without offset")
    if rule == "always":
        if applied:
            msg = "flag boa_offset_applied is true contradicts rule always (the offset is in every product)"
            raise Undecided(msg)
        if declared is not None:
            _check_declared(_declared_dn(declared), declared, CANONICAL_OFFSET_DN, baseline or "of this collection")
        return OffsetDecision(CANONICAL_OFFSET_DN, "rule always: every product of this collection carries the offset")
    if rule == "baseline":
        return _by_baseline(baseline, declared)
    if rule == "declared-or-baseline":
        return _by_declaration(baseline, declared, applied)
    if rule == "earth-search-v1":
        return _by_flag(baseline, applied)
    msg = f"offset rule {rule!r} is unknown; expected one of {', '.join(OFFSET_RULES)}"
    raise ValueError(msg)


def _by_baseline(baseline: str, declared: float | None = None) -> OffsetDecision:
    """By the baseline, which a declared offset must not contradict."""
    expected = expected_offset_dn(baseline)
    if expected is None:
        msg = f"processing baseline {baseline!r} does not say whether the BOA offset is in the DN"
        raise Undecided(msg)
    if declared is not None:
        _check_declared(_declared_dn(declared), declared, expected, baseline)
    relation = ">=" if expected else "<"
    return OffsetDecision(expected, f"processing baseline {baseline} {relation} 04.00")


def _by_declaration(baseline: str, declared: float | None, applied: bool | None) -> OffsetDecision:
    """Take the declared offset where there is one, checked against the baseline; the baseline alone otherwise."""
    if applied:
        return OffsetDecision(0, "flag boa_offset_applied is true")
    if declared is None:
        return _by_baseline(baseline)
    offset_dn = _declared_dn(declared)
    expected = expected_offset_dn(baseline)
    if expected is None:
        evidence = f"declared offset {declared}; baseline {baseline or 'absent'} cannot confirm it"
        return OffsetDecision(offset_dn, evidence, standing=DOUBTED)
    _check_declared(offset_dn, declared, expected, baseline)
    return OffsetDecision(offset_dn, f"declared offset {declared}, confirmed by processing baseline {baseline}")


def _declared_dn(declared: float) -> int:
    offset_dn = round(declared / DN_SCALE)
    if offset_dn not in (0, CANONICAL_OFFSET_DN):
        msg = f"declared offset {declared} is {offset_dn} DN; expected 0 or {CANONICAL_OFFSET_DN}"
        raise ValueError(msg)
    return offset_dn


def _check_declared(offset_dn: int, declared: float, expected: int, baseline: str) -> None:
    if expected != offset_dn:
        msg = f"declared offset {declared} ({offset_dn} DN) contradicts processing baseline {baseline} ({expected} DN)"
        raise Undecided(msg)


def _by_flag(baseline: str, applied: bool | None) -> OffsetDecision:
    """Earth Search v1: only the flag counts, and only where it is true (Element84/earth-search#9, #66, #71)."""
    if applied:
        return OffsetDecision(0, "flag earthsearch:boa_offset_applied is true")
    decision = _by_baseline(baseline)
    if decision.offset_dn == 0:
        return decision
    flag = "false" if applied is False else "absent"
    doubt = "this flag is known to be unreliable, the pixel audit must confirm"
    evidence = f"{decision.evidence} and flag earthsearch:boa_offset_applied is {flag}; {doubt}"
    return OffsetDecision(decision.offset_dn, evidence, standing=DOUBTED)


def to_canonical_dn(stored: NDArray[np.uint16], offset_dn: int) -> NDArray[np.uint16]:
    """Stored DN -> DN of the convention reflectance = DN * 1e-4 - 0.1; any shape, `offset_dn` 0 or -1000.

    0 stays nodata, valid pixels stay at least 1 and at most 65535 (reflectance 6.4535).
    """
    shift = offset_dn - CANONICAL_OFFSET_DN
    if shift == 0:
        return stored
    shifted = np.clip(stored.astype(np.int32) + shift, 1, np.iinfo(np.uint16).max)
    return np.where(stored == NODATA_DN, NODATA_DN, shifted).astype(np.uint16)
