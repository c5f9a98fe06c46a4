"""Lazy raster arrays, area averaging, and conversion of 8-bit brightness to reflectance."""

from __future__ import annotations

import math
import os
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.bands import RGB
from pipeline.errors import ReadError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
    from scipy.sparse import csr_array
    from xarray import DataArray

    Stored = NDArray[np.uint8] | NDArray[np.uint16] | NDArray[np.int16] | NDArray[np.float32]

# 8-bit aerial imagery to Sentinel-2-like reflectance: rho = (x / 255)^(1 / gamma_c), per channel R, G, B.
# Mean and covariance: `gamma_multivariate_normal` of opensr-degradation. Medians: DiffFuSR.
GAMMA_MEAN = np.array([0.33213, 0.32609, 0.35347])
GAMMA_COVARIANCE = np.array([[0.00592, 0.00508, 0.00445], [0.00508, 0.00494, 0.00446], [0.00445, 0.00446, 0.00486]])
_GAMMA_FACTOR = np.linalg.cholesky(GAMMA_COVARIANCE)
GAMMA_MEDIAN = np.array([0.3521, 0.3361, 0.3535])
GAMMA_RANGE = (0.15, 0.6)
# Near infrared from the same package: mean, and covariance with R, G, B and itself.
GAMMA_NIR_MEAN, GAMMA_NIR_COVARIANCE = 0.45706, np.array([0.00365, 0.00381, 0.00329, 0.01427])
GAMMA_BANDS = (*RGB, "B08")
_GAMMA_FACTOR_NIR = np.linalg.cholesky(
    np.vstack([np.column_stack([GAMMA_COVARIANCE, GAMMA_NIR_COVARIANCE[:3]]), GAMMA_NIR_COVARIANCE])
)
PLAUSIBLE = (-0.5, 2.0)  # mean reflectance of a patch; offsets and bright snow exceed 0..1
DARKEST = 1e-3  # smallest plausible maximum of a patch; water reflects more in blue
WORDS_SHOWN = 160  # maximum characters of a library's message


def default_data() -> Path:
    """Return the root folder of the imagery: $SEN2FINE_DATA, or shared/data beside the checkout."""
    return Path(os.environ.get("SEN2FINE_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))


@dataclass(frozen=True)
class Chip:
    """One image (bands, H, W) float32: 8-bit values / 255 if `encoded`, else reflectance.

    `coarse` (bands, H / scale, W / scale) is the coarse image of a pair, `of_map` (H, W) has the numbers of a map's
    classes, 0 for other ground.
    """

    source: str
    place: str
    gsd_m: float
    pixels: NDArray[np.float32]
    encoded: bool
    weight: float = 1.0
    bands: tuple[str, ...] = RGB
    coarse: NDArray[np.float32] | None = None
    of_map: NDArray[np.uint8] | None = None


@contextmanager
def unplaced() -> Iterator[None]:
    """Open and read files without georeferencing, as JPEG and PNG chips are, without a warning from rasterio.

    Reads need it too: xarray keeps a limited number of files open and opens those it closed again.
    """
    from rasterio.errors import NotGeoreferencedWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield


@contextmanager
def reading(label: str) -> Iterator[None]:
    """Convert read errors inside the block to ReadError with the label and the reader's message."""
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:
        words = " ".join(str(error.__cause__ or error).split())
        cure = "copy or download it again, or leave it out of the training file"
        raise ReadError(f"{label} cannot be read ({words[:WORDS_SHOWN]})", "a file that is whole", cure) from error


def check_reflectance(label: str, rho: NDArray[np.float32]) -> None:
    """Raise UsageError for implausible reflectance: a scale missing or applied twice, or undeclared nodata."""
    mean, largest = float(rho.mean()), float(np.abs(rho).max(initial=0))
    if not PLAUSIBLE[0] <= mean <= PLAUSIBLE[1] or 0 < largest < DARKEST:
        raise UsageError(
            f"{label} has numbers around {mean:.4g}",
            "reflectance, 0 to 1",
            "scale and offset of the source (reflectance = stored * scale + offset), or declare nodata in the file",
        )


def open_raster(path: Path | str) -> DataArray:
    """Open a raster file as a lazy chunked array (band, y, x) in its own dtype. Reads the header only.

    Raises ReadError if the file holds several images.
    """
    import rioxarray
    from xarray import DataArray

    with unplaced():
        array = rioxarray.open_rasterio(path, chunks={"band": -1, "y": 1024, "x": 1024})
    if not isinstance(array, DataArray):
        raise ReadError(f"{path} holds several images", "one image")
    return array


def area_matrix(n_in: int, ratio: float) -> csr_array:
    """Return the sparse matrix of exact area averaging from `n_in` pixels to floor(n_in / ratio)."""
    from scipy.sparse import csr_array

    n_out = int(n_in / ratio + 1e-6)
    edges = np.arange(n_out + 1) * ratio
    taps = math.ceil(ratio) + 1
    pixels = np.floor(edges[:-1, None] + 1e-9).astype(np.int32) + np.arange(taps, dtype=np.int32)
    shares = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    weights = (np.clip(shares, 0, None) / ratio).astype(np.float32)
    starts = np.arange(0, weights.size + 1, taps, dtype=np.int32)
    return csr_array((weights.ravel(), np.minimum(pixels, n_in - 1).ravel(), starts), shape=(n_out, n_in))


def area_average(pixels: NDArray[np.generic], ratio_y: float, ratio_x: float) -> NDArray[np.float32]:
    """Average (C, H, W) by area to (C, H/ratio_y, W/ratio_x). Ratios are input pixels per output pixel, at least 1."""
    bands, height, width = pixels.shape
    lines = pixels.transpose(1, 0, 2).astype(np.float32, order="C").reshape(height, bands * width)  # one copy
    down = area_matrix(height, ratio_y)
    across = down if (height, ratio_y) == (width, ratio_x) else area_matrix(width, ratio_x)
    rows = down @ lines
    columns = rows.reshape(-1, bands, width).transpose(2, 1, 0).reshape(width, -1)
    averages: NDArray[np.float32] = across @ columns
    return np.ascontiguousarray(averages.T).reshape(bands, len(rows), -1)


def harmonise(pixels: NDArray[np.float32], gamma: NDArray[np.float64]) -> NDArray[np.float32]:
    """Convert 8-bit values / 255 (C, H, W) to reflectance by a power law per channel; `gamma` (C,)."""
    exponent = (1.0 / gamma).astype(np.float32)[:, None, None]
    return np.power(np.clip(pixels, 0, 1), exponent, dtype=np.float32)


def sample_gamma(rng: np.random.Generator, bands: Sequence[str] = RGB) -> NDArray[np.float64]:
    """Draw gammas (len(bands),) for one image from the published distribution; bands of `GAMMA_BANDS`."""
    if set(bands) <= set(RGB):
        drawn = GAMMA_MEAN + _GAMMA_FACTOR @ rng.standard_normal(3)
    else:
        drawn = np.append(GAMMA_MEAN, GAMMA_NIR_MEAN) + _GAMMA_FACTOR_NIR @ rng.standard_normal(4)
    chosen: NDArray[np.float64] = drawn.clip(GAMMA_RANGE[0], GAMMA_RANGE[1])[_places(bands)]
    return chosen


def median_gamma(bands: Sequence[str] = RGB) -> NDArray[np.float64]:
    """Return the median gammas (len(bands),) for held-out images; for B08, the mean."""
    chosen: NDArray[np.float64] = np.append(GAMMA_MEDIAN, GAMMA_NIR_MEAN)[_places(bands)]
    return chosen


def _places(bands: Sequence[str]) -> list[int]:
    return [GAMMA_BANDS.index(band) for band in bands]
