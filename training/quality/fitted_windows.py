"""Windows of a system that fit one image, for evaluation.

A run covers ground in windows of one size. An image of 64 px that is judged alone needs one small window of each stage.
Only stages that say so (`Stage.local`) get other windows. They keep the context around what counts, and the phase on
which networks with strides and squares of attention rely.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

from pipeline.bands import BLOCK_60M, TARGET_GSD_M
from pipeline.grid.grid import Window
from pipeline.grid.lattice import Lattice
from pipeline.superres.chain import cells_by_group, groups_of

if TYPE_CHECKING:
    from pipeline.superres.spec import Stage

PLACES = 128  # places tried for an image, every 60 m
TRIES = 8  # strides tried per stage, one after the other longer


@lru_cache(maxsize=64)
def fitted(
    stages: tuple[Stage, ...], order: tuple[str, ...], side_px: int, reach_px: int
) -> tuple[tuple[Stage, ...], int] | None:
    """Return stages of which each runs one window for an image, and the row and column at which the image has to lie.

    The image has `side_px` a side at 2.5 m, and is predicted `reach_px` beyond it. Return None if a stage that the
    bands of `order` need is not local, or shares its windows with another.
    """
    groups = groups_of(stages, order)
    if not groups or any(len(group.stages) != 1 or not group.stages[0].local for group in groups):
        return None
    chosen: dict[str, Lattice] = {}
    least_m = (side_px + 2 * reach_px) * TARGET_GSD_M
    first: int | None = None
    for count, group in enumerate(reversed(groups), 1):
        (stage,) = group.stages
        unit = math.lcm(math.gcd(stage.lattice.stride_px, stage.lattice.reach_px), stage.multiple_px)
        shortest, reach = -(-math.ceil(least_m / stage.gsd_m) // unit) * unit, stage.lattice.reach_px
        for stride in range(shortest, shortest + TRIES * unit, unit):
            chosen[stage.name] = Lattice(stride + 2 * reach, stride, 0, reach)
            first = _place(_with(stages, chosen), order, side_px, reach_px, count)
            if first is not None:
                break
        least_m = chosen[stage.name].window_px * stage.gsd_m
    return None if first is None else (_with(stages, chosen), first)


def _with(stages: tuple[Stage, ...], lattices: dict[str, Lattice]) -> tuple[Stage, ...]:
    return tuple(replace(stage, lattice=lattices[stage.name]) if stage.name in lattices else stage for stage in stages)


def _place(stages: tuple[Stage, ...], order: tuple[str, ...], side_px: int, reach_px: int, count: int) -> int | None:
    """Return the first place of the image at which each of the last `count` groups runs one window, or None."""
    groups = groups_of(stages, order)
    for first in range(0, PLACES * BLOCK_60M, BLOCK_60M):
        cells = cells_by_group(groups, [Window(first, first, side_px, side_px).pad(reach_px)])
        if all(len(of_group) == 1 for of_group in cells[-count:]):
            return first
    return None
