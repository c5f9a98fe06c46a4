"""From values in memory to DN on native grids, without changing any value."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from pipeline.api.images import Corner
from pipeline.bands import BY_NAME, CANONICAL_OFFSET_DN, DN_OFFSET, DN_SCALE, NODATA_DN, SCL
from pipeline.errors import UsageError
from pipeline.grid.grid import BLOCK_M, Phase

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from pipeline.api.images import Layer

DN, REFLECTANCE = "dn", "reflectance"
VALUES = (DN, REFLECTANCE)
_LAST_DN = np.iinfo(np.uint16).max
# The largest reflectance that a product can hold. An image of DN that never exceeds it would hold no land.
_LARGEST_REFLECTANCE = _LAST_DN * DN_SCALE + DN_OFFSET + 0.5
_NEAR_M = 1e-3


@dataclass
class Meaning:
    """Whether the values of an image are DN or reflectance: as the caller says, else by the first that tell."""

    values: str = ""

    def __post_init__(self) -> None:
        if self.values not in ("", *VALUES):
            raise UsageError(f"values = {self.values!r}", f"one of {', '.join(VALUES)}")

    def dn(self, layer: Layer, step: int) -> NDArray[np.uint16]:
        """Return a time step as uint16 DN, 0 where there are no data: (y, x).

        Reflectance becomes DN with an offset of -1000, so that values below 0 survive. SCL is returned as it is. Raises
        UsageError for values that are neither, or that differ in meaning from those seen before.
        """
        plane = layer.plane(step)
        valid = np.isfinite(plane)
        if layer.nodata is not None and np.isfinite(layer.nodata):
            valid &= plane != layer.nodata
        if layer.band != SCL and self._of(layer, plane, valid) == REFLECTANCE:
            values = np.rint(np.where(valid, plane, 0).astype(np.float64) / DN_SCALE) - CANONICAL_OFFSET_DN
            return np.where(valid, np.clip(values, 1, _LAST_DN), NODATA_DN).astype(np.uint16)
        shown = plane[valid]
        if shown.size and (shown.min() < 0 or shown.max() > _LAST_DN or (shown != np.rint(shown)).any()):
            raise UsageError(
                f"{layer.band} holds values from {shown.min():g} to {shown.max():g}",
                f"whole DN from 0 to {_LAST_DN}, or reflectance around 0 to 1",
                "load it without resampling and without scaling",
            )
        return np.where(valid, plane, NODATA_DN).astype(np.uint16)

    def _of(self, layer: Layer, plane: NDArray[np.generic], valid: NDArray[np.bool_]) -> str:
        if np.issubdtype(plane.dtype, np.integer):
            found = DN
        else:
            shown = plane[valid & (plane != NODATA_DN)]
            if not shown.size:
                return self.values or DN  # nodata in both
            found = REFLECTANCE if np.abs(shown).max() <= _LARGEST_REFLECTANCE else DN
        if not self.values:
            self.values = found
        elif found != self.values:
            raise UsageError(
                f"{layer.band} looks like {found}, and is said or was seen to be {self.values}",
                "one of the two for all bands and times",
            )
        return self.values


def to_native(
    dn: NDArray[np.uint16], place: Corner, native_m: int, phase: Phase
) -> tuple[NDArray[np.uint16], Corner, int]:
    """Undo copies of native pixels: (y, x) on any grid -> (y, x) at `native_m`, its corner, and the cells that differ.

    Cells that the image holds in part are taken from that part, and pixels without data do not count.
    """
    factor = native_m // place.gsd_m
    left, right = _beyond(place.left_m - phase.x_m, place.shape[1], place.gsd_m, native_m)
    # rows count south, so the distance from the phase does too
    above, below = _beyond(phase.y_m - place.top_m, place.shape[0], place.gsd_m, native_m)
    whole = np.pad(dn, ((above, below), (left, right)), mode="edge")
    ny, nx = whole.shape[0] // factor, whole.shape[1] // factor
    corner = Corner(place.left_m - left * place.gsd_m, place.top_m + above * place.gsd_m, native_m, (ny, nx))
    blocks = whole.reshape(ny, factor, nx, factor)
    highest: NDArray[np.uint16] = blocks.max((1, 3))
    lowest = np.where(blocks == NODATA_DN, _LAST_DN, blocks).min((1, 3))
    return highest, corner, int(np.count_nonzero((highest != lowest) & (highest != NODATA_DN)))


def _beyond(start_m: float, count: int, gsd_m: int, native_m: int) -> tuple[int, int]:
    """Return how many pixels complete the first and the last native pixel of an axis."""
    first = round((start_m % native_m) / gsd_m)
    factor = native_m // gsd_m
    return first % factor, -(first + count) % factor


def phase_of(layers: Sequence[Layer], planes: Mapping[str, NDArray[np.uint16]]) -> Phase:
    """Return the phase, modulo 60 m, of the native grids of an image, the official one if it fits.

    `planes` are the DN of each layer. Raises UsageError if a band is finer or coarser than measured, or interpolated.
    """
    for layer in layers:
        if layer.place.gsd_m > layer.native_m:
            raise UsageError(
                f"{layer.band} has pixels of {layer.place.gsd_m} m, which average those measured",
                f"{layer.native_m} m",
                "load it at its native GSD, or all bands at 10 m",
            )
    official = Phase.official(layers[0].epsg)
    faults = []
    for phase in (official, *_others(layers, official)):
        fault = _fault(layers, planes, phase)
        if fault is None:
            return phase
        faults.append(fault)
    band, found = faults[0]  # on the official grid, which most images were loaded on
    raise UsageError(
        f"{band} {found}",
        f"measured pixels of {BY_NAME[band].gsd_m if band in BY_NAME else 20} m, or whole copies of them",
        "load by nearest neighbour, or each band at its native GSD: super_resolve([at_10m, at_20m, at_60m])",
    )


def _others(layers: Sequence[Layer], official: Phase) -> list[Phase]:
    """Return all phases on which the pixels of the finest layers lie, but the official one."""
    finest = min(layers, key=lambda layer: layer.place.gsd_m).place
    steps = range(0, int(BLOCK_M), finest.gsd_m)
    found = [
        Phase(round((finest.left_m + i) % BLOCK_M, 6), round((finest.top_m + j) % BLOCK_M, 6))
        for i, j in product(steps, steps)
    ]
    return [phase for phase in found if phase != official]


def _fault(layers: Sequence[Layer], planes: Mapping[str, NDArray[np.uint16]], phase: Phase) -> tuple[str, str] | None:
    """Return (band, why it does not fit a phase) of the first that does not."""
    for layer in layers:
        place = layer.place
        if not (_multiple(place.left_m - phase.x_m, place.gsd_m) and _multiple(place.top_m - phase.y_m, place.gsd_m)):
            return layer.band, f"starts at {place.left_m:g}, {place.top_m:g} m, beside the grid of the other bands"
    for layer in layers:
        if layer.place.gsd_m < layer.native_m:
            _, corner, differ = to_native(planes[layer.band], layer.place, layer.native_m, phase)
            if differ:
                cells = corner.shape[0] * corner.shape[1]
                return layer.band, f"was resampled: {differ} of {cells} measured pixels hold different values"
    return None


def _multiple(length_m: float, step_m: float) -> bool:
    rest = length_m % step_m
    return min(rest, step_m - rest) < _NEAR_M
