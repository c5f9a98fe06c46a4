"""Image codec of the report page: arrays of DN as compact bytes that a browser decodes into numbers.

There are two encodings. Exact: differences of neighbouring pixels, deflated. Lossy: an 8-bit JPEG of codes with a table
of DN, and corrections for pixels with errors above a bound. The remaining error is measured by decoding the JPEG. A set
of images is encoded exactly if that fits the byte budget, else with the finest JPEG that fits.
"""

from __future__ import annotations

import io
import zlib
from bisect import bisect_left
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.bands import NODATA_DN

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

BOUND_STEPS = 1.0  # bound on the error of a JPEG plane, in quantiser steps; few pixels reach it
# Quantiser steps of JPEGs in DN, finest first.
_STEPS_DN = (15, 20, 25, 30, 35, 40, 46, 53, 61, 70, 80, 95, 110, 130, 160, 200, 250, 320, 420, 600, 900, 1400)
_KNEE_CODE, _KNEE_PCT = 240, 99.9  # codes 0..240 for all but the brightest pixels, the other codes for those
_CODES = 256
_DEFLATE_LEVEL = 6


@dataclass(frozen=True)
class Plane:
    """One encoded image: codec, side lengths, and how much decoded DN may differ from the store."""

    codec: str  # "exact" (uint16), "jpeg" (uint8 by `table`), "bytes" (uint8)
    ny: int
    nx: int
    content: bytes
    table: tuple[int, ...] = ()  # DN of each code
    fixes: bytes = b""  # corrections of pixels with JPEG errors above `bound_dn`
    fixes_count: int = 0
    bound_dn: int = 0  # also the unit of the corrections
    mask: bytes = b""  # one bit per pixel, 0 where nothing was measured; empty if all are measured
    max_error_dn: int = 0
    rms_error_dn: float = 0.0

    @property
    def size(self) -> int:
        """Bytes of all parts."""
        return len(self.content) + len(self.fixes) + len(self.mask)


@dataclass
class Set:
    """Planes of one kind that share a grid, by band name."""

    planes: dict[str, Plane] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes of all planes."""
        return sum(plane.size for plane in self.planes.values())

    @property
    def exact(self) -> bool:
        """True if decoding gives the stored numbers."""
        return all(plane.max_error_dn == 0 for plane in self.planes.values())


def encode_set(names: Sequence[str], images: NDArray[np.uint16], budget_bytes: int) -> Set:
    """Encode DN images (name, y, x), exactly if they fit into `budget_bytes`, else as JPEGs."""
    arrays = dict(zip(names, images, strict=True))
    return encode_all_exact(arrays, budget_bytes) or encode_lossy(arrays, budget_bytes)


def encode_all_exact(arrays: Mapping[str, NDArray[np.uint16]], budget_bytes: int) -> Set | None:
    """Encode DN images (y, x) exactly. Return None if they do not fit into `budget_bytes`."""
    found = Set()
    for name, image in arrays.items():
        found.planes[name] = encode_exact(image)
        if found.size * len(arrays) > budget_bytes * (len(found.planes) + 1):  # clearly too large: stop early
            return None
    return found if found.size <= budget_bytes else None


def encode_lossy(arrays: Mapping[str, NDArray[np.uint16]], budget_bytes: int) -> Set:
    """Encode DN images (y, x) as the finest JPEGs that fit into `budget_bytes`, or the coarsest if none fits."""
    coded = {name: _coded(image) for name, image in arrays.items()}
    for step_dn in _STEPS_DN[_first_step(list(coded.values()), budget_bytes) :]:
        found = Set({name: _jpeg_plane(one, step_dn) for name, one in coded.items()})
        if found.size <= budget_bytes:
            break
    return found


def _first_step(coded: list[_Coded], budget_bytes: int) -> int:
    """Return the index of the first step to try, estimated from every fourth block of rows.

    Whole images are then encoded only once or twice.
    """
    samples = [one.sampled() for one in coded]
    share = sum(one.codes.size for one in samples) / sum(one.codes.size for one in coded)

    def fits(index: int) -> bool:
        return sum(_jpeg_plane(one, _STEPS_DN[index]).size for one in samples) <= 0.98 * share * budget_bytes

    return min(bisect_left(range(len(_STEPS_DN)), True, key=fits), len(_STEPS_DN) - 1)


@dataclass(frozen=True)
class _Coded:
    """An image (y, x), its 8-bit codes, and the DN of each code."""

    image: NDArray[np.uint16]
    codes: NDArray[np.uint8]
    table: NDArray[np.int32]

    @property
    def dn_per_code(self) -> float:
        """DN per code below the knee."""
        return max(float(self.table[_KNEE_CODE] - self.table[0]) / _KNEE_CODE, 1e-6)

    def sampled(self, rows: int = 16, every: int = 4) -> _Coded:
        """Return every `every`-th block of `rows` rows, or the whole image if it is small."""
        ny, nx = self.image.shape
        if ny < 2 * rows * every:
            return self

        def some(values: NDArray[Any]) -> NDArray[Any]:
            return values[: ny // rows * rows].reshape(-1, rows, nx)[::every].reshape(-1, nx)

        return _Coded(some(self.image), some(self.codes), self.table)


def encode_exact(image: NDArray[np.uint16]) -> Plane:
    """Encode a uint16 image exactly: d[y, x] - d[y, x-1] - d[y-1, x] + d[y-1, x-1] modulo 2**16, high bytes first."""
    change = np.asarray(image, np.uint16).copy()
    change[:, 1:] -= image[:, :-1]
    change[1:] -= change[:-1].copy()
    signed = change.view(np.int16)
    folded = ((signed << 1) ^ (signed >> 15)).view(np.uint16)  # zigzag: small changes of either sign stay small
    halves = np.stack([folded >> 8, folded & 255]).astype(np.uint8)
    return Plane("exact", image.shape[0], image.shape[1], zlib.compress(halves.tobytes(), _DEFLATE_LEVEL))


def encode_classes(image: NDArray[np.uint8]) -> Plane:
    """Encode a uint8 image of classes (y, x), row by row, deflated."""
    content = zlib.compress(np.ascontiguousarray(image).tobytes(), _DEFLATE_LEVEL)
    return Plane("bytes", image.shape[0], image.shape[1], content)


def _coded(image: NDArray[np.uint16]) -> _Coded:
    """Return the image in codes. Nodata gets the code of the median, which compresses well."""
    valid = image[image != NODATA_DN]
    if not valid.size:
        return _Coded(image, np.zeros(image.shape, np.uint8), np.zeros(_CODES, np.int32))
    low, high = int(valid.min()), int(valid.max())
    knee = max(int(np.percentile(valid[:: max(1, valid.size // 500_000)], _KNEE_PCT)), low + 1)
    edges = [low, knee, max(high, knee + 1)]
    table = np.interp(np.arange(_CODES), [0, _KNEE_CODE, _CODES - 1], edges)
    of_dn = np.rint(np.interp(np.arange(2**16), table, np.arange(_CODES))).astype(np.uint8)
    of_dn[NODATA_DN] = of_dn[int(np.median(valid[:: max(1, valid.size // 100_000)]))]
    return _Coded(image, of_dn[image], np.rint(table).astype(np.int32))


def _jpeg_plane(one: _Coded, step_dn: int) -> Plane:
    """Encode a grey JPEG with one quantiser step for all frequencies, since the page shows single pixels."""
    from PIL import Image

    step = int(np.clip(round(step_dn / one.dn_per_code), 1, 255))
    content = io.BytesIO()
    Image.fromarray(one.codes).save(content, "JPEG", qtables=[[step] * 64], optimize=True)
    error = one.image.astype(np.int32) - one.table[np.asarray(Image.open(content))]
    valid = one.image != NODATA_DN
    error[~valid] = 0
    bound = max(1, round(BOUND_STEPS * step * one.dn_per_code))
    missed = np.flatnonzero(np.abs(error) > bound)
    correction = np.rint(error.ravel()[missed] / bound).astype(np.int16)
    error.ravel()[missed] -= correction.astype(np.int32) * bound
    mask = b"" if valid.all() else zlib.compress(np.packbits(valid, bitorder="little").tobytes(), _DEFLATE_LEVEL)
    return Plane(
        "jpeg",
        one.image.shape[0],
        one.image.shape[1],
        content.getvalue(),
        table=tuple(int(dn) for dn in one.table),
        fixes=_fixes(missed, correction),
        fixes_count=missed.size,
        bound_dn=bound,
        mask=mask,
        max_error_dn=int(np.abs(error).max(initial=0)),
        rms_error_dn=round(float(np.sqrt(np.square(error, dtype=np.float64).sum() / max(1, int(valid.sum())))), 1),
    )


def _fixes(missed: NDArray[np.intp], correction: NDArray[np.int16]) -> bytes:
    """Encode gaps between pixels (uint32), then corrections (int16, in units of the bound), each low bytes first."""
    if not missed.size:
        return b""
    gaps = np.diff(missed, prepend=0).astype("<u4").view(np.uint8).reshape(-1, 4).T
    steps = correction.astype("<i2").view(np.uint8).reshape(-1, 2).T
    return zlib.compress(gaps.tobytes() + steps.tobytes(), _DEFLATE_LEVEL)


def stretch(image: NDArray[np.uint16]) -> tuple[int, int]:
    """Return the 1st and 99th percentile of measured DN, at least 100 DN apart; (1000, 11000) if none is measured."""
    valid = image[image != NODATA_DN]
    if not valid.size:
        return 1000, 11000
    low, high = np.percentile(valid[:: max(1, valid.size // 500_000)], (1, 99))
    return int(low), max(int(high), int(low) + 100)
