"""Copies of maps without a spatial index: made once, shared by processes, removed by the last."""

import os
import signal
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest

from pipeline.conditions import indexed_copy, vector_layers
from pipeline.conditions.frozen import freeze
from pipeline.conditions.vector_layers import boxes, features
from pipeline.errors import StorageError
from tests.conditions.made_up import CLASSES, osm_xml, to_degrees, turned_box, vector

ROOT = Path(__file__).resolve().parents[2]
HOUSE = turned_box(40, 50, 60, 35, 12)
AREA = to_degrees(HOUSE).bounds


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    """A temporary folder of this test's own."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    indexed_copy.release()
    indexed_copy._layers.cache_clear()


@pytest.fixture
def town(tmp_path):
    return freeze(CLASSES, str(osm_xml(tmp_path / "town.osm", [(HOUSE, {"building": "yes"})])))


def copies(folder):
    return sorted(path.parent.name for path in folder.glob("*/*/copy.json"))


def read(frozen, box, area):
    layers = indexed_copy.layers_over(frozen, box, area)
    return [len(features(layer, box)) for layer in layers if layer.path]


def test_one_copy_serves_all_boxes_of_the_area(town, temporary, monkeypatch):
    scans = []
    whole = vector_layers.features
    monkeypatch.setattr(indexed_copy, "features", lambda *given: scans.append(given[0].name) or whole(*given))
    west, south, east, north = AREA
    assert read(town, AREA, AREA) == [1]
    assert read(town, (west - 0.1, south - 0.1, (west + east) / 2, north), AREA) == [1]
    assert read(town, (west - 0.2, south, west - 0.1, north), AREA) == [0]
    assert scans == ["lines", "multipolygons"]
    assert copies(temporary) == ["0"]
    assert read(town, (west - 2, south, east, north), AREA) == [1], "beyond the area another copy is made"
    assert copies(temporary) == ["0", "1"]
    indexed_copy.release()
    assert not list(temporary.iterdir())


def test_what_a_killed_process_left_of_a_copy_is_no_copy(town, temporary):
    assert read(town, AREA, AREA) == [1]
    left = next(temporary.glob("*/0")).with_name("unfinished-x")
    left.mkdir()
    (left / "copy.json").write_text('{"box":')
    west, south, east, north = AREA
    assert read(town, (west - 2, south, east, north), AREA) == [1]
    assert read(town, (west - 2, south, east, north), AREA) == [1]
    assert copies(temporary) == ["0", "1", "unfinished-x"]


def test_files_with_an_index_are_not_copied(temporary, tmp_path):
    frozen = freeze(CLASSES, str(vector(tmp_path / "town.gpkg", [(HOUSE, {"class": "building"})])))
    assert read(frozen, AREA, AREA) == [1]
    assert not list(temporary.iterdir())


CODE = """
    import sys, tempfile
    tempfile.tempdir = sys.argv[1]
    from pipeline.conditions import indexed_copy
    from pipeline.conditions.frozen import Frozen
    from pipeline.conditions.vector_layers import features
    box = tuple(map(float, sys.argv[4:8]))
    frozen = Frozen("map", "vector", sys.argv[2], sys.argv[3])
    layers = indexed_copy.layers_over(frozen, box, box)
    print(sum(len(features(layer, box)) for layer in layers if layer.path), flush=True)
    sys.stdin.read()
"""


def process(temporary, frozen):
    words = [sys.executable, "-c", textwrap.dedent(CODE), str(temporary), frozen.where, frozen.sha256]
    return subprocess.Popen(
        [*words, *map(str, AREA)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path[1:]])},
    )  # fmt: skip


@pytest.mark.slow
def test_processes_share_a_copy_and_the_last_one_removes_it(town, temporary):
    running = [process(temporary, town) for _ in range(3)]
    try:
        assert [one.stdout.readline() for one in running] == ["1\n"] * 3
        assert copies(temporary) == ["0"], "made once"
        running[0].communicate()
        assert copies(temporary) == ["0"], "the others still read it"
        running[1].send_signal(signal.SIGKILL)
        running[1].communicate()
        running[2].communicate()
        assert not list(temporary.iterdir())
    finally:
        for one in running:
            one.kill()
            one.communicate()


def test_what_a_killed_process_leaves_is_removed_by_the_next(town, temporary, tmp_path):
    one = process(temporary, town)
    assert one.stdout.readline() == "1\n"
    one.kill()
    one.communicate()
    left = list(temporary.iterdir())
    assert left
    other = freeze(CLASSES, str(osm_xml(tmp_path / "other.osm", [(HOUSE, {"building": "house"})])))
    assert read(other, AREA, AREA) == [1]
    assert not left[0].exists()


def test_a_folder_of_someone_else_is_not_trusted(town, temporary, tmp_path):
    folder = temporary / f"sen2fine-map-{os.getuid()}-{town.sha256[:20]}"
    (tmp_path / "elsewhere").mkdir()
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StorageError, match="no indexed copy of .* another user"):
        read(town, AREA, AREA)


def test_a_box_across_the_antimeridian_is_read_in_two_parts(tmp_path):
    import shapely

    box = (179.9, -17.0, -179.9, -16.9)
    assert boxes(box) == [(179.9, -17.0, 180.0, -16.9), (-180.0, -17.0, -179.9, -16.9)]
    rows = [(shapely.box(*part).buffer(-0.01), {"class": "wood"}) for part in boxes(box)]
    far = (shapely.box(0, -17.0, 0.1, -16.9), {"class": "wood"})
    path = vector(tmp_path / "island.gpkg", [*rows, far], crs="EPSG:4326")
    (layer,) = vector_layers.layers_of(path)
    assert len(features(layer, box)) == 2
