"""Images inside the report page: arrays of DN as short text that a browser turns back into numbers.

In: (y, x) arrays. Out: `Plane`s, each with how far its numbers may be off. Imports bands only; pillow inside functions.

Two ways to write an image. Exact: differences of neighbouring pixels, deflated. Small: an 8-bit JPEG through a table of
DN, and a list of the pixels that it misses by more than a bound; what is left is known, as the image is decoded here. A
set of images is written exactly where that fits the bytes, else by the finest JPEG that fits.
"""

from __future__ import annotations

import io
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from pipeline.bands import NODATA_DN

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

BOUND_STEPS = 1.5  # no pixel of a JPEG plane is further off than so many quantiser steps; few come so far
# quantiser steps of JPEGs, finest first
_STEPS_DN = (15, 20, 25, 30, 35, 40, 46, 53, 61, 70, 80, 95, 110, 130, 160, 200, 250, 320, 420, 600, 900, 1400)
_KNEE_CODE, _KNEE_PCT = 240, 99.9  # codes 0..240 hold all but the brightest pixels, the rest of the codes hold those
_CODES = 256
_DEFLATE_LEVEL = 6


@dataclass(frozen=True)
class Plane:
    """One image as bytes: how it is written, its side lengths, and by how much decoded DN may differ from the store."""

    codec: str  # "exact" (uint16), "jpeg" (uint8 by `table`), "bytes" (uint8)
    ny: int
    nx: int
    content: bytes
    table: tuple[int, ...] = ()  # DN of each code
    fixes: bytes = b""  # pixels that the JPEG missed by more than `bound_dn`
    fixes_count: int = 0
    bound_dn: int = 0  # also the unit in which those pixels are corrected
    mask: bytes = b""  # one bit per pixel, 0 where nothing was measured; empty: all measured
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
        """True when decoding gives the store's own numbers."""
        return all(plane.max_error_dn == 0 for plane in self.planes.values())


def encode_set(names: Sequence[str], images: Iterable[NDArray[np.uint16]], budget_bytes: int) -> Set:
    """Planes of DN images (y, x), exact where they fit into `budget_bytes`, else JPEGs that do, else the smallest."""
    arrays = dict(zip(names, images, strict=True))
    pixels = sum(image.size for image in arrays.values())
    if pixels < 4 * budget_bytes:  # exact planes need a quarter of a byte per pixel at the very least
        exact = Set({name: encode_exact(image) for name, image in arrays.items()})
        if exact.size <= budget_bytes:
            return exact
    return encode_lossy(arrays, budget_bytes)


def encode_lossy(arrays: dict[str, NDArray[np.uint16]], budget_bytes: int) -> Set:
    """The finest JPEG planes that fit into `budget_bytes`; the coarsest where none fits."""
    coded = {name: _coded(image) for name, image in arrays.items()}
    first = _first_step(coded, budget_bytes)
    for step_dn in _STEPS_DN[first:]:
        found = Set({name: _jpeg_plane(arrays[name], codes, table, step_dn) for name, (codes, table) in coded.items()})
        if found.size <= budget_bytes:
            return found
    return found


def _first_step(coded: dict[str, tuple[NDArray[np.uint8], NDArray[np.int32]]], budget_bytes: int) -> int:
    """Index of the step to begin with, judged by every fourth block of rows: whole images are encoded once or twice."""
    samples = {name: (_sampled(codes), table) for name, (codes, table) in coded.items()}
    share = sum(codes.size for codes, _ in samples.values()) / sum(codes.size for codes, _ in coded.values())
    for index, step_dn in enumerate(_STEPS_DN):
        if sum(len(_jpeg(codes, table, step_dn)) for codes, table in samples.values()) <= 0.97 * share * budget_bytes:
            return index
    return len(_STEPS_DN) - 1


def _sampled(codes: NDArray[np.uint8], rows: int = 16, every: int = 4) -> NDArray[np.uint8]:
    if codes.shape[0] < 2 * rows * every:
        return codes
    blocks = codes[: codes.shape[0] // rows * rows].reshape(-1, rows, codes.shape[1])
    return blocks[::every].reshape(-1, codes.shape[1])


def encode_exact(image: NDArray[np.uint16]) -> Plane:
    """A uint16 image (y, x): d[y, x] - d[y, x-1] - d[y-1, x] + d[y-1, x-1] modulo 2**16, high bytes, then low bytes."""
    change = np.asarray(image, np.uint16).copy()
    change[:, 1:] -= image[:, :-1]
    change[1:] -= change[:-1].copy()
    signed = change.view(np.int16)
    folded = ((signed << 1) ^ (signed >> 15)).view(np.uint16)  # small changes of either sign become small numbers
    halves = np.stack([folded >> 8, folded & 255]).astype(np.uint8)
    return Plane("exact", image.shape[0], image.shape[1], zlib.compress(halves.tobytes(), _DEFLATE_LEVEL))


def encode_classes(image: NDArray[np.uint8]) -> Plane:
    """A uint8 image of classes (y, x), row by row."""
    content = zlib.compress(np.ascontiguousarray(image).tobytes(), _DEFLATE_LEVEL)
    return Plane("bytes", image.shape[0], image.shape[1], content)


def _coded(image: NDArray[np.uint16]) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """Codes (y, x) and the DN of each code; nodata gets the median's code, so that it costs little."""
    valid = image[image != NODATA_DN]
    if not valid.size:
        return np.zeros(image.shape, np.uint8), np.zeros(_CODES, np.int32)
    low, high = int(valid.min()), int(valid.max())
    knee = max(int(np.percentile(valid[:: max(1, valid.size // 500_000)], _KNEE_PCT)), low + 1)
    edges = [low, knee, max(high, knee + 1)]
    table = np.interp(np.arange(_CODES), [0, _KNEE_CODE, _CODES - 1], edges)
    of_dn = np.rint(np.interp(np.arange(2**16), table, np.arange(_CODES))).astype(np.uint8)
    of_dn[NODATA_DN] = of_dn[int(np.median(valid[:: max(1, valid.size // 100_000)]))]
    return of_dn[image], np.rint(table).astype(np.int32)


def _jpeg(codes: NDArray[np.uint8], table: NDArray[np.int32], step_dn: int) -> bytes:
    """A grey JPEG. All frequencies share one quantiser step: the page shows single pixels, not an impression."""
    from PIL import Image

    dn_per_code = max(float(table[_KNEE_CODE] - table[0]) / _KNEE_CODE, 1e-6)
    step = int(np.clip(round(step_dn / dn_per_code), 1, 255))
    content = io.BytesIO()
    Image.fromarray(codes).save(content, "JPEG", qtables=[[step] * 64], optimize=True)
    return content.getvalue()


def _jpeg_plane(image: NDArray[np.uint16], codes: NDArray[np.uint8], table: NDArray[np.int32], step_dn: int) -> Plane:
    from PIL import Image

    content = _jpeg(codes, table, step_dn)
    decoded = table[np.asarray(Image.open(io.BytesIO(content)))]
    error = image.astype(np.int32) - decoded
    valid = image != NODATA_DN
    error[~valid] = 0
    bound = round(BOUND_STEPS * step_dn)
    missed = np.flatnonzero(np.abs(error) > bound)
    correction = np.rint(error.ravel()[missed] / bound).astype(np.int16)
    error.ravel()[missed] -= correction.astype(np.int32) * bound
    mask = b"" if valid.all() else zlib.compress(np.packbits(valid, bitorder="little").tobytes(), _DEFLATE_LEVEL)
    count = max(1, int(valid.sum()))
    return Plane(
        "jpeg",
        image.shape[0],
        image.shape[1],
        content,
        tuple(int(dn) for dn in table),
        _fixes(missed, correction),
        missed.size,
        bound,
        mask,
        int(np.abs(error).max(initial=0)),
        round(float(np.sqrt(np.square(error, dtype=np.float64).sum() / count)), 1),
    )


def _fixes(missed: NDArray[np.intp], correction: NDArray[np.int16]) -> bytes:
    """Gaps between pixels (uint32), then corrections (int16, in units of the bound), byte by byte from the lowest."""
    if not missed.size:
        return b""
    gaps = np.diff(missed, prepend=0).astype("<u4").view(np.uint8).reshape(-1, 4).T
    steps = correction.astype("<i2").view(np.uint8).reshape(-1, 2).T
    return zlib.compress(gaps.tobytes() + steps.tobytes(), 9)


def stretch(image: NDArray[np.uint16]) -> tuple[int, int]:
    """DN of the 1st and 99th percentile of measured pixels, at least 100 DN apart; (1000, 11000) when there is none."""
    valid = image[image != NODATA_DN]
    if not valid.size:
        return 1000, 11000
    low, high = np.percentile(valid[:: max(1, valid.size // 500_000)], (1, 99))
    return int(low), max(int(high), int(low) + 100)
