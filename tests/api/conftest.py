"""Processes of users, who have nothing but `sen2fine` on their path, and images as loaders give them."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio

from pipeline.archive.scene import Scene

ROOT = Path(__file__).resolve().parents[2]


def user_environment(**more):
    """As of an installation: both roots are found, after the folder of the script."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "pipeline" / "public"), str(ROOT)]), **more}


def python(*words, cwd, stdin=None, timeout=900):
    """Run Python in a folder of a user; returns (exit code, stdout, stderr)."""
    done = subprocess.run(
        [sys.executable, *words], cwd=cwd, env=user_environment(), input=stdin, capture_output=True, text=True,
        timeout=timeout,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def bands_of(scene: Scene) -> dict[str, np.ndarray]:
    """DN of each file of a scene, on its native grid."""
    found = {}
    for band, href in scene.hrefs.items():
        with rasterio.open(href) as dataset:
            found[band] = dataset.read(1)
    return found


def at_10m(scene: Scene) -> dict[str, np.ndarray]:
    """DN of each file of a scene, copied to 10 m, as loaders do by nearest neighbour."""
    ny = scene.rasters[0].ny
    found = {}
    for band, dn in bands_of(scene).items():
        found[band] = dn.repeat(ny // dn.shape[0], 0).repeat(ny // dn.shape[0], 1)
    return found


def dataset_of(scene: Scene, gsd_m: int = 10, bands: dict[str, np.ndarray] | None = None):
    """A Dataset as odc-stac gives it: one variable per band, centres of pixels, spatial_ref."""
    import rioxarray  # noqa: F401 - registers .rio
    import xarray as xr

    bands = at_10m(scene) if bands is None else bands
    first = scene.rasters[0]
    ny, nx = next(iter(bands.values())).shape
    coords = {
        "y": first.top_m - gsd_m * (np.arange(ny) + 0.5),
        "x": first.left_m + gsd_m * (np.arange(nx) + 0.5),
        "time": [np.datetime64(scene.datetime_utc.rstrip("Z"), "ns")],
    }
    made = xr.Dataset({band: (("time", "y", "x"), dn[None]) for band, dn in bands.items()}, coords)
    return made.rio.write_crs(scene.epsg)


@pytest.fixture
def region(tmp_path):
    """The sample's AOI, in the user's folder."""
    path = tmp_path / "region.geojson"
    path.write_bytes((ROOT / "catalogs" / "sample" / "region.geojson").read_bytes())
    return path
