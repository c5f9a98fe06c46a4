"""The sensor model: what a band would have measured of an image, and the correction that makes an image agree with it.

A native pixel of factor k (4, 8 or 24 px a side) sees the image through a Gaussian, truncated k px from its centre, and
averages over itself. The Gaussian follows from the MTF of the band at its Nyquist frequency; the pixel average alone
has an MTF of 2/pi there. Without the truncation, with sigma in px of 2.5 m,

    MTF = 2/pi * exp(-(pi * sigma / k)^2 / 2)

With H the observation and B its adjoint times k*k (both keep a flat field), H B is a convolution on the native grid.
The correction adds B K (y - H x) to an image x, where y is measured and K approximates the inverse of H B: exact where
the transfer is high, damped where it is low, (1 - (d / (d + s))^3) / s at transfer s of H B and damping d (Tikhonov
regularisation, three times iterated). K has a small support, so that a pixel depends on its surroundings alone.

The part of y - H x that deviates from its local mean by no more than the sensor noise is ignored, because the inverse
would turn it into grain. The mean over a few native pixels is therefore met exactly, and each pixel within the noise.

Every sum runs in a fixed order of taps, pixel by pixel, so that results do not depend on tiling, nor on whether arrays
of NumPy or tensors on a device hold the image (`pipeline.grid.arrays`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from pipeline.grid.arrays import copied, divided, namespace, zeros

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from pipeline.grid.arrays import Array

_DAMPING = {4: 0.02, 8: 0.02, 24: 0.01}
# Within which a measured value is met; the instrument's noise is 5 to 15 DN over land. Meeting more of it gives flat
# fields grain and costs accuracy, meeting less of it changes little: 0.02 dB from 2 to 5 DN, 0.015 dB from 5 to 10 DN.
NOISE_DN = 5.0
_ORDER = 3  # iterations of the regularisation
_SUPPORT = {4: 6, 8: 5, 24: 3}  # native pixels on each side of the inverse
_LOCAL = {4: 2, 8: 2, 24: 0}  # likewise of the local mean; at 60 m, of the pixel itself: its noise is averaged
_FREQUENCIES = 48  # along one axis, at which the inverse is designed
_HALVINGS = 40


@dataclass(frozen=True)
class Sensor:
    """How a band with pixels of `factor` px is measured: `taps` along one axis, and the inverse on the native grid."""

    factor: int
    taps: NDArray[np.float32]  # (3 * factor,), sum 1, symmetric
    inverse: NDArray[np.float32]  # (2 * support + 1, 2 * support + 1)

    @property
    def support(self) -> int:
        """Native pixels on each side of the inverse."""
        return len(self.inverse) // 2

    @property
    def cells(self) -> int:
        """Native pixels around an area whose measurement decides its correction."""
        return 1 + self.support + 2 * _LOCAL[self.factor]


@dataclass(frozen=True)
class Sensors:
    """Several bands of one factor, measured at once: for images (bands, ny, nx) on a device.

    `taps` are tensors (bands, 1), which fit images whose first axis is the one that is summed over, and `inverse`
    holds tensors (bands, 1, 1).
    """

    factor: int
    taps: tuple[Array, ...]
    inverse: tuple[tuple[Array, ...], ...]
    of: tuple[Sensor, ...]

    @property
    def support(self) -> int:
        """Native pixels on each side of the inverse."""
        return self.of[0].support

    @property
    def cells(self) -> int:
        """Native pixels around an area whose measurement decides its correction."""
        return self.of[0].cells

    @classmethod
    def on(cls, of: Sequence[Sensor], place: Callable[[NDArray[np.float32]], Array]) -> Sensors:
        """Several sensors of one factor; `place` moves an array to the device."""
        taps = place(np.stack([one.taps for one in of], axis=-1)[..., None])
        inverse = place(np.stack([one.inverse for one in of], axis=-1)[..., None, None])
        return cls(of[0].factor, tuple(taps), tuple(tuple(row) for row in inverse), tuple(of))


@lru_cache(maxsize=64)
def sensor(mtf: float, factor: int) -> Sensor:
    """The sensor of a band: its MTF at Nyquist (0.05 to 0.6) and its pixel in px of 2.5 m."""
    taps = _taps(sigma_px(mtf, factor), factor)
    return Sensor(factor, taps.astype(np.float32), _inverse(taps, factor).astype(np.float32))


def sigma_px(mtf: float, factor: int) -> float:
    """Standard deviation of the Gaussian, in px of 2.5 m, that gives `mtf` at Nyquist of pixels of `factor` px."""
    low, high = 0.02 * factor, 4.0 * factor
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if _at_nyquist(_taps(middle, factor), factor) > mtf else (low, middle)
    return (low + high) / 2


def _at_nyquist(taps: NDArray[np.float64], factor: int) -> float:
    """Transfer of symmetric taps at the Nyquist frequency of the native grid."""
    centred = np.arange(len(taps)) - (len(taps) - 1) / 2
    return float((taps * np.cos(math.pi * centred / factor)).sum())


def _taps(sigma: float, factor: int) -> NDArray[np.float64]:
    gauss = np.exp(-(np.arange(-factor, factor + 1) ** 2) / (2 * sigma**2))
    return np.convolve(np.full(factor, 1 / factor), gauss / gauss.sum())


def _transfer(taps: NDArray[np.float64], factor: int) -> NDArray[np.float64]:
    """Of H B along one axis, at `_FREQUENCIES` from 0 to Nyquist."""
    lags = np.convolve(taps, taps[::-1])[len(taps) - 1 :: factor] * factor
    angles = np.linspace(0, np.pi, _FREQUENCIES)
    line: NDArray[np.float64] = lags[0] + 2 * (lags[1:, None] * np.cos(np.arange(1, len(lags))[:, None] * angles)).sum(
        0
    )
    return line


def _inverse(taps: NDArray[np.float64], factor: int) -> NDArray[np.float64]:
    """The kernel of the given support whose transfer is nearest to the wanted one; exact for flat fields."""
    line, size = _transfer(taps, factor), _SUPPORT[factor]
    seen = np.outer(line, line)
    wanted = 1 - (_DAMPING[factor] / (_DAMPING[factor] + seen)) ** _ORDER
    angles = np.linspace(0, np.pi, _FREQUENCIES)
    cosines = [np.cos(n * angles) * (1 if n == 0 else 2) for n in range(size + 1)]
    pairs = [(i, j) for i in range(size + 1) for j in range(i + 1)]
    waves = [np.outer(cosines[i], cosines[j]) for i, j in pairs]
    waves = [wave + wave.T if i != j else wave for wave, (i, j) in zip(waves, pairs, strict=True)]
    ends = np.ones(_FREQUENCIES)
    ends[[0, -1]] = 0.5
    weight = np.sqrt(np.outer(ends, ends))
    weight[0, 0] = 1e4
    system = np.stack([(seen * wave * weight).ravel() for wave in waves], axis=1)
    values = np.linalg.lstsq(system, (wanted * weight).ravel(), rcond=None)[0]
    kernel = np.zeros((2 * size + 1, 2 * size + 1))
    for (i, j), value in zip(pairs, values, strict=True):
        for a, b in ((i, j), (j, i)):
            for row in {size - a, size + a}:
                for col in {size - b, size + b}:
                    kernel[row, col] = value
    return np.round(kernel, 6)  # so that it does not depend on a machine's linear algebra


def observed(image: Array, of: Sensor | Sensors) -> Array:
    """What the sensor measures of `image` (k*h, k*w) in native pixels with full support: (h - 2, w - 2)."""
    return _observed(_observed(image, of, -2), of, -1)


def _observed(image: Array, of: Sensor | Sensors, axis: int) -> Array:
    xp, taps, k = namespace(image), of.taps, of.factor
    image = xp.moveaxis(image, axis, 0)
    size = len(image) // k - 2
    total = zeros((size, *image.shape[1:]), image)
    for t in range(len(taps) // 2):
        pair = image[t::k][:size] + image[len(taps) - 1 - t :: k][:size]
        pair *= taps[t]
        total += pair
    if len(taps) % 2:
        middle = len(taps) // 2
        total += image[middle::k][:size] * taps[middle]
    return xp.moveaxis(total, 0, axis)


def _spread(values: Array, of: Sensor | Sensors, axis: int) -> Array:
    """B along one axis, (h,) to (k * (h - 2),)."""
    xp, k = namespace(values), of.factor
    values = xp.moveaxis(values, axis, 0)
    size = len(values) - 2
    out = zeros((size * k, *values.shape[1:]), values)
    for phase in range(k):
        total = zeros((size, *values.shape[1:]), values)
        for cell in (-1, 0, 1):
            weight = of.taps[phase - cell * k + k] * np.float32(k)
            total += values[1 + cell : 1 + cell + size] * weight
        out[phase::k] = total
    return xp.moveaxis(out, 0, axis)


def _beyond_noise(residual: Array, of: Sensor | Sensors) -> Array:
    """A residual in DN without the part explained by noise, smaller by twice the reach of the local mean.

    The removed part has a local mean of zero, which is enforced because it would not hold for a skewed residual.
    """
    h = _LOCAL[of.factor]
    if not h:
        return residual
    rest = residual[..., h:-h, h:-h] - _local_mean(residual, h)
    noise = rest.clip(-NOISE_DN, NOISE_DN)
    left_out = noise[..., h:-h, h:-h] - _local_mean(noise, h)
    return residual[..., 2 * h : -2 * h, 2 * h : -2 * h] - left_out


def _local_mean(values: Array, reach: int) -> Array:
    """Means over `reach` neighbours on each side; the result is smaller by as many."""
    side = 2 * reach + 1
    return divided(_summed(_summed(values, side, -2), side, -1), side**2)


def _summed(values: Array, count: int, axis: int) -> Array:
    """Sums of `count` neighbours along an axis, always added in the same order."""
    xp = namespace(values)
    values = xp.moveaxis(values, axis, 0)
    size = values.shape[0] - count + 1
    total = copied(values[:size])
    for start in range(1, count):
        total += values[start : start + size]
    return xp.moveaxis(total, 0, axis)


def _inverted(residual: Array, of: Sensor | Sensors) -> Array:
    size = of.support
    ny, nx = residual.shape[-2] - 2 * size, residual.shape[-1] - 2 * size
    total = zeros((*residual.shape[:-2], ny, nx), residual)
    for row, line in enumerate(of.inverse):
        for col, value in enumerate(line):
            total += residual[..., row : row + ny, col : col + nx] * value
    return total


def correction(residual: Array, of: Sensor | Sensors) -> Array:
    """What to add for a residual (h, w) in DN on the native grid: (k * (h - 2 * cells), k * (w - 2 * cells)) in DN."""
    return spread(_inverted(_beyond_noise(residual, of), of), of)


def spread(values: Array, of: Sensor | Sensors) -> Array:
    """B of values (h, w) on the native grid: (k * (h - 2), k * (w - 2)) at 2.5 m; flat fields are preserved."""
    return _spread(_spread(values, of, -1), of, -2)
