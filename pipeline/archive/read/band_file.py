"""Reads one band file of one scene: opened once, checked against the scene's record, read by whole pixels.

DN are uint16 in the canonical convention, SCL is uint8. Ground outside the file is 0; every failure is a ReadError.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.archive.radiometry import to_canonical_dn
from pipeline.archive.read.gdal import ALLOWED_DRIVERS, open_raster
from pipeline.archive.read.image import Image, without_impossible
from pipeline.archive.scene import OPEN
from pipeline.bands import BY_NAME, SCL
from pipeline.errors import ReadError, UsageError
from pipeline.grid.native_rasters import SCL_GSD_M

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray
    from rasterio import DatasetReader
    from rasterio.windows import Window as FileWindow
    from stackstac.raster_spec import RasterSpec
    from stackstac.rio_env import LayeredEnv

    from pipeline.archive.read.access import Access
    from pipeline.archive.scene import Raster, Scene

UNCLASSIFIED = 7  # SCL class, used throughout for a scene without SCL
_WHOLE_PX = 1e-3  # origins closer than this, in pixels, are the same grid; file headers carry rounded decimals
_CACHE_IN_BYTES = 100_000  # GDAL reads a GDAL_CACHEMAX below this as megabytes
_LAST_CLASS = 11  # of SCL
_TIE_PX = 1e-6  # a target centre on a source edge goes to the same side in every window


@dataclass(frozen=True)
class BandFile:
    """Expected properties of one file, from the scene's record. `raster` is None when the archive does not say."""

    scene_id: str
    band: str
    href: str
    epsg: int
    gsd_m: int
    raster: Raster | None
    offset_dn: int

    @classmethod
    def of(cls, scene: Scene, band: str) -> BandFile:
        """The file of `band` ("B01" ... "B12" or "SCL"). ReadError when the scene has none."""
        if band not in scene.hrefs:
            raise ReadError(
                f"scene {scene.id} has no file for {band}",
                f"a file per requested band, found {', '.join(sorted(scene.hrefs)) or 'none'}",
                f"leave it out with --exclude {scene.id}, or ask for fewer bands",
            )
        if scene.offset.standing == OPEN:
            raise UsageError(
                f"the BOA offset of scene {scene.id} is unknown ({scene.offset.evidence})",
                "an offset that metadata, pixels or --offset decide",
            )
        gsd_m = SCL_GSD_M if band == SCL else BY_NAME[band].gsd_m
        raster = next((r for r in scene.rasters if r.gsd_m == gsd_m), None)
        return cls(scene.id, band, scene.hrefs[band], scene.epsg, gsd_m, raster, scene.offset.offset_dn)

    @classmethod
    def of_scl(cls, scene: Scene) -> BandFile:
        """The scene classification; without href, hence 7 throughout, when the scene has none."""
        return cls.of(scene, SCL) if SCL in scene.hrefs else cls(scene.id, SCL, "", scene.epsg, SCL_GSD_M, None, 0)

    @property
    def dtype(self) -> str:
        """Sample type of what is read."""
        return "uint8" if self.band == SCL else "uint16"


@dataclass(frozen=True)
class Target:
    """The requested raster: zone, upper-left corner in metres, GSD in metres, size in pixels."""

    epsg: int
    left_m: float
    top_m: float
    gsd_m: float
    ny: int
    nx: int

    @property
    def bounds_m(self) -> tuple[float, float, float, float]:
        """(left, bottom, right, top)."""
        return self.left_m, self.top_m - self.ny * self.gsd_m, self.left_m + self.nx * self.gsd_m, self.top_m


class BandReader:
    """Reader in the sense of stackstac's `reader=`: one per file and cube, opens its file at most once.

    Replaces stackstac's reader, which warps every file through a WarpedVRT: exact on any grid phase, checks the file
    against the record, signs late, retries, and names the scene and band that failed.
    """

    def __init__(
        self,
        files: Mapping[str, BandFile],
        access: Access,
        resample: bool,
        *,
        url: str,
        spec: RasterSpec,
        gdal_env: LayeredEnv,
        **_unused: object,
    ) -> None:
        self._file, self._access, self._resample = files[url], access, resample
        self._spec, self._env = spec, gdal_env
        self._image: Image | None = None
        self._lock = threading.Lock()  # a GDAL dataset serves one thread at a time

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in vars(self).items() if name not in ("_image", "_lock")}

    def __setstate__(self, state: dict[str, object]) -> None:
        vars(self).update(state, _image=None, _lock=threading.Lock())

    def read(self, window: FileWindow, **_unused: object) -> NDArray[np.uint16] | NDArray[np.uint8]:
        """(ny, nx) canonical DN or SCL classes of `window` of the cube's grid. ReadError after retries."""
        file, target = self._file, self._target(window)
        if not file.href:
            return np.full((target.ny, target.nx), UNCLASSIFIED, file.dtype)
        if _misses(file, target):
            return np.zeros((target.ny, target.nx), file.dtype)
        what = f"{file.band} of scene {file.scene_id}"
        with self._lock:
            stored = self._access.reading(file.href, lambda: self._attempt(target), what=what)
        return _classes(stored, file) if file.band == SCL else _canonical_dn(stored, file.offset_dn)

    def close(self) -> None:
        """Close the file."""
        image, self._image = self._image, None
        if image is not None:
            image.close()

    def _target(self, window: FileWindow) -> Target:
        gsd_m = self._spec.resolutions_xy[0]
        left_m = self._spec.bounds[0] + window.col_off * gsd_m
        top_m = self._spec.bounds[3] - window.row_off * gsd_m
        return Target(self._spec.epsg, left_m, top_m, gsd_m, int(window.height), int(window.width))

    def _attempt(self, target: Target) -> NDArray[Any]:
        """One attempt; a failed one closes the image, so that the next reopens it with a new signature."""
        import rasterio

        fence = self._access.fence()  # of this process, not of the one that built the cube
        try:
            if self._image is None:
                with self._env.open, rasterio.Env(**fence):
                    self._image = open_checked(self._file, self._access)
            with self._env.read, rasterio.Env(**fence):
                return _read(self._image, self._file, target, self._resample)
        except BaseException:
            self.close()
            raise


def gdal_options(access: Access) -> dict[str, str | int]:
    """Options for rasterio.Env, which wants the cache size in bytes where GDAL takes "256" for megabytes."""
    options: dict[str, str | int] = {**access.gdal_env()}
    if "GDAL_CACHEMAX" in options:
        size = int(options["GDAL_CACHEMAX"])
        options["GDAL_CACHEMAX"] = size if size >= _CACHE_IN_BYTES else size * 2**20
    return options


def sample_types(band: str) -> tuple[str, ...]:
    """Sample types in which a band's DN, or the classes of SCL, may be stored."""
    return ("uint8", "uint16", "int16") if band == SCL else ("uint16", "int16")


def open_checked(file: BandFile, access: Access) -> Image:
    """Open the file; ReadError naming both sides where it contradicts the scene's record."""
    from pipeline.redaction import redact

    dataset = open_raster(access.href(file.href), f"{file.band} of scene {file.scene_id}", sharing=False)
    if dataset.crs is None:
        dataset.close()
        raise OSError("the file has no georeferencing; its header is truncated or damaged")  # retried
    found = _disagreement(dataset, file)
    try:
        if not found:
            return Image(dataset)
    except (ValueError, UsageError) as error:
        found = f"a file whose values cannot be used: {error}", ""
    dataset.close()
    raise ReadError(
        f"{file.band} of scene {file.scene_id} is {found[0]}: {redact(file.href)}",
        found[1],
        f"leave it out with --exclude {file.scene_id}, or correct its entry in the catalogue",
    )


def _canonical_dn(stored: NDArray[Any], offset_dn: int) -> NDArray[np.uint16]:
    """Stored DN of any sample type -> canonical DN; values that cannot be reflectance become nodata."""
    possible = without_impossible(stored, offset_dn)
    return np.asarray(to_canonical_dn(possible, offset_dn)).astype(np.uint16, copy=False)


def _classes(stored: NDArray[Any], file: BandFile) -> NDArray[np.uint8]:
    """Stored classes as uint8. ReadError where they are none of Sen2Cor's."""
    highest = int(stored.max(initial=0))
    if highest > _LAST_CLASS or int(stored.min(initial=0)) < 0:
        raise ReadError(
            f"{file.band} of scene {file.scene_id} holds class {highest}",
            f"scene classes 0 to {_LAST_CLASS}",
            f"leave it out with --exclude {file.scene_id}, or remove its SCL",
        )
    return stored.astype(np.uint8, copy=False)


def _disagreement(dataset: DatasetReader, file: BandFile) -> tuple[str, str] | None:
    """(found, expected) of the first contradiction between a file and its record; None when they agree."""
    if dataset.driver not in ALLOWED_DRIVERS:  # GDAL detects formats by content; rasterio.open takes no list
        return f"a file of format {dataset.driver}", " or ".join(ALLOWED_DRIVERS)
    if dataset.count != 1 and not has_alpha(dataset):
        return f"a file of {dataset.count} bands", "one band per file"
    if dataset.dtypes[0] not in sample_types(file.band):
        return f"of type {dataset.dtypes[0]}", " or ".join(sample_types(file.band))
    epsg = dataset.crs.to_epsg()
    if epsg != file.epsg:
        return f"in EPSG:{epsg}", f"EPSG:{file.epsg} as its record says"
    a, b, left_m, d, e, top_m = tuple(dataset.transform)[:6]
    if b or d or abs(a - file.gsd_m) > _WHOLE_PX or abs(e + file.gsd_m) > _WHOLE_PX:
        return f"of pixel size ({a:g}, {e:g}) m, rotation ({b:g}, {d:g})", f"north-up pixels of {file.gsd_m} m"
    raster = file.raster
    if raster is None:
        return None
    tolerance_m = _WHOLE_PX * file.gsd_m
    if abs(left_m - raster.left_m) > tolerance_m or abs(top_m - raster.top_m) > tolerance_m:
        return f"at ({left_m:.10g}, {top_m:.10g}) m", f"upper left at ({raster.left_m:.10g}, {raster.top_m:.10g}) m"
    if dataset.shape != (raster.ny, raster.nx):
        return f"of {dataset.height} x {dataset.width} px", f"{raster.ny} x {raster.nx} px as its record says"
    return None


def has_alpha(dataset: DatasetReader) -> bool:
    """True for one band with an alpha channel, which is its mask."""
    from rasterio.enums import ColorInterp

    return bool(dataset.count == 2 and dataset.colorinterp[1] == ColorInterp.alpha)


def _misses(file: BandFile, target: Target) -> bool:
    """True when the record already says that the file does not touch the target, so that it need not be opened."""
    raster = file.raster
    if raster is None:
        return False
    left, bottom = raster.left_m, raster.top_m - raster.ny * raster.gsd_m
    right, top = raster.left_m + raster.nx * raster.gsd_m, raster.top_m
    if file.epsg != target.epsg:
        from rasterio.warp import transform_bounds

        left, bottom, right, top = transform_bounds(file.epsg, target.epsg, left, bottom, right, top)
    t_left, t_bottom, t_right, t_top = target.bounds_m
    return left >= t_right or right <= t_left or bottom >= t_top or top <= t_bottom


def _read(image: Image, file: BandFile, target: Target, resample: bool) -> NDArray[Any]:
    """Stored values on the target; whole-pixel offsets are copied, anything else needs `resample` (nearest)."""
    if file.epsg != target.epsg:
        if not resample:
            raise _refusal(file, f"lies in EPSG:{file.epsg}", target)
        return _read_reprojected(image, file, target)
    row = (image.dataset.transform.f - target.top_m) / target.gsd_m
    col = (target.left_m - image.dataset.transform.c) / target.gsd_m
    if max(abs(row - round(row)), abs(col - round(col))) < _WHOLE_PX:
        return image.read(round(row), round(col), target.ny, target.nx)
    if resample:
        nearest = math.floor(row + 0.5 + _TIE_PX), math.floor(col + 0.5 + _TIE_PX)  # equal GSD: one whole shift
        return image.read(*nearest, target.ny, target.nx)
    raise _refusal(file, f"lies {row % 1:.3f} rows and {col % 1:.3f} columns off the grid", target)


def _refusal(file: BandFile, found: str, target: Target) -> UsageError:
    return UsageError(
        f"{file.band} of scene {file.scene_id} {found}",
        f"pixels on the grid of EPSG:{target.epsg} at {target.left_m:.10g}, {target.top_m:.10g}",
        "plan this scene by itself, or plan it with others, which resamples it",
    )


def _read_reprojected(image: Image, file: BandFile, target: Target) -> NDArray[Any]:
    """Source pixel under each target centre, from another zone. Exact: GDAL's warper gets 1 % wrong."""
    from pyproj import Transformer

    x_m = target.left_m + target.gsd_m * (np.arange(target.nx) + 0.5)
    y_m = target.top_m - target.gsd_m * (np.arange(target.ny) + 0.5)
    transformer = Transformer.from_crs(target.epsg, file.epsg, always_xy=True)
    source_x_m, source_y_m = transformer.transform(*np.meshgrid(x_m, y_m))
    rows = np.floor((image.dataset.transform.f - source_y_m) / file.gsd_m + _TIE_PX).astype(int)
    cols = np.floor((source_x_m - image.dataset.transform.c) / file.gsd_m + _TIE_PX).astype(int)
    top, left = int(rows.min()), int(cols.min())
    block = image.read(top, left, int(rows.max()) - top + 1, int(cols.max()) - left + 1)
    return np.asarray(block[rows - top, cols - left])
