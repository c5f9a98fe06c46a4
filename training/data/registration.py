"""Sub-pixel shift between a sharp image and a coarse one of the same ground, and the match of their radiometry.

The sharp image is blurred and averaged as a sensor would, and moved until its least squares difference from the coarse
image is smallest (Lucas and Kanade 1981), after a robust linear fit, so that what has changed on the ground counts
little.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Image = NDArray[np.float32]
    Shift = NDArray[np.float64]  # (dy, dx)

BLUR_PX = 0.55  # sigma of the sensor in coarse pixels: 2.2 px at x4
SEARCHED_PX = 3  # whole coarse pixels searched in every direction before the fit
ITERATIONS = 12
SETTLED_PX = 1e-3  # a step below this ends the fit
HUBER, OUTLIER = 1.345, 3.0  # in standard deviations (Huber 1981)
REWEIGHTED = 5  # times that a robust line is fitted
LEAST_PX = 64  # valid coarse pixels
LEAST_ALIKE = 0.5  # share of the pixels that have not changed
LEAST_CORRELATION = 0.5  # of what can be registered
MOST_DEVIATION_PX = 0.1  # standard deviation of a shift that counts as measured
BORDER_PX = SEARCHED_PX + 2  # coarse pixels left out at every edge


@dataclass(frozen=True)
class Registration:
    """Shift (dy, dx) in coarse pixels: the coarse image shows at (y, x) what the sharp one has at (y + dy, x + dx).

    `deviation_px` is the standard deviation of the shift, `correlation` that of both images afterwards. Reflectance of
    the coarse image is `gains` times that of the sharp one plus `offsets`, per band, by mean and standard deviation.
    Correlation and radiometry are those of the share `alike` of the pixels, which has not changed in between.
    """

    shift_px: tuple[float, float]
    deviation_px: float
    correlation: float
    alike: float
    gains: tuple[float, ...]
    offsets: tuple[float, ...]

    @property
    def fault(self) -> str:
        """Why this is no registration, or ""."""
        if self.correlation < LEAST_CORRELATION:
            return f"the images differ too much (correlation {self.correlation:.2f}, at least {LEAST_CORRELATION:g})"
        if self.alike < LEAST_ALIKE:
            return f"only {self.alike:.0%} of the ground looks alike in both"
        if max(map(abs, self.shift_px)) > SEARCHED_PX:
            return f"they are more than {SEARCHED_PX} coarse pixels apart"
        if self.deviation_px > MOST_DEVIATION_PX:
            return f"the shift is only known to {self.deviation_px:.2f} coarse pixels"
        return ""


NOTHING = Registration((0.0, 0.0), np.inf, 0.0, 0.0, (), ())


class _Sensed:
    """A sharp image as a sensor sees it: block means at any position, and the validity of each."""

    def __init__(self, sharp: Image, scale: int) -> None:
        from scipy import ndimage

        self.scale, valid = scale, np.isfinite(sharp).all(0)
        filled = np.where(valid, sharp, np.nanmean(np.where(valid, sharp, np.nan), axis=(1, 2), keepdims=True))
        blurred = ndimage.gaussian_filter(filled, (0, BLUR_PX * scale, BLUR_PX * scale))
        self.bands = ndimage.uniform_filter(blurred, (0, scale, scale))
        self.grey: Image = _grey(self.bands)
        self.down: Image = scale * np.gradient(self.grey, axis=0)  # per coarse pixel
        self.right: Image = scale * np.gradient(self.grey, axis=1)
        self.whole = ndimage.minimum_filter(valid.astype(np.float32), 2 * round(2 * BLUR_PX * scale) + scale)

    def at(self, image: Image, shape: tuple[int, int], shift: Shift, order: int = 3) -> Image:
        """Return `image` (h, w) of this object at coarse pixels of `shape`, moved by `shift` of them."""
        from scipy import ndimage

        centre = (self.scale - 1) / 2 + (0.5 if self.scale % 2 == 0 else 0.0)  # means of even size lie half a px before
        axes = (np.arange(side) * self.scale + centre + d * self.scale for side, d in zip(shape, shift, strict=True))
        where = np.meshgrid(*axes, indexing="ij")
        values: Image = ndimage.map_coordinates(image, where, order=order, mode="nearest")
        return values

    def valid(self, shape: tuple[int, int], shift: Shift) -> NDArray[np.bool_]:
        """Return which coarse pixels of `shape`, moved by `shift` of them, are made of valid ones."""
        found: NDArray[np.bool_] = self.at(self.whole, shape, shift, order=0) > 0
        return found


def register(sharp: Image, coarse: Image, scale: int) -> Registration:
    """Measure the shift of sharp (bands, scale*h, scale*w) against coarse (bands, h, w). NaN marks invalid pixels."""
    rows, cols = coarse.shape[1:]
    inside = np.zeros((rows, cols), bool)
    inside[BORDER_PX : rows - BORDER_PX, BORDER_PX : cols - BORDER_PX] = True
    inside &= np.isfinite(coarse).all(0)
    if inside.sum() < LEAST_PX or not np.isfinite(sharp).all(0).any():
        return NOTHING
    sensed, target = _Sensed(sharp, scale), np.nan_to_num(coarse)
    grey = _grey(target, inside)
    shift, covariance = _searched(sensed, grey, inside), np.full((2, 2), np.inf)
    for _ in range(ITERATIONS):
        step, covariance = _step(sensed, grey, inside, shift)
        shift = shift + step
        if np.abs(step).max() < SETTLED_PX or np.abs(shift).max() > SEARCHED_PX + 1:
            break
    used = inside & sensed.valid((rows, cols), shift)
    if used.sum() < LEAST_PX:
        return NOTHING
    values = np.stack([sensed.at(band, (rows, cols), shift)[used] for band in np.asarray(sensed.bands)])
    alike = _alike(values, target[:, used])
    values, target = values[:, alike], target[:, used][:, alike]
    gains, offsets = _matched(values, target)
    deviation = float(np.sqrt(max(covariance[0, 0], covariance[1, 1])))
    moved = float(shift[0]), float(shift[1])
    return Registration(moved, deviation, _correlation(values, target), float(alike.mean()), gains, offsets)


def _grey(image: Image, inside: NDArray[np.bool_] | None = None) -> Image:
    """Return the mean of the bands (bands, h, w), each by its own standard deviation."""
    seen = image if inside is None else image[:, inside]
    spread = seen.reshape(len(image), -1).std(1)
    grey: Image = np.mean(image / np.maximum(spread, 1e-6)[:, None, None], axis=0)
    return grey


def _searched(sensed: _Sensed, target: Image, inside: NDArray[np.bool_]) -> Shift:
    """Return the whole shift of the highest correlation."""
    whole = np.zeros(2)
    means, valid = sensed.at(sensed.grey, _size(target), whole), sensed.valid(_size(target), whole)
    best, found = -np.inf, (0, 0)
    for dy in range(-SEARCHED_PX, SEARCHED_PX + 1):
        for dx in range(-SEARCHED_PX, SEARCHED_PX + 1):
            there = np.roll(means, (-dy, -dx), (0, 1))  # what comes in from the other side lies within the border
            used = inside & np.roll(valid, (-dy, -dx), (0, 1))
            alike = _correlation(there[None, used], target[None, used]) if used.sum() >= LEAST_PX else -np.inf
            if alike > best:
                best, found = alike, (dy, dx)
    return np.array(found, np.float64)


def _size(image: Image) -> tuple[int, int]:
    return image.shape[0], image.shape[1]


def _step(sensed: _Sensed, target: Image, inside: NDArray[np.bool_], shift: Shift) -> tuple[Shift, NDArray[np.float64]]:
    """Return the Gauss-Newton step of the shift, and its covariance."""
    used = inside & sensed.valid(_size(target), shift)
    at = [sensed.at(one, _size(target), shift)[used] for one in (sensed.grey, sensed.down, sensed.right)]
    x, down, right = np.asarray(at, np.float64)
    y = target[used].astype(np.float64)
    gain, offset, weight = _line(x, y)
    residual = y - gain * x - offset
    residual = residual - float(np.average(residual, weights=weight))
    gradients = gain * np.stack([down, right], 1)
    slopes = gradients - (gradients * weight[:, None]).sum(0) / weight.sum()
    normal = (slopes * weight[:, None]).T @ slopes
    if not np.isfinite(normal).all() or np.linalg.cond(normal) > 1e8:
        return np.zeros(2), np.full((2, 2), np.inf)
    covariance: NDArray[np.float64] = np.linalg.inv(normal)
    step: Shift = covariance @ ((slopes * weight[:, None]).T @ residual)
    return step, covariance


def _line(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[float, float, NDArray[np.float64]]:
    """Return gain and offset of y on x by robust regression, and the weights of the points in 1 / variance."""
    weight, gain, offset, spread = np.ones_like(x), 0.0, 0.0, 1.0
    for _ in range(REWEIGHTED):
        mean_x, mean_y = np.average(x, weights=weight), np.average(y, weights=weight)
        variance = np.average((x - mean_x) ** 2, weights=weight)
        gain = float(np.average((x - mean_x) * (y - mean_y), weights=weight) / max(variance, 1e-12))
        offset = float(mean_y - gain * mean_x)
        residual = np.abs(y - gain * x - offset)
        spread = 1.4826 * float(np.median(residual)) + 1e-9
        weight = np.minimum(1, HUBER * spread / np.maximum(residual, 1e-12))
    return gain, offset, weight / spread**2


def _alike(one: Image, other: Image) -> NDArray[np.bool_]:
    """Return which of n pixels of bands (bands, n) follow one robust line in every band: what has not changed."""
    alike = np.ones(one.shape[1], bool)
    for a, b in zip(one.astype(np.float64), other.astype(np.float64), strict=True):
        gain, offset, _ = _line(a, b)
        residual = np.abs(b - gain * a - offset)
        alike &= residual <= OUTLIER * (1.4826 * np.median(residual) + 1e-9)
    return alike


def _correlation(one: Image, other: Image) -> float:
    """Return the mean correlation of bands (bands, n); 0 for a band without contrast."""
    found = []
    for a, b in zip(one.astype(np.float64), other.astype(np.float64), strict=True):
        scale = a.std() * b.std()
        found.append(float(((a - a.mean()) * (b - b.mean())).mean() / scale) if scale > 0 else 0.0)
    return float(np.mean(found))


def _matched(one: Image, other: Image) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return gains and offsets that give bands `one` the means and standard deviations of `other`."""
    gains = tuple(float(b.std() / a.std()) if a.std() > 0 else 1.0 for a, b in zip(one, other, strict=True))
    offsets = tuple(float(b.mean() - gain * a.mean()) for gain, a, b in zip(gains, one, other, strict=True))
    return gains, offsets
