"""One run per store, whatever others do meanwhile: the lease comes first, and only what is in the store counts."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline import check, view
from pipeline.errors import Interrupted
from pipeline.planning.plan import load_plan
from pipeline.planning.planner import make_plan
from pipeline.run import main
from pipeline.running import driver, pools, software, stored_plan
from pipeline.running.begin import clear_store
from pipeline.store import layout
from pipeline.store.current import Current, read_current
from pipeline.store.lease import lease
from pipeline.store.ownership import Standing, standing
from pipeline.store.place import LocalPlace, place_of
from tests.running.conftest import chunk_digests, config_for, run

ONE = ("--sr", "bicubic", "--chunk-px", "240", "--unit-chunks", "1", "--max-cloud", "100", "--cluster", "inline",
       "--bands", "B02,B03,B04", "--consistency", "box")  # fmt: skip


@pytest.fixture(scope="module")
def sound(archive, aoi, tmp_path_factory):
    """{consistency: chunks} of undisturbed runs."""
    found = {}
    for name in ("box", "none"):
        store = tmp_path_factory.mktemp("sound") / "run.zarr"
        config = config_for(archive, chunk_px=240, unit_chunks=1, bands=("B02", "B03", "B04"), consistency=name)
        run(config, aoi, store)
        found[name] = chunk_digests(store)
    assert found["box"] != found["none"]
    return found


@pytest.fixture
def store(tmp_path):
    return tmp_path / "run.zarr"


@pytest.fixture
def call(archive, aoi, store, capsys):
    """The command, with further words: (exit code, standard output, standard error)."""

    def call(*more, program=main):
        words = ["--aoi", str(aoi), "--catalog", str(archive), "--out", str(store), *ONE, *more]
        capsys.readouterr()
        code = program(words)
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return code, said.out, said.err

    return call


def while_planning(monkeypatch, act):
    """Let something happen between the plan and the lease of the next run."""
    real = stored_plan.make_plan

    def make_plan(*arguments, **more):
        plan = real(*arguments, **more)
        monkeypatch.setattr(stored_plan, "make_plan", real)
        act()
        return plan

    monkeypatch.setattr(stored_plan, "make_plan", make_plan)


class TestAFreshStart:
    @pytest.mark.slow
    def test_goes_on_with_what_a_faster_one_began(self, call, store, sound, monkeypatch):
        while_planning(monkeypatch, lambda: call())
        code, out, _ = call("--json")
        said = json.loads(out)
        assert (code, said["computed"], said["resumed"]) == (0, 0, said["units"])
        assert chunk_digests(store) == sound["box"]

    @pytest.mark.slow
    def test_leaves_a_faster_one_of_other_settings_alone(self, call, store, sound, monkeypatch):
        while_planning(monkeypatch, lambda: call("--consistency", "none"))
        code, _, err = call()
        assert code == 2
        assert "begun with other settings (consistency: 'none' -> 'box')" in err
        assert chunk_digests(store) == sound["none"]

    def test_does_not_touch_a_store_that_another_holds(self, call, store, monkeypatch):
        held = []

        def hold():
            held.append(lease(store))
            held[0].__enter__()

        while_planning(monkeypatch, hold)
        code, _, err = call()
        held[0].__exit__(None, None, None)
        assert code == 75
        assert f"being written by process {os.getpid()}" in err
        assert not store.exists()

    @pytest.mark.slow
    def test_of_three_at_once_one_makes_the_store(self, archive, aoi, store, sound):
        words = [sys.executable, "-m", "pipeline.run", "--aoi", str(aoi), "--catalog", str(archive), "--out",
                 str(store), *ONE]  # fmt: skip
        three = [subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)]
        said = [one.communicate(timeout=300)[1] for one in three]
        codes = [one.returncode for one in three]
        assert set(codes) <= {0, 75}, said
        assert 0 in codes
        for code, words in zip(codes, said, strict=True):
            assert "no plan" not in words
            assert code == 0 or "is being written by process" in words
        assert layout.status(store) == layout.STATUS_COMPLETE
        assert chunk_digests(store) == sound["box"]


class TestAnInterruptedBeginning:
    """A kill between any two steps leaves the old store to be continued, or one that is simply begun again."""

    def steps(self, store, monkeypatch, last):
        """Let the process die at its `last`-th change of the store."""
        count = [0]
        for owner, name in ((LocalPlace, "write"), (LocalPlace, "delete"), (Path, "rename"), (layout, "consolidate")):
            real = getattr(owner, name)

            def change(*arguments, real=real):
                if not str(arguments[-2 if len(arguments) > 2 else -1]).startswith("_run/lease"):
                    count[0] += 1
                    if count[0] == last:
                        raise SystemExit("killed")
                return real(*arguments)

            monkeypatch.setattr(owner, name, change)
        return count

    @pytest.mark.slow
    def test_loses_nothing_and_mixes_nothing(self, call, archive, aoi, store, sound, tmp_path, monkeypatch):
        monkeypatch.setattr("pipeline.running.begin.TRUSTED_S", 0.0)
        assert call("--consistency", "none")[0] == 0
        plan = make_plan(replace(load_plan(store).config, consistency="box"), _area(aoi), workers=1)
        kept = tmp_path / "kept.zarr"
        shutil.copytree(store, kept)
        last, outcomes = 0, set()
        while True:
            last += 1
            shutil.rmtree(store)
            shutil.copytree(kept, store)
            with monkeypatch.context() as patch:
                count = self.steps(store, patch, last)
                try:
                    with lease(store) as held:
                        clear_store(held)
                        driver.prepare(plan, held.place)
                        held.place.delete("_run/beginning.json")
                except SystemExit:
                    pass
            if count[0] < last:
                break
            old = (store / "_run" / "plan.json").is_file() and load_plan(store).digest != plan.digest
            expected = "none" if old else "box"
            if (store / "zarr.json").exists() and layout.status(store) == layout.STATUS_COMPLETE:
                assert chunk_digests(store) == sound["none"], last
            found = (expected, standing(place_of(store)))
            if found in outcomes and last % 5:
                continue
            outcomes.add(found)
            code, _, err = call("--consistency", expected)
            assert code == 0, (last, err)
            assert chunk_digests(store) == sound[expected], last
            assert not (store / "_run" / "beginning.json").exists()
        assert last > 10
        assert {("none", Standing.BEGUN), ("box", Standing.BEGINNING), ("box", Standing.BEGUN)} <= outcomes


def _area(aoi):
    from pipeline.aoi.aoi import read_aoi

    return read_aoi(str(aoi))


class TestARun:
    def test_stops_at_its_next_write_when_the_store_is_begun_anew(self, call, store, monkeypatch):
        """Here by a run that deleted its lease, on another machine."""
        real, asked = pools.process, []

        def process(unit, where, digest, attempt=1):
            asked.append(unit)
            if len(asked) == 3:
                Current("e" * 64, "another").put(place_of(store))
            return real(unit, where, digest, attempt)

        monkeypatch.setattr(pools, "process", process)
        code, _, err = call()
        assert code == 75
        assert "recreated by another run" in err
        assert len(asked) == 3
        assert len(list((store / "_run" / "receipts").glob("*.json"))) == 2
        assert layout.status(store) == layout.STATUS_INCOMPLETE

    def test_stops_in_the_middle_of_a_unit(self, call, store, monkeypatch):
        from pipeline.store.layout import RegionWriter

        real, written = RegionWriter.write, []

        def write(self, *arguments):
            written.append(1)
            if len(written) == 6:
                Current("e" * 64, "another").put(place_of(store))
            return real(self, *arguments)

        monkeypatch.setattr(RegionWriter, "write", write)
        code, _, err = call()
        assert code == 75, err
        assert len(written) == 6
        kept = {path: path.stat().st_mtime_ns for path in store.rglob("reflectance/c/**/*")}
        assert max(kept.values(), default=0) < (store / "_run" / "current.json").stat().st_mtime_ns

    def test_whose_lease_is_gone_stops(self, call, store, monkeypatch):
        real, asked = pools.process, []

        def process(unit, where, digest, attempt=1):
            asked.append(unit)
            if len(asked) == 2:
                (store / "_run" / "lease.json").unlink()
            return real(unit, where, digest, attempt)

        monkeypatch.setattr(pools, "process", process)
        monkeypatch.setenv("SEN2FINE_LEASE_S", "0.3")
        code, _, err = call()
        assert code == 75
        assert "its lease was lost" in err
        assert layout.status(store) == layout.STATUS_INCOMPLETE

    @pytest.mark.slow
    @pytest.mark.parametrize("what", ["receipts", "chunks"])
    def test_publishes_what_is_in_the_store(self, call, store, sound, monkeypatch, what):
        real = pools.process

        def process(unit, where, digest, attempt=1):
            receipt = real(unit, where, digest, attempt)
            if unit.id.endswith("r1-c1-t0"):
                gone = "_run/receipts" if what == "receipts" else "reflectance/c"
                for path in sorted(path for path in (store / gone).rglob("*") if path.is_file())[:2]:
                    path.unlink()
            return receipt

        monkeypatch.setattr(pools, "process", process)
        code, _, err = call()
        assert code == 75
        assert "2 of" in err
        assert "units are missing or damaged" in err
        assert layout.status(store) == layout.STATUS_INCOMPLETE
        monkeypatch.undo()
        code, out, _ = call("--json")
        assert (code, json.loads(out)["computed"]) == (0, 2)
        assert chunk_digests(store) == sound["box"]

    @pytest.mark.slow
    def test_counts_what_it_computed_and_what_it_found(self, call):
        said = json.loads(call("--json")[1])
        again = json.loads(call("--json")[1])
        assert (said["computed"], said["resumed"]) == (said["units"], 0)
        assert (again["computed"], again["resumed"]) == (0, said["units"])
        for name in ("stored_bytes", "valid_fraction"):
            assert again[name] == said[name]

    @pytest.mark.slow
    def test_does_not_begin_what_it_could_not_run(self, call, store, sound, monkeypatch):
        """--overwrite with more workers than memory has: nothing is deleted."""
        assert call()[0] == 0
        monkeypatch.setattr("distributed.system.MEMORY_LIMIT", 2**28)
        assert call("--overwrite", "--workers", "8")[0] == 2
        assert chunk_digests(store) == sound["box"]


class TestARunElsewhere:
    @staticmethod
    def begin(store, lapse_s):
        from tests.store.test_lease import elsewhere

        return elsewhere(place_of(store), lapse_s=lapse_s)

    @pytest.mark.slow
    def test_that_was_killed_is_waited_for_and_continued(self, call, store, sound):
        assert call("--plan-only")[0] == 0
        self.begin(store, 2.0)
        code, _, err = call()
        assert code == 0, err
        assert chunk_digests(store) == sound["box"]
        assert [path.name for path in (store / "_run").glob("lease*")] == []

    @pytest.mark.parametrize("more", [(), ("--overwrite",)])
    def test_that_lives_ends_the_command_with_75(self, call, store, more):
        assert call("--plan-only")[0] == 0
        other = self.begin(store, 60.0)
        alive = threading.Timer(1.0, lambda: place_of(store).write(f"_run/lease.beat-{other.owner}", b"2"))
        alive.start()
        code, _, err = call(*more)
        alive.join()
        assert code == 75
        assert re.search(r"written by process 1 on elsewhere, last seen \d+ s ago", err)
        assert re.search(r"its lease lapses in \d+ s", err)
        assert "delete" not in err
        assert load_plan(store)


class TestOwnership:
    @pytest.mark.slow
    def test_a_finished_store_without_run_folder_is_not_replaced(self, call, store, sound):
        assert call()[0] == 0
        shutil.rmtree(store / "_run")
        code, _, err = call()
        assert code == 2
        assert "has lost its plan" in err
        assert chunk_digests(store) == sound["box"]
        assert call("--overwrite", "--consistency", "none")[0] == 0
        assert chunk_digests(store) == sound["none"]

    @pytest.mark.slow
    def test_a_store_with_a_foreign_root_can_be_overwritten(self, call, store, sound):
        """Its plan says whose it is."""
        assert call()[0] == 0
        (store / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group", "attributes": {}}')
        assert call("--overwrite", "--consistency", "none")[0] == 0
        assert chunk_digests(store) == sound["none"]

    @pytest.mark.slow
    def test_what_happens_to_be_called_like_a_temporary_name_stays(self, call, store):
        mine = store.with_name("run.zarr.deleting")
        mine.mkdir()
        (mine / "thesis.txt").write_text("thesis")
        assert call()[0] == 0
        (store / "_run" / "notes.partial").write_text("notes")
        assert call()[0] == 0
        assert (store / "_run" / "notes.partial").is_file()
        assert call("--overwrite")[0] == 0
        assert (mine / "thesis.txt").read_text() == "thesis"

    @pytest.mark.slow
    @pytest.mark.parametrize("content", [b"thesis", "png"])
    def test_a_users_file_named_like_the_picture_is_left_alone(self, call, store, content):
        picture = store.with_suffix(".png")
        if content == "png":
            from PIL import Image

            Image.new("RGB", (4, 4)).save(picture)
            content = picture.read_bytes()
        picture.write_bytes(content)
        for words in ((), (), ("--overwrite",)):
            code, out, err = call(*words, "--json")
            assert code == 0
            assert f"{picture} exists and is not a picture of a store" in err
            assert json.loads(out)["picture"] is None
            assert picture.read_bytes() == content

    @pytest.mark.slow
    def test_its_own_picture_is_drawn_anew(self, call, store):
        assert call()[0] == 0
        picture = store.with_suffix(".png")
        first = picture.read_bytes()
        assert call("--overwrite", "--consistency", "none")[0] == 0
        assert picture.read_bytes() != first


class TestOtherSoftware:
    @pytest.fixture
    def begun(self, call, store, monkeypatch):
        """A store with two units computed by this software; afterwards it is another."""
        real, asked = pools.process, []

        def process(unit, where, digest, attempt=1):
            asked.append(unit)
            if len(asked) == 3:
                raise Interrupted("stopped")
            return real(unit, where, digest, attempt)

        with monkeypatch.context() as patch:
            patch.setattr(pools, "process", process)
            patch.setattr("pipeline.running.unit_queue._FATAL", (Interrupted,))
            assert call()[0] == 75
        return software.this_software()

    @pytest.mark.slow
    @pytest.mark.parametrize("change", [{"version": "0.2.0"}, {"code": "f" * 64}, {"torch": "9.9"}, {"numpy": "9.9"}])
    def test_does_not_go_on_unless_it_is_asked_to_and_then_says_so(
        self, begun, call, store, monkeypatch, change, sound
    ):
        other = replace(begun, **change)
        monkeypatch.setattr(software, "this_software", lambda: other)
        before = chunk_digests(store)
        code, _, err = call()
        assert code == 2
        assert str(begun) in err
        assert str(other) in err
        assert "--mixed-software" in err
        assert chunk_digests(store) == before
        code, _, err = call("--mixed-software")
        assert code == 0, err
        assert f"was computed by {' and by '.join(sorted(map(str, (begun, other))))}" in err
        root = json.loads((store / "zarr.json").read_text())["attributes"]
        assert root["computed_with"] == sorted(map(str, (begun, other)))
        assert call()[0] == 0, "nothing is to compute"
        monkeypatch.undo()
        assert call("--json")[0] == 0

    @pytest.mark.slow
    def test_of_another_python_alone_is_the_same(self, begun, call, monkeypatch):
        other = replace(begun, python="3.99")
        monkeypatch.setattr(software, "this_software", lambda: other)
        assert call()[0] == 0

    @pytest.mark.slow
    def test_makes_no_overviews_of_what_other_code_computed(self, call, store, monkeypatch):
        assert call()[0] == 0
        mine = software.this_software()
        for path in (store / "_run" / "overviews").glob("*.json"):
            path.unlink()
        monkeypatch.setattr(software, "this_software", lambda: replace(mine, code="f" * 64))
        code, _, err = call()
        assert code == 2
        assert "--mixed-software" in err
        monkeypatch.setattr(software, "this_software", lambda: replace(mine, torch="9.9"))
        assert call()[0] == 0, "overviews are sums of integers"

    def test_of_a_version_that_kept_no_record_is_known_by_its_plan(self, begun, call, store, monkeypatch):
        shutil.rmtree(store / "_run" / "software")
        monkeypatch.setattr(software, "VERSION", "0.2.0")
        monkeypatch.setattr(software, "this_software", lambda: replace(begun, version="0.2.0"))
        code, _, err = call()
        assert code == 2
        assert "computed by sen2fine 0.1.0;" in err

    @pytest.mark.slow
    def test_may_compute_a_plan_of_which_nothing_is_computed(self, call, store, monkeypatch):
        assert call("--plan-only")[0] == 0
        mine = software.this_software()
        monkeypatch.setattr(software, "this_software", lambda: replace(mine, torch="9.9"))
        assert call()[0] == 0

    def test_counts_builds_of_one_release_as_the_same(self):
        assert "+" not in software.this_software().torch


class TestReaders:
    @pytest.mark.slow
    def test_an_export_of_a_store_that_is_begun_anew_writes_nothing(self, call, store, tmp_path, monkeypatch):
        from pipeline.products import cog
        from pipeline.store.selection import Request

        assert call()[0] == 0
        real = cog._stream

        def stream(*arguments):
            sums = real(*arguments)
            Current(load_plan(store).digest, "a second time").put(place_of(store))
            return sums

        monkeypatch.setattr(cog, "_stream", stream)
        with pytest.raises(Interrupted, match="recreated while it was being read"):
            cog.export_cogs(store, tmp_path / "out", Request(bands=("B02",)))
        assert not list((tmp_path / "out").glob("*.tif")) if (tmp_path / "out").exists() else True

    @pytest.mark.slow
    def test_a_page_likewise(self, call, store, tmp_path, monkeypatch, capsys):
        from pipeline.products.page import document

        assert call()[0] == 0
        real = document.make_page

        def make_page(*arguments):
            page = real(*arguments)
            Current(load_plan(store).digest, "a second time").put(place_of(store))
            return page

        monkeypatch.setattr(document, "make_page", make_page)
        page = tmp_path / "page.html"
        assert view.main([str(store), "--out", str(page)]) == 75
        assert not page.exists()

    @pytest.mark.slow
    def test_an_item_is_not_written_into_a_held_store(self, call, store, capsys):
        from pipeline.running.stac_publish import list_stores

        assert call()[0] == 0
        (store / "stac-item.json").write_text("{}")
        with lease(store):
            listed = list_stores([store], None)
        assert "being written by process" in listed.notes[0]
        assert (store / "stac-item.json").read_text() == "{}"
        assert list_stores([store], None).notes == ()


@pytest.mark.slow
def test_stores_of_versions_before_are_gone_on_with(call, store, sound):
    """They do not say which plan they are of but in the plan."""
    assert call("--plan-only")[0] == 0
    (store / "_run" / "current.json").unlink()
    assert main(["--plan", str(store), "--shard-of", "1/2", "--cluster", "inline"]) == 0
    assert read_current(place_of(store)).begun == ""
    assert main(["--plan", str(store), "--cluster", "inline"]) == 0
    assert read_current(place_of(store)).plan_digest == load_plan(store).digest
    assert chunk_digests(store) == sound["box"]


def test_two_processes_with_one_number_write_one_file(tmp_path, monkeypatch):
    """As in two containers: each writes its own temporary file."""
    from pipeline.store.files import write_atomic

    monkeypatch.setattr(os, "getpid", lambda: 1)
    path, wrong = tmp_path / "receipt.json", []

    def write(number):
        for _ in range(50):
            try:
                write_atomic(path, bytes([number]) * 1000)
            except Exception as error:
                wrong.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(set(path.read_bytes())) == 1
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.slow
def test_a_repair_touches_nothing_of_a_live_run(call, store, capsys):
    assert call()[0] == 0
    before = {path: path.stat().st_mtime_ns for path in store.rglob("*") if path.is_file()}
    with lease(store):
        assert check.main([str(store), "--repair"]) == 75
        after = {path: path.stat().st_mtime_ns for path in before if path.is_file()}
    assert after == before
