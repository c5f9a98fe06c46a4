"""The phase pattern: a spurious pattern that a network repeats in every 10 m pixel, visible on flat ground.

Real slopes of reflectance also leave a pattern. Interpolation reproduces most of it, so the difference to interpolation
is measured, and the mean slope between the 10 m pixels of that difference is removed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy import ndimage

from pipeline.bands import BAND_NAMES, DN_SCALE, RGB, SCALE_10M
from training.data.tiles import BANDS
from training.quality import judge, product
from training.quality.product import DEFAULT, Way
from training.quality.tables import Record

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from pipeline.superres.system import System
    from training.quality.scenes import NativeScene

TABLE = "phase pattern"
WAYS = (DEFAULT, Way("sample"))
AROUND_PX = 5  # window in 10 m px for the local standard deviation
FLATTEST = 10.0  # percent of the pixels of a scene
SIDE_60M_PX = 40  # maximum side of a scene; 2.4 km have enough flat pixels to average out noise
CHANCE = "{} by chance"
INTERPOLATED = Way(consistency="none")


def flat_pixels(rgb: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return the 10 m pixels with the lowest local standard deviation of RGB (3, h, w), averaged over bands."""
    size = (0, AROUND_PX, AROUND_PX)
    values = rgb.astype(np.float64)
    mean = ndimage.uniform_filter(values, size, mode="nearest")
    variance = ndimage.uniform_filter(values**2, size, mode="nearest") - mean**2
    deviation = np.sqrt(variance.clip(0)).mean(0)
    flat: NDArray[np.bool_] = deviation <= np.percentile(deviation, FLATTEST)
    return flat


def pattern(image: NDArray[np.float32], flat: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the mean over flat blocks of pixel minus block mean, by phase (4, 4); `image` (4h, 4w), `flat` (h, w).

    The mean slope between block means is subtracted, so a ramp has no pattern, while a sawtooth keeps all of it.
    """
    h, w = flat.shape
    blocks = image.astype(np.float64).reshape(h, SCALE_10M, w, SCALE_10M).transpose(0, 2, 1, 3)
    means = blocks.mean((2, 3))
    down, right = (slope[flat].mean() / SCALE_10M for slope in np.gradient(means))
    offset = np.arange(SCALE_10M) - (SCALE_10M - 1) / 2
    plane = down * offset[:, None] + right * offset
    mean: NDArray[np.float64] = (blocks - means[..., None, None])[flat].mean(0) - plane
    return mean


def by_chance(image: NDArray[np.float32], flat: NDArray[np.bool_]) -> float:
    """Return the RMS of `pattern` expected from noise alone: the standard error of its means."""
    h, w = flat.shape
    blocks = image.astype(np.float64).reshape(h, SCALE_10M, w, SCALE_10M).transpose(0, 2, 1, 3)[flat]
    spread = (blocks - blocks.mean((1, 2), keepdims=True)).var(0).mean()
    return float(np.sqrt(spread / max(1, len(blocks))))


@torch.inference_mode()
def measure(system: System, plain: System, scenes: Sequence[NativeScene], seed: int = 0) -> list[Record]:
    """Measure the RMS in DN of the pattern relative to interpolation (`plain`), and that expected by chance, by band.

    One record per scene and product, with the shares of generated detail.
    """
    records = []
    for index, scene in enumerate(scenes):
        rho = {g: v[:, : SIDE_60M_PX * 60 // g, : SIDE_60M_PX * 60 // g].numpy() for g, v in scene.rho.items()}
        dn = {gsd: product.to_dn(values) for gsd, values in rho.items()}
        flat = flat_pixels(rho[10][: len(RGB)])
        smooth = product.store(dn, BANDS, plain, INTERPOLATED.options(plain), BAND_NAMES).rho.numpy()
        for way in WAYS:
            stored = product.store(dn, BANDS, system, way.options(system, seed, index), BAND_NAMES)
            values = judge.shares(stored.quality)
            for name, added in zip(BAND_NAMES, (stored.rho.numpy() - smooth) / DN_SCALE, strict=True):
                values[name] = float(np.sqrt((pattern(added, flat) ** 2).mean()))
                values[CHANCE.format(name)] = by_chance(added, flat)
            method = judge.label(system.name, way)
            records.append(Record(TABLE, scene.source, scene.place, index, method, values))
    return records
