"""Radiometric consistency: bring block means of the output over native pixels to the input, and quantise to uint16 DN.

Operator A is the k x k block mean and A+ its pseudo-inverse (replication), so x + A+(y - A x) is the image nearest to x
that is consistent with y (range/null-space decomposition as in DDNM, Wang et al. 2023). This exact step comes last,
after blending; bicubic interpolation of the residual before it reduces the block pattern that it leaves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pipeline.bands import CANONICAL_OFFSET_DN, NODATA_DN

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

_MAX_DN = 65535
_NOISE_DN = 50  # reflectance 0.005: scatter of dark water and shadows in L2A
# Rounds of back-projection before the exact step: (kernel, rounds), for RGB from a network and for the rest.
# The PSF is wider than a box, so each round of the box removes true detail: on held-out images, one round of the tent
# instead of two of the box keeps 0.1 dB, and no round leaves a visible mesh. "tent" has no exact step, and one round
# only halves fine patterns, so it takes more rounds.
ROUNDS: dict[str, dict[str, tuple[str, int]]] = {
    "box": {"network": ("tent", 1), "other": ("box", 1)},
    "tent": {"network": ("tent", 8), "other": ("tent", 4)},
    "none": {"network": ("box", 0), "other": ("box", 0)},
    "sensor": {"network": ("box", 0), "other": ("box", 0)},  # contract.py corrects after blending
}
_STEP = {"box": 1.0, "tent": 1.5}  # share of the residual; a tent spans two blocks, so 1.0 would correct too little


def bicubic_up(image: Tensor, factor: int) -> Tensor:
    """Upsample (b, c, h, w) to (b, c, factor*h, factor*w) by bicubic interpolation, pixel areas aligned.

    Uses Keys' kernel with a = -0.5 (Keys 1981), which reproduces linear ramps exactly. torch uses it with `antialias`;
    without, it uses a = -0.75, which does not.
    """
    from torch.nn import functional

    return functional.interpolate(image, scale_factor=factor, mode="bicubic", align_corners=False, antialias=True)


def block_mean(image: Tensor, factor: int) -> Tensor:
    """Return the mean over factor x factor blocks, (b, c, h, w) to (b, c, h/factor, w/factor)."""
    from torch.nn import functional

    return functional.avg_pool2d(image, factor)


def tent_mean(image: Tensor, factor: int) -> Tensor:
    """Downsample with an antialiased bilinear (tent) kernel, as opensr-test does; shapes as `block_mean`."""
    from torch.nn import functional

    ny, nx = image.shape[-2] // factor, image.shape[-1] // factor
    return functional.interpolate(image, size=(ny, nx), mode="bilinear", antialias=True, align_corners=False)


def back_project(image: Tensor, native: Tensor, factor: int, *, kernel: str = "box", rounds: int = 1) -> Tensor:
    """Add the bicubic-upsampled residual native - A(image), `rounds` times; A is the box or tent mean.

    `image` (b, c, k*h, k*w), `native` (b, c, h, w), same unit. A round of the tent adds 1.5 times the residual.
    """
    down = {"box": block_mean, "tent": tent_mean}[kernel]
    for _ in range(rounds):
        image = image + _STEP[kernel] * bicubic_up(native - down(image, factor), factor)
    return image


def approach(image: Tensor, native: Tensor, factor: int, consistency: str, source: str = "other") -> Tensor:
    """Bring `image` close to `consistency` by back-projection; `source` is "network" for RGB as a network gave it."""
    kernel, rounds = ROUNDS[consistency][source]
    return back_project(image, native, factor, kernel=kernel, rounds=rounds)


def _to_blocks(image: NDArray[np.float32], factor: int) -> NDArray[np.float32]:
    ny, nx = image.shape[0] // factor, image.shape[1] // factor
    blocks = image.reshape(ny, factor, nx, factor).transpose(0, 2, 1, 3)
    return np.ascontiguousarray(blocks).reshape(ny, nx, factor * factor)


def _from_blocks(blocks: NDArray[np.uint16], factor: int) -> NDArray[np.uint16]:
    ny, nx, _ = blocks.shape
    return blocks.reshape(ny, nx, factor, factor).transpose(0, 2, 1, 3).reshape(ny * factor, nx * factor)


def least_dn(native: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the lowest DN within a native pixel: reflectance 0, or the measured value if lower, less noise."""
    least: NDArray[np.float32] = np.maximum(np.minimum(native, -CANONICAL_OFFSET_DN) - _NOISE_DN, 1)
    return least


def _limit(deviation: NDArray[np.float32], native: NDArray[np.float32]) -> None:
    """Shrink the contrast of blocks that would leave the physical range, in place; the mean stays.

    The range is bounded by 65535 and by `least_dn`. Without this limit, detail beside a bright edge would undershoot
    and spoil every index that divides by it.
    """
    low, high = deviation.min(-1), deviation.max(-1)
    below = native - least_dn(native)
    room = np.minimum(
        np.where(low < -below, below / np.maximum(-low, 1e-6), 1.0),
        np.where(high > _MAX_DN - native, (_MAX_DN - native) / np.maximum(high, 1e-6), 1.0),
    )
    tight = room < 1
    if tight.any():
        # slightly less, so that float32 rounding cannot push the extreme pixel out of range
        deviation[tight] *= (np.maximum(room[tight], 0.0) * (1 - 1e-5))[:, None].astype(np.float32)


def _settled(blocks: NDArray[np.int32], native: NDArray[np.uint16]) -> NDArray[np.int32]:
    """Change blocks (n, k*k) of valid DN by steps of 1 DN until each sums to k*k times its native DN.

    Rounding may carry a pixel one step beyond 1 or 65535, and clipping it changes the sum. The pixels furthest from
    that end compensate, so no pixel leaves the range. This is always possible, since the native DN is within the range.
    """
    blocks = blocks.copy()
    lacking = native.astype(np.int64) * blocks.shape[-1] - blocks.sum(-1, dtype=np.int64)
    while lacking.any():
        step = np.sign(lacking)[:, None]
        room = np.where(step > 0, _MAX_DN - blocks, blocks - 1)
        rank = np.argsort(np.argsort(-room, axis=-1, kind="stable"), axis=-1, kind="stable")
        moved = np.where((rank < np.abs(lacking)[:, None]) & (room > 0), step, 0)
        blocks += moved.astype(np.int32)
        lacking -= moved.sum(-1)
    return blocks


def project_to_dn(image: NDArray[np.float32], native: NDArray[np.uint16], factor: int) -> NDArray[np.uint16]:
    """Return DN (k*h, k*w) whose every k x k block sums to k*k times the native DN exactly; 0 where native is 0.

    `image` is float DN (k*h, k*w), `native` uint16 DN (h, w). Rounding errors are diffused along the pixels of each
    block, so every pixel moves by less than 1 DN beyond the projection itself.
    """
    deviation = _to_blocks(image, factor)
    deviation -= deviation.mean(-1, keepdims=True, dtype=np.float64).astype(np.float32)
    target = native.astype(np.float32)
    _limit(deviation, target)
    carried = np.cumsum(deviation, axis=-1, dtype=np.float64)
    carried -= carried[..., -1:] * (np.arange(1, carried.shape[-1] + 1) / carried.shape[-1])
    steps = np.diff(np.rint(carried), axis=-1, prepend=0.0)
    wanted = (steps + native[..., None]).astype(np.int32)
    clipped = np.clip(wanted, 1, _MAX_DN)
    off = (clipped != wanted).any(-1) & (native != NODATA_DN)
    if off.any():
        clipped[off] = _settled(clipped[off], native[off])
    dn = clipped.astype(np.uint16)
    dn[native == NODATA_DN] = NODATA_DN
    return _from_blocks(dn, factor)


def round_to_dn(image: NDArray[np.float32], native: NDArray[np.uint16], factor: int) -> NDArray[np.uint16]:
    """Return DN within the physical range, 0 where native is 0, without exact block means.

    Rounding errors are diffused within each native pixel, so that its mean is rounded to 1/k^2 DN. Rounding each pixel
    independently would shift a flat field by up to half a DN.
    """
    blocks = np.clip(_to_blocks(image, factor), least_dn(native.astype(np.float32))[..., None], np.float32(_MAX_DN))
    carried = np.rint(np.cumsum(blocks, axis=-1, dtype=np.float64))
    dn = np.clip(np.diff(carried, axis=-1, prepend=0.0), 1, _MAX_DN).astype(np.uint16)
    dn[native == NODATA_DN] = NODATA_DN
    return _from_blocks(dn, factor)
