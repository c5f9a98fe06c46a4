"""High-resolution images for training super-resolution: found, split by place, read lazily, brought to 2.5 m.

In: the folder of image sets. Out: `Chip`s (RGB, near 2.5 m) and random crops of them as reflectance.
Rasters are opened as lazy chunked arrays and only computed after they are reduced to the target GSD.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from xarray import DataArray

Split = Literal["train", "held-out"]
HELD_OUT_SHARE = 0.2
SPLIT_SALT = "place-1"  # changing it moves places between splits: weights trained before are then not comparable
METRES_PER_DEGREE = 111_320.0

# 8-bit aerial imagery to Sentinel-2-like reflectance: rho = (x / 255)^(1 / gamma_c), per channel R, G, B.
# opensr-degradation, `gamma_multivariate_normal` (mean and covariance); the medians are those of DiffFuSR's recipe.
GAMMA_MEAN = np.array([0.33213, 0.32609, 0.35347])
GAMMA_COVARIANCE = np.array([[0.00592, 0.00508, 0.00445], [0.00508, 0.00494, 0.00446], [0.00445, 0.00446, 0.00486]])
GAMMA_MEDIAN = np.array([0.3521, 0.3361, 0.3535])
GAMMA_RANGE = (0.15, 0.6)
RECOLOURED = 0.25  # share of crops whose channels change places: few sensors and cities must not teach what colour is


def default_data() -> Path:
    """The root of all imagery: $SEN2FINE_DATA, or ../shared/data beside the checkout."""
    return Path(os.environ.get("SEN2FINE_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))


@dataclass(frozen=True)
class Source:
    """One set of images: where, at which ground sampling distance, and which part of a file's name is its place."""

    name: str
    pattern: str  # glob below the root of the high-resolution images
    gsd_m: float | None  # None: from the georeferencing
    place: str  # regex; its groups name the place
    target_gsd_m: tuple[float, ...] = (2.5,)  # the first is used for evaluation, all for training
    family: str = ""  # sets that share places share a family
    weight: float = 1.0  # how often it is drawn, relative to its size
    evaluated: bool = True  # False for scales far from 2.5 m, which only widen training


SOURCES: tuple[Source, ...] = (
    # Six Californian cities; both sets come from the same flights, so they share their places.
    Source("naip_ca_0p6m", "naip_ca_0p6m/*.tif", 0.6, r"(\w+)_2020", (2.4, 1.9, 2.15), "naip_ca"),
    Source("naip_ca_1p2m", "naip_ca_1p2m/*.tif", 1.2, r"(\w+)_2020", (2.4, 2.0), "naip_ca"),
    Source("naip_misc", "naip_misc/naip_california_3857.tif", None, r"(naip_california)", (2.5, 2.0, 3.2)),
    Source("naip_midwest_1m", "naip_midwest_1m/*.png", 1.0, r"(sample_\d+)", (2.5, 2.0, 3.1)),
    Source("naip_2m", "naip_2m/*.tif", 2.0, r"(chip_\d+)", (2.5, 2.0)),
    Source("dubai_1m", "dubai_1m/*.jpg", 1.0, r"(tile\d+)", (2.5, 3.4), weight=0.6),
    Source("naip_iowa_1m", "naip_iowa_1m/*.jpg", 1.0, r"(m_\d+_[nesw]{2})", (2.5, 2.0, 3.1)),
    Source("naip_southwest_1m", "naip_southwest_1m/*.tif", None, r"(.+)\.tif", (2.5, 2.0, 3.2)),
    Source("joplin_0p6m", "joplin_0p6m/*.tif", 0.6, r"(pre_tile_\d+)", (2.4, 2.0, 2.9), weight=2.0),
    Source("connecticut_0p3m", "connecticut_0p3m/*.jpg", 0.3, r"(\d+)", (2.4, 2.0, 3.0), weight=2.0),
    Source("estonia_0p4m", "estonia_0p4m/*.jpg", 0.4, r"(harbour|town)", (2.4, 2.0, 2.8), weight=2.0),
    Source("neon_forest", "neon_forest/*_0p5m.png", 0.5, r"2019_(YELL_2_\d+)", (2.4, 2.0), evaluated=False),
    Source(
        "cir_2m_mississippi", "cir_2m_mississippi/*.tif", 2.0, r"(.+)\.tif", (2.5, 2.0), weight=0.5, evaluated=False
    ),
    Source("naip_prairie_5m", "naip_prairie_5m/*.tif", 5.0, r"(m_\d+_[nesw]{2})", (5.0,), weight=0.3, evaluated=False),
    Source("ngi_south_africa_5m", "ngi_south_africa_5m/*.tif", 5.0, r"(ngi)", (5.0,), weight=0.3, evaluated=False),
)


@dataclass(frozen=True)
class Chip:
    """One RGB image, (3, H, W) float32. `encoded` images are 8-bit values / 255, others reflectance."""

    source: str
    place: str
    gsd_m: float
    pixels: NDArray[np.float32]
    encoded: bool
    weight: float = 1.0

    @property
    def split(self) -> Split:
        """The split of its place."""
        return split_of(self.place)


def split_of(place: str) -> Split:
    """The split of a place, by a hash of its name: stable whatever other places there are."""
    digest = hashlib.sha256(f"{SPLIT_SALT}/{place}".encode()).digest()
    return "held-out" if int.from_bytes(digest[:4]) / 2**32 < HELD_OUT_SHARE else "train"


def place_of(source: Source, path: Path) -> str:
    """Name of the place that the file shows. Raises ValueError where the file's name does not tell."""
    found = re.search(source.place, path.name)
    if found is None:
        msg = f"{path.name} names no place of {source.name}; expected a match of {source.place!r}"
        raise ValueError(msg)
    return f"{source.family or source.name}/{found.group(1)}"


def open_raster(path: Path) -> DataArray:
    """Any raster file as a lazy chunked array (band, y, x) in its own dtype. Nothing is read but the header."""
    import rioxarray
    from rasterio.errors import NotGeoreferencedWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # JPEG and PNG chips carry no georeferencing
        array: DataArray = rioxarray.open_rasterio(path, chunks={"band": -1, "y": 1024, "x": 1024})
    return array


def ground_gsd_m(raster: DataArray) -> tuple[float, float]:
    """Ground sampling distance (y, x) in metres of a georeferenced raster: geographic, Web Mercator or metric CRS."""
    dx, dy = (abs(float(r)) for r in raster.rio.resolution())
    if raster.rio.crs.is_geographic:
        latitude = math.radians(float(raster.y.mean()))
        return dy * METRES_PER_DEGREE, dx * METRES_PER_DEGREE * math.cos(latitude)
    if raster.rio.crs.to_epsg() == 3857:
        shrink = 1 / math.cosh(float(raster.y.mean()) / 6_378_137.0)  # cos(latitude) from Mercator northing
        return dy * shrink, dx * shrink
    return dy, dx


def area_weights(n_in: int, ratio: float) -> NDArray[np.float32]:
    """Exact area averaging of `n_in` pixels into pixels `ratio` times as wide: (floor(n_in / ratio), n_in)."""
    n_out = int(n_in / ratio + 1e-6)
    edges = np.arange(n_out + 1) * ratio
    lower = np.maximum(edges[:-1, None], np.arange(n_in)[None])
    upper = np.minimum(edges[1:, None], np.arange(1, n_in + 1)[None])
    weights: NDArray[np.float32] = (np.clip(upper - lower, 0, None) / ratio).astype(np.float32)
    return weights


def area_average(pixels: NDArray[np.float32], ratio_y: float, ratio_x: float) -> NDArray[np.float32]:
    """(C, H, W) -> (C, H/ratio_y, W/ratio_x) by area; ratios of at least 1, in input pixels per output pixel."""
    rows = area_weights(pixels.shape[1], ratio_y)
    columns = area_weights(pixels.shape[2], ratio_x)
    return np.ascontiguousarray(np.einsum("yh,chw,xw->cyx", rows, pixels, columns, optimize=True))


def load_chip(path: Path, source: Source, target_gsd_m: float) -> Chip:
    """Read one file and average it to `target_gsd_m`."""
    raster = open_raster(path)
    gsd_y, gsd_x = (source.gsd_m, source.gsd_m) if source.gsd_m else ground_gsd_m(raster)
    encoded = raster[:3].astype("float32").data.compute(scheduler="synchronous") / np.float32(255.0)
    pixels = area_average(encoded, target_gsd_m / gsd_y, target_gsd_m / gsd_x)
    weight = source.weight / len(source.target_gsd_m)
    return Chip(source.name, place_of(source, path), target_gsd_m, pixels, encoded=True, weight=weight)


def load_chips(root: Path, split: Split, sources: Sequence[Source] = SOURCES) -> list[Chip]:
    """All chips of one split below `root`: at every target GSD for training, at the first for evaluation."""
    chips: list[Chip] = []
    for source in sources:
        for path in sorted(root.glob(source.pattern)):
            if split_of(place_of(source, path)) != split:
                continue
            targets = source.target_gsd_m if split == "train" else source.target_gsd_m[:1]
            chips.extend(load_chip(path, source, target) for target in targets)
    return chips


def harmonise(pixels: NDArray[np.float32], gamma: NDArray[np.float64]) -> NDArray[np.float32]:
    """8-bit values / 255 (3, H, W) to reflectance by a power law per channel; `gamma` (3,)."""
    exponent = (1.0 / gamma).astype(np.float32)[:, None, None]
    return np.power(np.clip(pixels, 0, 1), exponent, dtype=np.float32)


def sample_gamma(rng: np.random.Generator) -> NDArray[np.float64]:
    """Gammas (3,) for one image from the published distribution."""
    drawn = rng.multivariate_normal(GAMMA_MEAN, GAMMA_COVARIANCE)
    return drawn.clip(GAMMA_RANGE[0], GAMMA_RANGE[1])


class ChipSampler:
    """Random crops of chips as reflectance batches; two crop sizes so that small chips count too."""

    def __init__(self, chips: Sequence[Chip], crop_px: int, small_px: int = 64, small_share: float = 0.25) -> None:
        usable = [chip for chip in chips if float(chip.pixels.std()) > 0.02]  # open water and sand teach nothing
        self.pools = {
            crop_px: [c for c in usable if min(c.pixels.shape[1:]) >= crop_px],
            small_px: [c for c in usable if small_px <= min(c.pixels.shape[1:]) < crop_px],
        }
        self.crop_px, self.small_px = crop_px, small_px
        self.small_share = small_share if self.pools[small_px] else 0.0
        if not self.pools[crop_px]:
            msg = f"no training image of at least {crop_px} px among {len(chips)}"
            raise ValueError(msg)
        self._odds = {size: _odds(pool) for size, pool in self.pools.items() if pool}

    def batch(self, rng: np.random.Generator, images: int) -> NDArray[np.float32]:
        """About `images` crops of `crop_px`, or as many pixels in crops of `small_px`: (B, 3, n, n) reflectance."""
        size = self.small_px if rng.random() < self.small_share else self.crop_px
        count = images if size == self.crop_px else round(images * (self.crop_px / size) ** 2)
        chosen = rng.choice(len(self.pools[size]), size=count, p=self._odds[size])
        return np.stack([random_crop(self.pools[size][i], size, rng) for i in chosen])


def _odds(pool: Sequence[Chip]) -> NDArray[np.float64]:
    """Draw chips by the square root of their area times their set's weight: large sets lead but do not drown others."""
    odds: NDArray[np.float64] = np.array([chip.weight * math.sqrt(chip.pixels[0].size) for chip in pool])
    odds /= odds.sum()
    return odds


def random_crop(chip: Chip, size: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """One crop (3, size, size), turned and flipped, harmonised; avoids black borders and most flat places."""
    _, h, w = chip.pixels.shape
    for _ in range(8):
        y, x = int(rng.integers(h - size + 1)), int(rng.integers(w - size + 1))
        crop = chip.pixels[:, y : y + size, x : x + size]
        black = float((crop.max(axis=0) == 0).mean())
        if black < 0.002 and (float(crop.std()) > 0.03 or rng.random() < 0.2):
            break
    crop = np.rot90(crop, int(rng.integers(4)), axes=(1, 2))
    crop = crop[:, :, ::-1] if rng.random() < 0.5 else crop
    crop = crop[rng.permutation(3)] if rng.random() < RECOLOURED else crop
    return harmonise(crop, sample_gamma(rng)) if chip.encoded else np.ascontiguousarray(crop)
