"""Radiometric consistency: bring block means of the output over native pixels to the input, and quantise to uint16 DN.

Operator A is the k x k block mean and A+ its pseudo-inverse (replication), so x + A+(y - A x) is the image nearest to x
that is consistent with y (range/null-space decomposition as in DDNM, Wang et al. 2023). This exact step comes last,
after blending; bicubic interpolation of the residual before it reduces the block pattern that it leaves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pipeline.bands import CANONICAL_OFFSET_DN, NODATA_DN
from pipeline.grid.arrays import cast, compact, divided, fetched, is_numpy, namespace, placed, zeros

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from pipeline.grid.arrays import Array

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


def _to_blocks(image: Array, factor: int) -> Array:
    ny, nx = image.shape[-2] // factor, image.shape[-1] // factor
    blocks = image.reshape(*image.shape[:-2], ny, factor, nx, factor).swapaxes(-3, -2)
    return compact(blocks).reshape(*image.shape[:-2], ny, nx, factor * factor)


def _from_blocks(blocks: Array, factor: int) -> Array:
    *lead, ny, nx, _ = blocks.shape
    fine = blocks.reshape(*lead, ny, nx, factor, factor).swapaxes(-3, -2)
    return fine.reshape(*lead, ny * factor, nx * factor)


def least_dn(native: Array) -> Array:
    """Return the lowest DN within a native pixel: reflectance 0, or the measured value if lower, less noise."""
    return (native.clip(None, float(-CANONICAL_OFFSET_DN)) - _NOISE_DN).clip(1.0, None)


def _limited(deviation: Array, native: Array) -> Array:
    """Shrink the contrast of blocks that would leave the physical range; the mean stays.

    The range is bounded by 65535 and by `least_dn`. Without this limit, detail beside a bright edge would undershoot
    and spoil every index that divides by it.
    """
    xp = namespace(deviation)
    low, high = xp.amin(deviation, -1), xp.amax(deviation, -1)
    below, above = native - least_dn(native), _MAX_DN - native
    room = xp.minimum(
        xp.where(low < -below, below / (-low).clip(1e-6, None), 1.0),
        xp.where(high > above, above / high.clip(1e-6, None), 1.0),
    )
    tight = room < 1
    if is_numpy(tight) and not tight.any():
        return deviation
    # slightly less, so that float32 rounding cannot push the extreme pixel out of range
    factor = xp.where(tight, room.clip(0.0, None) * (1 - 1e-5), 1.0)
    return deviation * cast(factor, "float32")[..., None]


def _settled(blocks: NDArray[np.int32], native: NDArray[np.int32]) -> NDArray[np.int32]:
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


def _stepped(carried: Array) -> Array:
    """Return the differences between running sums (..., n) rounded to whole numbers, the first from 0."""
    xp = namespace(carried)
    return xp.diff(xp.round(carried), axis=-1, prepend=zeros((*carried.shape[:-1], 1), carried, "float64"))


def project_to_dn(image: Array, native: Array, factor: int) -> Array:
    """Return DN (..., k*h, k*w) whose every k x k block sums to k*k times the native DN exactly; 0 where native is 0.

    `image` is float DN (..., k*h, k*w), `native` DN (..., h, w): uint16, or int32 on a device, and so is the result.
    Rounding errors are diffused along the pixels of each block, so every pixel moves by less than 1 DN beyond the
    projection itself. On a device, a mean may be rounded differently, which turns a DN in 1e8.
    """
    xp = namespace(image)
    deviation = _to_blocks(image, factor)
    deviation = deviation - cast(divided(cast(deviation, "float64").sum(-1), factor**2), "float32")[..., None]
    target = cast(native, "float32")
    carried = xp.cumsum(_limited(deviation, target), axis=-1, dtype=xp.float64)
    share = [(i + 1) / carried.shape[-1] for i in range(carried.shape[-1])]
    carried = carried - carried[..., -1:] * placed(np.asarray(share), carried)
    wanted = cast(_stepped(carried) + native[..., None], "int32")
    clipped = wanted.clip(1, _MAX_DN)
    off = (clipped != wanted).any(-1) & (native != NODATA_DN)
    if off.any():  # the only step here that waits for a device
        settled = _settled(fetched(clipped[off]), fetched(native[off]).astype(np.int32))
        clipped[off] = placed(settled, clipped)
    return _from_blocks(_unless_nodata(clipped, native), factor)


def round_to_dn(image: Array, native: Array, factor: int) -> Array:
    """Return DN within the physical range, 0 where native is 0, without exact block means; arrays as above.

    Rounding errors are diffused within each native pixel, so that its mean is rounded to 1/k^2 DN. Rounding each pixel
    independently would shift a flat field by up to half a DN. Sums of DN are exact in float64, so their order is free.
    """
    xp = namespace(image)
    least = least_dn(cast(native, "float32"))[..., None]
    blocks = xp.maximum(_to_blocks(image, factor), least).clip(None, float(_MAX_DN))
    dn = _stepped(xp.cumsum(blocks, axis=-1, dtype=xp.float64)).clip(1, _MAX_DN)
    return _from_blocks(_unless_nodata(cast(dn, "int32"), native), factor)


def _unless_nodata(blocks: Array, native: Array) -> Array:
    """Return DN of blocks (..., h, w, k*k) in the type of `native` (..., h, w), nodata where that is."""
    dn = blocks * (native != NODATA_DN)[..., None]
    return dn.astype(native.dtype) if is_numpy(dn) else dn
