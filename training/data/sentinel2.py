"""Sentinel-2 sources (folders of scenes, archives, band stacks) as tiles for fusion and as images at 10 m.

Scenes are read by the pipeline's own loaders.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.bands import BAND_NAMES, DN_OFFSET, DN_SCALE, NODATA_DN, RGB, TARGET_GSD_M
from pipeline.grid.grid import Grid, Window
from training.data.headers import Header, ground_gsd_m, local_header
from training.data.images import (
    bands_per_date,
    files_of,
    make_image,
    named_place,
    opened,
    short_name,
    values_of,
)
from training.data.places import Georeference, split_of
from training.data.rasters import reading
from training.data.tiles import (
    BANDS,
    GSD_M,
    MIN_SIDE_PX,
    Nested,
    SceneGround,
    StackGround,
    Tile,
    ground_pieces,
    named_pieces,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray
    from xarray import DataArray

    from pipeline.aoi.aoi import Aoi
    from pipeline.archive.read.access import Access
    from pipeline.archive.scene import Scene
    from training.data.images import Image
    from training.data.places import Split
    from training.data.rasters import Stored
    from training.data.tiles import Ground
    from training.data.training_file import Source

__all__ = [
    "BANDS",
    "SceneReader",
    "Tile",
    "dsen2_ground",
    "images_of",
    "read_dsen2_scene",
    "scene_grounds",
    "tiles_of",
]

WORDS_SHOWN = 300  # maximum characters of an error about a folder
UNDATED = "2018-01-01T00:00:00Z"  # used if a folder gives no date
DSEN2_SUFFIX = ".mat"
BANDS_GSD_M = 10  # GSD of stacks


@dataclass(frozen=True)
class SceneReader:
    """Reader of a scene's bands of one native GSD in canonical DN, by the pipeline's loader."""

    scene: Scene
    grid: Grid  # 2.5 m, edges on whole 60 m pixels
    access: Access
    bands: tuple[str, ...] = RGB
    gsd_m: int = 10

    @property
    def shape(self) -> tuple[int, int]:
        """(ny, nx) at the native GSD."""
        return self.grid.at_gsd(self.gsd_m).shape

    @property
    def itemsize(self) -> int:
        """Bytes per DN."""
        return 2

    def read(self, y: int, x: int, ny: int, nx: int) -> Stored:
        """Return DN (bands, ny, nx) of a window. Reads the enclosing whole 60 m pixels."""
        from pipeline.archive.read.cube import read_period

        whole, k = self.grid.window, round(self.gsd_m / TARGET_GSD_M)
        window = Window(whole.row + k * y, whole.col + k * x, k * ny, k * nx)
        part = window.snap_out(24)
        pixels = read_period([self.scene], "mosaic", self.grid.of(part), self.bands, self.access)
        rows, cols = window.coarsen(k).slices(part.coarsen(k))
        order = [pixels.bands[self.gsd_m].index(name) for name in self.bands]
        return pixels.dn[self.gsd_m][order, rows, cols]

    def mask(self, y: int, x: int, ny: int, nx: int) -> None:
        """Return None: a scene marks nodata by value."""

    def selecting(self, places: Sequence[int]) -> SceneReader:
        """As `Reader.selecting`."""
        return replace(self, bands=tuple(self.bands[place] for place in places))


def is_stack(source: Source) -> bool:
    """Return True if one file or store holds all bands of a scene on the 10 m grid."""
    return bool(source.zarr or (source.bands and not source.catalog))


def is_dsen2(source: Source) -> bool:
    """Return True for the Level-1C test data of DSen2."""
    return source.path.endswith(DSEN2_SUFFIX)


def scene_grounds(source: Source) -> list[SceneGround]:
    """Return the scenes of a folder or archive, cropped to the source's area. Raises UsageError if there is none."""
    if is_stack(source) or is_dsen2(source):
        return []
    if source.catalog:
        from training.data.remote import remote_scenes

        scenes, access, aoi = remote_scenes(source)
        grounds = [(scene, _grid(scene, aoi)) for scene in scenes]
        return [SceneGround(scene, grid, access) for scene, grid in grounds if grid is not None]
    from pipeline.archive.local.scan import scan
    from pipeline.archive.read.access import Access
    from pipeline.errors import UsageError

    folder = Path(source.path)
    try:
        found, _ = scan(folder, datetime_utc=UNDATED, offset_dn=source.offset_dn)
    except UsageError as error:
        words = error.found if len(error.found) <= WORDS_SHOWN else error.found[:WORDS_SHOWN].rsplit(" ", 1)[0] + " ..."
        stacked = "bands = { B02 = 1, ... } where one file stacks them"
        raise source.fault(words, error.expected or "Sentinel-2 L2A scenes", error.cure or stacked) from None
    access = Access(roots=(str(folder.resolve()),))
    return [SceneGround(scene, grid, access) for scene in found if (grid := _grid(scene, None)) is not None]


def _grid(scene: Scene, aoi: Aoi | None) -> Grid | None:
    """Return the 2.5 m grid of a scene, aligned to 60 m pixels and cropped to the AOI's bounds; None if empty."""
    finest = next((raster for raster in scene.rasters if raster.gsd_m == 10), None)
    if finest is None:
        return None
    left_m, top_m = finest.left_m, finest.top_m
    right_m, bottom_m = left_m + finest.nx * 10, top_m - finest.ny * 10
    if aoi is not None:
        from pipeline.aoi.aoi import to_utm

        west, south, east, north = to_utm(aoi.shape, scene.epsg).bounds
        left_m, bottom_m = max(left_m, west), max(bottom_m, south)
        right_m, top_m = min(right_m, east), min(top_m, north)
    if not (left_m < right_m and bottom_m < top_m):
        return None
    return Grid.covering(scene.epsg, (left_m, bottom_m, right_m, top_m), scene.phase)


def images_of(source: Source, scenes: Sequence[SceneGround]) -> list[Image]:
    """Return a source as images of its 10 m bands and of its 20 m bands. `scenes` are its `scene_grounds`.

    Of stacks, 10 m bands need RGB among them. Skips Level-1C data.
    """
    if is_stack(source):
        return [
            image for stack in _stacks(source) for gsd_m in (10, 20) for image in _stack_images(source, stack, gsd_m)
        ]
    return [image for ground in scenes for gsd_m in (10, 20) for image in _scene_images(source, ground, gsd_m)]


def _scene_images(source: Source, ground: SceneGround, gsd_m: int) -> Iterator[Image]:
    """Yield a scene as an image of its bands of one native GSD, if it has any."""
    bands = tuple(band for band in BANDS[gsd_m] if band in ground.present)
    if bands:
        house = replace(source, values="reflectance", scale=DN_SCALE, offset=DN_OFFSET, gsd_m=float(gsd_m))
        raster, name = ground.grid.at_gsd(gsd_m), ground.scene.id
        header = Header(raster.shape, len(bands), "uint16", NODATA_DN, f"EPSG:{ground.scene.epsg}", raster.transform)
        reader = SceneReader(ground.scene, ground.grid, ground.access, bands, gsd_m)
        yield make_image(house, name, Path(name), header, reader, bands)


def _stack_images(source: Source, stack: tuple[Path, StackGround, Header], gsd_m: int) -> Iterator[Image]:
    """Yield one date of a stack as an image of its bands of one native GSD, if it has any; at 10 m with RGB only."""
    path, ground, header = stack
    names = dict(ground.bands)
    bands = tuple(band for band in BANDS[gsd_m] if band in names)
    if bands and (gsd_m > BANDS_GSD_M or set(RGB) <= set(bands)):
        step, (a, b, c, d, e, f) = gsd_m // BANDS_GSD_M, header.affine
        shape = header.shape[0] // step, header.shape[1] // step
        own = replace(header, shape=shape, affine=(step * a, step * b, c, step * d, step * e, f))
        stacked = replace(source, values="reflectance", gsd_m=float(gsd_m))
        yield make_image(stacked, str(path), path, own, ground.reader(bands, gsd_m), bands)


def tiles_of(source: Source, scenes: Sequence[SceneGround]) -> list[Tile]:
    """Return the tiles of a source with RGB and 20 m bands, each in one split. `scenes` are its `scene_grounds`."""
    if is_dsen2(source):
        return list(_cut(source, Path(source.name), dsen2_ground(Path(source.path)), BAND_NAMES, None))
    if is_stack(source):
        return [tile for path, ground, header in _stacks(source) for tile in _stack_tiles(source, path, ground, header)]
    tiles: list[Tile] = []
    for ground in scenes:
        sixty = ground.grid.at_gsd(GSD_M)
        raster = Georeference(f"EPSG:{sixty.epsg}", sixty.transform, sixty.shape)
        tiles += _cut(source, Path(ground.scene.id), ground, ground.present, raster)
    return tiles


def _cut(
    source: Source, path: Path, ground: Ground, present: tuple[str, ...], raster: Georeference | None
) -> Iterator[Tile]:
    """Yield the tiles of one ground. Cut along cells unless the place name or the source sets the split."""
    if not (set(RGB) <= set(present) and set(present) & set(BANDS[20])):
        return
    tile = partial(
        Tile,
        present=present,
        source=source.name,
        weight=source.weight,
        watched=source.watched,
        evaluated=source.evaluated,
    )
    if raster is not None and not source.place and source.split == "by-place":
        for window, place, split in ground_pieces(raster):
            yield tile(place, ground, window, split=split)
        return
    place, split = named_split(source, path)
    for window in named_pieces(ground.shape):
        yield tile(place, ground, window, split=split)


def named_split(source: Source, path: Path) -> tuple[str, Split]:
    """Return the place and split of a named ground."""
    place = named_place(source, path) if source.place else f"{source.family or source.name}/{short_name(source, path)}"
    return place, split_of(place) if source.split == "by-place" else source.split


def _stacks(source: Source) -> Iterator[tuple[Path, StackGround, Header]]:
    """Yield (path, ground, header) per date of a source's files or store. Raises UsageError if the GSD is not 10 m."""
    if source.zarr:
        from training.data.stores import band_indices, layer_header, layers_of

        for layer in layers_of(source):
            found = band_indices(source, layer, BAND_NAMES)
            header = layer_header(layer, source)
            yield Path(source.zarr), _stack(source, source.zarr, layer.array, found, header), header
        return
    for path in files_of(source):
        header = local_header(source, path)
        per_date = bands_per_date(source, str(path), header)
        outside = [where for _, where in source.bands if not isinstance(where, int) or not 1 <= where <= per_date]
        if outside:
            raise source.fault(f"band {outside[0]!r} of {path}, which holds {header.bands} bands", f"1 to {per_date}")
        for date in range(source.dates):
            found = {name: int(where) - 1 + date * per_date for name, where in source.bands}
            yield path, _stack(source, str(path), partial(opened, str(path)), found, header), header


def _stack(
    source: Source, label: str, array: Callable[[], DataArray], bands: dict[str, int], header: Header
) -> StackGround:
    """Return one date of a stack. Raises UsageError if its GSD is not 10 m."""
    gsd_m = max(ground_gsd_m(header)) if header.crs else source.gsd_m or BANDS_GSD_M
    if abs(gsd_m - BANDS_GSD_M) > 0.01 * BANDS_GSD_M:
        raise source.fault(f"{label} has pixels of {gsd_m:.3g} m", f"a stack on the {BANDS_GSD_M} m grid")
    shape = header.shape[0] // 6, header.shape[1] // 6
    values = values_of(replace(source, values="reflectance"), label, header)
    return StackGround(array, tuple(bands.items()), values, shape, np.dtype(header.dtype).itemsize, label)


def _stack_tiles(source: Source, path: Path, ground: StackGround, header: Header) -> list[Tile]:
    if min(ground.shape) < MIN_SIDE_PX:
        return []
    raster = None
    if header.crs:
        a, b, c, d, e, f = header.affine
        raster = Georeference(header.crs, (6 * a, 6 * b, c, 6 * d, 6 * e, f), ground.shape)
    return list(_cut(source, path, ground, tuple(band for band, _ in ground.bands), raster))


def dsen2_ground(path: Path) -> Nested:
    """Return the L1C scene of DSen2 (HDF5, axes band, x, y) in the order of `BANDS`."""
    rho = read_dsen2_scene(path)
    return Nested(rho, np.ones(rho[60].shape[1:], bool))


def read_dsen2_scene(path: Path) -> dict[int, NDArray[np.float32]]:
    """Return reflectance (bands, h, w) by GSD of a DSen2 file. Raises ReadError if it is damaged."""
    import h5py

    with reading(str(path)), h5py.File(path) as file:
        return {
            gsd: np.ascontiguousarray(np.array(file[f"im{gsd}"]).transpose(0, 2, 1), np.float32) * np.float32(DN_SCALE)
            for gsd in BANDS
        }
