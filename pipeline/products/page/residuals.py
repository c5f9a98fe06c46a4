"""The radiometric check of the report page: the output on the native grids against the measured input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.bands import BY_NAME, DN_OFFSET, DN_SCALE, NODATA_DN, bands_at
from pipeline.grid.sensor import observed, sensor
from pipeline.products.page.source import factor_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.products.page.source import Part, Zone

PROMISE_DN = 0.5  # bound of `consistency = box` after rounding to whole DN, and of the bias with `sensor`
# With `consistency = sensor`, 99 % of the pixels are within the noise of the instrument: 5 to 15 DN over land, and over
# bright ground 1/174 of the measured value, from the largest specified signal-to-noise ratio of Sentinel-2's bands.
NOISE_DN = 15.0
SIGNAL_TO_NOISE = 174.0
LOCAL_PX = 5  # side of the squares of native pixels whose means are compared


@dataclass(frozen=True)
class Residual:
    """Output on the native grid of one band minus the measured input, in DN.

    `seen` is True if the output was brought there by the sensor model (`consistency = sensor`), False for block means.
    Numbers are None if nothing could be compared.
    """

    band: str
    gsd_m: int
    seen: bool
    compared: int  # native pixels
    left_out: int  # measured, but touching nodata of the output or the edge of the shown part
    largest_dn: float | None = None  # of absolute values, like all below except the bias
    mean_dn: float | None = None
    median_dn: float | None = None
    p99_dn: float | None = None
    local_p99_dn: float | None = None  # of means over LOCAL_PX x LOCAL_PX native pixels, if all were compared
    bias_dn: float | None = None
    noise_dn: float = NOISE_DN  # of the instrument, at the mean of the measured values

    @property
    def unbiased(self) -> bool:
        """True if the mean equals the measured mean to within half a rounding step."""
        return self.bias_dn is not None and abs(self.bias_dn) <= PROMISE_DN

    @property
    def within_noise(self) -> bool:
        """True if 99 % of the pixels are within the noise of the instrument."""
        return self.p99_dn is not None and self.p99_dn <= self.noise_dn

    @property
    def kept(self) -> bool:
        """True if the contract of `consistency = box`, or of `sensor` if `seen`, holds."""
        if self.seen:
            return self.unbiased and self.within_noise
        return self.largest_dn is not None and self.largest_dn <= PROMISE_DN


def residuals(part: Part, zone: Zone) -> list[Residual]:
    """Return one residual per band, in the store's order; empty if the store keeps no measured input."""
    if not part.measured_kept:
        return []
    found = []
    for index, name in enumerate(zone.bands):
        gsd = BY_NAME[name].gsd_m
        native = part.measured[gsd][bands_at(gsd, zone.bands).index(name)]
        if zone.consistency == "sensor":
            values, whole = _as_seen(part.dn[index], gsd, zone.mtf[name])
        else:
            values, whole = _block_means(part.dn[index], gsd)
        found.append(_residual(name, zone.consistency == "sensor", values, whole, native))
    return found


def summary_line(found: list[Residual]) -> str:
    """Return the check in one line."""
    compared = [one for one in found if one.compared]
    if not compared:
        return "no input kept to check against"
    if compared[0].seen:
        return f"seen by the sensor, {near_limit(compared)}"
    largest = max(one.largest_dn or 0.0 for one in compared)
    return f"block means {f'within {largest:g} DN of' if largest else 'equal to'} the input"


def near_limit(compared: list[Residual]) -> str:
    """Return how far off 99 % of the pixels are in the band that comes nearest to, or lies furthest beyond, its limit.

    `compared` are residuals with `seen`, each of at least one pixel.
    """
    worst = max(compared, key=lambda one: (one.p99_dn or 0.0) / one.noise_dn)
    how = "comes nearest to its" if worst.within_noise else "lies furthest beyond its"
    found = f"99 % of the pixels within {worst.p99_dn or 0:.1f} DN in {worst.band}"
    return f"{found}, which {how} limit ({worst.noise_dn:.0f})"


def _as_seen(dn: NDArray[np.uint16], gsd_m: int, mtf: float) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return the DN that the sensor would measure (y, x), and a mask of pixels that see neither nodata nor the edge."""
    factor = factor_of(gsd_m)
    of = sensor(mtf, factor)
    shape = (dn.shape[0] // factor, dn.shape[1] // factor)
    values, whole = np.zeros(shape), np.zeros(shape, bool)
    if min(shape) > 2:
        values[1:-1, 1:-1] = observed(dn.astype(np.float32), of)
        void = dn == NODATA_DN
        whole[1:-1, 1:-1] = observed(void.astype(np.float32), of) == 0 if void.any() else True
    return values, whole


def _block_means(dn: NDArray[np.uint16], gsd_m: int) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return the means over native pixels (y, x), and a mask of those without nodata."""
    factor = factor_of(gsd_m)
    blocks = dn.reshape(dn.shape[0] // factor, factor, dn.shape[1] // factor, factor)
    return blocks.sum((1, 3), dtype=np.int64) / factor**2, (blocks != NODATA_DN).all((1, 3))


def _residual(
    name: str, seen: bool, values: NDArray[np.float64], whole: NDArray[np.bool_], native: NDArray[np.uint16]
) -> Residual:
    measured = native != NODATA_DN
    compared = whole & measured
    count, left_out = int(compared.sum()), int((measured & ~whole).sum())
    gsd = BY_NAME[name].gsd_m
    if not count:
        return Residual(name, gsd, seen, 0, left_out)
    off = values - native
    size = np.abs(off[compared])
    local = np.abs(_local_means(np.where(compared, off, np.nan)))
    return Residual(
        name, gsd, seen, count, left_out, _number(size.max()), _number(size.mean()), _number(np.median(size)),
        _number(np.percentile(size, 99)), _number(np.percentile(local, 99)) if local.size else None,
        _number(off[compared].mean()),
        max(NOISE_DN, (float(native[compared].mean()) + DN_OFFSET / DN_SCALE) / SIGNAL_TO_NOISE),
    )  # fmt: skip


def _local_means(off: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the means over LOCAL_PX x LOCAL_PX windows without NaN, as a flat array."""
    if min(off.shape) < LOCAL_PX:
        return np.empty(0)
    means = np.lib.stride_tricks.sliding_window_view(off, (LOCAL_PX, LOCAL_PX)).mean((2, 3))
    found: NDArray[np.float64] = means[np.isfinite(means)]
    return found


def _number(value: float) -> float:
    return round(float(value), 4)
