"""Choice of places that differ in land cover, for sheets: by brightness, greenness and texture of their windows.

Windows are compared by their ranks within a set, so that no threshold is needed and outliers count no more than others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.bands import RGB
from training.quality.metrics import average_gradient

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

PLACES = 3  # maximum number of places shown per set
WORDS = (("darker", "brighter"), ("less green", "greener"), ("smoother", "rougher"))  # below and above the median
CLEARLY = 1 / 6  # difference of ranks (0 to 1) from the median that a word stands for: the outer thirds
PRECISION = (0.005, 0.01, 0.01)  # of brightness, greenness and texture; smaller differences count as none
ALIKE = 0.2  # distance of ranks below which a place shows nothing new
EPSILON = 1e-6


@dataclass(frozen=True)
class Chosen:
    """Index of a chosen candidate and why it was chosen."""

    index: int
    why: str


def describe(image: Tensor, bands: Sequence[str]) -> tuple[float, float, float]:
    """Return brightness, greenness and texture of reflectance (bands, h, w).

    Mean of the visible bands; mean NDVI, or the excess green of chromatic coordinates without B08; mean gradient
    relative to the brightness. Without RGB, all bands count as visible, and greenness is 0.
    """
    planes = dict(zip(bands, image, strict=True))
    visible = image[[bands.index(band) for band in RGB]] if set(RGB) <= set(bands) else image
    brightness = float(visible.mean())
    greenness = 0.0
    if {"B04", "B08"} <= planes.keys():
        red, infrared = planes["B04"], planes["B08"]
        greenness = float(((infrared - red) / (infrared + red).clamp_min(EPSILON)).mean())
    elif len(visible) == len(RGB) and set(RGB) <= planes.keys():
        red, green, blue = visible
        greenness = float(((2 * green - red - blue) / visible.sum(0).clamp_min(EPSILON)).mean())
    return brightness, greenness, average_gradient(visible[None]) / max(brightness, EPSILON)


def choose(
    covers: Sequence[tuple[float, float, float]], places: Sequence[Hashable], count: int = PLACES
) -> list[Chosen]:
    """Choose at most `count` candidates that differ in land cover: the median one, then always the farthest.

    `places` are those of the candidates; each is used once before any is used again. Of equal candidates, the first is
    taken.
    """
    if not covers:
        return []
    ranks = _ranks((np.array(covers) / PRECISION).round())
    off_median = ranks - 0.5
    taken = [int(np.linalg.norm(off_median, axis=1).round(9).argmin())]
    while len(taken) < count:
        nearest = np.min([np.linalg.norm(ranks - ranks[index], axis=1) for index in taken], axis=0)
        shown = {places[index] for index in taken}
        new = nearest >= ALIKE
        elsewhere = new & np.array([place not in shown for place in places])
        if not new.any():
            break
        taken.append(int(np.where(elsewhere if elsewhere.any() else new, nearest, -1).round(9).argmax()))
    first = "the median of its set" if len(covers) > 1 else "the only place of its set"
    return [Chosen(index, _words(off_median[index]) if n else first) for n, index in enumerate(taken)]


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return mean ranks (n, k) in 0 to 1 of the columns of `values` (n, k). Equal values have equal ranks."""
    from scipy.stats import rankdata

    ranks: NDArray[np.float64] = (rankdata(values, axis=0) - 0.5) / len(values)
    return ranks


def _words(off_median: NDArray[np.float64]) -> str:
    """Return in what a candidate differs from the median of its set."""
    words = [pair[int(off > 0)] for pair, off in zip(WORDS, off_median, strict=True) if abs(off) >= CLEARLY]
    return f"{', '.join(words)} than most of its set" if words else "between those shown before"


def windows(height: int, width: int, side: int, step: int) -> list[tuple[slice, slice]]:
    """Return the windows of `side` px, or as large as fits, that tile the middle of an image.

    Corners and sides are multiples of `step` px.
    """
    spans = []
    for length in (height, width):
        size = min(side, length) // step * step
        count = length // size if size else 0
        first = (length - count * size) // 2 // step * step
        spans.append([slice(first + n * size, first + (n + 1) * size) for n in range(count)])
    return [(rows, columns) for rows in spans[0] for columns in spans[1]]
