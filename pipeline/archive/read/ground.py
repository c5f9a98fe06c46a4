"""Coarse valid-pixel masks of scenes, for comparing two processings of one acquisition."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.archive.read.band_file import gdal_options
from pipeline.archive.read.gdal import open_raster
from pipeline.bands import BY_NAME, NODATA_DN, SCL
from pipeline.errors import ReadError, Unreachable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from pipeline.archive.read.access import Access
    from pipeline.archive.scene import Scene

_SIDE_PX = 256  # of the thinned-out mask, at most
_THREADS = 8


@dataclass(frozen=True, eq=False)
class Ground:
    """Valid pixels of a scene, (y, x), on cells of `step_m` metres from the upper left corner in its UTM zone."""

    epsg: int
    left_m: float
    top_m: float
    step_m: tuple[float, float]  # y, x
    valid: NDArray[np.bool_]

    def unseen_by(self, other: Ground) -> float:
        """Share of this ground, 0 to 1, where `other` has no pixel; 1 if the two cannot be compared."""
        rows, cols = np.nonzero(self.valid)
        if other.epsg != self.epsg or rows.size == 0:
            return float(rows.size > 0)
        x_m = self.left_m + (cols + 0.5) * self.step_m[1]
        y_m = self.top_m - (rows + 0.5) * self.step_m[0]
        there_y = np.floor((other.top_m - y_m) / other.step_m[0]).astype(int)
        there_x = np.floor((x_m - other.left_m) / other.step_m[1]).astype(int)
        ny, nx = other.valid.shape
        inside = (there_y >= 0) & (there_y < ny) & (there_x >= 0) & (there_x < nx)
        seen = inside.copy()
        seen[inside] = other.valid[there_y[inside], there_x[inside]]
        return float(1 - seen.mean())


def grounds(scenes: Sequence[Scene], access: Access) -> list[Ground | None]:
    """Ground of each scene by its coarsest band; None where that file cannot be read. Raises Unreachable."""
    if not scenes:
        return []
    with ThreadPoolExecutor(max(1, min(_THREADS, access.connections, len(scenes)))) as pool:
        return list(pool.map(lambda scene: _ground(scene, access), scenes))


def _ground(scene: Scene, access: Access) -> Ground | None:
    import rasterio

    band = max((name for name in scene.hrefs if name != SCL), key=lambda name: BY_NAME[name].gsd_m)
    href = scene.hrefs[band]

    def attempt() -> Ground:
        with rasterio.Env(**gdal_options(access)), open_raster(access.href(href), sharing=False) as dataset:
            side = max(dataset.shape)
            step = max(1, -(-side // _SIDE_PX))
            ny, nx = (-(-length // step) for length in dataset.shape)
            dn = dataset.read(1, out_shape=(ny, nx))
            valid = (dn != NODATA_DN) & (dataset.read_masks(1, out_shape=(ny, nx)) > 0)
            a, e = dataset.transform.a, -dataset.transform.e
            step_m = (e * dataset.height / ny, a * dataset.width / nx)
            return Ground(scene.epsg, dataset.transform.c, dataset.transform.f, step_m, valid)

    try:
        return access.reading(href, attempt, what=f"{band} of scene {scene.id}")
    except Unreachable:
        raise
    except ReadError:
        return None
