"""Sources of real pairs: which files belong together, how far they are apart in space and time, which are refused."""

from __future__ import annotations

import os
import re
import statistics
import time
from dataclasses import dataclass, field, replace
from datetime import date
from typing import TYPE_CHECKING

import numpy as np

from pipeline.errors import ReadError
from pipeline.terminal import counted, show
from training.data.headers import Header, ground_gsd_m
from training.data.images import Image, Values, files_of, make_image
from training.data.pair_reader import LOCAL_CRS, reader_of
from training.data.registration import NOTHING, Registration, register

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from training.data.pair_reader import PairReader
    from training.data.training_file import Source

REGION_PX, REGIONS = 128, 3  # coarse pixels: larger images are registered in up to 3 x 3 regions of this side
MOST_VARYING_PX = 0.3  # coarse pixels: standard deviation of the shift between regions
LISTED = 5  # refused pairs that are named
SAYS_EVERY_S = 15.0
BRIGHT = 0.095  # reflectance: the darkest ground of many places is below, unless the BOA offset of -0.1 is missing


@dataclass
class RealPairs:
    """The usable pairs of a source as images, why others are refused, and what is known of them by label."""

    images: list[Image] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    found: dict[str, Registration] = field(default_factory=dict)
    days: dict[str, int] = field(default_factory=dict)  # between both images
    darkest: dict[str, float] = field(default_factory=dict)  # coarse reflectance: 1st percentile of the darkest band

    def words(self, source: Source) -> list[str]:
        """Return what a user should know: shifts, radiometry, time between the images, refused pairs."""
        lines = []
        if self.found:
            shifts = [float(np.hypot(*one.shift_px)) for one in self.found.values()]
            gains = [gain for one in self.found.values() for gain in one.gains]
            done = "corrected" if source.registered else "left in, as the source says"
            lines.append(
                f"{source.name}: {counted(len(shifts), 'pair')}, {statistics.median(shifts):.2f} coarse px apart in "
                f"the median and {max(shifts):.2f} at most ({done}); gains {min(gains):.2f} to {max(gains):.2f}"
            )
        gaps = sorted(self.days.values())
        known = f"{statistics.median(gaps):.0f} in the median, {gaps[-1]} at most" if gaps else "not known: give date"
        lines.append(f"{source.name}: days between sharp and coarse image: {known}")
        if self.darkest and (least := statistics.median(self.darkest.values())) > BRIGHT:
            lines.append(
                f"{source.name}: the darkest coarse pixels have a reflectance of {least:.2f}: if these are "
                "Sentinel-2 DN of baseline 04.00 or later, coarse_offset = -0.1 is missing"
            )
        if self.refused:
            named = "; ".join(f"{label}: {why}" for label, why in list(self.refused.items())[:LISTED])
            more = f" and {len(self.refused) - LISTED} more" if len(self.refused) > LISTED else ""
            lines.append(f"{source.name}: {counted(len(self.refused), 'pair')} refused: {named}{more}")
        return lines


def real_pairs_of(source: Source, scale: int) -> RealPairs:
    """Return the pairs of a source of role "pair", each registered. Reads their pixels once.

    Raises UsageError if files do not fit together or none is usable, ReadError if one cannot be read.
    """
    found, listed, said = RealPairs(), list(_listed(source)), time.monotonic()
    for done, (sharp, coarse, dates) in enumerate(listed):
        if time.monotonic() - said > SAYS_EVERY_S and os.environ.get("RANK", "0") == "0":
            said = time.monotonic()
            show(f"{source.name}: {done} of {len(listed)} pairs registered")
        _add(found, source, sharp, coarse, dates, scale)
    if not found.images:
        label, why = next(iter(found.refused.items()))
        raise source.fault(f"no usable pair among {len(listed)}; {label}: {why}", "images of the same ground")
    return found


def _add(found: RealPairs, source: Source, sharp: Path, coarse: Path, dates: int, scale: int) -> None:
    """Register one of `dates` pairs of a sharp image and add it, or the reason why not."""
    label = f"{sharp} with {coarse.name}"
    days = _days_apart(source, sharp, coarse)
    if days is not None and source.most_days and days > source.most_days:
        found.refused[label] = f"{days} days apart"
        return
    reader = reader_of(source, sharp, coarse, scale)
    try:
        measured, why = measure(reader)
    except ReadError as error:
        found.refused[label] = str(error)
        return
    if why:
        found.refused[label] = why
        return
    if days is not None:
        found.days[label] = days
    found.found[label] = measured
    found.darkest[label] = _darkest(reader)
    used = measured if source.registered else replace(measured, shift_px=(0.0, 0.0))
    found.images.append(_image(source, label, sharp, replace(reader, found=used), dates))


def _darkest(reader: PairReader) -> float:
    """Return the 1st percentile of the darkest coarse band in the first region."""
    first = next(iter(_regions(reader.coarse.place.shape)))
    return float(np.nanpercentile(reader.coarse.window(*first), 1, axis=(1, 2)).min())


def _image(source: Source, label: str, sharp: Path, reader: PairReader, dates: int) -> Image:
    place, scale = reader.coarse.place, reader.scale
    header = Header(reader.shape, 2 * len(source.offers), "float32", None, place.crs, place.at(0, 0, scale))
    gsd_m = max(ground_gsd_m(header))
    placed = header if place.crs != LOCAL_CRS else replace(header, crs="")
    weight = source.weight / dates
    stated = replace(
        source, target_gsd_m=(gsd_m, gsd_m), evaluate_gsd_m=gsd_m, gsd_m=gsd_m, weight=weight, values="reflectance"
    )  # as the reader gives it
    image = make_image(stated, label, sharp, placed, reader)
    return replace(image, values=Values(encoded=False), coarse_px=scale)


def measure(reader: PairReader) -> tuple[Registration, str]:
    """Return the registration of a pair, and why it is refused, or "". Raises ReadError."""
    regions = list(_regions(reader.coarse.place.shape))
    found = [one for one in (_measured_in(reader, *region) for region in regions) if not one.fault]
    if 2 * len(found) < len(regions) or not found:
        return NOTHING, _measured_in(reader, *regions[len(regions) // 2]).fault or "most of it cannot be registered"
    shifts = np.array([one.shift_px for one in found])
    varying = float(shifts.std(0).max())
    if varying > MOST_VARYING_PX:
        return NOTHING, f"the shift varies by {varying:.2f} coarse px within the image: not a shift alone"
    middle = np.median(shifts, axis=0)
    whole = Registration(
        (float(middle[0]), float(middle[1])),
        max(float(np.median([one.deviation_px for one in found])), varying / len(found) ** 0.5),
        float(np.median([one.correlation for one in found])),
        float(np.median([one.alike for one in found])),
        tuple(np.median([one.gains for one in found], axis=0).tolist()),
        tuple(np.median([one.offsets for one in found], axis=0).tolist()),
    )
    return whole, ""


def _regions(shape: tuple[int, int]) -> Iterator[tuple[int, int, int, int]]:
    """Yield (y, x, ny, nx) in coarse pixels: the whole image, or regions spread over it."""
    axes = []
    for side in shape:
        count = min(REGIONS, side // REGION_PX) if side > 2 * REGION_PX else 1
        size = side if count == 1 and side <= 2 * REGION_PX else REGION_PX
        axes.append([(round((i + 0.5) * side / count - size / 2), size) for i in range(count)])
    for y, ny in axes[0]:
        for x, nx in axes[1]:
            yield y, x, ny, nx


def _measured_in(reader: PairReader, y: int, x: int, ny: int, nx: int) -> Registration:
    s = reader.scale
    return register(reader.sharpened(s * y, s * x, s * ny, s * nx), reader.coarse.window(y, x, ny, nx), s)


def _listed(source: Source) -> Iterator[tuple[Path, Path, int]]:
    """Yield every sharp file with each of its coarse files, and how many it has. Raises UsageError without one."""
    for sharp in files_of(source):
        pattern = _pattern(source, sharp)
        found = sorted(path for path in sharp.parent.glob(pattern) if path.is_file() and path != sharp)
        if not found:
            raise source.fault(f"{sharp} has no coarse image {pattern}", "a file beside it", "correct coarse")
        for coarse in found:
            yield sharp, coarse, len(found)


def _pattern(source: Source, sharp: Path) -> str:
    """Return the glob of the coarse images of a sharp one, relative to its folder: {stem}, and {1} of the place."""
    groups: tuple[str, ...] = ()
    if source.place:
        match = re.search(source.place, str(sharp) if "/" in source.place else sharp.name)
        groups = match.groups() if match else ()
    text = source.coarse.replace("{stem}", sharp.stem)
    for number, group in enumerate(groups, 1):
        text = text.replace(f"{{{number}}}", group or "")
    return text


def _days_apart(source: Source, sharp: Path, coarse: Path) -> int | None:
    """Return the days between both images by the dates in their paths; None where `date` finds none."""
    one, other = _date_in(source.date, sharp), _date_in(source.date, coarse)
    return None if one is None or other is None else abs((one - other).days)


def _date_in(pattern: str, path: Path) -> date | None:
    found = re.search(pattern, str(path) if "/" in pattern else path.name) if pattern else None
    digits = re.sub(r"\D", "", found[1]) if found and found.groups() and found[1] else ""
    try:
        return date(int(digits[:4]), int(digits[4:6]), int(digits[6:8]))
    except ValueError:
        return None
