"""An image in memory as a local archive: a file per band and time step on native grids, and their index."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from pipeline.api.images import Corner, stated
from pipeline.api.native import REFLECTANCE, phase_of, to_native
from pipeline.archive.local.metadata import Meta, from_item, to_utc
from pipeline.archive.local.offset import decided
from pipeline.archive.local.scan import footprint_of
from pipeline.archive.scene import OffsetDecision, Raster, Scene
from pipeline.archive.stac.index_file import write_index
from pipeline.bands import CANONICAL_OFFSET_DN, NODATA_DN
from pipeline.errors import StorageError, UsageError
from pipeline.grid.grid import BLOCK_M

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.api.images import Layer
    from pipeline.api.native import Meaning
    from pipeline.grid.grid import Phase

INDEX = "archive.json"
# Coordinates that loaders make of properties of the items; the offset is decided by them, and passes are told apart.
_PROPERTIES = (
    "platform", "eo:cloud_cover", "s2:processing_baseline", "processing:version", "earthsearch:boa_offset_applied",
    "s2:product_uri", "s2:product_type", "processing:level", "sat:relative_orbit", "grid:code", "s2:mgrs_tile",
)  # fmt: skip
_TILED_PX = 512


@dataclass(frozen=True)
class Image:
    """What is needed of an image to write it: its layers, times, and the meaning of its values."""

    layers: Sequence[Layer]
    times: Sequence[str]
    meaning: Meaning
    offset: int | None  # BOA offset of DN; None: as coordinates and pixels say

    @property
    def epsg(self) -> int:
        """UTM zone."""
        return self.layers[0].epsg

    @property
    def bounds_m(self) -> tuple[float, float, float, float]:
        """(left, bottom, right, top) of what any band covers."""
        lefts, bottoms, rights, tops = zip(*(layer.place.bounds_m for layer in self.layers), strict=True)
        return min(lefts), min(bottoms), max(rights), max(tops)


def write_scenes(image: Image, folder: Path, say: Callable[[str], None]) -> Path:
    """Write the scenes of an image into a folder, and return their index.

    Raises UsageError for images that are no copy of measured pixels, or whose BOA offset is unknown; StorageError.
    """
    phase: Phase | None = None
    scenes: list[Scene] = []
    for step, moment in enumerate(image.times):
        say(f"writing the image, {step + 1} of {len(image.times)}")
        planes = {layer.band: image.meaning.dn(layer, step) for layer in image.layers}
        phase = phase_of(image.layers, planes) if phase is None else phase
        place = folder / str(step)
        place.mkdir(exist_ok=True)
        scenes.append(_scene(image, step, to_utc(moment), planes, phase, place))
    _require_names(scenes)
    write_index(scenes, folder / INDEX)
    return folder / INDEX


def _require_names(scenes: list[Scene]) -> None:
    """Number scenes of one name, since several time steps may come from one product."""
    seen: dict[str, int] = {}
    for number, scene in enumerate(scenes):
        count = seen[scene.id] = seen.get(scene.id, 0) + 1
        if count > 1:
            scenes[number] = replace(scene, id=f"{scene.id}_{count}")


def _scene(
    image: Image, step: int, moment: str, planes: dict[str, NDArray[np.uint16]], phase: Phase, folder: Path
) -> Scene:
    """Write the files of one time step and return its record, with its BOA offset."""
    bounds_m = _snapped(image.bounds_m, phase)
    hrefs, rasters = {}, {}
    for layer in image.layers:
        dn, corner, differ = to_native(planes[layer.band], layer.place, layer.native_m, phase)
        if differ:
            raise UsageError(
                f"{layer.band} of {moment} was resampled, unlike the first time step", "one way of loading"
            )
        raster = _raster(layer.native_m, bounds_m)
        rasters[layer.native_m] = raster
        hrefs[layer.band] = _write(folder / f"{layer.band}.tif", _placed(dn, corner, raster), raster, image.epsg)
    known = {name: value for name in _PROPERTIES if (value := stated(image.layers, name, step)) not in (None, "nan")}
    name = str(stated(image.layers, "id", step) or "image_" + moment[:19].replace("-", "").replace(":", ""))
    meta = from_item({"id": name, "properties": known}, Meta(name))
    scene = Scene(
        id=meta.id,
        datetime_utc=moment,
        epsg=image.epsg,
        footprint=footprint_of(image.epsg, bounds_m),
        hrefs=hrefs,
        rasters=tuple(rasters[gsd_m] for gsd_m in sorted(rasters)),
        baseline=meta.baseline,
        cloud_pct=meta.cloud_pct,
        tile=meta.tile,
        properties=meta.properties,
    )
    return _with_offset(scene, meta, image)


def _with_offset(scene: Scene, meta: Meta, image: Image) -> Scene:
    """Return the scene with its BOA offset: that of reflectance as written, the caller's, or what is known of it."""
    override = None
    said: Sequence[OffsetDecision] = meta.offsets
    if image.meaning.values == REFLECTANCE:
        said = (OffsetDecision(CANONICAL_OFFSET_DN, "reflectance in memory, kept as DN with 1000 added"),)
    elif image.offset is not None:
        override = OffsetDecision(image.offset, "said by the caller", by_user=True)
    try:
        return decided(scene, said, override)[0]
    except ValueError as error:
        found = str(error).partition("; cure")[0]
        if image.meaning.values == REFLECTANCE:
            cure = "check how the loader scaled it: reflectance = DN * 1e-4, less 0.1 only where 1000 is in the DN"
        else:
            cure = "offset=-1000 for DN as ESA delivers them since baseline 04.00, offset=0 for older ones and where "
            cure += "the archive has taken the 1000 off"
        raise UsageError(f"{scene.id}: {found}", "a BOA offset that the pixels do not contradict", cure) from error


def _snapped(bounds_m: tuple[float, float, float, float], phase: Phase) -> tuple[float, float, float, float]:
    """Return bounds grown outward to whole pixels of 60 m."""
    left, bottom, right, top = bounds_m
    x, y = phase.x_m, phase.y_m

    def down(value: float, start: float) -> float:
        return math.floor((value - start) / BLOCK_M + 1e-6) * BLOCK_M + start

    def up(value: float, start: float) -> float:
        return math.ceil((value - start) / BLOCK_M - 1e-6) * BLOCK_M + start

    return down(left, x), down(bottom, y), up(right, x), up(top, y)


def _raster(gsd_m: int, bounds_m: tuple[float, float, float, float]) -> Raster:
    left, bottom, right, top = bounds_m
    return Raster(gsd_m, left, top, round((top - bottom) / gsd_m), round((right - left) / gsd_m))


def _placed(dn: NDArray[np.uint16], corner: Corner, raster: Raster) -> NDArray[np.uint16]:
    """Return an image padded with nodata to a raster that holds it."""
    row = round((raster.top_m - corner.top_m) / raster.gsd_m)
    col = round((corner.left_m - raster.left_m) / raster.gsd_m)
    found = np.full((raster.ny, raster.nx), NODATA_DN, dn.dtype)
    found[row : row + dn.shape[0], col : col + dn.shape[1]] = dn
    return found


def _write(path: Path, dn: NDArray[np.uint16], raster: Raster, epsg: int) -> str:
    import rasterio
    from affine import Affine

    tiled = {"tiled": True, "blockxsize": _TILED_PX, "blockysize": _TILED_PX} if min(dn.shape) >= _TILED_PX else {}
    stored = dn.astype(np.uint8) if path.stem == "SCL" else dn
    transform = Affine(raster.gsd_m, 0, raster.left_m, 0, -raster.gsd_m, raster.top_m)
    try:
        with rasterio.open(
            path, "w", driver="GTiff", height=raster.ny, width=raster.nx, count=1, dtype=stored.dtype, nodata=NODATA_DN,
            crs=f"EPSG:{epsg}", transform=transform, **tiled,
        ) as target:  # fmt: skip
            target.write(stored, 1)
    except (OSError, rasterio.errors.RasterioIOError) as error:
        raise StorageError(f"{path} cannot be written: {error}", "a writable folder with space") from error
    return str(path)
