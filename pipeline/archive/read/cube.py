"""Lazy cubes of scenes on one grid, and the loader that inference and training share.

All DN are canonical, 0 is nodata, also where SCL is 0 (NO_DATA), because some archives leave DN there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.archive.passes import pass_numbers
from pipeline.archive.read.band_file import BandFile, BandReader, gdal_options
from pipeline.archive.read.composite import median, mosaic
from pipeline.bands import GSDS_M, SCL, bands_at
from pipeline.errors import UsageError
from pipeline.grid.native_rasters import SCL_GSD_M, NativeRasters

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import xarray as xr
    from numpy.typing import NDArray

    from pipeline.archive.read.access import Access
    from pipeline.archive.read.composite import Step
    from pipeline.archive.scene import Scene
    from pipeline.grid.grid import Grid, Window


@dataclass(frozen=True)
class Cube:
    """Scenes on one grid, lazily. `rasters` by GSD in metres: (time, band, y, x) uint16; `scl` (time, y, x) uint8.

    The time axis keeps the order of the scenes given. A scene without SCL is 7 (unclassified) throughout.
    """

    grid: Grid
    rasters: dict[int, xr.DataArray]
    scl: xr.DataArray | None


class LazyRasters(Mapping[int, "NDArray[np.uint16]"]):
    """A scene that is read on demand, each file once: SCL, the first band of a GSD, its other bands.

    A mapping from GSD in metres to (band, y, x). `load(gsd_m, bands)` reads a slice of the bands of one GSD.
    """

    def __init__(
        self,
        window: Window,
        bands: Mapping[int, tuple[str, ...]],
        load: Callable[[int, slice], NDArray[np.uint16]],
        load_scl: Callable[[], NDArray[np.uint8]] | None,
    ) -> None:
        self.window, self._bands, self._load, self._load_scl = window, bands, load, load_scl
        self._parts: dict[int, list[NDArray[np.uint16]]] = {gsd_m: [] for gsd_m in bands}
        self._scl: NDArray[np.uint8] | None = None

    def __getitem__(self, gsd_m: int) -> NDArray[np.uint16]:
        parts = self._parts[gsd_m]
        missing = slice(sum(map(len, parts)), len(self._bands[gsd_m]))
        if missing.start < missing.stop:
            parts.append(self._load(gsd_m, missing))
        if len(parts) > 1:
            parts[:] = [np.concatenate(parts)]
        return parts[0]

    def __iter__(self) -> Iterator[int]:
        return iter(self._bands)

    def __len__(self) -> int:
        return len(self._bands)

    @property
    def dn(self) -> Mapping[int, NDArray[np.uint16]]:
        """The mapping itself; a lookup reads the missing bands of that GSD."""
        return self

    @property
    def scl(self) -> NDArray[np.uint8] | None:
        """(y, x) classes at 20 m, read when first asked for; None when the scene has none."""
        if self._scl is None and self._load_scl is not None:
            self._scl = self._load_scl()
        return self._scl

    def seen(self, gsd_m: int, needed: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """(y, x) at `gsd_m`: True where any band has data; the other bands are read only if the first leaves doubt."""
        parts = self._parts[gsd_m]
        if not parts:
            parts.append(self._load(gsd_m, slice(0, 1)))
        found = parts[0].any(axis=0)
        if (needed & ~found).any():
            found = self[gsd_m].any(axis=0)
        return np.asarray(found & needed)


def open_cube(
    scenes: Sequence[Scene],
    grid: Grid,
    bands: tuple[str, ...],
    access: Access,
    *,
    chunk_px: int | None = None,
    resample: bool = False,
) -> Cube:
    """Lazy cube of `scenes` over `grid`; `chunk_px` counts 10 m pixels (None: one chunk per file).

    Scenes of another phase or zone are refused when read, or resampled (nearest) with `resample`. ReadError when a
    scene lacks a band; UsageError when the grid does not lie on whole 60 m pixels.
    """
    _check(scenes, grid, bands)
    rasters = {
        gsd_m: _stack(scenes, grid, gsd_m, names, access, chunk_px, resample)
        for gsd_m in GSDS_M
        if (names := bands_at(gsd_m, bands))
    }
    return Cube(grid, rasters, _stack_scl(scenes, grid, access, chunk_px, resample))


def read(cube: Cube, window: Window | None = None, *, time: int = 0) -> NativeRasters:
    """Compute one time step, whole or within `window` (absolute, 2.5 m pixels, edges multiples of 24).

    Runs in the calling thread: a worker's task must not start threads of its own. Raises ReadError.
    """
    from dask.base import compute

    grid = cube.grid if window is None else cube.grid.of(window)
    steps = {gsd_m: _cut(raster.isel(time=time), cube.grid, grid, gsd_m) for gsd_m, raster in cube.rasters.items()}
    scl = None if cube.scl is None else _cut(cube.scl.isel(time=time), cube.grid, grid, SCL_GSD_M)
    lazy = [step.data for step in steps.values()] + ([] if scl is None else [scl.data])
    arrays = compute(*lazy, scheduler="synchronous")
    classes = None if scl is None else arrays[-1]
    return NativeRasters(
        grid.window,
        {gsd_m: _classified(dn, classes, gsd_m) for gsd_m, dn in zip(steps, arrays, strict=False)},
        {gsd_m: tuple(str(name) for name in step.band.values) for gsd_m, step in steps.items()},
        classes,
    )


def _classified(dn: NDArray[np.uint16], scl: NDArray[np.uint8] | None, gsd_m: int) -> NDArray[np.uint16]:
    """(band, y, x) DN, 0 where every SCL cell of a pixel is 0 (NO_DATA)."""
    if scl is None or scl.all():
        return dn
    missing = scl == 0
    if gsd_m < SCL_GSD_M:
        n = SCL_GSD_M // gsd_m
        missing = missing.repeat(n, 0).repeat(n, 1)
    elif gsd_m > SCL_GSD_M:
        n = gsd_m // SCL_GSD_M
        missing = missing.reshape(missing.shape[0] // n, n, missing.shape[1] // n, n).all((1, 3))
    dn[:, missing] = 0
    return dn


def read_period(
    scenes: Sequence[Scene],
    composite: str,
    grid: Grid,
    bands: tuple[str, ...],
    access: Access,
    *,
    resample: bool = False,
    with_scl: bool = False,
) -> NativeRasters:
    """The loader: `scenes` (best first) composited ("mosaic" or "median") over `grid`. Errors as `open_cube`, `read`.

    Each file is opened at most once, and files of unneeded scenes never. `scl` is 7 on valid ground of scenes
    without SCL and 0 where nothing is valid; None where no scene has SCL, unless `with_scl`. `scenes` names those that
    supplied a pixel (of a median: to the mosaic of their pass).
    """
    if composite not in ("mosaic", "median"):
        raise UsageError(f"composite {composite!r} cannot be read", "mosaic or median")
    cube = open_cube(scenes, grid, bands, access, resample=resample)
    steps: list[Step] = [read(cube)] if len(scenes) == 1 else [_lazy(cube, i, s) for i, s in enumerate(scenes)]
    found = mosaic(steps) if composite == "mosaic" else median(steps, pass_numbers(scenes))
    scl = found.scl if with_scl or cube.scl is not None else None
    names = {gsd_m: bands_at(gsd_m, bands) for gsd_m in found.dn}
    return NativeRasters(grid.window, found.dn, names, scl, tuple(scenes[order].id for order in found.used))


def _lazy(cube: Cube, time: int, scene: Scene) -> LazyRasters:
    """The scene at `time`; reads in the calling thread, as `read` does."""
    names = {gsd_m: tuple(map(str, raster.band.values)) for gsd_m, raster in cube.rasters.items()}

    def load(gsd_m: int, bands: slice) -> NDArray[np.uint16]:
        lazy = cube.rasters[gsd_m].isel(time=time, band=bands)
        return _classified(np.asarray(lazy.data.compute(scheduler="synchronous")), rasters.scl, gsd_m)

    classes = None if cube.scl is None or SCL not in scene.hrefs else cube.scl.isel(time=time).data
    load_scl = None if classes is None else partial(classes.compute, scheduler="synchronous")
    rasters = LazyRasters(cube.grid.window, names, load, load_scl)
    return rasters


def _check(scenes: Sequence[Scene], grid: Grid, bands: tuple[str, ...]) -> None:
    """UsageError for requests that no file could satisfy."""
    try:
        grid.at_gsd(GSDS_M[-1])
    except ValueError as error:
        raise UsageError(f"the grid {grid.window} cuts 60 m pixels: {error}", "edges at multiples of 24 px") from error
    if not scenes or not bands:
        raise UsageError(f"{len(scenes)} scenes and {len(bands)} bands make no cube", "at least one of each")
    ids = [scene.id for scene in scenes]
    if len(set(ids)) != len(ids):
        raise UsageError(f"scene ids repeat: {', '.join(sorted(ids))}", "each scene once")
    for scene in scenes:
        hrefs = [scene.hrefs[band] for band in bands if band in scene.hrefs]
        if len(set(hrefs)) != len(hrefs):
            raise UsageError(f"two bands of scene {scene.id} share one file", "a file per band", "leave the scene out")


def _stack(
    scenes: Sequence[Scene],
    grid: Grid,
    gsd_m: int,
    names: tuple[str, ...],
    access: Access,
    chunk_px: int | None,
    resample: bool,
) -> xr.DataArray:
    """(time, band, y, x) of one GSD through stackstac, which lays out the lazy array; `BandReader` reads the files."""
    import stackstac

    files = {
        f"{scene.id}/{name}": BandFile.of_scl(scene) if name == SCL else BandFile.of(scene, name)
        for scene in scenes
        for name in names
    }
    native = grid.at_gsd(gsd_m)
    dtype = np.dtype(next(iter(files.values())).dtype)
    chunk = max(native.shape) if chunk_px is None else max(1, chunk_px * GSDS_M[0] // gsd_m)
    cube: xr.DataArray = stackstac.stack(
        [_item(scene, native, names) for scene in scenes],
        assets=list(names),
        epsg=grid.epsg,
        bounds=native.bounds_m,
        resolution=gsd_m,
        snap_bounds=False,  # snapping to multiples of the GSD would lose the phase
        chunksize=chunk,
        dtype=dtype,
        fill_value=dtype.type(0),
        rescale=False,
        sortby_date=False,
        xy_coords="center",
        properties=False,
        band_coords=False,
        gdal_env=stackstac.DEFAULT_GDAL_ENV.updated(always=gdal_options(access)),
        errors_as_nodata=(),
        reader=partial(BandReader, files, access, resample),
    )
    cube = cube.sel(band=list(names))  # by name, and an error where stackstac dropped one
    expected = (len(scenes), len(names), *native.shape)
    if cube.shape != expected:
        raise UsageError(f"the {gsd_m} m cube came out as {cube.shape}", str(expected))
    cube.coords["scene"] = ("time", [scene.id for scene in scenes])
    return cube


def _item(scene: Scene, native: Grid, names: tuple[str, ...]) -> dict[str, Any]:
    """STAC item as stackstac wants it. The bbox is the grid's own: whether a file touches it, `BandReader` decides."""
    properties = {"datetime": scene.datetime_utc, "proj:epsg": native.epsg, "proj:bbox": native.bounds_m}
    assets = {name: {"href": f"{scene.id}/{name}"} for name in names}
    return {"type": "Feature", "id": scene.id, "properties": properties, "assets": assets}


def _stack_scl(
    scenes: Sequence[Scene], grid: Grid, access: Access, chunk_px: int | None, resample: bool
) -> xr.DataArray | None:
    """(time, y, x) uint8 classes; None when no scene has them."""
    if not any(SCL in scene.hrefs for scene in scenes):
        return None
    return _stack(scenes, grid, SCL_GSD_M, (SCL,), access, chunk_px, resample).isel(band=0, drop=True)


def _cut(step: xr.DataArray, whole: Grid, part: Grid, gsd_m: int) -> xr.DataArray:
    rows, cols = part.at_gsd(gsd_m).window.slices(whole.at_gsd(gsd_m).window)
    part_step: xr.DataArray = step.isel(y=rows, x=cols)
    return part_step
