"""Composites several scenes into one time step.

Every choice is made within a 60 m cell, so that a composite does not depend on where the grid ends.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from pipeline.archive.read.band_file import UNCLASSIFIED
from pipeline.grid.native_rasters import SCL_GSD_M, factor_at

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from pipeline.grid.grid import Window

# SCL classes (Sen2Cor) that hide the ground: nodata, saturated, cloud shadow, medium and high cloud, thin cirrus.
UNCLEAR_SCL: tuple[int, ...] = (0, 1, 3, 8, 9, 10)
_CELL_M = SCL_GSD_M  # on which the choice is made
_CELL_PX = factor_at(_CELL_M)
_FAR = np.int32(1 << 20)  # sorts after every DN


class Step(Protocol):
    """One scene over a grid. `dn` by GSD in metres: (band, y, x) canonical DN; a lookup may read files."""

    @property
    def window(self) -> Window:
        """Pixels of 2.5 m, edges on multiples of 60 m."""
        ...

    @property
    def dn(self) -> Mapping[int, NDArray[np.uint16]]:
        """By GSD in metres: (band, y, x), 0 is nodata."""
        ...

    @property
    def scl(self) -> NDArray[np.uint8] | None:
        """(y, x) classes at 20 m, None when the scene has none."""
        ...

    def seen(self, gsd_m: int, needed: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """(y, x) at `gsd_m`: True where any band has data; right at least where `needed`, of the same shape."""
        ...


class Composite(NamedTuple):
    """The composite of some steps, by GSD in metres.

    `dn` (band, y, x); `scl` (y, x) at 20 m, 7 for scenes without, 0 where nothing is valid; `clear` (y, x): the pixel
    is from a step that is clear there; `used`: positions of the steps that supplied a pixel.
    """

    dn: dict[int, NDArray[np.uint16]]
    scl: NDArray[np.uint8]
    clear: dict[int, NDArray[np.bool_]]
    used: tuple[int, ...]


def mosaic(steps: Iterable[Step]) -> Composite:
    """Best clear observation per 20 m cell, best scene first. Reads no more steps and DN than it needs.

    SCL and coverage decide before the bands of the chosen scenes are read. 10 m pixels follow their
    cell, 60 m pixels the majority of their nine. Where nothing is clear the first valid observation is taken, where no
    scene covers a whole cell the first that covers the pixel.
    """
    taken: list[Step] = []
    choice = np.full((0, 0), -1)
    for order, step in enumerate(steps):
        taken.append(step)
        if order == 0:
            choice = np.full(step.window.coarsen(_CELL_PX).shape, -1)
        choice[_whole(step, (choice < 0) & _clear(step))] = order
        if (choice >= 0).all():
            break
    for order, step in enumerate(taken):
        choice[_whole(step, choice < 0)] = order
    dn, clear, used = {}, {}, set()
    for gsd_m in taken[0].dn:
        dn[gsd_m], clear[gsd_m], suppliers = _assemble(taken, choice, gsd_m)
        used |= suppliers
    return Composite(dn, _assemble_scl(taken, choice), clear, tuple(sorted(used)))


def median(steps: Iterable[Step], pass_numbers: Sequence[int]) -> Composite:
    """Per pixel and band the median over passes of clear valid DN (mean of the middle two, half up).

    `pass_numbers`: the pass of each step; the steps of one pass, which overlap where tiles do, count once, as their
    mosaic. Where no pass is clear, and for SCL, what `mosaic` takes of all steps. `used`: steps that supplied a pixel.
    """
    taken = list(steps)
    members: dict[int, list[int]] = defaultdict(list)
    for order, number in enumerate(pass_numbers):
        members[number].append(order)
    fallback = mosaic(taken)
    mosaics = {number: mosaic([taken[order] for order in orders]) for number, orders in members.items()}
    used = {members[number][place] for number, composite in mosaics.items() for place in composite.used}
    observed = {gsd_m: _median(list(mosaics.values()), gsd_m) for gsd_m in fallback.dn}
    dn = {gsd_m: np.where(found > 0, found, fallback.dn[gsd_m]) for gsd_m, found in observed.items()}
    clear = {gsd_m: found.any(axis=0) | fallback.clear[gsd_m] for gsd_m, found in observed.items()}
    return Composite(dn, fallback.scl, clear, tuple(sorted(used)))


def _clear(step: Step) -> NDArray[np.bool_]:
    """(y, x) at 20 m: True where SCL does not hide the ground; everywhere without SCL."""
    if step.scl is None:
        return np.ones(step.window.coarsen(_CELL_PX).shape, bool)
    return ~np.isin(step.scl, UNCLEAR_SCL)


def _covered(step: Step, gsd_m: int, cells: NDArray[np.bool_], *, whole: bool) -> NDArray[np.bool_]:
    """(y, x) at 20 m: True where, within `cells`, the bands of `gsd_m` have data in the whole cell, or anywhere in it.

    0 in every band of a group is no data; 0 in one of them is a clipped dark pixel.
    """
    if not cells.any():
        return cells
    if gsd_m >= _CELL_M:
        n = gsd_m // _CELL_M
        return cells & _fine(step.seen(gsd_m, np.asarray(_blocks(cells, n).any((1, 3)))), n)
    n = _CELL_M // gsd_m
    blocks = _blocks(step.seen(gsd_m, _fine(cells, n)), n)
    return np.asarray(cells & (blocks.all((1, 3)) if whole else blocks.any((1, 3))))


def _whole(step: Step, cells: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(y, x) at 20 m: those of `cells` that every band group covers whole."""
    for gsd_m in step.dn:
        cells = _covered(step, gsd_m, cells, whole=True)
    return cells


def _touched(step: Step, cells: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(y, x) at 20 m: those of `cells` where any band group has any pixel."""
    found = np.zeros_like(cells)
    for gsd_m in step.dn:
        found |= _covered(step, gsd_m, cells & ~found, whole=False)
    return found


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


def _assemble(
    taken: list[Step], choice: NDArray[np.int_], gsd_m: int
) -> tuple[NDArray[np.uint16], NDArray[np.bool_], set[int]]:
    """(band, y, x) DN, (y, x) clear, suppliers: the chosen step per pixel, holes by the first clear, then first valid.

    Only steps that are chosen somewhere, or may fill a hole, are looked up.
    """
    native = _choice_at(choice, len(taken), gsd_m)
    clears = [_at(_clear(step), gsd_m) for step in taken]
    passes = [(order, native == order) for order in range(len(taken))]
    passes += [(order, (native < 0) & clear) for order, clear in enumerate(clears)]
    passes += [(order, native < 0) for order in range(len(taken))]
    empty = np.ones(native.shape, bool)
    clear, used, out = np.zeros(native.shape, bool), set(), None
    for order, allowed in passes:
        where = empty & allowed
        if not where.any():
            continue
        dn = taken[order].dn[gsd_m]
        where &= dn.any(axis=0)
        if where.all():
            out = dn  # all of one step: no copy
        else:
            out = np.zeros_like(dn) if out is None else out
            np.copyto(out, dn, where=where)
        np.copyto(clear, clears[order], where=where)
        empty &= ~where
        used |= {order} if where.any() else set()
    return (np.zeros_like(taken[0].dn[gsd_m]) if out is None else out), clear, used


def _assemble_scl(taken: list[Step], choice: NDArray[np.int_]) -> NDArray[np.uint8]:
    """(y, x) classes by the same choice; where there was none, of the first step that has any pixel in the cell."""
    out = np.zeros(choice.shape, np.uint8)
    rest = choice.copy()
    for order, step in enumerate(taken):
        rest[_touched(step, rest < 0)] = order
        np.copyto(out, UNCLASSIFIED if step.scl is None else step.scl, where=rest == order)
    return out


def _median(passes: list[Composite], gsd_m: int) -> NDArray[np.uint16]:
    """(band, y, x) at one GSD, 0 where no pass is clear; integers throughout."""
    dn = np.stack([one.dn[gsd_m] for one in passes]).astype(np.int32)
    seen = (dn > 0) & np.stack([one.clear[gsd_m] for one in passes])[:, None]
    count = seen.sum(axis=0)[None]
    ordered = np.sort(np.where(seen, dn, _FAR), axis=0)
    low = np.take_along_axis(ordered, np.maximum(count - 1, 0) // 2, axis=0)[0]
    high = np.take_along_axis(ordered, np.minimum(count // 2, len(passes) - 1), axis=0)[0]
    return np.where(count[0] > 0, (low + high + 1) // 2, 0).astype(np.uint16)
