"""The "sensor" consistency: correct a blended image until the simulated sensor would measure the native DN."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from pipeline.bands import NODATA_DN
from pipeline.grid.arrays import Array, cast, is_numpy, namespace, on_device, zeros
from pipeline.grid.grid import Window
from pipeline.grid.sensor import NOISE_DN, Sensor, Sensors, correction, observed, spread
from pipeline.superres.consistency import least_dn

if TYPE_CHECKING:
    import torch

Predicted = Callable[[slice, Window], Array]  # float DN (bands, ny, nx) of some bands over a window
Measured = Callable[[Window], Array]  # native DN of a band, or of bands of one GSD, over a window of 2.5 m px

# Residual above which a corrected image is scaled to the measurement, and the largest relative change by that.
_LEFT_ALONE_DN = 1.5 * NOISE_DN
_SHARE = 1.0
CELLS = 2  # native pixels of context on each side for the scaling


def reach_px(of: Sensor | Sensors) -> int:
    """Return the context around an area that the output depends on, in px of 2.5 m."""
    return (of.cells + 1 + CELLS) * of.factor


def agreeing(
    predicted: Predicted,
    window: Window,
    sensors: Sequence[Sensor | None],
    measured: Callable[[int, Window], Array],
    void: Sequence[Window],
) -> Array:
    """Return the bands over `window` (bands, *window) in DN, corrected to agree with what their sensors measured.

    `predicted(bands, window)` is float DN, of its own, over at most `reach_px` around `window`; `measured(i, window)`
    is native DN of band i. Bands without a sensor are taken as predicted. Windows that are `void` hold no prediction,
    so native pixels that see any of them are ignored. On a device, bands of one GSD are corrected at once.
    """
    images = predicted(slice(0, len(sensors)), window)
    if is_numpy(images):
        for i, of in enumerate(sensors):
            images[i] = agreed(predicted, i, window, of, measured, void)
        return images
    for factor in sorted({of.factor for of in sensors if of is not None}):
        rows = [i for i, of in enumerate(sensors) if of is not None and of.factor == factor]
        several = _several(tuple(of for of in sensors if of is not None and of.factor == factor), images.device)
        around = window.pad(reach_px(several))
        stacked = namespace(images).cat([predicted(slice(i, i + 1), around) for i in rows])
        found = _agreeing(stacked, around, window, several, partial(_stacked, measured, rows), void)
        for i, one in zip(rows, found, strict=True):
            images[i] = one
    return images


def agreed(
    predicted: Predicted,
    band: int,
    window: Window,
    of: Sensor | None,
    measured: Callable[[int, Window], Array],
    void: Sequence[Window],
) -> Array:
    """Return one band over `window` (ny, nx) in DN, corrected to agree with its sensor. Arguments as for `agreeing`."""
    around = window if of is None else window.pad(reach_px(of))
    (image,) = predicted(slice(band, band + 1), around)
    return image if of is None else _agreeing(image, around, window, of, partial(measured, band), void)


def _several(of: tuple[Sensor, ...], device: torch.device) -> Sensors:
    """Return sensors of one factor on a device. Each thread may build its own."""
    key = (tuple(map(id, of)), str(device))
    if key not in _SEVERAL:
        _SEVERAL[key] = Sensors.on(of, lambda values: on_device(values, device))
    return _SEVERAL[key]


_SEVERAL: dict[tuple[tuple[int, ...], str], Sensors] = {}  # hold their sensors, so that no other gets the same id


def _stacked(measured: Callable[[int, Window], Array], rows: Sequence[int], window: Window) -> Array:
    found = [measured(i, window) for i in rows]
    return namespace(found[0]).stack(found)


def _agreeing(
    image: Array, around: Window, window: Window, of: Sensor | Sensors, measured: Measured, void: Sequence[Window]
) -> Array:
    """Return a band (*around), or several of one factor (bands, *around), corrected and cut to `window`."""
    inner = window.pad(CELLS * of.factor)
    corrected = image[(..., *inner.slices(around))] + correction(_lacking(image, around, of, measured, void), of)
    return _in_range(corrected, inner, of, measured, void)


def _lacking(image: Array, around: Window, of: Sensor | Sensors, measured: Measured, void: Sequence[Window]) -> Array:
    """Return measured less observed DN of the native pixels that see nothing beyond `around`; 0 where unknown."""
    given = measured(around.pad(-of.factor))
    unknown = given == NODATA_DN
    if (unseen := _seeing(void, around, of, image)) is not None:
        unknown = unknown | unseen
    return namespace(image).where(unknown, _ZERO, cast(given, "float32") - observed(image, of))


_ZERO = 0.0  # a number without a type: the result has that of the other argument


def _in_range(image: Array, inner: Window, of: Sensor | Sensors, measured: Measured, void: Sequence[Window]) -> Array:
    """Return the image without values below the physical range, cut by `CELLS` native pixels.

    Clipping adds to what is observed. Where it does, and where the image differs from the measurement by more than the
    tolerated noise, the part above the lower bound is scaled by the ratio of measured and observed, spread as the
    sensor sees it: one step of Richardson (1972) and Lucy (1974), which keeps sums and sign.
    """
    xp, k = namespace(image), of.factor
    floor = refined(least_dn(cast(measured(inner), "float32")), k)
    left_alone = lacking = _lacking(image, inner, of, measured, void)
    if not is_numpy(image) or (image < floor).any():  # without effect elsewhere, and a device is not asked
        image = xp.maximum(image, floor)
        lacking = _lacking(image, inner, of, measured, void)
    lacking = lacking - left_alone.clip(-_LEFT_ALONE_DN, _LEFT_ALONE_DN)
    inside = (..., slice(CELLS * k, -CELLS * k), slice(CELLS * k, -CELLS * k))
    if is_numpy(image) and not lacking.any():
        return image[inside]
    excess = image - floor
    share = (lacking / observed(excess, of).clip(1.0, None)).clip(-_SHARE, _SHARE)
    return image[inside] + excess[inside] * spread(share, of)


def refined(values: Array, factor: int) -> Array:
    """Return values (..., h, w) repeated over factor x factor px each."""
    if is_numpy(values):
        return values.repeat(factor, -2).repeat(factor, -1)
    return values.repeat_interleave(factor, -2).repeat_interleave(factor, -1)


def _seeing(void: Sequence[Window], around: Window, of: Sensor | Sensors, like: Array) -> Array | None:
    """Return which native pixels see something of `void`, among those that see nothing beyond `around`; None: none."""
    there = [common for part in void if not (common := part.intersect(around)).empty]
    if not there:
        return None
    blank = zeros((*like.shape[:-2], *around.shape), like)
    for common in there:
        blank[(..., *common.slices(around))] = 1.0
    return observed(blank, of) > 0
