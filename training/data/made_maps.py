"""Maps of training images where no vector file is given: classes of `map_classes()` told from the colours alone.

They stand in for a map, so that a network learns to follow outlines. A real map has what they do not: roads, railways,
uses of land by name, and buildings that look like the ground around them. It also differs from the image in date and by
a shift. Where a vector file covers the images, use it (`training.triplets`).

Rules are on pixels averaged over several metres. Small areas are removed, and outlines are drawn anew: buildings as
rectangles of the same area and moments, all others from a grid of `CELL_M`. A map then tells where its classes end, and
nothing of the pixels inside.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from pipeline.bands import RGB
from pipeline.superres.map_classes import map_classes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Mask = NDArray[np.bool_]

CLASSES = tuple(one.name for one in map_classes())
MADE = ("building", "water", "wood", "farmland")  # the classes that are told from an image
CELL_M = 5.0  # of the grid on which areas are outlined
LOCAL_M, WIDE_M = 15.0, 80.0  # sides of averages: of colours and texture, and of the ground around buildings
LEAST_M2 = {"water": 400.0, "wood": 400.0, "farmland": 4000.0}
BUILDING_M2 = (40.0, 6000.0)
COMPACT, LONGEST = 0.6, 4.0  # least share of a building in its rectangle, and most ratio of the sides
SOUND = 1e-4  # reflectance, against division by 0


def made_map(pixels: NDArray[np.float32], gsd_m: float, bands: Sequence[str] = RGB) -> NDArray[np.uint8]:
    """Return the map (classes, n, m) of one image (bands, n, m), 0 or 1, each pixel of one class at most.

    pixels: reflectance; red, green, blue, and near infrared (B08) where it is given. Classes are those of
    `map_classes()` in their order; those that are not in `MADE` are empty.
    """
    image = np.clip(pixels, SOUND, None)
    found = {"building": _buildings(image, gsd_m, bands), **_areas(image, gsd_m, bands)}
    free = np.ones(pixels.shape[1:], bool)
    shown = np.zeros((len(CLASSES), *pixels.shape[1:]), np.uint8)
    for number, name in enumerate(CLASSES):
        if name in found:
            shown[number] = found[name] & free
            free &= ~found[name]
    return shown


def made_maps(pixels: NDArray[np.float32], gsd_m: float, bands: Sequence[str] = RGB) -> NDArray[np.uint8]:
    """Return the maps (B, classes, n, m) of images (B, bands, n, m). See `made_map`."""
    return np.stack([made_map(image, gsd_m, bands) for image in pixels])


def _areas(image: NDArray[np.float32], gsd_m: float, bands: Sequence[str]) -> dict[str, Mask]:
    """Return water, wood and farmland, told on cells and outlined smoothly."""
    from scipy import ndimage

    size = max(1, round(CELL_M / gsd_m))
    local = max(1, round(LOCAL_M / CELL_M))
    grey = image[:3].mean(0)
    cells, squares = _cells(image, size), _cells(grey[None] ** 2, size)[0]
    red, green, blue = (_mean(cells[list(bands).index(band)], local) for band in RGB)
    bright = (red + green + blue) / 3
    variance = _mean(squares, local) - _mean(cells[:3].mean(0), local) ** 2
    rough = np.sqrt(np.clip(variance, 0, None)) / (bright + 0.01)
    greenness = (2 * green - red - blue) / (red + green + blue)
    if "B08" in bands:
        infrared = _mean(cells[list(bands).index("B08")], local)
        wet = (green - infrared) / (green + infrared) > 0.05
        vital = (infrared - red) / (infrared + red) > 0.35
    else:
        smooth = ((greenness < 0.06) & (rough < 0.1)) | ((bright < 0.04) & (rough < 0.05))
        wet = (bright < 0.08) & (red < np.maximum(green, blue)) & smooth
        vital = greenness > 0.02
    water = wet & (rough < 0.3)
    wood = ~water & vital & (bright < 0.085) & (rough > 0.14)
    tilled = (rough < 0.16) & ((greenness > -0.02) | (red > 1.25 * blue))
    field = ~water & ~wood & tilled & (bright > 0.03) & (bright < 0.28)
    found = {}
    for name, mask in (("water", water), ("wood", wood), ("farmland", field)):
        least = LEAST_M2[name] / (size * gsd_m) ** 2
        voted = ndimage.uniform_filter(mask.astype(np.float32), 3, mode="nearest") > 0.5
        kept = _large(voted, least)
        filled = ~_large(~kept, least)
        found[name] = _outlined(filled, size, image.shape[1:])
    return found


def _buildings(image: NDArray[np.float32], gsd_m: float, bands: Sequence[str]) -> Mask:
    """Return rectangles in place of bright or reddish objects that are compact and as large as buildings."""
    from scipy import ndimage

    red, green, blue = (ndimage.gaussian_filter(image[list(bands).index(band)], 1.2 / gsd_m) for band in RGB)
    bright, ruddy = np.log(red + green + blue), np.log(red / green)
    around = max(3, round(WIDE_M / gsd_m) | 1)
    vital = (2 * green - red - blue) / (red + green + blue) > 0.03
    stands_out = (bright - _mean(bright, around) > 0.45) | (ruddy - _mean(ruddy, around) > 0.18)
    mask = ndimage.binary_opening(stands_out & ~vital, iterations=max(1, round(2.0 / gsd_m)))
    labels, count = ndimage.label(mask)
    shown = np.zeros(mask.shape, bool)
    for number, where in enumerate(ndimage.find_objects(labels, count), 1):
        _draw_rectangle(shown, np.argwhere(labels[where] == number) + [one.start for one in where], gsd_m)
    return shown


def _draw_rectangle(shown: Mask, at: NDArray[np.intp], gsd_m: float) -> None:
    """Draw the rectangle with area and second moments of pixels `at` (N, 2), unless they are no building."""
    area = len(at)
    if not BUILDING_M2[0] <= area * gsd_m**2 <= BUILDING_M2[1]:
        return
    centre = at.mean(0)
    moments = np.cov(at.T) + np.eye(2) / 12
    spread, axes = np.linalg.eigh(moments)
    sides = np.sqrt(12 * spread)
    if area / (sides[0] * sides[1]) < COMPACT or sides[1] > LONGEST * sides[0]:
        return
    sides = sides * math.sqrt(area / (sides[0] * sides[1]))
    reach = math.ceil(float(np.hypot(*sides)) / 2) + 1
    top, left = (max(0, int(c) - reach) for c in centre)
    part = shown[top : int(centre[0]) + reach + 1, left : int(centre[1]) + reach + 1]
    rows, columns = np.indices(part.shape)
    grid = np.stack([rows + top - centre[0], columns + left - centre[1]], -1)
    part |= (np.abs(grid @ axes) <= sides / 2).all(-1)


def _cells(image: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    """Return block means (c, h, w) of an image (c, n, m), whose last rows and columns are repeated to whole blocks."""
    extra = [(-side) % size for side in image.shape[1:]]
    padded = np.pad(image, ((0, 0), (0, extra[0]), (0, extra[1])), mode="edge")
    c, n, m = padded.shape
    found: NDArray[np.float32] = padded.reshape(c, n // size, size, m // size, size).mean((2, 4))
    return found


def _mean(image: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    from scipy import ndimage

    found: NDArray[np.float32] = ndimage.uniform_filter(image, side, mode="nearest")
    return found


def _large(mask: Mask, least: float) -> Mask:
    """Return the connected areas of at least `least` cells. Those cut by the border count four times: they go on."""
    from scipy import ndimage

    labels, count = ndimage.label(mask)
    areas = np.bincount(labels.ravel(), minlength=count + 1).astype(float)
    cut = np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]))
    areas[cut] *= 4
    areas[0] = 0
    found: Mask = (areas >= least)[labels]
    return found


def _outlined(mask: Mask, size: int, shape: tuple[int, ...]) -> Mask:
    """Return a mask of cells on the image's grid, with the outlines that interpolation between cells gives."""
    from scipy import ndimage

    smooth = ndimage.gaussian_filter(mask.astype(np.float32), 0.8, mode="nearest")
    rows, columns = ((np.arange(side) + 0.5) / size - 0.5 for side in shape)
    at = np.meshgrid(rows, columns, indexing="ij")
    found: Mask = ndimage.map_coordinates(smooth, at, order=1, mode="nearest") > 0.5
    return found
