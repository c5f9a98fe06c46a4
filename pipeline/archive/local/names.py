"""Sensing time, baseline, tile, platform and level from names of files and folders.

Sources: Sentinel-2 Products Specification (product and granule names, before and after December 2016), the COG buckets
of Element 84 (S2A_29UPU_20200620_0_L2A) and of AWS (tiles/29/U/PU/2020/6/20/0).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from typing import TYPE_CHECKING

from pipeline.archive.radiometry import baseline_number, offset_from_rule
from pipeline.archive.scene import OffsetDecision

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

# BigEarthNet writes T93021 for 09:30:21, and T94161 for what cannot be 09:41:61.
_TIME = r"(20\d{2})(\d{2})(\d{2})T(\d{1,2})(\d{2})(\d{2})(?!\d)"
_ALONE = r"(?<![A-Za-z0-9])"
# Of two times in a product's name the first is the sensing time; before December 2016 it is the one after V.
_SENSED = tuple(
    re.compile(pattern)
    for pattern in (
        rf"{_ALONE}S2[A-D]_MSIL[12][AC]_{_TIME}",
        rf"_V{_TIME}",
        rf"{_ALONE}T\d{{2}}[C-X][A-Z]{{2}}_{_TIME}",
        rf"{_ALONE}S2[A-D]_\d{{1,2}}[C-X][A-Z]{{2}}_(20\d{{2}})(\d{{2}})(\d{{2}})(?=_\d+_L[12][AC])",
    )
)
_ANY_TIME = re.compile(rf"(?<!\d){_TIME}")
_ANY_DATE = re.compile(r"(?<!\d)(20\d{2})([-_.]?)(0[1-9]|1[0-2])\2(0[1-9]|[12]\d|3[01])(?!\d)")
_BASELINE = re.compile(rf"{_ALONE}N(\d{{4}})(?![A-Za-z0-9])")
_TILE = re.compile(rf"{_ALONE}T(\d{{2}}[C-X][A-Z]{{2}})(?![A-Za-z0-9])")
_TILE_E84 = re.compile(rf"{_ALONE}S2[A-D]_(\d{{1,2}}[C-X][A-Z]{{2}})_20\d{{6}}_")
_PLATFORM = re.compile(rf"{_ALONE}S2([A-D])(?=_)")
_PRODUCT = re.compile(
    rf"{_ALONE}S2[A-D]_(?:MSIL2A_20\d{{6}}T|[A-Z]{{4}}_PRD_MSIL2A_|\d{{1,2}}[C-X][A-Z]{{2}}_20\d{{6}}_\d+_L2A)"
)
_LEVEL = re.compile(rf"(?:{_ALONE}(?:(?:S2)?MSI_?L?|Level[-_ ]?|L)|^)([12][A-C])(?![A-Za-z0-9])", re.IGNORECASE)


@dataclass(frozen=True)
class Names:
    """Names from the file's prefix outward: `near` up to the scanned folder, `far` the folders above it.

    A date or level outside the pattern of a product name counts only in `near`: further up it may be the day of a
    download.
    """

    near: tuple[str, ...]
    far: tuple[str, ...] = ()

    @classmethod
    def of(cls, prefix: str, place: Path, top: Path) -> Names:
        """Of files that begin with `prefix` in the folder `place`, found by a scan of `top`."""
        inside = place.relative_to(top).parts if place.is_relative_to(top) else ()
        near = (prefix, *reversed(inside), top.name)
        return cls(tuple(name for name in near if name), tuple(parent.name for parent in top.parents if parent.name))

    @property
    def all(self) -> tuple[str, ...]:
        """Nearest first."""
        return self.near + self.far


def product_name(names: Names) -> str:
    """The nearest name of a whole product; "" when there is none."""
    return next((name.removesuffix(".SAFE") for name in names.all if _PRODUCT.search(name)), "")


def sensing_time(names: Names) -> tuple[str, bool]:
    """(ISO 8601 with Z or "", whether it is exact to the second). ValueError where names give different days."""
    found = [(moment, exact, name) for name in names.all for moment, exact in _sensed(name)]
    for (one, _, name), (other, _, further) in pairwise(found):
        if one.date() != other.date():
            raise ValueError(f"{name} says {one.date()} and {further} says {other.date()}; expected one day")
    if not found:
        found = list(_loose(names.near))
    if not found:
        return "", False
    moment, exact, _ = next((entry for entry in found if entry[1]), found[0])
    return moment.isoformat().replace("+00:00", "Z"), exact


def baselines(names: Names) -> tuple[tuple[str, str], ...]:
    """(baseline such as "05.10", the name that states it), nearest first."""
    found = [(match, name) for name in names.all for match in _BASELINE.finditer(name)]
    return tuple((f"{match[1][:2]}.{match[1][2:]}", name) for match, name in found)


def offsets(names: Names) -> tuple[OffsetDecision, ...]:
    """BOA offsets by the baselines in names."""
    return tuple(
        OffsetDecision(decision.offset_dn, f"{decision.evidence}, by the name {name}")
        for baseline, name in baselines(names)
        if (decision := offset_of_baseline(baseline)) is not None
    )


def offset_of_baseline(baseline: str) -> OffsetDecision | None:
    """By the rule of ESA's products; None when the text is no baseline of ESA's."""
    if baseline_number(baseline) is None:
        return None
    return offset_from_rule("baseline", baseline=baseline, declared=None, applied=None)


def tile(names: Names) -> str:
    """MGRS tile such as "32TMS"; "" if no name states it."""
    found = _first(_TILE, names.all) or _first(_TILE_E84, names.all)
    return found[1].zfill(5) if found else ""


def platform(names: Names) -> str:
    """One of sentinel-2a to sentinel-2d; "" if no name states it."""
    found = _first(_PLATFORM, names.all)
    return f"sentinel-2{found[1].lower()}" if found else ""


def require_level_2a(*texts: str) -> None:
    """ValueError where the first text that states a level says Level-1: S2MSI1C, Level-1C, LEVEL1C, L1C, 1C."""
    for text in texts:
        levels = {found[1].upper() for found in _LEVEL.finditer(text)}
        if levels and "2A" not in levels:
            raise ValueError(f"{text} says Level-{min(levels)}; expected Level-2A")
        if levels:
            return


def _first(pattern: re.Pattern[str], names: Sequence[str]) -> re.Match[str] | None:
    return next((found for name in names if (found := pattern.search(name))), None)


def _sensed(name: str) -> Iterator[tuple[datetime, bool]]:
    """The sensing time of one name by the first pattern that fits it."""
    for pattern in _SENSED:
        found = pattern.search(name)
        if found and (moment := _moment(found.groups())) is not None:
            yield moment, len(found.groups()) > 3
            return


def _loose(near: Sequence[str]) -> Iterator[tuple[datetime, bool, str]]:
    """A time or date outside the known patterns: from the nearest name with exactly one, or year/month/day folders."""
    for name in near:
        times = {moment for found in _ANY_TIME.finditer(name) if (moment := _moment(found.groups()))}
        dates = {m for f in _ANY_DATE.finditer(name) if (m := _moment((f[1], f[3], f[4])))} if not times else set()
        if len(times | dates) == 1:
            yield (times | dates).pop(), bool(times), name
            return
        if times | dates:
            return  # it is unknown which of them is the sensing time
    for day, month, year in zip(near, near[1:], near[2:], strict=False):
        if re.fullmatch(r"20\d{2}", year) and re.fullmatch(r"\d{1,2}", month) and re.fullmatch(r"\d{1,2}", day):
            moment = _moment((year, month, day))
            if moment is not None:
                yield moment, False, f"{year}/{month}/{day}"
                return


def _moment(parts: Sequence[str]) -> datetime | None:
    year, month, day, hour, minute, second = (*(int(part) for part in parts), 0, 0, 0)[:6]
    try:
        return datetime(year, month, day, hour, minute, min(second, 59), tzinfo=UTC)
    except ValueError:
        return None
