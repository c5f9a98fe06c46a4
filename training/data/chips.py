"""Crops of images at their evaluation GSD: held-out ones, for validation and evaluation, and sharp references."""

from __future__ import annotations

from typing import TYPE_CHECKING

from training.data import unreadable
from training.data.patches import parted, read_chunk
from training.data.rasters import Chip
from training.data.validity import largest_square

if TYPE_CHECKING:
    from training.data.images import Image
    from training.data.patches import Chunk
    from training.data.places import Split

CHIP_PX = 1024  # maximum side of an evaluated crop, taken from the centre
MIN_CHIP_PX = 32  # smaller crops are skipped: little remains within their borders
CHIPS_PER_IMAGE = 4  # maximum, where cells split an image


def held_out_chips(image: Image) -> list[Chip]:
    """Return the crops on which an image is evaluated, as `chips_of` its held-out places."""
    return chips_of(image, "held-out")


def chips_of(image: Image, split: Split) -> list[Chip]:
    """Return crops of an image at its evaluation GSD: its centre, or those of the largest squares of one split.

    If some pixels there are not valid, the crop is the largest valid square. Contrast plays no part in the choice.
    """
    (height, width), ratios = image.reader.shape, tuple(image.evaluate_gsd_m / native for native in image.gsd_m)
    limits = min(height, int(CHIP_PX * ratios[0])), min(width, int(CHIP_PX * ratios[1]))
    windows = [(image.place, 0, 0, height, width)]
    if image.ground is not None and image.split is None:
        n = image.ground.block_px
        windows = [
            (place, row * n, col * n, min(side * n, height - row * n), min(side * n, width - col * n))
            for place, row, col, side in image.ground.squares(split, CHIPS_PER_IMAGE)
        ]
    chips = []
    for place, top, left, ny, nx in windows:
        chunk = None
        with unreadable.skipping(image.label):
            chunk = _judged(image, (top, left, ny, nx), limits, ratios)
        if chunk is None:
            continue
        pixels, coarse, of_map = parted(image, image.values.averaged(chunk.stored, *ratios))
        image.check(pixels)
        values = image.values.encoded, image.weight, image.bands
        chips.append(Chip(image.source, place, image.evaluate_gsd_m, pixels, *values, coarse, of_map))
    return chips


def _judged(
    image: Image, window: tuple[int, int, int, int], limits: tuple[int, int], ratios: tuple[float, ...]
) -> Chunk | None:
    """Return a valid crop of a window: at its centre, else at the centre of a quarter; None if all are too small."""
    (top, left, ny, nx), step = window, image.coarse_px or 1
    size = min(ny, limits[0]), min(nx, limits[1])
    least = MIN_CHIP_PX * max(ratios)
    free = ny - size[0], nx - size[1]
    for down, right in ((2, 2), (1, 1), (1, 3), (3, 1), (3, 3)):  # quarters of what the window leaves free
        y, x = top + free[0] * down // 4, left + free[1] * right // 4
        chunk = _whole(read_chunk(image, y, x, *size), (y, x), image.coarse_px)
        if not chunk.valid.all():
            down_px, right_px, side = largest_square(chunk.valid)
            y, x = -(-y // step) * step + down_px, -(-x // step) * step + right_px
            chunk = _whole(chunk.part(down_px, right_px, side, side), (y, x), image.coarse_px)
        if min(chunk.valid.shape) >= least:
            return chunk
        if not any(free):
            break
    return None


def _whole(chunk: Chunk, corner: tuple[int, int], step: int) -> Chunk:
    """Return the part of a chunk at `corner` of an image that holds whole coarse pixels of `step` px; 0 for none."""
    if not step:
        return chunk
    first = [-at % step for at in corner]
    sides = [max(0, side - start) // step * step for side, start in zip(chunk.valid.shape, first, strict=True)]
    return chunk.part(first[0], first[1], sides[0], sides[1])
