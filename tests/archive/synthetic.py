"""Synthetic archives for every room's tests: per-band GeoTIFFs of any size, place, phase, date and offset.

Ground truth is a function of absolute position, so neighbouring scenes and all three GSDs agree with each other.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.archive.local.scan import footprint_of
from pipeline.archive.scene import OffsetDecision, Raster, Scene
from pipeline.archive.stac.index_file import write_index
from pipeline.bands import BAND_NAMES, BY_NAME, SCL

if TYPE_CHECKING:
    from collections.abc import Iterator

# Mean reflectance in DN (no offset) and weight of three latent fields per band: roughly soil, vegetation, brightness.
_SPECTRA = {
    "B01": (450, 60, -60, 120), "B02": (520, 110, -110, 190), "B03": (760, 170, -90, 240),
    "B04": (780, 300, -280, 300), "B05": (1200, 280, -150, 320), "B06": (2100, 90, 500, 340),
    "B07": (2450, 60, 700, 360), "B08": (2600, 70, 760, 420), "B8A": (2750, 80, 740, 380),
    "B09": (2800, 60, 650, 300), "B11": (2150, 520, -160, 420), "B12": (1400, 520, -330, 380),
}  # fmt: skip

_WRITTEN: dict[tuple[object, ...], dict[str, bytes]] = {}  # files of small scenes that this process has made before
_KEPT_M2 = 1800**2


def coordinate_dn(band: str, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
    """(y, x) DN without offset that names its own place: unique among bands and within 64 x 64 native pixels.

    `rows`, `cols`: absolute native indices, counted from the scene's phase, rows south.
    """
    place = (rows[:, None] % 64) * 64 + cols[None, :] % 64
    return 1 + BAND_NAMES.index(band) + len(BAND_NAMES) * place


def make_scene(
    folder: Path,
    *,
    scene_id: str,
    epsg: int = 32632,
    left_m: float = 600000,
    top_m: float = 5100000,
    size_m: int | tuple[int, int] = 2400,
    seed: int = 0,
    offset_dn: int = 0,
    date: str = "2024-06-17T10:20:31Z",
    scl: bool | np.ndarray = True,
    kind: str = "land",
    bands: tuple[str, ...] = BAND_NAMES,
    cloud_fraction: float = 0.0,
    nodata_left_m: int = 0,
    cloud_pct: float | None = None,
    compress: str | None = "deflate",
) -> Scene:
    """Write one scene's files into folder/scene_id and return its record.

    `size_m`: one side, or (height, width); multiples of 60. `scl`: False for none, or (y, x) classes at 20 m.
    `cloud_fraction` of the ground is SCL 9 and bright; the leftmost `nodata_left_m` hold 0 everywhere.
    """
    height_m, width_m = (size_m, size_m) if isinstance(size_m, int) else size_m
    assert (height_m % 60, width_m % 60) == (0, 0), "scenes consist of whole 60 m pixels"
    place = folder / scene_id
    place.mkdir(parents=True, exist_ok=True)
    rasters = tuple(Raster(g, left_m, top_m, height_m // g, width_m // g) for g in (10, 20, 60))
    classes = scl if isinstance(scl, bool) else (scl.shape, scl.astype(np.uint8).tobytes())
    pixels = (rasters, epsg, seed, offset_dn, classes, kind, tuple(bands), cloud_fraction, nodata_left_m, compress)
    if pixels in _WRITTEN:
        hrefs = {name: str(place / f"{scene_id}_{name}.tif") for name in _WRITTEN[pixels]}
        for name, href in hrefs.items():
            Path(href).write_bytes(_WRITTEN[pixels][name])
    else:
        images = _images(rasters, seed, offset_dn, scl, kind, bands, cloud_fraction, nodata_left_m)
        hrefs = {
            name: write_band(place / f"{scene_id}_{name}.tif", stored, raster, epsg, compress)
            for name, stored, raster in images
        }
        if height_m * width_m <= _KEPT_M2:
            _WRITTEN[pixels] = {name: Path(href).read_bytes() for name, href in hrefs.items()}
    right_m, bottom_m = left_m + width_m, top_m - height_m
    return Scene(
        id=scene_id,
        datetime_utc=date,
        epsg=epsg,
        footprint=footprint_of(epsg, (left_m, bottom_m, right_m, top_m)),
        hrefs=hrefs,
        rasters=rasters,
        baseline="05.11" if offset_dn else "02.14",
        offset=OffsetDecision(offset_dn, "synthetic"),
        cloud_pct=cloud_pct if cloud_pct is not None else 100 * cloud_fraction,
    )


def _images(
    rasters: tuple[Raster, ...],
    seed: int,
    offset_dn: int,
    scl: bool | np.ndarray,
    kind: str,
    bands: tuple[str, ...],
    cloud_fraction: float,
    nodata_left_m: int,
) -> Iterator[tuple[str, np.ndarray, Raster]]:
    """Yield (name, values as stored, grid) of each file of a scene."""
    by_gsd = {raster.gsd_m: raster for raster in rasters}
    fields = _latent_fields(by_gsd[10], seed) if kind == "land" else None
    cloud = _cloud_mask(by_gsd[20], seed, cloud_fraction)
    for band in bands:
        raster = by_gsd[BY_NAME[band].gsd_m]
        dn = _land(band, fields, cloud, raster.gsd_m) if fields is not None else _coordinates(band, raster)
        stored = np.clip(dn - offset_dn, 1, 65535).astype(np.uint16)
        stored[:, : -(-nodata_left_m // raster.gsd_m)] = 0
        yield band, stored, raster
    if not isinstance(scl, bool) or scl:
        classes = np.where(cloud, 9, 4).astype(np.uint8) if isinstance(scl, bool) else scl.astype(np.uint8)
        classes[:, : -(-nodata_left_m // 20)] = 0
        yield SCL, classes, by_gsd[20]


def make_archive(folder: Path, scenes: tuple[Scene, ...] | list[Scene]) -> Path:
    """Write folder/archive.json, the index of `scenes`."""
    path = folder / "archive.json"
    write_index(tuple(scenes), path)
    return path


def write_band(path: Path, stored: np.ndarray, raster: Raster, epsg: int, compress: str | None = "deflate") -> str:
    """Write one band of (y, x) stored values as a tiled GeoTIFF where it is large enough; return its href."""
    import rasterio
    from rasterio import Affine

    tiled = min(stored.shape) >= 512
    options = {"tiled": True, "blockxsize": 512, "blockysize": 512} if tiled else {}
    if compress:
        options |= {"compress": compress}
    with rasterio.open(
        path, "w", driver="GTiff", width=stored.shape[1], height=stored.shape[0], count=1, dtype=stored.dtype, nodata=0,
        crs=f"EPSG:{epsg}", transform=Affine(raster.gsd_m, 0, raster.left_m, 0, -raster.gsd_m, raster.top_m), **options,
    ) as dataset:  # fmt: skip
        dataset.write(stored, 1)
    return str(path)


def _coordinates(band: str, raster: Raster) -> np.ndarray:
    row = -round(raster.top_m // 60 * 60 / raster.gsd_m)  # the phase is what is left of 60 m
    col = round(raster.left_m // 60 * 60 / raster.gsd_m)
    return coordinate_dn(band, np.arange(row, row + raster.ny), np.arange(col, col + raster.nx))


def _land(band: str, fields: np.ndarray, cloud: np.ndarray, gsd_m: int) -> np.ndarray:
    """(y, x) reflectance DN at `gsd_m`: the block mean of the 10 m truth, clouds bright and almost flat."""
    mean, *weights = _SPECTRA[band]
    dn = mean + np.tensordot(weights, fields, 1)
    dn = np.where(cloud.repeat(2, 0).repeat(2, 1), 6500 + 0.3 * dn, np.maximum(dn, 30))
    n = gsd_m // 10
    return np.rint(dn.reshape(dn.shape[0] // n, n, dn.shape[1] // n, n).mean((1, 3)))


def _centres(raster: Raster) -> tuple[np.ndarray, np.ndarray]:
    """Pixel centres (y column vector, x row vector) in metres."""
    y = raster.top_m - raster.gsd_m * (np.arange(raster.ny) + 0.5)
    x = raster.left_m + raster.gsd_m * (np.arange(raster.nx) + 0.5)
    return y[:, None], x[None, :]


def _waves(raster: Raster, seed: int, count: int = 8) -> np.ndarray:
    """(y, x) smooth field, standard deviation about 1: plane waves of 150 m to 3 km."""
    rng = np.random.default_rng(seed)
    y, x = _centres(raster)
    length_m = np.geomspace(3000, 150, count)
    angle, phase = rng.uniform(0, 2 * np.pi, (2, count))
    ky, kx = 2 * np.pi / length_m * np.sin(angle), 2 * np.pi / length_m * np.cos(angle)
    field = sum(np.cos(ky[i] * y + kx[i] * x + phase[i]) * length_m[i] ** 0.3 for i in range(count))
    return field / np.sqrt(0.5 * (length_m**0.6).sum())


def _uniform(rows: np.ndarray, cols: np.ndarray, seed: int) -> np.ndarray:
    """Uniform [0, 1) hash of integer cells."""
    h = rows.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) ^ cols.astype(np.uint64) * np.uint64(0xC2B2AE3D27D4EB4F)
    h = (h ^ np.uint64(seed * 2 + 1)) * np.uint64(0xFF51AFD7ED558CCD)
    h = (h ^ (h >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
    return (h >> np.uint64(40)).astype(float) / 2**24


def _latent_fields(raster: Raster, seed: int) -> np.ndarray:
    """(3, y, x) soil, vegetation, brightness at 10 m: waves, parcels with sharp edges, pixel texture."""
    y, x = _centres(raster)
    across, along = 0.88 * x + 0.47 * y, 0.88 * y - 0.47 * x
    parcel = np.floor(across / 190).astype(np.int64), np.floor(along / 130).astype(np.int64)
    pixel = np.broadcast_arrays(np.floor(y / 10).astype(np.int64), np.floor(x / 10).astype(np.int64))
    return np.stack(
        [
            0.6 * _waves(raster, seed * 10 + k)
            + 1.6 * (_uniform(*parcel, seed * 10 + k) - 0.5)
            + 0.5 * (_uniform(*pixel, seed * 10 + k) - 0.5)
            for k in range(3)
        ]
    )


def _cloud_mask(raster: Raster, seed: int, fraction: float) -> np.ndarray:
    """(y, x) at 20 m; True on `fraction` of the scene."""
    field = _waves(raster, 1000 + seed, count=5)
    return field > np.quantile(field, 1 - fraction) if fraction else np.zeros(field.shape, bool)
