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

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.grid.grid import Window

# Multipliers and Weyl constants of Philox4x32, Salmon et al. 2011, section 4.3.
_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_LOW32 = np.uint64(0xFFFFFFFF)
_SHIFT32 = np.uint64(32)
_ROUNDS = 10
_NORMALS_PER_CALL = 4
_ROWS_AT_ONCE = 32  # keeps the working set within the L2 cache; does not change values


def philox4x32(
    counter: tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.uint64], NDArray[np.uint64]], key: int
) -> tuple[NDArray[np.uint64], ...]:
    """Four uint32 words (held in uint64) per counter, ten rounds; `key` is 64 bits, low word first."""
    c0, c1, c2, c3 = counter
    k0, k1 = key & 0xFFFFFFFF, (key >> 32) & 0xFFFFFFFF
    for _ in range(_ROUNDS):
        product0, product1 = c0 * _M0, c2 * _M1
        c0, c1, c2, c3 = (
            (product1 >> _SHIFT32) ^ c1 ^ np.uint64(k0),
            product1 & _LOW32,
            (product0 >> _SHIFT32) ^ c3 ^ np.uint64(k1),
            product0 & _LOW32,
        )
        k0, k1 = (k0 + _W0) & 0xFFFFFFFF, (k1 + _W1) & 0xFFFFFFFF
    return c0, c1, c2, c3


def _normals(words: tuple[NDArray[np.uint64], ...]) -> list[NDArray[np.float64]]:
    """Four standard normals from four uint32 words."""
    u = [(word.astype(np.float64) + 0.5) * 2.0**-32 for word in words]
    r0, r1 = np.sqrt(-2.0 * np.log(u[0])), np.sqrt(-2.0 * np.log(u[2]))
    a0, a1 = 2.0 * np.pi * u[1], 2.0 * np.pi * u[3]
    return [r0 * np.cos(a0), r0 * np.sin(a0), r1 * np.cos(a1), r1 * np.sin(a1)]


def normal_field(
    window: Window, *, seed: int, channels: int, step: int = 0, member: int = 0, stream: int = 0
) -> NDArray[np.float32]:
    """Standard normals (channels, ny, nx) at absolute pixels of `window`, the same for any tiling.

    `seed` has 64 bits, `step` and `member` 16 each; `stream` (24 bits) tells UTM zones and dates apart.
    """
    if not (0 <= step < 2**16 and 0 <= member < 2**16 and 0 <= stream < 2**24 and 0 <= seed < 2**64):
        msg = f"seed {seed}, step {step}, member {member} or stream {stream} is out of range"
        raise ValueError(msg)
    field = np.empty((channels, *window.shape), np.float32)
    columns = (np.arange(window.col, window.col_end, dtype=np.int64) & 0xFFFFFFFF).astype(np.uint64)[None, :]
    pair, negated = divmod(member, 2)
    third = np.uint64((step << 16) | pair)
    for top in range(0, window.ny, _ROWS_AT_ONCE):
        rows = np.arange(window.row + top, min(window.row + top + _ROWS_AT_ONCE, window.row_end), dtype=np.int64)
        row_words = ((rows + 2**31) & 0xFFFFFFFF).astype(np.uint64)[:, None]
        c0, c1 = np.broadcast_arrays(row_words, columns)
        for group in range(0, channels, _NORMALS_PER_CALL):
            fourth = np.full_like(c0, (stream << 8) | (group // _NORMALS_PER_CALL))
            words = philox4x32((c0, c1, np.full_like(c0, third), fourth), seed)
            part = _normals(words)[: channels - group]
            field[group : group + len(part), top : top + len(rows)] = part
    return np.negative(field, out=field) if negated else field
