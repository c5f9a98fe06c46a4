"""Raster maps that are taken whole, such as an image whose style is wanted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pipeline.conditions.raster_map import opened
from pipeline.conditions.vector_map import require_same
from pipeline.errors import ReadError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.conditions.frozen import Frozen
    from pipeline.superres.declared import Condition

MOST_PX = 1024  # along a side; larger files are averaged to it, to bound memory
_STRETCH_PCT = (2.0, 98.0)  # of all bands together, to black and white


def pixels(declared: Condition, frozen: Frozen) -> Tensor:
    """Return the file's first bands (1, bands, h, w) in [0, 1], NaN where it has none.

    8 bits are divided by 255. Other types have no white of their own: the percentiles 2 and 98 of all bands together
    become 0 and 1. Raises UsageError if the file has changed since it was settled or has no pixel of data, and
    ReadError if it cannot be read.
    """
    import torch
    from rasterio.enums import Resampling
    from rasterio.errors import RasterioError

    path = require_same(frozen)
    bands = list(range(1, 1 + len(declared.bands)))
    try:
        with opened(str(path), declared.name, placed=False) as source:
            shrink = max(1.0, max(source.height, source.width) / MOST_PX)
            shape = (len(bands), *(max(1, round(side / shrink)) for side in (source.height, source.width)))
            read = source.read(bands, out_shape=shape, masked=True, resampling=Resampling.average)
    except (RasterioError, OSError) as error:
        raise ReadError(f"the map {path} cannot be read ({error})", "a GeoTIFF", "write it anew") from error
    values = read.astype(np.float32).filled(np.nan)
    known = values[np.isfinite(values)]
    if not known.size:
        raise UsageError(f"--condition {declared.name}={path} has no pixel of data", declared.about)
    low, high = (0.0, 255.0) if read.dtype == np.uint8 else np.percentile(known, _STRETCH_PCT)
    stretched = np.clip((values - low) / max(high - low, 1e-6), 0.0, 1.0)
    return torch.from_numpy(stretched.astype(np.float32))[None]
