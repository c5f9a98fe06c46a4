"""Requests to an archive of COGs, and the bytes that they bring, against the least that a run could do with.

A full Sentinel-2 tile is served from loopback. Its files have blocks of 1024 px, deflated, as those of the open
archives; blocks without data are absent. The area lies over a corner of four blocks. The least is the first 32 KiB of
every file, and once every block that the area and its halo touch.
"""

from __future__ import annotations

import dataclasses
import re
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.aoi.aoi import read_aoi
from pipeline.archive.scene import Raster
from pipeline.archive.stac.index_file import to_item
from pipeline.bands import BAND_NAMES, BY_NAME
from pipeline.config import RunConfig
from pipeline.planning.plan import load_plan
from pipeline.planning.planner import make_plan
from pipeline.planning.unit_job import job_of
from pipeline.running import driver, pools
from pipeline.running.rolling_read import RollingRead
from pipeline.store.receipts import Receipt
from pipeline.superres.system import load
from tests.archive.stac_server import stac_server
from tests.benchmarks.scene import EPSG, LEFT_M, TOP_M, area_geojson, repeated_tiles
from tests.conftest import DATA
from tests.faults.files import Faults, file_server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from http.server import BaseHTTPRequestHandler

    from pipeline.archive.scene import Scene
    from pipeline.planning.plan import Plan
    from pipeline.planning.units import Unit

BLOCK_PX = 1024
_HEADER_BYTES = 32768
_TILE_M = 109_800
_SHIFT_M = 61_440 - 3_000  # from the tile's corner to the data's: a corner of blocks of all bands lies 3 km inside
_AROUND_M = 960  # data around the area
_PATIENCE_S = 3600.0  # on a busy machine
_SMALL_UNITS = 3  # chunks: 3.6 km
_RANGE = re.compile(r"bytes=(\d+)-(\d+)")


@dataclass
class Asked:
    """What the server was asked for: number of requests, and the bytes of their ranges."""

    requests: int = 0
    bytes: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def rule(self, _name: str, _count: int, request: BaseHTTPRequestHandler) -> None:
        """Record a request; the server answers it rightly."""
        wanted = _RANGE.fullmatch(request.headers.get("Range", ""))
        with self.lock:
            self.requests += 1
            self.bytes += int(wanted[2]) + 1 - int(wanted[1]) if wanted else 0


def tile(folder: Path, side_m: int) -> Scene:
    """Write a tile that holds data over `side_m`, 12 bands. Return its record."""
    data = folder / "data"
    data.mkdir()
    small, _ = repeated_tiles(data, DATA, side_m)
    left_m, top_m = LEFT_M - _SHIFT_M, TOP_M + _SHIFT_M
    rasters = {gsd: Raster(gsd, left_m, top_m, _TILE_M // gsd, _TILE_M // gsd) for gsd in (10, 20, 60)}
    hrefs = {}
    for band in BAND_NAMES:
        hrefs[band] = str(folder / f"TILE_{band}.tif")
        _write(Path(hrefs[band]), Path(small.hrefs[band]), rasters[BY_NAME[band].gsd_m])
    return dataclasses.replace(small, hrefs=hrefs, rasters=tuple(rasters.values()))


def _write(path: Path, data: Path, raster: Raster) -> None:
    """Write a COG over `raster` with the pixels of `data` and no others."""
    import numpy as np
    import rasterio
    from rasterio.shutil import copy
    from rasterio.windows import Window

    draft = path.with_suffix(".draft.tif")
    options = {"tiled": True, "blockxsize": BLOCK_PX, "blockysize": BLOCK_PX, "sparse_ok": True}
    first = round(_SHIFT_M / raster.gsd_m)
    with rasterio.open(data) as source:
        there = rasterio.Affine(raster.gsd_m, 0, raster.left_m, 0, -raster.gsd_m, raster.top_m)
        with rasterio.open(
            draft, "w", driver="GTiff", width=raster.nx, height=raster.ny, count=1, dtype="uint16", nodata=0,
            crs=f"EPSG:{EPSG}", transform=there, **options,
        ) as whole:  # fmt: skip
            whole.write(source.read(1), 1, window=Window(first, first, source.width, source.height))
            beyond = (first + source.width) // BLOCK_PX * BLOCK_PX + BLOCK_PX
            if beyond < raster.nx:  # something in the next column too, so that rows of blocks are not neighbours
                for row in range(first, first + source.height, BLOCK_PX):
                    whole.write(np.ones((1, 1), np.uint16), 1, window=Window(beyond, row, 1, 1))
    copy(
        draft, path, driver="COG", blocksize=BLOCK_PX, compress="deflate", predictor="yes", overviews="none",
        sparse_ok=True,
    )  # fmt: skip
    draft.unlink()


@contextmanager
def served(folder: Path, scene: Scene) -> Iterator[tuple[Path, Asked]]:
    """Yield the catalogue of a STAC API with this scene, and the count of what its file server is asked for."""
    asked = Asked()
    with file_server(folder, Faults(asked.rule)) as files:
        item = to_item(scene)
        item["collection"] = "sentinel-2-l2a"
        item["properties"]["constellation"] = "sentinel-2"
        for asset in item["assets"].values():
            asset["href"] = f"{files}/{Path(asset['href']).name}"
        with stac_server([item]) as api:
            bands = "\n".join(f'{name} = ["{name}"]' for name in BAND_NAMES)
            catalog = folder / "loopback.toml"
            catalog.write_text(
                f'name = "loopback"\nurl = "{api.url}"\ncollection = "sentinel-2-l2a"\n'
                f'hosts = ["{files.removeprefix("http://")}"]\noffset_rule = "baseline"\nsigning = "none"\n\n'
                f"[bands]\n{bands}\n"
            )
            yield catalog, asked


def least(plan: Plan, folder: Path) -> tuple[int, int]:
    """Return the least (requests, bytes): every file's start, and each block that the area and its halo touch."""
    import rasterio

    (zone,) = plan.zones
    first = plan.model_passes()[0]
    read = first.read_window(zone.grid.window.pad(first.reach_px(plan.options())))
    left_m, bottom_m, right_m, top_m = zone.grid.of(read).bounds_m
    requests = size = 0
    for band in plan.inputs:
        with rasterio.open(folder / f"TILE_{band}.tif") as file:
            step_m = BLOCK_PX * BY_NAME[band].gsd_m
            rows = range(int((file.transform.f - top_m) // step_m), int(-((bottom_m - file.transform.f) // step_m)))
            cols = range(int((left_m - file.transform.c) // step_m), int(-((file.transform.c - right_m) // step_m)))
            found = (file.get_tag_item(f"BLOCK_SIZE_{c}_{r}", "TIFF", bidx=1) for r in rows for c in cols)
            sizes = [int(size) for size in found if size]
        requests += 1 + len(sizes)
        size += _HEADER_BYTES + sum(sizes)
    return requests, size


def process(unit: Unit, store: str, digest: str, attempt: int = 1) -> Receipt:
    """Read what a unit reads, strip by strip, and do nothing with it. The workers import this function."""
    plan = load_plan(store)
    job = job_of(plan, unit, load(plan.system, "cpu"))
    rolling = RollingRead(job)
    for strip in job.strips:
        rolling.over(strip.read)
    return Receipt(unit.id, digest, "done", "", {}, {}, 1, None, rolling.scenes, attempts=attempt)


def read_all(plan: Plan, store: Path, workers: int) -> None:
    """Read all units of a plan, in as many processes as a run on this machine would have."""
    units = list(plan.units())
    processes = min(workers, len(units))
    driver.prepare(plan, store)
    real, pools.process = pools.process, process
    try:
        with pools.open_pool("inline" if processes == 1 else "local", processes, str(store), plan.digest) as pool:
            for unit in units:
                pool.submit(unit, 1)
            for _ in units:
                outcome = pool.next(_PATIENCE_S)
                if outcome is None or isinstance(outcome[2], BaseException):
                    msg = f"a unit was not read: {outcome}"
                    raise RuntimeError(msg)
    finally:
        pools.process = real


def reads(folder: Path, scene: Scene, side_m: int, workers: int, unit_chunks: int = 0) -> dict[str, float]:
    """Plan a square of `scene`, a `tile` in `folder`, and read its units. Return counts by name, and the least.

    `unit_chunks` is the largest side of units; 0 leaves it to the plan.
    """
    aoi = area_geojson(folder / "aoi.geojson", EPSG, LEFT_M + _AROUND_M, TOP_M - _AROUND_M - side_m, side_m)
    with served(folder, scene) as (catalog, asked):
        config = RunConfig(
            catalog=str(catalog), max_cloud=100.0, start="2018-05-01", end="2018-05-30", unit_chunks=unit_chunks
        )
        plan = make_plan(config, read_aoi(str(aoi)), workers=workers)
        planning = asked.requests, asked.bytes
        read_all(plan, folder / f"{side_m}-{workers}-{unit_chunks}.zarr", workers)
    requests, size = least(plan, folder)
    return {
        "units": sum(1 for _ in plan.units()),
        "km2": side_m**2 / 1e6,
        "requests": asked.requests,
        "bytes": asked.bytes,
        "planning_requests": planning[0],
        "planning_bytes": planning[1],
        "least_requests": requests,
        "least_bytes": size,
    }


def rows(folder: Path, workers: list[int]) -> list[tuple[str, str, str]]:
    """Return rows for squares of 25 and 100 km2, read by so many workers in turn, the last in small units too."""
    found = []
    for side_m in (5000, 10_000):
        own = folder / str(side_m)
        own.mkdir()
        scene = tile(own, side_m + 2 * _AROUND_M)
        for count, unit_chunks in [*((one, 0) for one in workers), (max(workers), _SMALL_UNITS)]:
            seen = reads(own, scene, side_m, count, unit_chunks)
            case = f"reading {seen['km2']:.0f} km2, workers: {count}, units: {seen['units']:.0f}"
            for name, unit, scale in (("requests", "", 1), ("bytes", " in MiB", 2**20)):
                least_one, one, planned = seen[f"least_{name}"], seen[name], seen[f"planning_{name}"]
                found += [
                    (case, f"{name}{unit} per km2, the least, those of planning",
                     ", ".join(f"{value / scale / seen['km2']:.3f}" for value in (one, least_one, planned))),
                    (case, f"{name} over the least", f"{one / least_one:.2f}"),
                ]  # fmt: skip
    return found
