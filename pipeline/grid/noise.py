"""Noise as a pure function of position: counter-based normals keyed by seed, row, column, step and member.

Generator: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011), one call per pixel.
The four counter words are (row + 2^31, column, step << 16 | member // 2, stream), so that no two pixels, steps, pairs
of members or channel groups ever share a block; the key is the 64-bit seed. Normals follow from Box and Muller (1958)
in float64. Members come in antithetic pairs: member 2k + 1 has the negated noise of member 2k, which is also a valid
draw, and the mean of a pair is free of all odd terms in the noise (Hammersley and Morton 1956).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pipeline.grid.arrays import cast, is_numpy, namespace, zeros

if TYPE_CHECKING:
    import torch

    from pipeline.grid.arrays import Array
    from pipeline.grid.grid import Window

# Multipliers and Weyl constants of Philox4x32, Salmon et al. 2011, section 4.3.
_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_LOW32 = 0xFFFFFFFF
_ROUNDS = 10
_NORMALS_PER_CALL = 4
_ROWS_AT_ONCE = 32  # keeps the working set within the L2 cache; does not change values


def philox4x32(counter: tuple[Array, Array, Array, Array], key: int) -> tuple[Array, ...]:
    """Four uint32 words per counter, ten rounds; `key` is 64 bits, low word first.

    Words are held in uint64, or in int64 on a device, whose products have the same bits.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key & 0xFFFFFFFF, (key >> 32) & 0xFFFFFFFF
    for _ in range(_ROUNDS):
        product0, product1 = c0 * _M0, c2 * _M1
        c0, c1, c2, c3 = (
            _high(product1) ^ c1 ^ k0,
            product1 & _LOW32,
            _high(product0) ^ c3 ^ k1,
            product0 & _LOW32,
        )
        k0, k1 = (k0 + _W0) & 0xFFFFFFFF, (k1 + _W1) & 0xFFFFFFFF
    return c0, c1, c2, c3


def _high(product: Array) -> Array:
    """The upper 32 bits of products of 64. A shift of int64 copies the sign."""
    high = product >> 32
    return high if is_numpy(product) else high & _LOW32


def _normals(words: tuple[Array, ...]) -> list[Array]:
    """Four standard normals from four uint32 words."""
    xp = namespace(words[0])
    u = [(cast(word, "float64") + 0.5) * 2.0**-32 for word in words]
    r0, r1 = xp.sqrt(-2.0 * xp.log(u[0])), xp.sqrt(-2.0 * xp.log(u[2]))
    a0, a1 = 2.0 * np.pi * u[1], 2.0 * np.pi * u[3]
    return [r0 * xp.cos(a0), r0 * xp.sin(a0), r1 * xp.cos(a1), r1 * xp.sin(a1)]


def normal_field(
    window: Window,
    *,
    seed: int,
    channels: int,
    step: int = 0,
    member: int = 0,
    stream: int = 0,
    device: torch.device | None = None,
) -> Array:
    """Standard normals (channels, ny, nx), float32, at absolute pixels of `window`, the same for any tiling.

    `seed` has 64 bits, `step` and `member` 16 each; `stream` (24 bits) tells UTM zones and dates apart. They are drawn
    on `device`, where given: the words are the same there, and normals as far as its float64 logarithm, sine and cosine
    round alike to float32.
    """
    if not (0 <= step < 2**16 and 0 <= member < 2**16 and 0 <= stream < 2**24 and 0 <= seed < 2**64):
        msg = f"seed {seed}, step {step}, member {member} or stream {stream} is out of range"
        raise ValueError(msg)
    columns = _words(window.col, window.col_end, 0, device)[None, :]
    field = zeros((channels, *window.shape), columns)
    pair, negated = divmod(member, 2)
    at_once = _ROWS_AT_ONCE if device is None else window.ny
    for top in range(0, window.ny, at_once):
        bottom = min(top + at_once, window.ny)
        c0 = _words(window.row + top, window.row + bottom, 2**31, device)[:, None] + columns * 0
        c1, third = columns + c0 * 0, c0 * 0 + ((step << 16) | pair)
        for group in range(0, channels, _NORMALS_PER_CALL):
            fourth = c0 * 0 + ((stream << 8) | (group // _NORMALS_PER_CALL))
            part = _normals(philox4x32((c0, c1, third, fourth), seed))[: channels - group]
            for i, normals in enumerate(part):
                field[group + i, top:bottom] = normals
    if negated:
        field *= -1.0
    return field


def _words(first: int, end: int, shift: int, device: torch.device | None) -> Array:
    """The low 32 bits of first + shift, ..., end - 1 + shift: uint64, or int64 on a device."""
    if device is None:
        return ((np.arange(first, end, dtype=np.int64) + shift) & _LOW32).astype(np.uint64)
    import torch

    return (torch.arange(first, end, dtype=torch.int64, device=device) + shift) & _LOW32
