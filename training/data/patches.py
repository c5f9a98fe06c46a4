"""Random patches of images as batches of reflectance, averaged by area to a GSD drawn per patch.

Pixels are read lazily and cached up to a limit, so small datasets are read once.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from pipeline.bands import RGB
from pipeline.errors import UsageError
from training.data import unreadable
from training.data.rasters import GAMMA_MEDIAN, harmonise, sample_gamma
from training.presets import SMALL_PX

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from training.data.images import Image
    from training.data.places import Split
    from training.data.rasters import Stored

    Parts = tuple[NDArray[np.float32], NDArray[np.float32] | None, NDArray[np.uint8] | None]

T = TypeVar("T", bound=np.generic)

CACHE_BYTES = 1_000_000_000  # of stored values, per process
WHOLE_BYTES = 32_000_000  # images up to this size are read whole; compressed formats require that anyway
CHUNK_PX = 1024  # larger images are read in squares of this side
TRIES = 8  # positions tried within one image before another is drawn
IMAGES_TRIED = 100  # before an error is raised
FLAT_PATCH, FLAT_KEPT = 0.03, 0.2  # patches below this `contrast` are kept with this probability
DISPLAY_GAMMA = float(GAMMA_MEDIAN.mean())  # of 8-bit aerial images
# Share of 8-bit crops with permuted channels, against overfitting to the colours of few sensors and cities. Calibrated
# reflectance has colours worth learning.
RECOLOURED = 0.25


@dataclass(frozen=True)
class Address:
    """A square within one image: its upper-left stored pixel, and the side and GSD of the patch."""

    image: int
    y: int
    x: int
    side_px: int  # of the patch, at `gsd_m`
    gsd_m: float


@dataclass(frozen=True)
class Patch:
    """Reflectance (bands, n, n) of a patch, its address, and the rotation and flip applied after reading.

    `coarse` (bands, n / scale, n / scale) is the coarse image of a pair, and `of_map` (n, n) the numbers of a map's
    classes, 0 for other ground; None where there is none.
    `turns`: quarter turns as in `np.rot90` over (y, x). `mirrored`: flipped left to right after the rotation.
    """

    pixels: NDArray[np.float32]
    address: Address
    turns: int
    mirrored: bool
    coarse: NDArray[np.float32] | None = None
    of_map: NDArray[np.uint8] | None = None

    def turned(self, raster: NDArray[np.generic]) -> NDArray[np.generic]:
        """Apply the rotation and flip of the patch to another raster (c, n, n) of the same ground."""
        return _turned(raster, self.turns, self.mirrored)


@dataclass(frozen=True)
class Chunk:
    """Stored values (bands, ny, nx) of a window of an image, and its valid pixels (ny, nx)."""

    stored: Stored
    valid: NDArray[np.bool_]

    def part(self, y: int, x: int, ny: int, nx: int) -> Chunk:
        """Return a window of the chunk, as views."""
        return Chunk(self.stored[:, y : y + ny, x : x + nx], self.valid[y : y + ny, x : x + nx])

    @property
    def nbytes(self) -> int:
        """Size of both arrays."""
        return self.stored.nbytes + self.valid.nbytes


def read_chunk(image: Image, y: int, x: int, ny: int, nx: int) -> Chunk:
    """Read a window of an image from its source."""
    stored = image.reader.read(y, x, ny, nx)
    return Chunk(stored, image.values.valid(stored, image.reader.mask(y, x, ny, nx)))


class ChunkCache:
    """LRU cache of image chunks. Pickles without its contents."""

    def __init__(self, limit_bytes: int = CACHE_BYTES) -> None:
        self.limit_bytes, self.held_bytes = limit_bytes, 0
        self._chunks: OrderedDict[tuple[int, int, int], Chunk] = OrderedDict()

    def __reduce__(self) -> tuple[type[ChunkCache], tuple[int]]:
        return type(self), (self.limit_bytes,)

    def window(self, index: int, image: Image, y: int, x: int, ny: int, nx: int) -> Chunk:
        """Return a window of `image`, as views if one chunk holds it. `index` is the cache key of the image."""
        size_y, size_x = chunk_shape(image)
        rows = range(y // size_y, (y + ny - 1) // size_y + 1)
        cols = range(x // size_x, (x + nx - 1) // size_x + 1)
        top, left = y - rows[0] * size_y, x - cols[0] * size_x
        if len(rows) == len(cols) == 1:
            return self._chunk(index, image, rows[0], cols[0]).part(top, left, ny, nx)
        parts = [[self._chunk(index, image, r, c) for c in cols] for r in rows]
        stored: Stored = np.concatenate([np.concatenate([c.stored for c in line], axis=2) for line in parts], axis=1)
        return Chunk(stored, np.block([[c.valid for c in line] for line in parts])).part(top, left, ny, nx)

    def _chunk(self, index: int, image: Image, row: int, col: int) -> Chunk:
        key = (index, row, col)
        found = self._chunks.get(key)
        if found is not None:
            self._chunks.move_to_end(key)
            return found
        size_y, size_x = chunk_shape(image)
        y, x = row * size_y, col * size_x
        height, width = image.reader.shape
        chunk = read_chunk(image, y, x, min(size_y, height - y), min(size_x, width - x))
        self._chunks[key] = chunk
        self.held_bytes += chunk.nbytes
        while self.held_bytes > self.limit_bytes and len(self._chunks) > 1:
            self.held_bytes -= self._chunks.popitem(last=False)[1].nbytes
        return chunk


def chunk_shape(image: Image) -> tuple[int, int]:
    """Return the height and width of the chunks in which an image is read."""
    height, width = image.reader.shape
    if len(image.bands) * height * width * image.reader.itemsize <= WHOLE_BYTES:
        return height, width
    return min(CHUNK_PX, height), min(CHUNK_PX, width)


class PatchSampler:
    """Sampler of random patches of one split as reflectance batches. A second, smaller size makes small images usable.

    Images are drawn in proportion to the square root of their area times their weight. GSDs are drawn uniformly from
    the image's range, limited to patches that fit. All randomness comes from the caller's generator. Pickles without
    its cache.
    """

    def __init__(
        self,
        images: Sequence[Image],
        split: Split,
        crop_px: int,
        small_px: int = SMALL_PX,
        small_share: float = 0.25,
        cache_bytes: int = CACHE_BYTES,
        recoloured: float = RECOLOURED,
        recoloured_reflectance: float = 0.0,
    ) -> None:
        self.images, self.split, self.crop_px, self.small_px = tuple(images), split, crop_px, small_px
        self.cache = ChunkCache(cache_bytes)
        self.recoloured, self.recoloured_reflectance = recoloured, recoloured_reflectance
        usable = [i for i, image in enumerate(self.images) if image.share(split) > 0]
        large = [i for i in usable if fits(self.images[i], crop_px)]
        small = [i for i in usable if fits(self.images[i], small_px) and not fits(self.images[i], crop_px)]
        self.pools = {small_px: small, crop_px: large}
        if not any(self.pools.values()):
            raise UsageError(
                f"no {split} image holds {min(crop_px, small_px)} px at its target_gsd_m, among {len(images)}",
                "larger images, or more places",
            )
        self.small_share = 1.0 if not large else small_share if small else 0.0
        self._odds = {size: self._odds_of(pool) for size, pool in self.pools.items() if pool}

    def batch(self, rng: np.random.Generator, images: int, views: int = 1) -> NDArray[np.float32]:
        """Draw reflectance (B * views, bands, n, n): `images` images at `crop_px`, or as many pixels at `small_px`.

        The `views` patches of one image are adjacent in the batch. They share GSD and radiometry but not position.
        """
        return np.stack([patch.pixels for patch in self.patches(rng, images, views)])

    def patches(self, rng: np.random.Generator, images: int, views: int = 1) -> list[Patch]:
        """Draw the patches of `batch` with their addresses, for tasks that look up a map of the same ground."""
        size = self.small_px if rng.random() < self.small_share else self.crop_px
        count = images if size == self.crop_px else round(images * (self.crop_px / size) ** 2)
        return [patch for _ in range(count) for patch in self._patches(size, views, rng)]

    def bounds(self, address: Address) -> tuple[str, tuple[float, float, float, float]] | None:
        """Return the CRS and (left, bottom, right, top) of an address, or None without a georeference."""
        image = self.images[address.image]
        if image.georeference is None:
            return None
        height, width = (address.side_px * address.gsd_m / native for native in image.gsd_m)
        rows, cols = np.meshgrid([address.y, address.y + height], [address.x, address.x + width], indexing="ij")
        x, y = image.georeference.ground(rows, cols)
        return image.georeference.crs, (float(x.min()), float(y.min()), float(x.max()), float(y.max()))

    def draw(self, rng: np.random.Generator, index: int, size: int, gsd_m: float) -> Address | None:
        """Draw an address in image `index` that lies entirely in this split, or None if none is found."""
        image = self.images[index]
        ny, nx = _window(image, size, gsd_m)
        free_y, free_x, step = image.reader.shape[0] - ny, image.reader.shape[1] - nx, image.coarse_px or 1
        if image.ground is None or image.split is not None:
            y, x = int(rng.integers(free_y + 1)), int(rng.integers(free_x + 1))
            return Address(index, y // step * step, x // step * step, size, gsd_m)
        blocks, n = image.ground.blocks(self.split), image.ground.block_px
        for _ in range(TRIES):
            row, col = blocks[int(rng.integers(len(blocks)))]
            y = min(max(int(row) * n + int(rng.integers(n)) - ny // 2, 0), free_y) // step * step
            x = min(max(int(col) * n + int(rng.integers(n)) - nx // 2, 0), free_x) // step * step
            if image.ground.holds(self.split, y, x, ny, nx):
                return Address(index, y, x, size, gsd_m)
        return None

    def read(self, address: Address) -> NDArray[np.float32] | None:
        """Read brightness or reflectance (bands, n, n) of an address, averaged by area.

        Returns None if any pixel of the window is not valid.
        """
        image = self.images[address.image]
        ny, nx = _window(image, address.side_px, address.gsd_m)
        chunk = self.cache.window(address.image, image, address.y, address.x, ny, nx)
        if not chunk.valid.all():
            return None
        ratio_y, ratio_x = (address.gsd_m / native for native in image.gsd_m)
        pixels = image.values.averaged(chunk.stored, ratio_y, ratio_x)
        return pixels[:, : address.side_px, : address.side_px]

    def _patches(self, size: int, views: int, rng: np.random.Generator) -> list[Patch]:
        """Draw `views` patches (bands, n, n) of one image: rotated, flipped, harmonised, no borders, few flat areas.

        Raises UsageError if no usable patch is found.
        """
        for _ in range(IMAGES_TRIED):
            index = self.pools[size][int(rng.choice(len(self.pools[size]), p=self._odds[size]))]
            image = self.images[index]
            low, high = image.target_gsd_m
            gsd_m = rng.uniform(low, max(low, min(high, *(side / size for side in image.extent_m))))
            found = [self._patch(index, size, gsd_m, rng) for _ in range(views)]
            patches = [patch for patch in found if patch is not None]
            if len(patches) < views:
                continue
            share = self.recoloured if image.values.encoded else self.recoloured_reflectance
            order = _recoloured(image.bands, rng) if rng.random() < share else np.arange(len(image.bands))
            gamma = sample_gamma(rng, image.bands) if image.values.encoded else None
            return [_ordered(patch, order, gamma) for patch in patches]
        unreadable.raise_any(image.label for image in self.images)
        raise UsageError(
            f"no patch that shows anything in {IMAGES_TRIED} images",
            "images that are not nodata, masked, black, white or flat throughout",
        )

    def _patch(self, index: int, size: int, gsd_m: float, rng: np.random.Generator) -> Patch | None:
        """Draw one patch, rotated and flipped; None if the image is unreadable or all positions are invalid or flat."""
        for _ in range(TRIES):
            address = self.draw(rng, index, size, gsd_m)
            if address is None:
                return None
            crop, read = None, False
            with unreadable.skipping(self.images[index].label):
                crop, read = self.read(address), True
            if not read:
                return None
            if crop is None:
                continue
            self.images[index].check(crop)
            if (
                contrast(crop[: len(self.images[index].bands)], self.images[index].values.encoded) > FLAT_PATCH
                or rng.random() < FLAT_KEPT
            ):
                turns, mirrored = int(rng.integers(4)), bool(rng.random() < 0.5)
                sharp, coarse, of_map = parted(self.images[index], _turned(crop, turns, mirrored))
                return Patch(sharp, address, turns, mirrored, coarse, of_map)
        return None

    def _odds_of(self, pool: Sequence[int]) -> NDArray[np.float64]:
        """Return sampling probabilities, proportional to weight * sqrt(area in this split) / mean target GSD."""
        odds: NDArray[np.float64] = np.empty(len(pool))
        for row, index in enumerate(pool):
            image = self.images[index]
            height_m, width_m = image.extent_m
            side_m = math.sqrt(height_m * width_m * image.share(self.split))
            odds[row] = image.weight * side_m / (sum(image.target_gsd_m) / 2)
        odds /= odds.sum()
        return odds


def parted(image: Image, pixels: NDArray[np.float32]) -> Parts:
    """Return the sharp and the coarse bands and the map of what an image's reader gives; None where there is none.

    `pixels` must begin at a coarse pixel, on either side of both axes.
    """
    count, step = len(image.bands), image.coarse_px
    if not step:
        return pixels, None, None
    coarse = np.ascontiguousarray(pixels[count : 2 * count, ::step, ::step])
    return pixels[:count], coarse, pixels[2 * count].astype(np.uint8) if len(pixels) > 2 * count else None


def _ordered(patch: Patch, order: NDArray[np.intp], gamma: NDArray[np.float64] | None) -> Patch:
    """Return a patch with its bands in another order, harmonised if `gamma` is given."""
    coarse = None if patch.coarse is None else patch.coarse[order]
    return replace(patch, pixels=_settled(patch.pixels[order], gamma), coarse=coarse)


def _recoloured(bands: Sequence[str], rng: np.random.Generator) -> NDArray[np.intp]:
    """Return an order of channels with red, green and blue permuted. Others, such as near infrared, stay in place."""
    order = np.arange(len(bands))
    colours = [place for place, band in enumerate(bands) if band in RGB] or list(order)
    order[colours] = rng.permutation(colours)
    return order


def _turned(raster: NDArray[T], turns: int, mirrored: bool) -> NDArray[T]:
    """Return a view of a raster (c, n, n), rotated by quarter turns, then flipped left to right if `mirrored`."""
    turned = np.rot90(raster, turns, axes=(1, 2))
    return turned[:, :, ::-1] if mirrored else turned


def _settled(pixels: NDArray[np.float32], gamma: NDArray[np.float64] | None) -> NDArray[np.float32]:
    """Return contiguous reflectance, harmonised if `gamma` is given."""
    return np.ascontiguousarray(pixels) if gamma is None else harmonise(pixels, gamma)


def contrast(pixels: NDArray[np.float32], encoded: bool) -> float:
    """Return the standard deviation (0 to 1) of 8-bit brightness, or of reflectance encoded as in 8-bit images.

    Dark fields count as much as bright ground of the same relative variation.
    """
    shown = pixels if encoded else np.clip(pixels, 0, 1) ** np.float32(DISPLAY_GAMMA)
    return float(shown.std())


def fits(image: Image, size: int) -> bool:
    """Return True if the image holds a patch of `size` px at its finest target GSD."""
    return min(image.extent_m) >= size * image.target_gsd_m[0] * (1 - 1e-9)


def _window(image: Image, size: int, gsd_m: float) -> tuple[int, int]:
    """Return the stored pixels (ny, nx) that a patch covers."""
    sides = [
        min(side, math.ceil(size * gsd_m / native - 1e-6))
        for side, native in zip(image.reader.shape, image.gsd_m, strict=True)
    ]
    return sides[0], sides[1]
