"""Arrays that windows are blended into: stored bands by GSD, and images that later stages read."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import reduce
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from pipeline.bands import DN_OFFSET, DN_SCALE
from pipeline.grid.arrays import beside, blank, compact, divide, namespace, placed, tensor_of
from pipeline.grid.grid import Window
from pipeline.superres.chain import at_gsd
from pipeline.superres.masks import nearest_valid
from pipeline.superres.tiles import Tiles

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from numpy.typing import NDArray

    from pipeline.grid.arrays import Array
    from pipeline.superres.chain import Group
    from pipeline.superres.options import Options
    from pipeline.superres.passes import Pass
    from pipeline.superres.windows import Made, WindowResult

_WHOLE = 1 - 1e-3  # sum of blend weights that counts as 1 despite rounding


class Handed:
    """Blended images of a group for the groups that read them: (draws, bands, *region), in px of the group's GSD."""

    def __init__(self, group: Group, cells: list[tuple[int, int]], draws: int, device: torch.device) -> None:
        self.group = group
        self.region = reduce(Window.union, (group.lattice.support(*cell) for cell in cells))
        self.images = blank((draws, len(group.handed), *self.region.shape), device)
        self.total = np.zeros(self.region.shape, np.float32)  # of blend weights
        self._weight = group.lattice.weight()
        self._placed = beside(self._weight, device)

    def add(self, cell: tuple[int, int], images: list[Array]) -> None:
        """Blend in one window: (handed bands, T, T) of every draw."""
        support = self.group.lattice.support(*cell)
        into, of = support.slices(self.region), support.slices(self.group.lattice.window(*cell))
        for blended, one in zip(self.images, images, strict=True):
            there = blended[(slice(None), *into)]
            there += self._placed * one[(slice(None), *of)]
        self.total[into] += self._weight

    def over(self, window: Window, gsd_m: float, draw: int) -> Made:
        """Return what was blended over `window` (px of `gsd_m`), by stage and band, of one draw or of the only one.

        What windows without data left open is filled from the nearest pixels of `window` alone, so that it does not
        depend on which other windows are read.
        """
        where = at_gsd(window, gsd_m, self.group.gsd_m).slices(self.region)
        part = self.images[(min(draw, len(self.images) - 1), slice(None), *where)]
        tensor = tensor_of(compact(_filled(part, self.total[where])))
        return {key: tensor[i][None, None] for i, key in enumerate(self.group.handed)}


def _filled(images: Array, total: NDArray[np.float32]) -> Array:
    """Return images (bands, ny, nx), whose blend weights sum to `total` (ny, nx), without gaps; 0 if none is known."""
    known = total > 0
    if (total >= _WHOLE).all() or not known.any():
        return images
    open_to: NDArray[np.float32] = np.maximum(total, np.float32(1e-6))
    scale = placed(np.where(total < _WHOLE, open_to, np.float32(1.0)).astype(np.float32), images)
    rows, cols = (placed(index, images) for index in nearest_valid(known))
    return (images / scale)[:, rows, cols]


@dataclass
class Canvas:
    """Bands of one GSD over `area` (its px), the spread of draws, and the weight of generated detail, as far as held.

    `image` holds a plane for each band of `order`, likewise for its spread if draws are averaged, and one for the
    weight of detail of each of the `generating` groups. `void` lists the parts of the area in which nothing was
    measured and nothing is predicted.
    """

    gsd_m: float
    area: Window
    order: tuple[str, ...]
    image: Tiles
    generating: tuple[int, ...]  # numbers of groups
    spread: bool = False
    generated: bool = False
    void: list[Window] = field(default_factory=list)

    @classmethod
    def over(
        cls,
        gsd_m: float,
        area: Window,
        order: tuple[str, ...],
        device: torch.device,
        *,
        spread: bool,
        generated: bool,
        generating: tuple[int, ...],
    ) -> Canvas:
        """Return an empty canvas on a device. `generated`: whether networks run at all."""
        planes = len(order) * (1 + spread) + len(generating)
        return cls(gsd_m, area, order, Tiles(planes, device, area), generating, spread, generated)

    def part(self, tile: Tile) -> Window | None:
        """Return the part of the area that a window covers, in px of the canvas; None if it covers none of it."""
        part = tile.support(self.gsd_m).intersect(self.area)
        return None if part.empty else part

    def add(self, tile: Tile, bands: tuple[str, ...], found: WindowResult) -> None:
        """Blend in the `bands` of a window."""
        part = self.part(tile)
        if part is None:
            return
        mean, spread = found.mean[self.gsd_m], found.spread.get(self.gsd_m)
        of = part.slices(tile.window(self.gsd_m))
        share = tile.weight(self.gsd_m)[of]
        for first, begin, end in _runs([self.order.index(band) for band in bands]):
            rows = (slice(begin, end), *of)
            self.image.add(first, part, share, mean[rows])
            if self.spread and spread is not None:
                self.image.add(len(self.order) + first, part, share, spread[rows])

    def add_detail(self, number: int, tile: Tile, detail: Array) -> None:
        """Blend in the weight of generated detail over a window, (T, T) of the group `number`."""
        part = self.part(tile)
        if part is None:
            return
        of = part.slices(tile.window(self.gsd_m))
        coarse = block_means(detail, round(self.gsd_m / tile.group.gsd_m))
        plane = self.image.planes - len(self.generating) + self.generating.index(number)
        self.image.add(plane, part, tile.weight(self.gsd_m)[of], coarse[of][None])

    def dn(self, planes: slice, window: Window) -> Array:
        """Return float DN (n, ny, nx) of some bands, by their place in `order`, over `window`."""
        image = self.image.cut(planes, window)
        image -= np.float32(DN_OFFSET)
        divide(image, DN_SCALE)
        return image

    def spread_of(self, window: Window, band: int) -> Array:
        """Return the spread of one band, by its place in `order`, over `window` (ny, nx), in reflectance."""
        (image,) = self.image.cut(slice(len(self.order) + band, len(self.order) + band + 1), window)
        return image

    def detail_over(self, window: Window) -> Array:
        """Return the weight of generated detail over `window` (ny, nx): the least of all groups."""
        detail = blank(window.shape, self.image.device, float(self.generated))
        first = self.image.planes - len(self.generating)
        for one in self.image.cut(slice(first, None), window):
            detail = namespace(detail).minimum(detail, one)
        return detail

    def drop(self, row: float, col: float) -> None:
        """Drop what lies above `row` and left of `col`."""
        self.image.drop(row, col)
        self.void = [part for part in self.void if part.row_end > row or part.col_end > col]


def _runs(rows: Sequence[int]) -> list[tuple[int, int, int]]:
    """Return (first row, begin, end) of the runs of successive rows.

    >>> _runs([3, 4, 5, 1])
    [(3, 0, 3), (1, 3, 4)]
    """
    begins = [i for i, row in enumerate(rows) if not i or row != rows[i - 1] + 1]
    return [(rows[begin], begin, end) for begin, end in pairwise([*begins, len(rows)])]


@dataclass(frozen=True)
class Weights:
    """Blend weights over whole windows of a group, 0 in the margin, by GSD of its outputs."""

    by_gsd: dict[float, Array]

    @classmethod
    def of(cls, group: Group, device: torch.device) -> Weights:
        """Return the weights of a group on a device. At coarser GSDs they are block means, which sum to one as well."""
        margin = group.lattice.margin_px
        whole = np.pad(group.lattice.weight(), margin)
        factors = {output.gsd_m: round(output.gsd_m / group.gsd_m) for output in group.outputs}
        return cls({gsd_m: beside(block_means(whole, factor), device) for gsd_m, factor in factors.items()})


@dataclass(frozen=True)
class Tile:
    """One window of a group, on the grids of its outputs."""

    group: Group
    cell: tuple[int, int]
    weights: Weights

    def window(self, gsd_m: float) -> Window:
        """Return the whole window in px of `gsd_m`."""
        return at_gsd(self.group.lattice.window(*self.cell), self.group.gsd_m, gsd_m)

    def support(self, gsd_m: float) -> Window:
        """Return the part of the window whose weight is not zero, in px of `gsd_m`."""
        return at_gsd(self.group.lattice.support(*self.cell), self.group.gsd_m, gsd_m)

    def weight(self, gsd_m: float) -> Array:
        """Return the blend weight over the whole window, (T, T) of that GSD."""
        return self.weights.by_gsd[gsd_m]


def block_means(image: Array, factor: int) -> Array:
    """Return means over factor x factor blocks of (..., y, x)."""
    if factor == 1:
        return image
    ny, nx = image.shape[-2] // factor, image.shape[-1] // factor
    return image.reshape(*image.shape[:-2], ny, factor, nx, factor).mean((-3, -1))


class Canvases:
    """Everything that the windows of a pass are blended into: outputs by GSD, and images that later groups read."""

    def __init__(self, gsd_m: float, outputs: Sequence[Canvas]) -> None:
        """Take the canvases of a pass over px of `gsd_m`."""
        self.gsd_m = gsd_m
        self.by_gsd = {canvas.gsd_m: canvas for canvas in outputs}
        self.handed: dict[str, Handed] = {}  # by stage

    @classmethod
    def empty(cls, of: Pass, area: Window, options: Options, device: torch.device) -> Canvases:
        """Return empty canvases of a pass over `area`, in its px, on a device."""
        found = []
        for output in of.outputs:
            givers = {
                i: one for i, one in enumerate(of.groups) if output.gsd_m in (given.gsd_m for given in one.outputs)
            }
            generating = tuple(i for i, group in givers.items() if group.stages)
            found.append(
                Canvas.over(
                    output.gsd_m,
                    at_gsd(area, of.gsd_m, output.gsd_m),
                    output.bands,
                    device,
                    spread=options.members > 1 and any(group.varying for group in givers.values()),
                    generated=bool(generating),
                    generating=generating,
                )
            )
        return cls(of.gsd_m, found)

    def drop(self, row: float, col: float = math.inf) -> None:
        """Drop what lies above `row` and left of `col` (px of the pass) of all outputs."""
        for gsd_m, canvas in self.by_gsd.items():
            canvas.drop(row * self.gsd_m / gsd_m, col * self.gsd_m / gsd_m)

    def of(self, group: Group) -> list[tuple[Canvas, tuple[str, ...]]]:
        """Return the canvases that a group writes to, and which bands."""
        return [(self.by_gsd[output.gsd_m], output.bands) for output in group.outputs]

    def read_by(self, group: Group, window: Window, draw: int) -> Made:
        """Return what a group reads of earlier groups over one of its windows."""
        read = {name for stage in group.stages for name in stage.sources}
        made: Made = {}
        for handed in {id(one): one for name, one in self.handed.items() if name in read}.values():
            made |= handed.over(window, group.gsd_m, draw)
        return made
