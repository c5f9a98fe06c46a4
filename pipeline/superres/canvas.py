"""What windows are blended into: the output's bands, and images that later stages read."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import reduce
from typing import TYPE_CHECKING

import numpy as np

from pipeline.grid.grid import Window
from pipeline.superres.chain import at_gsd
from pipeline.superres.masks import fill_nearest

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from pipeline.superres.chain import Group
    from pipeline.superres.windows import Made, WindowResult

_WHOLE = 1 - 1e-3  # sum of blend weights that only rounding keeps from 1


class Handed:
    """Blended images of a group for the groups that read them: (draws, bands, *region), in px of the group's GSD."""

    def __init__(self, group: Group, cells: list[tuple[int, int]], draws: int) -> None:
        self.group = group
        self.region = reduce(Window.union, (group.lattice.support(*cell) for cell in cells))
        self.images = np.zeros((draws, len(group.handed), *self.region.shape), np.float32)
        self.total = np.zeros(self.region.shape, np.float32)  # of blend weights

    def add(self, cell: tuple[int, int], weight: NDArray[np.float32], images: list[NDArray[np.float32]]) -> None:
        """Blend in one window: (handed bands, T, T) of every draw."""
        support = self.group.lattice.support(*cell)
        into, of = support.slices(self.region), support.slices(self.group.lattice.window(*cell))
        for blended, one in zip(self.images, images, strict=True):
            blended[(slice(None), *into)] += weight * one[(slice(None), *of)]
        self.total[into] += weight

    def close(self) -> None:
        """Continue what windows without data left open, from the nearest pixels."""
        if (self.total >= _WHOLE).all():
            return
        known = self.total > 0
        scale = np.where(self.total < _WHOLE, np.maximum(self.total, np.float32(1e-6)), np.float32(1.0)).astype(
            np.float32
        )
        for image in self.images.reshape(-1, *self.region.shape):
            image[:] = fill_nearest(image / scale, known)

    def over(self, window: Window, gsd_m: float, draw: int, device: torch.device) -> Made:
        """What was blended over `window` (px of `gsd_m`), by stage and band; of one draw, or of the only one."""
        import torch

        where = at_gsd(window, gsd_m, self.group.gsd_m).slices(self.region)
        part = self.images[(min(draw, len(self.images) - 1), slice(None), *where)]
        tensor = torch.from_numpy(np.ascontiguousarray(part)).to(device)
        return {key: tensor[i][None, None] for i, key in enumerate(self.group.handed)}


@dataclass
class Canvas:
    """The output's bands over `area` (2.5 m px) in reflectance, the spread of draws, the weight of generated detail.

    `void` are the parts of the area in which nothing was measured and nothing is predicted.
    """

    area: Window
    order: tuple[str, ...]
    image: NDArray[np.float32]
    spread: NDArray[np.float32] | None
    detail: NDArray[np.float32]
    handed: dict[str, Handed] = field(default_factory=dict)  # by stage
    void: list[Window] = field(default_factory=list)
    windows: int = 0

    @classmethod
    def over(cls, area: Window, order: tuple[str, ...], *, spread: bool, generated: bool) -> Canvas:
        """An empty canvas; `generated`: whether networks run at all."""
        image = np.zeros((len(order), *area.shape), np.float32)
        detail = np.full(area.shape, float(generated), np.float32)
        return cls(area, order, image, np.zeros_like(image) if spread else None, detail)

    def part(self, group: Group, cell: tuple[int, int]) -> Window | None:
        """What a window gives of the output, px of 2.5 m; None where it only serves later groups."""
        if not group.bands:
            return None
        part = group.lattice.support(*cell).intersect(self.area)
        return None if part.empty else part

    def add(self, group: Group, cell: tuple[int, int], weight: NDArray[np.float32], found: WindowResult) -> None:
        """Blend in what a window gives of the output's bands."""
        part = self.part(group, cell)
        if found.mean is None or part is None:
            return
        support = group.lattice.support(*cell)
        share = weight[part.slices(support)]
        into, of = part.slices(self.area), part.slices(group.lattice.window(*cell))
        for i, band in enumerate(group.bands):
            row = self.order.index(band)
            self.image[(row, *into)] += share * found.mean[(i, *of)]
            if self.spread is not None and found.spread is not None:
                self.spread[(row, *into)] += share * found.spread[(i, *of)]

    def read_by(self, group: Group, window: Window, draw: int, device: torch.device) -> Made:
        """What a group reads of groups before it, over one of its windows."""
        read = {given.source for stage in group.stages for given in stage.reads}
        made: Made = {}
        for handed in {id(one): one for name, one in self.handed.items() if name in read}.values():
            made |= handed.over(window, group.gsd_m, draw, device)
        return made
