"""A small synthetic archive and AOI, and helpers that run the pipeline on them."""

import json
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import zarr

import pipeline
from pipeline.aoi.aoi import read_aoi
from pipeline.archive.read.cube import read_period
from pipeline.bands import BY_NAME
from pipeline.config import RunConfig
from pipeline.grid.native_rasters import factor_of
from pipeline.planning.planner import make_plan
from pipeline.running.driver import prepare, run_plan
from tests.archive.synthetic import make_archive, make_scene
from tests.models.small import write_lite

PYTHON = sys.executable
LEFT, TOP, SIZE = 600000, 5100000, 1800


def write_aoi(path: Path, corners_m, epsg=32632) -> Path:
    """Polygon through `corners_m`, written in degrees."""
    import pyproj

    turn = pyproj.Transformer.from_crs(epsg, 4326, always_xy=True).transform
    ring = [list(turn(x, y)) for x, y in (*corners_m, corners_m[0])]
    path.write_text(json.dumps({"type": "Polygon", "coordinates": [ring]}))
    return path


def box(left, bottom, right, top):
    return [(left, bottom), (right, bottom), (right, top), (left, top)]


@pytest.fixture(scope="session")
def archive(tmp_path_factory):
    """Index of two synthetic scenes: one clear, one with clouds and the other BOA offset."""
    folder = tmp_path_factory.mktemp("archive")
    scenes = [
        make_scene(folder, scene_id="S2A_CLOUDY", seed=1, size_m=SIZE, cloud_fraction=0.2, offset_dn=-1000),
        make_scene(folder, scene_id="S2B_LATER", seed=1, size_m=SIZE, date="2024-06-22T10:20:31Z", cloud_pct=30.0),
    ]
    return make_archive(folder, scenes)


@pytest.fixture(scope="session")
def aoi(tmp_path_factory):
    """About 740 m x 660 m inside the scenes, not aligned with anything: three by three chunks of 120 px."""
    path = tmp_path_factory.mktemp("aoi") / "region.geojson"
    return write_aoi(path, box(LEFT + 217, TOP - 967, LEFT + 953, TOP - 311))


@pytest.fixture(scope="session")
def wide_aoi(tmp_path_factory):
    """About 1.3 km x 1.2 km, for plans of many units."""
    path = tmp_path_factory.mktemp("aoi") / "region.geojson"
    return write_aoi(path, box(LEFT + 217, TOP - 1490, LEFT + 1533, TOP - 311))


@pytest.fixture(scope="session")
def small_lite(tmp_path_factory):
    """Settings of `sr="lite"` with small untrained networks, for tests whose subject is not the shipped weights."""
    sr, fusion = write_lite(tmp_path_factory.mktemp("small_lite"))
    return {"sr": "lite", "weights": (str(sr), f"fusion={fusion}")}


def config_for(archive, **changes) -> RunConfig:
    values = {
        "catalog": str(archive),
        "sr": "bicubic",
        "chunk_px": 120,
        "unit_chunks": 2,
        "max_cloud": 100.0,
        **changes,
    }
    return RunConfig(**values)


def run(config, aoi, store, *, cluster="inline", workers=1, **more):
    """Plan and run; returns (plan, summary)."""
    plan = make_plan(config, read_aoi(str(aoi)), workers=workers)
    prepare(plan, store)
    return plan, run_plan(plan, store, cluster=cluster, workers=workers, **more)


def chunk_digests(store: Path) -> dict[str, int]:
    """crc32 of every chunk file of a store's images."""
    return {
        str(path.relative_to(store)): zlib.crc32(path.read_bytes())
        for name in ("reflectance", "quality", "scl", "uncertainty", "map_class")
        for path in sorted(store.rglob(f"{name}/c/**/*"))
        if path.is_file()
    }


def values(store: Path, name="reflectance") -> np.ndarray:
    return np.asarray(zarr.open_group(store, mode="r")[name][:])


def sensor_errors(store, below_m=100) -> dict[str, tuple[float, float]]:
    """{band: (90th percentile of |measured - seen again|, mean of the difference)} in DN over all zones and times.

    Of bands whose GSD is below `below_m`.
    """
    fine, found = pipeline.open_store(store).reflectance, {}
    fine = fine.sel(band=[name for name in fine.band.values if BY_NAME[name].gsd_m < below_m])
    for gsd, seen in pipeline.reobserve(fine).items():
        off = (seen - pipeline.open_measured(store)[gsd].reflectance) * 1e4
        for name in off.band.values:
            one = off.sel(band=name)
            found[str(name)] = float(abs(one).quantile(0.9)), float(one.mean())
    return found


def block_mean_errors(plan, store) -> dict[str, float]:
    """{band: largest |block mean - composited input DN|} over native pixels with data, first zone and time step.

    Of runs with --consistency box.
    """
    assert plan.config.consistency == "box"
    zone, names = plan.zones[0], plan.config.band_names
    pixels = read_period(plan.period_scenes(zone.epsg, 0), "mosaic", zone.grid, names, plan.access)
    dn, errors = values(store)[0], {}
    for i, name in enumerate(names):
        factor, gsd = factor_of(name), BY_NAME[name].gsd_m
        native = pixels.dn[gsd][pixels.bands[gsd].index(name)]
        means = dn[i].reshape(native.shape[0], factor, native.shape[1], factor).mean((1, 3))
        errors[name] = float(np.abs(means - native)[native > 0].max())
    return errors
