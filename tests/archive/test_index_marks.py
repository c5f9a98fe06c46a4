"""Whose word an index is: only what this user's `pipeline.index` wrote names files anywhere and overrides offsets."""

from __future__ import annotations

import dataclasses
import json
import os
import stat

import pytest

from pipeline.aoi.aoi import aoi_from_bbox
from pipeline.archive.catalog import Catalog, load_catalog
from pipeline.archive.read.access import Access
from pipeline.archive.scene import OffsetDecision
from pipeline.archive.search import search
from pipeline.archive.stac.index_file import write_index
from pipeline.archive.stac.item import RejectedItem, scene_from_item
from tests.archive.stac_server import make_item

AOI = aoi_from_bbox(7.8, 45.6, 7.9, 45.7)
BY_USER = {"sen2fine:offset_dn": -1000, "sen2fine:offset_by_user": True, "sen2fine:offset_evidence": "audited"}


def local_scene(home, **changes):
    """A scene of baseline 02.14 whose files are in `home`."""
    item = make_item(base=f"{home}/", offset=None, baseline="02.14", name="scene")
    catalog = Catalog("local", "file", "", roots=(str(home),))
    return dataclasses.replace(scene_from_item(item, catalog, catalog.access()), **changes)


@pytest.fixture
def index(tmp_path):
    """An index beside, not above, the files; the offset of its scene was set by hand."""
    home, path = tmp_path / "scenes", tmp_path / "index" / "archive.json"
    home.mkdir()
    path.parent.mkdir()
    write_index([local_scene(home, offset=OffsetDecision(-1000, "set by the user", by_user=True))], path)
    return path


def found(path):
    return search(load_catalog(str(path)), AOI, None, None, None)


def edited(path, change):
    document = json.loads(path.read_text())
    for item in document["features"]:
        change(item)
    path.write_text(json.dumps(document))


def test_our_own_index_is_taken_at_its_word(index):
    (scene,) = found(index).scenes
    assert (scene.offset.offset_dn, scene.offset.by_user) == (-1000, True)


def test_a_list_of_some_of_its_items_is_still_ours(index, tmp_path):
    document = json.loads(index.read_text())
    other = tmp_path / "some.geojson"
    other.write_text(json.dumps({"features": document["features"][:1], "type": "FeatureCollection"}))
    assert found(other).scenes == found(index).scenes


@pytest.mark.parametrize(
    "change",
    [
        lambda item: item["properties"].pop("sen2fine:index_mark"),
        lambda item: item["properties"].update({"sen2fine:index_mark": "0" * 64}),
        lambda item: item["properties"].update({"sen2fine:index_mark": ["x"]}),
        lambda item: item["properties"].update({"sen2fine:index_mark": "\u00e9\ud800"}),
        lambda item: item["assets"]["B02"].update(href=item["assets"]["B02"]["href"].replace("B02", "other")),
        lambda item: item["properties"].update({"datetime": "2024-06-18T10:15:59Z"}),
    ],
)
def test_unmarked_indexes_may_not_name_files_elsewhere(index, change):
    edited(index, change)
    result = found(index)
    assert result.scenes == ()
    ((_, reason),) = result.rejected
    assert "it lies under none of the folders" in reason
    assert "python -m pipeline.index FOLDER" in reason
    assert "SEN2FINE_ROOTS" in reason


def test_another_users_index_is_a_strangers(index, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "other"))
    assert found(index).scenes == ()
    write_index([local_scene(tmp_path / "scenes")], tmp_path / "mine.json")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "third"))
    assert load_catalog(str(index)).roots == (str(index.parent),)


def test_folders_that_the_user_names_are_allowed(index, tmp_path, monkeypatch):
    edited(index, lambda item: item["properties"].pop("sen2fine:index_mark"))
    monkeypatch.setenv("SEN2FINE_ROOTS", os.pathsep.join(["relative", str(tmp_path / "scenes")]))
    assert load_catalog(str(index)).roots == (str(index.parent), str(tmp_path / "scenes"))
    (scene,) = found(index).scenes
    assert not scene.offset.by_user
    assert scene.offset.standing == "open"  # -1000 against baseline 02.14
    assert "-0.1" in scene.offset.evidence
    assert "02.14" in scene.offset.evidence


@pytest.mark.parametrize("kind", ["file", "api"])
def test_a_strangers_override_is_a_declaration(kind):
    catalog = Catalog("test", kind, "", hosts=("*",))
    item = make_item(baseline="05.10", offset=None)
    item["properties"] |= BY_USER
    decision = scene_from_item(item, catalog, catalog.access()).offset
    assert (decision.offset_dn, decision.by_user, decision.standing) == (-1000, False, "stated")
    assert "confirmed by processing baseline 05.10" in decision.evidence
    item["properties"]["sen2fine:offset_dn"] = 0
    decision = scene_from_item(item, catalog, catalog.access()).offset
    assert (decision.by_user, decision.standing) == (False, "open")
    item["properties"]["sen2fine:offset_dn"] = -7
    with pytest.raises(RejectedItem, match="expected 0 or -1000"):
        scene_from_item(item, catalog, catalog.access())


def test_a_record_that_contradicts_the_bands_is_open():
    catalog = Catalog("test", "file", "", hosts=("*",))
    item = make_item(baseline="05.10", offset=-0.1)
    item["properties"]["sen2fine:offset_dn"] = 0
    assert scene_from_item(item, catalog, catalog.access()).offset.standing == "open"


def test_the_key_is_the_users_alone(index, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    write_index([local_scene(tmp_path / "scenes")], index)
    key = tmp_path / "state" / "sen2fine" / "index.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    before = key.read_bytes()
    write_index([local_scene(tmp_path / "scenes")], index)
    assert key.read_bytes() == before
    assert before.hex() not in index.read_text()
    assert os.listdir(key.parent) == ["index.key"]


def test_without_a_key_folder_an_index_is_unmarked(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    home = tmp_path / "scenes"
    home.mkdir()
    path = home / "archive.json"
    write_index([local_scene(home)], path)
    assert "index_mark" not in path.read_text()
    assert [scene.id for scene in found(path).scenes] == ["scene"]  # its files are below its own folder


def test_access_of_a_strangers_index_is_its_folder(index):
    edited(index, lambda item: item["properties"].pop("sen2fine:index_mark"))
    assert load_catalog(str(index)).access() == Access(hosts=("*",), roots=(str(index.parent),))
