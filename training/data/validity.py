"""Which pixels of an image show ground: not nodata, masked, transparent, or part of a frame or of saturated ground."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from training.data.rasters import Stored

# Frames are black or white without being declared; a square of this side at the end of the number range, the same in
# all bands, is none of the ground. Single dark or bright pixels are.
FRAME_PX = 5


def constant_frames(stored: Stored) -> NDArray[np.bool_]:
    """Pixels (ny, nx) of stored values (bands, ny, nx) in squares of `FRAME_PX` px at the end of the number range.

    The range is that of the integer type; for floating point it ends at 0 alone.
    """
    ends = {0.0}
    if np.issubdtype(stored.dtype, np.integer):
        limits = np.iinfo(str(stored.dtype))
        ends |= {limits.min, limits.max}
    found = np.zeros(stored.shape[1:], np.bool_)
    for end in ends:
        alike = (stored == end).all(axis=0)
        if np.count_nonzero(alike) >= FRAME_PX:  # at the window's edge a frame may show less than a square
            core = _throughout_squares(alike)
            found |= ~_throughout_squares(~core) & alike
    return found


def _throughout_squares(flags: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return where flags (ny, nx) are True in all of the square of `FRAME_PX` px around a pixel, and outside.

    It equals `ndimage.binary_erosion`, which takes longer because it does not know that a square is a row of columns.
    """
    padded = np.pad(flags, FRAME_PX // 2, constant_values=True)
    ny, nx = flags.shape
    columns = padded[:ny].copy()
    for k in range(1, FRAME_PX):
        columns &= padded[k : k + ny]
    found = columns[:, :nx].copy()
    for k in range(1, FRAME_PX):
        found &= columns[:, k : k + nx]
    return found


def largest_square(valid: NDArray[np.bool_]) -> tuple[int, int, int]:
    """(row, column, side) of the largest square of True, the one nearest the middle of several; side 0 without any.

    Squares have a middle pixel, so that sides are odd.
    """
    reach = ndimage.distance_transform_cdt(np.pad(valid, 1), metric="chessboard")[1:-1, 1:-1]
    largest = int(reach.max(initial=0))
    if largest == 0:
        return 0, 0, 0
    rows, cols = np.nonzero(reach == largest)
    off_middle = (rows - valid.shape[0] / 2) ** 2 + (cols - valid.shape[1] / 2) ** 2
    nearest = int(off_middle.argmin())
    return int(rows[nearest]) - largest + 1, int(cols[nearest]) - largest + 1, 2 * largest - 1
