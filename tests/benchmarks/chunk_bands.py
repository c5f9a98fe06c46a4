"""What chunks of one band cost and save: objects and bytes of a store, bytes and seconds of reading some bands."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np
import zarr
from zarr.storage import LocalStore, WrapperStore

from tests.benchmarks.scene import EPSG, LEFT_M, TOP_M, area_geojson, repeated_scene
from tests.conftest import DATA

if TYPE_CHECKING:
    from pathlib import Path

_SIDE_M = 3600  # 3 x 3 chunks
_READ = {"B04 alone": (3,), "B04 and B08": (3, 7), "B02, B03 and B04": (1, 2, 3), "all 12": tuple(range(12))}


class Counting(WrapperStore):
    """Counts the requests for chunks and their bytes."""

    requests = total = 0

    async def get(self, key, prototype, byte_range=None):
        found = await super().get(key, prototype, byte_range)
        if "/c/" in key and found is not None:
            self.requests += 1
            self.total += len(found)
        return found


def rows(folder: Path, sr: str = "lite") -> list[tuple[str, str]]:
    """Return (figure, value) of one area stored with both settings of --chunk-bands."""
    index, real = repeated_scene(folder, DATA, _SIDE_M)
    aoi = area_geojson(folder / "aoi.geojson", EPSG, LEFT_M + 1, TOP_M - _SIDE_M + 1, _SIDE_M - 2)
    found = [("ground", f"{_SIDE_M**2 / 1e6:.0f} km2 of {'real patches' if real else 'synthetic land'}, --sr {sr}")]
    for setting in ("all", "1"):
        store = _stored(folder / f"{setting}.zarr", index, aoi, sr, setting)
        files = [path for path in store.rglob("c/**/*") if path.is_file()]
        size = sum(path.stat().st_size for path in files)
        found.append((f"--chunk-bands {setting}: objects, MB", f"{len(files)}, {size / 1e6:.1f}"))
        found += [(f"--chunk-bands {setting}: reading {what}", _read(store, bands)) for what, bands in _READ.items()]
    return found


def _stored(store: Path, index: Path, aoi: Path, sr: str, setting: str) -> Path:
    from pipeline.aoi.aoi import read_aoi
    from pipeline.config import RunConfig
    from pipeline.planning.planner import make_plan
    from pipeline.running.driver import prepare, run_plan

    config = RunConfig(catalog=str(index), sr=sr, max_cloud=100.0, chunk_bands=setting)
    plan = make_plan(config, read_aoi(str(aoi)))
    prepare(plan, store)
    run_plan(plan, store, cluster="inline", workers=1)
    return store


def _read(store: Path, bands: tuple[int, ...]) -> str:
    """Read bands at 2.5 m; return requests, MB and the shortest of three times."""
    seconds = []
    for _ in range(3):
        counting = Counting(LocalStore(store, read_only=True))
        array = zarr.open_group(counting, mode="r")["reflectance"]
        started = time.perf_counter()
        values = np.asarray(array[0, list(bands)])
        seconds.append(time.perf_counter() - started)
        assert np.any(values)
    return f"{counting.requests} requests, {counting.total / 1e6:.2f} MB, {min(seconds):.2f} s"
