"""Fixtures: a small synthetic archive and an AOI in it."""

import pytest

from tests.archive.synthetic import make_archive, make_scene
from tests.running.conftest import LEFT, SIZE, TOP, box, write_aoi


@pytest.fixture(scope="session")
def archive(tmp_path_factory):
    """Return the index of one scene."""
    folder = tmp_path_factory.mktemp("archive")
    return make_archive(folder, [make_scene(folder, scene_id="S2A_JOBS", seed=3, size_m=SIZE)])


@pytest.fixture(scope="session")
def aoi(tmp_path_factory):
    """Return an AOI of about 1.3 km x 1.2 km within the scene, not aligned with any grid."""
    path = tmp_path_factory.mktemp("aoi") / "country.geojson"
    return write_aoi(path, box(LEFT + 217, TOP - 1490, LEFT + 1533, TOP - 311))
