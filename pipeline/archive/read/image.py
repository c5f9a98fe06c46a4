"""One open band file: blocks of stored values in which everything the file declares invalid is 0."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.archive.read.declared import Declared, declared_by
from pipeline.archive.read.gdal import ALLOWED_DRIVERS, open_raster
from pipeline.bands import CANONICAL_OFFSET_DN, NODATA_DN

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from rasterio import DatasetReader

# From here on uint16 holds negative DN that wrapped around (where 1000 was subtracted), or 65535, the mark of
# saturated pixels (Special_Values of MTD_MSIL2A.xml). No ground has reflectance 6.35.
WRAPPED_DN = 2**16 + CANONICAL_OFFSET_DN


class Image:
    """An open dataset of one band, with its sidecar mask. ValueError where its declarations cannot be honoured."""

    def __init__(self, dataset: DatasetReader) -> None:
        self.dataset = dataset
        self.declared: Declared = declared_by(dataset)
        self._mask: DatasetReader | None = _open_mask(self.declared.mask, dataset) if self.declared.mask else None

    def close(self) -> None:
        """Close the files."""
        if self._mask is not None:
            self._mask.close()
        self.dataset.close()

    def read(self, row: int, col: int, ny: int, nx: int) -> NDArray[Any]:
        """(ny, nx) values from a row and column of the file, 0 outside it."""
        top, bottom = max(row, 0), min(row + ny, self.dataset.height)
        left, right = max(col, 0), min(col + nx, self.dataset.width)
        if top >= bottom or left >= right:
            return np.zeros((ny, nx), self.dataset.dtypes[0])
        window = ((top, bottom), (left, right))
        inner = self._valid(self.dataset.read(1, window=window), window=window)
        if inner.shape == (ny, nx):
            return inner
        block = np.zeros((ny, nx), inner.dtype)
        block[top - row : bottom - row, left - col : right - col] = inner
        return block

    def thinned(self, step: int) -> NDArray[Any]:
        """The whole image, one value per `step` pixels, from an overview where the file has them."""
        shape = -(-self.dataset.height // step), -(-self.dataset.width // step)
        return self._valid(self.dataset.read(1, out_shape=shape), out_shape=shape)

    def _valid(self, values: NDArray[Any], **where: object) -> NDArray[Any]:
        """The values, 0 where nodata or a mask marks them invalid."""
        for nodata in self.declared.nodata:
            if nodata != NODATA_DN:
                values[values == nodata] = 0
        if self.declared.masked:
            values[self.dataset.read_masks(1, **where) == 0] = 0
        if self._mask is not None:
            values[self._mask.read(1, **where) == 0] = 0
        return values


def without_impossible(values: NDArray[Any], offset_dn: int) -> NDArray[Any]:
    """Stored DN of a band, 0 where they cannot be reflectance: wrapped around, saturated, or below -0.1.

    >>> without_impossible(np.array([65500, 64535, 0], np.uint16), 0).tolist()
    [0, 64535, 0]
    >>> without_impossible(np.array([-9999, -40], np.int16), 0).tolist()
    [0, -40]
    """
    lowest_dn = CANONICAL_OFFSET_DN - offset_dn  # reflectance -0.1
    wrong = values >= WRAPPED_DN if values.dtype == np.uint16 else values <= lowest_dn
    if wrong.any():
        values[wrong] = 0
    return values


def _open_mask(path: str, dataset: DatasetReader) -> DatasetReader:
    """The `.msk` file. ValueError when it is no GeoTIFF of the image's size."""
    import warnings

    import rasterio

    try:
        with warnings.catch_warnings():  # a mask has no georeferencing
            warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
            mask = open_raster(path, sharing=False)
    except rasterio.errors.RasterioIOError as error:
        raise ValueError(f"its mask {path} cannot be opened: {error}") from error
    if mask.driver not in ALLOWED_DRIVERS or mask.shape != dataset.shape:
        found = f"{mask.driver} of {mask.height} x {mask.width} px"
        mask.close()
        raise ValueError(f"its mask {path} is a {found}; expected a GeoTIFF of {dataset.height} x {dataset.width} px")
    return mask
