"""Stores in memory: the files of a store in a folder, and the answers of any place."""

import pytest

from pipeline.store import layout
from pipeline.store.memory import MemoryPlace
from pipeline.store.place import place_of
from pipeline.store.template import create, create_root
from tests.store.test_place import template


@pytest.mark.parametrize("group", ["", "utm32n"])
def test_files_are_those_of_a_folder(tmp_path, group):
    memory, folder = MemoryPlace(), place_of(tmp_path / "run.zarr")
    for place in (memory, folder):
        if group:
            create_root(place, {"groups": [group], "plan_digest": "d"})
        create(place, group, template())
        layout.finish(place, [group], {"units": 1})
    found = memory.contents()
    assert found == {key: folder.read(key) for key in folder.walk()}
    assert len(found) > 60
    assert layout.status(memory) == layout.STATUS_COMPLETE


def test_a_group_that_is_there_is_not_written_over(tmp_path):
    for place in (MemoryPlace(), place_of(tmp_path / "run.zarr")):
        create(place, "", template())
        before = {key: place.read(key) for key in place.walk()}
        with pytest.raises(ValueError, match="exists"):
            create(place, "", template())
        assert {key: place.read(key) for key in place.walk()} == before


def test_answers_are_those_of_any_place():
    place = MemoryPlace()
    assert not place.exists()
    assert (place.read("a/b"), place.size("a/b"), place.age_s("a/b")) == (None, None, None)
    place.write("a/b", b"one")
    place.write("a/b", b"three")
    place.write_all({"a/c": b"x", "a/deep/d": b"x", "_run/lease.json": b"x"})
    assert (place.read("a/b"), place.size("a/b"), place.age_s("a/b")) == (b"three", 5, 0.0)
    assert (place.names("a"), place.names("nothing")) == (["a/b", "a/c"], [])
    assert not place.create("a/b", b"mine")
    assert place.create("a/e", b"mine")
    place.delete("a/e")
    place.delete("a/e")
    place.clear(("_run/lease",))
    assert list(place.walk()) == ["_run/lease.json"]
