"""Scenes and square AOIs for benchmarks. Real patches are tiled into one large scene."""

from __future__ import annotations

import dataclasses
import json
import time
from typing import TYPE_CHECKING

import numpy as np

from pipeline.archive.local.scan import footprint_of
from pipeline.archive.scene import OffsetDecision, Raster, Scene
from pipeline.bands import BAND_NAMES, BY_NAME
from tests.archive.synthetic import make_archive, make_scene, write_band

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.config import RunConfig
    from pipeline.planning.plan import Plan

LEFT_M, TOP_M, EPSG = 600_000, 5_100_000, 32632
_PATCH_M = 1200


def area_geojson(path: Path, epsg: int, left_m: float, bottom_m: float, side_m: float) -> Path:
    """Write a square AOI of `side_m` as GeoJSON in degrees. Return its path."""
    import pyproj

    turn = pyproj.Transformer.from_crs(epsg, 4326, always_xy=True).transform
    right, top = left_m + side_m, bottom_m + side_m
    corners = [(left_m, bottom_m), (right, bottom_m), (right, top), (left_m, top), (left_m, bottom_m)]
    path.write_text(json.dumps({"type": "Polygon", "coordinates": [[list(turn(*corner)) for corner in corners]]}))
    return path


def wide_plan(folder: Path, side_m: float, config: RunConfig, workers: int = 1) -> Plan:
    """Return the plan of a square of `side_m` over one small scene whose footprint covers the square."""
    from pipeline.aoi.aoi import read_aoi
    from pipeline.planning.planner import make_plan

    left, bottom, margin = 100_020, 4_600_020, 120_000  # straight edges in degrees are curved in UTM
    scene = make_scene(folder, scene_id="S2A_WIDE", left_m=left, top_m=bottom + 1200, size_m=1200)
    around = (left - margin, bottom - margin, left + side_m + margin, bottom + side_m + margin)
    index = make_archive(folder, [dataclasses.replace(scene, footprint=footprint_of(32632, around), rasters=())])
    aoi = area_geojson(folder / "aoi.geojson", 32632, left, bottom, side_m)
    config = dataclasses.replace(config, catalog=str(index), offset=0)
    return make_plan(config, read_aoi(str(aoi), max_area_km2=1e9), workers=workers, max_output_gb=1e6)


def timed_plan(folder: Path, side_m: float, config: RunConfig, workers: int = 1) -> tuple[Plan, int, float]:
    """Return the plan of `wide_plan`, the number of its units, and the CPU seconds that both took, without imports."""
    wide_plan(folder, 2400, config)  # imports what planning needs
    started = time.process_time()
    plan = wide_plan(folder, side_m, config, workers)
    units = sum(1 for _ in plan.units())
    return plan, units, time.process_time() - started


def repeated_scene(folder: Path, data: Path, side_m: int) -> tuple[Path, bool]:
    """Return the index of one scene of at least `side_m`, and True if it consists of real patches."""
    scene, real = repeated_tiles(folder, data, side_m)
    return make_archive(folder, [scene]), real


def repeated_tiles(folder: Path, data: Path, side_m: int) -> tuple[Scene, bool]:
    """Return the record of one scene of at least `side_m`, and True if it consists of real patches."""
    patches = sorted(path for path in (data / "s2_l2a" / "bigearthnet").glob("*") if path.is_dir())
    if not patches:
        size = -(-side_m // 60) * 60
        return make_scene(folder, scene_id="S2A_LAND", left_m=LEFT_M, top_m=TOP_M, size_m=size, epsg=EPSG), False
    count = -(-side_m // _PATCH_M)
    size = count * _PATCH_M
    rasters = tuple(Raster(gsd, LEFT_M, TOP_M, size // gsd, size // gsd) for gsd in (10, 20, 60))
    by_gsd = {raster.gsd_m: raster for raster in rasters}
    hrefs = {}
    for band in BAND_NAMES:
        tiles = [_band(patch, band) for patch in patches]
        rows = [np.hstack([tiles[(row * 5 + col * 2) % len(tiles)] for col in range(count)]) for row in range(count)]
        hrefs[band] = write_band(folder / f"S2A_TILED_{band}.tif", np.vstack(rows), by_gsd[BY_NAME[band].gsd_m], EPSG)
    scene = Scene(
        id="S2A_TILED",
        datetime_utc="2018-05-02T09:30:39Z",
        epsg=EPSG,
        footprint=footprint_of(EPSG, (LEFT_M, TOP_M - size, LEFT_M + size, TOP_M)),
        hrefs=hrefs,
        rasters=rasters,
        baseline="02.07",
        offset=OffsetDecision(0, "products of baseline 02 carry no offset"),
        cloud_pct=0.0,
    )
    return scene, True


def real_or_synthetic(folder: Path, data: Path) -> Scene:
    """Return a contiguous real scene of 5 km (eight bands), or a synthetic one of about that size."""
    real = data / "s2_l2a" / "argentina_pampas_32720"
    if not real.is_dir():
        return make_scene(folder, scene_id="S2A_LAND", left_m=LEFT_M, top_m=TOP_M, size_m=5400, epsg=EPSG)
    from pipeline.archive.local.scan import scan

    scenes, _ = scan(real, datetime_utc="2025-06-15T14:00:00Z", offset_dn=0)
    return scenes[0]


def _band(patch: Path, band: str) -> np.ndarray:
    import rasterio

    with rasterio.open(next(patch.glob(f"*_{band}.tif"))) as file:
        return file.read(1)
