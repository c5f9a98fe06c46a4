"""Sentinel-2 tiles for training and Wald tests, read by the pipeline's own loaders.

In: folders of scenes. Out: `Tile`s: every band at its native resolution, as reflectance. A crop of a tile starts and
ends on 60 m pixels, so that all resolutions nest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.bands import BY_NAME, DN_OFFSET, DN_SCALE, NODATA_DN
from training.data import open_raster, split_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.archive.scene import Scene
    from training.data import Split

BANDS: dict[int, tuple[str, ...]] = {
    10: ("B04", "B03", "B02", "B08"),
    20: ("B05", "B06", "B07", "B8A", "B11", "B12"),
    60: ("B01", "B09"),
}
# Folders of scenes, and the BOA offset of those whose files do not tell (None: as the archive room decides).
SCENE_FOLDERS: tuple[tuple[str, int | None], ...] = (
    ("bigearthnet", None),
    ("majortom_native", None),
    ("majortom_native/433D_629L_3_1", -1000),  # still carries the offset: every band's minimum is above 969
    ("argentina_pampas_32720", None),
)
RGBN_STACK = "ftw_vienna_rgbn/inference-img.tif"
UNDATED = "2018-01-01T00:00:00Z"  # stands in where a folder gives no date
MIN_SIDE_60M = 16  # smaller tiles hold no crop


@dataclass(frozen=True)
class Tile:
    """One scene: `rho` by GSD in metres (bands, h, w) float32 reflectance in the order of `BANDS`; absent bands are 0.

    `valid` (h, w) at 60 m is True where every 10 m pixel was measured.
    """

    place: str
    rho: dict[int, NDArray[np.float32]]
    valid: NDArray[np.bool_]
    present: tuple[str, ...]

    @property
    def split(self) -> Split:
        """The split of its place."""
        return split_of(self.place)


def load_tiles(root: Path) -> list[Tile]:
    """All Sentinel-2 Level-2A tiles below `root` that carry 10 and 20 m bands at their native resolution."""
    from pipeline.archive.local import scan

    tiles: list[Tile] = []
    for name, offset_dn in SCENE_FOLDERS:
        if not (root / name).is_dir():
            continue
        scenes, _ = scan(root / name, datetime_utc=UNDATED, offset_dn=offset_dn)
        tiles += [tile for scene in scenes if (tile := tile_of(scene, root, name.split("/")[0])) is not None]
    stack = root / "theia_bouconne_7dates" / "2018_3A_Theia_Bouconne.tif"
    return tiles + (theia_tiles(stack) if stack.is_file() else [])


def tile_of(scene: Scene, root: Path, name: str) -> Tile | None:
    """Read a scene whole, through the loader of inference; None when it holds no crop."""
    from pipeline.archive.access import Access
    from pipeline.archive.cube import read_period
    from pipeline.grid.grid import Grid

    finest = {raster.gsd_m: raster for raster in scene.rasters}[10]
    bounds = (
        finest.left_m,
        finest.top_m - finest.ny * finest.gsd_m,
        finest.left_m + finest.nx * finest.gsd_m,
        finest.top_m,
    )
    grid = Grid.covering(scene.epsg, bounds, scene.phase)
    present = tuple(band for band in BY_NAME if band in scene.hrefs)
    pixels = read_period([scene], "mosaic", grid, present, Access(roots=(str(root.resolve()),)))
    dn = {gsd_m: _in_order(pixels.dn, pixels.bands, gsd_m, grid.at_gsd(60).shape) for gsd_m in BANDS}
    measured = (dn[10] != NODATA_DN).any(axis=0)
    return make_tile(
        f"{name}/{scene.id}", {gsd: to_reflectance(values) for gsd, values in dn.items()}, measured, present
    )


def _in_order(
    dn: dict[int, NDArray[np.uint16]], bands: dict[int, tuple[str, ...]], gsd_m: int, shape_60m: tuple[int, int]
) -> NDArray[np.uint16]:
    """The bands of one GSD in the order of `BANDS`, absent ones as nodata."""
    ny, nx = (side * 60 // gsd_m for side in shape_60m)
    empty = np.full((ny, nx), NODATA_DN, np.uint16)
    held = bands.get(gsd_m, ())
    return np.stack([dn[gsd_m][held.index(name)] if name in held else empty for name in BANDS[gsd_m]])


def to_reflectance(dn: NDArray[np.uint16]) -> NDArray[np.float32]:
    """House DN to reflectance; nodata becomes 0, which is also what products clipped there meant."""
    rho = dn.astype(np.float32) * np.float32(DN_SCALE) + np.float32(DN_OFFSET)
    return np.where(dn == NODATA_DN, np.float32(0), rho)


def make_tile(
    place: str, rho: dict[int, NDArray[np.float32]], measured: NDArray[np.bool_], present: Sequence[str]
) -> Tile | None:
    """Tile of nested rasters, cut to the rows and columns of 60 m in which something was measured."""
    ny, nx = measured.shape[0] // 6, measured.shape[1] // 6
    valid: NDArray[np.bool_] = np.all(measured[: ny * 6, : nx * 6].reshape(ny, 6, nx, 6), axis=(1, 3))
    if not valid.any():
        return None
    rows, cols = (np.flatnonzero(np.any(valid, axis=axis)) for axis in (1, 0))
    y, x = slice(rows[0], rows[-1] + 1), slice(cols[0], cols[-1] + 1)
    cut = {gsd: values[:, _times(y, 60 // gsd), _times(x, 60 // gsd)] for gsd, values in rho.items()}
    if min(y.stop - y.start, x.stop - x.start) < MIN_SIDE_60M:
        return None
    return Tile(place, cut, valid[y, x], tuple(present))


def _times(part: slice, factor: int) -> slice:
    return slice(part.start * factor, part.stop * factor)


def theia_tiles(path: Path) -> list[Tile]:
    """Seven dates of one place in one file: 10 bands per date, those of 20 m replicated 2x2 and here undone."""
    order = ("B02", "B03", "B04", "B08", "B05", "B06", "B07", "B8A", "B11", "B12")
    stack = open_raster(path).astype("float32").data.compute(scheduler="synchronous") * np.float32(DN_SCALE)
    ny, nx = stack.shape[1] // 6 * 6, stack.shape[2] // 6 * 6
    tiles = []
    for date in stack[:, :ny, :nx].reshape(-1, len(order), ny, nx):
        rho = {
            10: np.stack([date[order.index(name)] for name in BANDS[10]]),
            20: np.stack([date[order.index(name)][::2, ::2] for name in BANDS[20]]),
            60: np.zeros((2, ny // 6, nx // 6), np.float32),
        }
        tile = make_tile("theia_bouconne_7dates/31TCJ", rho, (date > 0).any(axis=0), order)
        tiles += [tile] if tile is not None else []
    return tiles


def load_rgbn_dates(root: Path) -> list[tuple[str, NDArray[np.float32]]]:
    """Place and RGB reflectance (3, h, w) of each date in the one stack that has no 20 m bands (B04 B03 B02 B08)."""
    path = root / RGBN_STACK
    if not path.is_file():
        return []
    stack = open_raster(path).astype("float32").data.compute(scheduler="synchronous") * np.float32(DN_SCALE)
    return [("ftw_vienna_rgbn/33UUP", stack[first : first + 3]) for first in range(0, len(stack), len(BANDS[10]))]


def read_dsen2_scene(path: Path) -> dict[int, NDArray[np.float32]]:
    """The L1C scene of DSen2 (HDF5, axes band, x, y): reflectance by GSD (bands, h, w), in the order of `BANDS`."""
    import h5py

    with h5py.File(path) as file:
        return {
            gsd: np.ascontiguousarray(np.array(file[f"im{gsd}"]).transpose(0, 2, 1), np.float32) * np.float32(DN_SCALE)
            for gsd in BANDS
        }
