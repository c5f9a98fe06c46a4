"""Overviews of a GeoTIFF by the store's rules: means without nodata, rounded without bias.

GDAL's AVERAGE rounds halves up, which brightens every level by 0.125 DN. Each `.ovr` file is the overview of the
previous one, and GDAL's COG driver takes its overviews from them.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from pipeline.store.overviews import mean_of_valid

if TYPE_CHECKING:
    from pathlib import Path

    from rasterio.io import DatasetReader, DatasetWriter

_STRIP_PX = 512  # rows of an overview processed at once


def write_means(path: Path, nodata: int, smallest_px: int, options: dict[str, Any]) -> list[Path]:
    """Halve a uint16 GeoTIFF repeatedly until neither side exceeds `smallest_px`. Return the files written.

    `options` is the rasterio profile of the files without their size.
    """
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning

    written: list[Path] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # each overview becomes the source of the next
        while True:
            with rasterio.open(written[-1] if written else path) as source:
                if max(source.shape) <= smallest_px:
                    return written
                size = {"height": -(-source.height // 2), "width": -(-source.width // 2)}
                written.append(path.with_name(f"{path.name}{'.ovr' * (len(written) + 1)}"))
                with rasterio.open(written[-1], "w", **{**options, **size}) as target:
                    _halve(source, target, nodata)


def _halve(source: DatasetReader, target: DatasetWriter, nodata: int) -> None:
    """Fill `target` with the means of 2 x 2 pixels of `source`, strip by strip."""
    from rasterio.windows import Window

    for top in range(0, target.height, _STRIP_PX):
        rows = min(_STRIP_PX, target.height - top)
        strip = source.read(window=Window(0, 2 * top, source.width, min(2 * rows, source.height - 2 * top)))
        target.write(mean_of_valid(strip, nodata), window=Window(0, top, target.width, rows))
