"""Sentinel-2 scenes for training and Wald tests, read by the pipeline's own loaders.

In: sources of role "sentinel2". Out: `Tile`s, every band at its native resolution as reflectance; and their RGB as
`Image`s. A crop of a tile starts and ends on 60 m pixels, so that all resolutions nest.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.bands import BY_NAME, DN_OFFSET, DN_SCALE, NODATA_DN, RGB
from pipeline.grid.grid import Grid, Window
from training.data import open_raster
from training.images import Header, Image, Values, file_images, files_of, make_image, named_place, read_header
from training.places import split_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from pipeline.archive.access import Access
    from pipeline.archive.scene import Scene
    from training.images import Stored
    from training.places import Split
    from training.training_file import Source

BANDS: dict[int, tuple[str, ...]] = {
    10: ("B04", "B03", "B02", "B08"),
    20: ("B05", "B06", "B07", "B8A", "B11", "B12"),
    60: ("B01", "B09"),
}
UNDATED = "2018-01-01T00:00:00Z"  # stands in where a folder gives no date
MIN_SIDE_60M = 16  # smaller tiles hold no crop
DSEN2_SUFFIX = ".mat"


@dataclass(frozen=True)
class Tile:
    """One scene: `rho` by GSD in metres (bands, h, w) float32 reflectance in the order of `BANDS`; absent bands are 0.

    `valid` (h, w) at 60 m is True where every 10 m pixel was measured.
    """

    place: str
    rho: dict[int, NDArray[np.float32]]
    valid: NDArray[np.bool_]
    present: tuple[str, ...]
    source: str = ""
    split: Split = "train"
    weight: float = 1.0
    watched: bool = False
    evaluated: bool = True


@dataclass(frozen=True)
class SceneReader:
    """RGB of a scene at 10 m, in DN of the house convention, through the loader of inference."""

    scene: Scene
    grid: Grid  # 2.5 m, of the whole scene
    access: Access

    @property
    def shape(self) -> tuple[int, int]:
        """(ny, nx) at 10 m."""
        return self.grid.at_gsd(10).shape

    @property
    def itemsize(self) -> int:
        """Bytes per DN."""
        return 2

    def read(self, y: int, x: int, ny: int, nx: int) -> Stored:
        """DN (3, ny, nx) of a window; whole 60 m pixels are read around it."""
        from pipeline.archive.cube import read_period

        whole = self.grid.window
        window = Window(whole.row + 4 * y, whole.col + 4 * x, 4 * ny, 4 * nx)
        part = window.snap_out(24)
        pixels = read_period([self.scene], "mosaic", self.grid.of(part), RGB, self.access)
        rows, cols = window.coarsen(4).slices(part.coarsen(4))
        order = [pixels.bands[10].index(name) for name in RGB]
        return pixels.dn[10][order, rows, cols]


def scenes_of(source: Source) -> tuple[list[Scene], Access, tuple[str, ...]]:
    """(scenes, how to reach their files, notes) of a folder."""
    from pipeline.archive.access import Access
    from pipeline.archive.local import scan

    folder = Path(source.path)
    scenes, notes = scan(folder, datetime_utc=UNDATED, offset_dn=source.offset_dn)
    return list(scenes), Access(roots=(str(folder.resolve()),)), notes


def grid_of(scene: Scene) -> Grid:
    """The 2.5 m grid of a scene's 10 m raster, on whole 60 m pixels."""
    finest = {raster.gsd_m: raster for raster in scene.rasters}[10]
    right_m, bottom_m = finest.left_m + finest.nx * 10, finest.top_m - finest.ny * 10
    return Grid.covering(scene.epsg, (finest.left_m, bottom_m, right_m, finest.top_m), scene.phase)


def is_stack(source: Source) -> bool:
    """True for files that hold all bands of a scene, on the 10 m grid."""
    return bool(source.bands)


def is_dsen2(source: Source) -> bool:
    """True for the test data of DSen2."""
    return source.path.endswith(DSEN2_SUFFIX)


def rgb_images(source: Source) -> list[Image]:
    """The scenes of a source as images of 10 m."""
    if is_dsen2(source):
        return []  # Level-1C: only for Wald's protocol
    if is_stack(source):
        return file_images(replace(source, values="reflectance", gsd_m=source.gsd_m or 10.0))
    scenes, access, _ = scenes_of(source)
    images = []
    for scene in scenes:
        grid = grid_of(scene)
        ten = grid.at_gsd(10)
        header = Header(ten.shape, 3, "uint16", NODATA_DN, f"EPSG:{scene.epsg}", ten.transform)
        values = replace(source, values="reflectance", scale=DN_SCALE, offset=DN_OFFSET, gsd_m=10.0)
        images.append(make_image(values, scene.id, Path(scene.id), header, SceneReader(scene, grid, access)))
    return images


def tiles_of(source: Source) -> list[Tile]:
    """All tiles of a source that carry 10 and 20 m bands at their native resolution."""
    if is_dsen2(source):
        rho = read_dsen2_scene(Path(source.path))
        valid = np.ones(rho[60].shape[1:], bool)
        return [_used(source, source.name, Tile(source.name, rho, valid, tuple(name for name in BY_NAME)))]
    if is_stack(source):
        stacked = [tile for path in files_of(source) for tile in _stack_tiles(source, path)]
        return [tile for tile in stacked if set(tile.present) & set(BANDS[20])]
    scenes, access, _ = scenes_of(source)
    found = ((scene, tile_of(scene, access)) for scene in scenes)
    return [_used(source, scene.id, tile) for scene, tile in found if tile is not None]


def _used(source: Source, name: str, tile: Tile) -> Tile:
    """The tile with its place and what the source says of its use."""
    place = named_place(source, name) if source.place else f"{source.family or source.name}/{name}"
    split = split_of(place) if source.split == "by-place" else source.split
    return replace(
        tile,
        place=place,
        source=source.name,
        split=split,
        weight=source.weight,
        watched=source.watched,
        evaluated=source.evaluated,
    )


def tile_of(scene: Scene, access: Access) -> Tile | None:
    """Read a scene whole, through the loader of inference; None when it holds no crop."""
    from pipeline.archive.cube import read_period

    grid = grid_of(scene)
    present = tuple(band for band in BY_NAME if band in scene.hrefs)
    pixels = read_period([scene], "mosaic", grid, present, access)
    dn = {gsd_m: _in_order(pixels.dn, pixels.bands, gsd_m, grid.at_gsd(60).shape) for gsd_m in BANDS}
    measured = (dn[10] != NODATA_DN).any(axis=0)
    return make_tile(scene.id, {gsd: to_reflectance(values) for gsd, values in dn.items()}, measured, present)


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


def _stack_tiles(source: Source, path: Path) -> list[Tile]:
    """The dates of one file, every band on its 10 m grid; those of 20 and 60 m were repeated, and are undone here."""
    header = read_header(str(path), source.label)
    per_date = header.bands // source.dates
    numbers = {name: int(number) for name, number in source.bands}
    stack = open_raster(path).astype("float32").data.compute(scheduler="synchronous")
    ny, nx = stack.shape[1] // 6 * 6, stack.shape[2] // 6 * 6
    tiles = []
    for date in stack[:, :ny, :nx].reshape(-1, per_date, ny, nx)[: source.dates]:
        values = Values(False, source.scale, source.offset, header.nodata).decode(date)
        rho = {gsd: np.zeros((len(names), ny * 10 // gsd, nx * 10 // gsd), np.float32) for gsd, names in BANDS.items()}
        for gsd, names in BANDS.items():
            step = gsd // 10
            for row, name in enumerate(names):
                if name in numbers:
                    rho[gsd][row] = values[numbers[name] - 1, ::step, ::step]
        tile = make_tile(path.stem, rho, (date > 0).any(axis=0), tuple(numbers))
        tiles += [_used(source, path.name, tile)] if tile is not None else []
    return tiles


def read_dsen2_scene(path: Path) -> dict[int, NDArray[np.float32]]:
    """The L1C scene of DSen2 (HDF5, axes band, x, y): reflectance by GSD (bands, h, w), in the order of `BANDS`."""
    import h5py

    with h5py.File(path) as file:
        return {
            gsd: np.ascontiguousarray(np.array(file[f"im{gsd}"]).transpose(0, 2, 1), np.float32) * np.float32(DN_SCALE)
            for gsd in BANDS
        }
