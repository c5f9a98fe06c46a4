"""Pairs made from one ground: a sharp image, and what a sensor sees of it, moved by a known part of a pixel."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy import ndimage

from tests.training.imagery import placed, write_raster
from training.degradation.degrade import Degradation, degrade

if TYPE_CHECKING:
    from pathlib import Path

GAINS, OFFSETS = (0.8, 0.9, 1.1, 0.7), (0.03, 0.02, -0.01, 0.05)


def ground(seed: int, side: int = 320, bands: int = 3) -> np.ndarray:
    """Reflectance (bands, side, side) of discs and lines on slopes, seen without aliasing."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side]
    image = np.full((side, side), 0.15)
    for _ in range(side // 2):
        row, col, radius = rng.integers(side), rng.integers(side), rng.integers(3, 16)
        image[(y - row) ** 2 + (x - col) ** 2 < radius**2] = rng.uniform(0.05, 0.4)
    image = ndimage.gaussian_filter(image, 0.8, mode="wrap")
    levels = np.linspace(0.8, 1.3, bands)[:, None, None]
    return (image * levels).astype(np.float32)


def moved(image: np.ndarray, dy: float, dx: float) -> np.ndarray:
    """The image (bands, h, w) whose pixel (y, x) shows what the given one has at (y + dy, x + dx); periodic."""
    shifted = [np.fft.ifft2(ndimage.fourier_shift(np.fft.fft2(band), (-dy, -dx))).real for band in image]
    return np.stack(shifted).astype(np.float32)


def seen(sharp: np.ndarray, shift_px: tuple[float, float], scale: int = 4, noise: float = 1e-3) -> np.ndarray:
    """Coarse reflectance (bands, h, w) with `GAINS` and `OFFSETS`, `shift_px` coarse pixels away from its place."""
    there = torch.from_numpy(moved(sharp, *(scale * shift for shift in shift_px)))[None]
    coarse = degrade(there, Degradation(noise=noise).of_scale(scale), torch.Generator().manual_seed(1))[0].numpy()
    gains, offsets = (np.array(of[: len(sharp)], np.float32)[:, None, None] for of in (GAINS, OFFSETS))
    return gains * coarse + offsets


def write_pair(
    folder: Path,
    name: str,
    left_m: float,
    top_m: float,
    shift_px: tuple[float, float],
    seed: int = 0,
    scale: int = 4,
    bands: int = 3,
    side: int = 320,
) -> tuple[Path, Path]:
    """`NAME/hr_20210704.tif` at 10 m / scale and `NAME/lr_20210707.tif` at 10 m, both in DN of 1e-4."""
    sharp = ground(seed, side, bands)
    stored = [np.rint(of * 1e4).astype(np.uint16) for of in (sharp, seen(sharp, shift_px, scale))]
    return (
        write_raster(folder / name / "hr_20210704.tif", stored[0], **placed(left_m, top_m, 10 / scale)),
        write_raster(folder / name / "lr_20210707.tif", stored[1], **placed(left_m, top_m, 10)),
    )
