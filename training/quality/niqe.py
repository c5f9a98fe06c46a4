"""NIQE, how far an image's statistics are from those of sharp images; refitted, no reference image needed.

Mittal, Soundararajan and Bovik 2013, "Making a completely blind image quality analyzer". Images are luminance (H, W) in
display encoding, 0 to 255. Scores of models fitted to other images are not comparable. Unlike the authors' program,
products of neighbours do not wrap around at the edges of a block.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy import ndimage, special
from torch.nn import functional

from training.data.patches import DISPLAY_GAMMA

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    Array = NDArray[np.float64]

BLOCK_PX = 96
FEATURES = 36  # 18 at each of two scales
MOST = 255.0
_SIGMA_PX, _RADIUS_PX = 7 / 6, 3  # of the Gaussian window of local means and deviations
_CONSTANT = 1.0  # added to local deviations, in steps of 0..255
_SHARP = 0.75  # blocks for fitting: mean local deviation over the largest of the image
_LEAST_BLOCKS = 2  # whose covariance is defined
_SHAPES = np.arange(0.2, 10.001, 0.001)
_RATIOS = np.exp(2 * special.gammaln(2 / _SHAPES) - special.gammaln(1 / _SHAPES) - special.gammaln(3 / _SHAPES))


@dataclass(frozen=True, eq=False)
class Niqe:
    """Multivariate Gaussian of the features of sharp blocks: mean (36,), covariance (36, 36), number of blocks."""

    mean: Array
    covariance: Array
    blocks: int
    block_px: int = BLOCK_PX

    @classmethod
    def fit(cls, images: Iterable[Array], block_px: int = BLOCK_PX) -> Niqe:
        """Fit the sharp blocks of images. Images smaller than a block are skipped.

        Raises ValueError unless there are more blocks than features.
        """
        found = [_sharp(image, block_px) for image in images if min(image.shape) >= block_px]
        blocks = np.concatenate(found) if found else np.zeros((0, FEATURES))
        if len(blocks) <= FEATURES:
            msg = f"{len(blocks)} sharp blocks of {block_px} px; expected more than {FEATURES}, as many as features"
            raise ValueError(msg)
        return cls(blocks.mean(axis=0), np.cov(blocks, rowvar=False), len(blocks), block_px)

    def score(self, image: Array) -> float:
        """Return the distance of an image's blocks from the model (eq. 10), 0 at best; NaN for fewer than two blocks.

        Blocks without variation are left out.
        """
        if min(image.shape) < self.block_px:
            return math.nan
        blocks = features(image, self.block_px)[0]
        if len(blocks) < _LEAST_BLOCKS:
            return math.nan
        apart = self.mean - blocks.mean(axis=0)
        pooled = (self.covariance + np.cov(blocks, rowvar=False)) / 2
        return float(np.sqrt(max(0.0, apart @ np.linalg.pinv(pooled, hermitian=True) @ apart)))


def luminance(image: torch.Tensor) -> Array:
    """Return the mean of RGB reflectance (3, H, W) as 8-bit imagery shows it, (H, W) from 0 to 255."""
    shown: Array = MOST * image.double().clamp(0, 1).pow(DISPLAY_GAMMA).mean(0).numpy()
    return shown


def features(image: Array, block_px: int = BLOCK_PX) -> tuple[Array, Array]:
    """Return the features (n, 36) of the whole blocks of an image (H, W), and their mean local deviations (n,).

    Blocks without variation are left out. `block_px` is even. Raises ValueError for an image smaller than a block.
    """
    if min(image.shape) < block_px:
        msg = f"an image of {image.shape[0]} x {image.shape[1]} px; expected at least one block of {block_px} px"
        raise ValueError(msg)
    height, width = (side // block_px * block_px for side in image.shape)
    whole = image[:height, :width].astype(np.float64)
    normalised, deviation = mscn(whole)
    half = mscn(_halved(whole))[0]
    both = [_of_blocks(_blocks(normalised, block_px)), _of_blocks(_blocks(half, block_px // 2))]
    found = np.concatenate(both, axis=1)
    kept = np.isfinite(found).all(axis=1)
    return found[kept], _blocks(deviation, block_px).mean(axis=(1, 2))[kept]


def mscn(image: Array) -> tuple[Array, Array]:
    """Return mean-subtracted contrast-normalised coefficients (eqs. 1 to 3) and local deviations, both (H, W)."""

    def smooth(values: Array) -> Array:
        found: Array = ndimage.gaussian_filter(values, _SIGMA_PX, radius=_RADIUS_PX, mode="nearest")
        return found

    mean = smooth(image)
    deviation = np.sqrt(np.abs(smooth(image**2) - mean**2))
    return (image - mean) / (deviation + _CONSTANT), deviation


def aggd(x: Array) -> tuple[Array, Array, Array]:
    """Return shape, left and right scale (...) of asymmetric generalised Gaussians of the values x (..., n).

    By moment matching (Lasmar et al. 2009). The shape is limited to 0.2 to 10. NaN where all values have one sign.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        left, right = (np.sqrt((x**2 * side).sum(-1) / side.sum(-1)) for side in (x < 0, x > 0))
        skew = left / right
        ratio = np.abs(x).mean(-1) ** 2 / (x**2).mean(-1)
        ratio = ratio * (skew**3 + 1) * (skew + 1) / (skew**2 + 1) ** 2
    shape = np.interp(ratio, _RATIOS, _SHAPES)
    width = np.exp((special.gammaln(1 / shape) - special.gammaln(3 / shape)) / 2)
    return shape, left * width, right * width


def _of_blocks(x: Array) -> Array:
    """Return 18 features (n, 18) of the coefficients of blocks (n, b, b): theirs, and of products of neighbours."""
    shape, left, right = aggd(x.reshape(len(x), -1))
    found = [shape, (left + right) / 2]
    neighbours = (
        (x[:, :, :-1], x[:, :, 1:]),
        (x[:, :-1], x[:, 1:]),
        (x[:, :-1, :-1], x[:, 1:, 1:]),
        (x[:, :-1, 1:], x[:, 1:, :-1]),
    )
    for one, other in neighbours:
        shape, left, right = aggd((one * other).reshape(len(x), -1))
        mean = (right - left) * np.exp(special.gammaln(2 / shape) - special.gammaln(1 / shape))
        found += [shape, mean, left, right]
    return np.stack(found, axis=1)


def _sharp(image: Array, block_px: int) -> Array:
    """Return the features of the blocks that are nearly as sharp as the sharpest of the image."""
    found, deviation = features(image, block_px)
    kept: Array = found[deviation > _SHARP * deviation.max(initial=0)]
    return kept


def _blocks(image: Array, block_px: int) -> Array:
    """Return the blocks (n, b, b) of an image of whole ones."""
    rows, cols = (side // block_px for side in image.shape)
    split = image.reshape(rows, block_px, cols, block_px).swapaxes(1, 2)
    blocks: Array = split.reshape(rows * cols, block_px, block_px)
    return blocks


def _halved(image: Array) -> Array:
    """Return an image at half the size, by an antialiased cubic."""
    size = tuple(side // 2 for side in image.shape)
    found = functional.interpolate(torch.from_numpy(image)[None, None], size=size, mode="bicubic", antialias=True)
    halved: Array = found.double()[0, 0].numpy()
    return halved
