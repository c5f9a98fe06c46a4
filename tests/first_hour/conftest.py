"""The store of the quick start, made by its command."""

import os
import shutil
import subprocess
import sys

import pytest

import pipeline
from tests.conftest import REPOSITORY

# Python does not show a library's deprecation warnings to users.
STRICT = ("-W", "error", "-W", "ignore::DeprecationWarning", "-W", "ignore::PendingDeprecationWarning")


def python(*words):
    """Run Python in a process of its own, as a user does. A run in the test's process leaves GDAL without drivers."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    environment.pop("GDAL_SKIP", None)
    done = subprocess.run(
        [sys.executable, *map(str, words)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def sample(store, *words):
    """Make the store of the sample as the quick start does."""
    ground = () if "--bbox" in words else ("--aoi", REPOSITORY / "catalogs" / "sample" / "region.geojson")
    python("-m", "pipeline.run", *ground, "--catalog", "sample", "--out", store, *words)
    return store


@pytest.fixture(scope="package")
def finished(tmp_path_factory):
    return sample(tmp_path_factory.mktemp("sample") / "sample.zarr")


@pytest.fixture
def store(finished, tmp_path):
    """A copy, so that a step that changes the store cannot help another."""
    return shutil.copytree(finished, tmp_path / "sample.zarr")


@pytest.fixture
def ds(store):
    return pipeline.open_store(store)
