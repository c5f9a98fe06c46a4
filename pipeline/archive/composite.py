"""Several scenes into one time step: which scenes belong together, which pixel of which scene is taken.

In: scenes, or their `Pixels` best scene first. Out: `Period`s, or one composite. Everything is decided within a 60 m
cell, so a composite does not depend on where the grid ends.
"""

from __future__ import annotations

from collections import defaultdict
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np

from pipeline.archive.scene import Period
from pipeline.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from pipeline.archive.cube import Pixels
    from pipeline.archive.scene import Scene

    Composite = tuple[dict[int, NDArray[np.uint16]], NDArray[np.uint8] | None]

COMPOSITES: tuple[str, ...] = ("none", "mosaic", "median")
# SCL classes (Sen2Cor) that hide the ground: nodata, saturated, cloud shadow, medium and high cloud, thin cirrus.
UNCLEAR_SCL: tuple[int, ...] = (0, 1, 3, 8, 9, 10)
_CELL_M = 20  # pixel of SCL, on which the choice is made
_FAR = np.int32(1 << 20)  # sorts behind every DN


def best_first(scenes: Iterable[Scene]) -> tuple[Scene, ...]:
    """Least cloudy first, unknown cloud cover last, then by id."""
    return tuple(sorted(scenes, key=lambda s: (s.cloud_pct is None, s.cloud_pct or 0.0, s.id)))


def periods(scenes: Sequence[Scene], composite: str) -> tuple[Period, ...]:
    """Time steps for `composite`: "none" makes one per solar day, "mosaic" and "median" one of everything.

    Periods come in order of time and name their scenes best first; their time is that of their earliest scene.
    """
    if composite not in COMPOSITES:
        raise UsageError(f"composite {composite!r} is unknown", f"one of {', '.join(COMPOSITES)}")
    if composite != "none":
        return (_period(scenes, composite),) if scenes else ()
    days: dict[str, list[Scene]] = defaultdict(list)
    for scene in scenes:
        days[solar_day(scene)].append(scene)
    return tuple(_period(days[day], "mosaic") for day in sorted(days))


def solar_day(scene: Scene) -> str:
    """Date of the local mean solar time (UTC + longitude / 15 h), so that no overpass is split at midnight UTC."""
    from shapely.geometry import shape

    footprint = shape(scene.footprint)
    part = max(footprint.geoms, key=lambda g: g.area) if footprint.geom_type == "MultiPolygon" else footprint
    return (_utc(scene) + timedelta(hours=part.centroid.x / 15)).date().isoformat()


def _utc(scene: Scene) -> datetime:
    moment = datetime.fromisoformat(scene.datetime_utc)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _period(scenes: Sequence[Scene], composite: str) -> Period:
    days = sorted({solar_day(scene) for scene in scenes})
    label = days[0] if len(days) == 1 else f"{days[0]}/{days[-1]}"
    earliest = min(scenes, key=lambda s: (_utc(s), s.id))
    return Period(label, earliest.datetime_utc, tuple(s.id for s in best_first(scenes)), composite)


def mosaic(steps: Iterable[Pixels]) -> Composite:
    """Best clear observation per 20 m cell, best scene first; (dn by GSD, scl). Reads no more steps than it needs.

    10 m pixels follow their cell, 60 m pixels the majority of their nine. Where nothing is clear the first valid
    observation is taken, where no scene covers a whole cell the first that covers the pixel.
    """
    taken: list[Pixels] = []
    choice = np.full((0, 0), -1)
    for order, step in enumerate(steps):
        taken.append(step)
        if order == 0:
            choice = np.full(step.grid.at_gsd(_CELL_M).shape, -1)
        choice[(choice < 0) & _clear(step) & _whole(step)] = order
        if (choice >= 0).all():
            break
    if len(taken) == 1:
        return dict(taken[0].dn), taken[0].scl
    for order, step in enumerate(taken):
        choice[(choice < 0) & _whole(step)] = order
    return {gsd_m: _assemble(taken, choice, gsd_m) for gsd_m in taken[0].dn}, _assemble_scl(taken, choice)


def median(steps: Iterable[Pixels]) -> Composite:
    """Per pixel and band the median of clear valid DN (mean of the middle two, half up); else what `mosaic` takes."""
    taken = list(steps)
    fallback, scl = mosaic(taken)
    return {gsd_m: _median(taken, gsd_m, fallback[gsd_m]) for gsd_m in fallback}, scl


def _clear(step: Pixels) -> NDArray[np.bool_]:
    """(y, x) at 20 m: True where SCL does not hide the ground; everywhere without SCL."""
    if step.scl is None:
        return np.ones(step.grid.at_gsd(_CELL_M).shape, bool)
    return ~np.isin(step.scl, UNCLEAR_SCL)


def _covered(step: Pixels, gsd_m: int, *, whole: bool) -> NDArray[np.bool_]:
    """(y, x) at 20 m: True where the bands of `gsd_m` have data in the whole cell, or anywhere in it.

    0 in every band of a group is no data; 0 in one of them is a clipped dark pixel.
    """
    covered = np.asarray((step.dn[gsd_m] != 0).any(axis=0))
    if gsd_m >= _CELL_M:
        return _fine(covered, gsd_m // _CELL_M)
    blocks = _blocks(covered, _CELL_M // gsd_m)
    return np.asarray(blocks.all((1, 3)) if whole else blocks.any((1, 3)))


def _whole(step: Pixels) -> NDArray[np.bool_]:
    """(y, x) at 20 m: True where every band group covers the whole cell."""
    cells: NDArray[np.bool_] = np.logical_and.reduce([_covered(step, gsd_m, whole=True) for gsd_m in step.dn])
    return cells


def _touched(step: Pixels) -> NDArray[np.bool_]:
    """(y, x) at 20 m: True where any band group has any pixel in the cell."""
    cells: NDArray[np.bool_] = np.logical_or.reduce([_covered(step, gsd_m, whole=False) for gsd_m in step.dn])
    return cells


def _blocks(image: NDArray[np.bool_], n: int) -> NDArray[np.bool_]:
    """(y, x) -> (y/n, n, x/n, n)."""
    return image.reshape(image.shape[0] // n, n, image.shape[1] // n, n)


def _fine(image: NDArray[np.bool_], n: int) -> NDArray[np.bool_]:
    return image.repeat(n, 0).repeat(n, 1)


def _at(cells: NDArray[np.bool_], gsd_m: int) -> NDArray[np.bool_]:
    """A mask of 20 m cells on the grid of `gsd_m`: repeated when finer, by majority when coarser."""
    if gsd_m <= _CELL_M:
        return _fine(cells, _CELL_M // gsd_m)
    n = gsd_m // _CELL_M
    majority: NDArray[np.bool_] = 2 * _blocks(cells, n).sum((1, 3)) > n * n
    return majority


def _choice_at(choice: NDArray[np.int_], count: int, gsd_m: int) -> NDArray[np.int_]:
    """`choice` on the grid of `gsd_m`; at 60 m what most of the nine cells chose, the better step on a tie."""
    if gsd_m <= _CELL_M:
        return choice.repeat(_CELL_M // gsd_m, 0).repeat(_CELL_M // gsd_m, 1)
    votes = np.stack([_blocks(choice == order, gsd_m // _CELL_M).sum((1, 3)) for order in range(count)])
    return np.where(votes.any(axis=0), votes.argmax(axis=0), -1)


def _assemble(taken: list[Pixels], choice: NDArray[np.int_], gsd_m: int) -> NDArray[np.uint16]:
    """(band, y, x): the chosen step per pixel, holes filled by the first clear, then by the first valid step."""
    native = _choice_at(choice, len(taken), gsd_m)
    out = np.zeros_like(taken[0].dn[gsd_m])
    for order, step in enumerate(taken):
        np.copyto(out, step.dn[gsd_m], where=native == order)
    for step, allowed in [(step, _at(_clear(step), gsd_m)) for step in taken] + [(step, True) for step in taken]:
        hole = ~out.any(axis=0)
        if not hole.any():
            break
        np.copyto(out, step.dn[gsd_m], where=hole & allowed)
    return out


def _assemble_scl(taken: list[Pixels], choice: NDArray[np.int_]) -> NDArray[np.uint8] | None:
    """(y, x) classes by the same choice; where there was none, of the first step that has any pixel in the cell."""
    if taken[0].scl is None:
        return None
    out = np.zeros_like(taken[0].scl)
    rest = choice.copy()
    for order, step in enumerate(taken):
        rest[(rest < 0) & _touched(step)] = order
        if step.scl is not None:
            np.copyto(out, step.scl, where=rest == order)
    return out


def _median(taken: list[Pixels], gsd_m: int, fallback: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """(band, y, x) at one GSD; integers throughout."""
    dn = np.stack([step.dn[gsd_m] for step in taken]).astype(np.int32)
    clear = np.stack([_at(_clear(step), gsd_m) for step in taken])[:, None]
    seen = (dn > 0) & clear
    count = seen.sum(axis=0)[None]
    ordered = np.sort(np.where(seen, dn, _FAR), axis=0)
    low = np.take_along_axis(ordered, np.maximum(count - 1, 0) // 2, axis=0)[0]
    high = np.take_along_axis(ordered, np.minimum(count // 2, len(taken) - 1), axis=0)[0]
    return np.where(count[0] > 0, (low + high + 1) // 2, fallback).astype(np.uint16)
