"""Leases: one holder at a time, taken over when it has lapsed and never before, in a folder and in an object store."""

import json
import os
import socket
import threading
import time
import uuid
from contextlib import suppress
from dataclasses import replace

import pytest

from pipeline.errors import LeaseLost, StoreHeld, StoreUnreachable, UsageError
from pipeline.store import holder as holders
from pipeline.store import lease as leases
from pipeline.store.current import Current, Fence, unchanged
from pipeline.store.holder import this_process
from pipeline.store.lease import lease
from pipeline.store.ownership import Standing, standing
from pipeline.store.place import LocalPlace, place_of
from tests.store.s3_server import s3_server

KEY = "_run/lease.json"


@pytest.fixture(scope="module")
def server():
    with s3_server() as rig:
        yield rig


@pytest.fixture(params=["folder", "object store"])
def place(request, tmp_path):
    if request.param == "folder":
        return place_of(tmp_path / "run.zarr")
    request.getfixturevalue("server").heal()
    return place_of(f"s3://bucket/{uuid.uuid4().hex}/run.zarr")


@pytest.fixture
def dated_s(place):
    """How much too old a file may look: object stores date to the second."""
    return 0.0 if isinstance(place, LocalPlace) else 1.0


@pytest.fixture
def short(dated_s, monkeypatch):
    """Leases that lapse half a second after what may look older than it is; returns the seconds."""
    lapse_s = dated_s + 0.5
    monkeypatch.setenv(leases.LAPSE_ENV, str(lapse_s))
    return lapse_s


def elsewhere(place, *, lapse_s=75.0, key=KEY):
    """A lease of a process on another machine, as it would have written it."""
    other = replace(this_process(lapse_s), host="elsewhere", machine="elsewhere", pid=1)
    place.write(leases._beat(other), b"1")
    place.write(key, other.content())
    return other


def test_it_is_there_while_it_is_held_and_leaves_nothing(place):
    with lease(place) as held:
        assert json.loads(place.read(KEY))["pid"] == os.getpid()
        held.require()
    assert not place.exists()


def test_a_folder_that_was_there_stays(tmp_path):
    (tmp_path / "run.zarr").mkdir()
    with lease(tmp_path / "run.zarr"):
        pass
    assert list(tmp_path.iterdir()) == [tmp_path / "run.zarr"]


def test_a_live_process_of_this_machine_is_not_waited_for(place):
    with lease(place):
        for shard in ("", "1-of-2"):
            began = time.monotonic()
            who = f"process {os.getpid()} on {socket.gethostname()}"
            with pytest.raises(StoreHeld, match=who) as caught, lease(place, shard):
                pass
            assert time.monotonic() - began < 5
            assert caught.value.exit_code == 75
            assert "lapses in" in caught.value.cure
            assert "delete" not in str(caught.value)
    assert not place.exists()


def test_parts_live_side_by_side_and_a_whole_run_beside_none(place):
    with lease(place, "1-of-2"), lease(place, "2-of-2"):
        for shard in ("1-of-2", ""):
            with pytest.raises(StoreHeld), lease(place, shard):
                pass
    with lease(place):
        pass


def test_a_run_elsewhere_that_shows_life_is_left_alone(place, short):
    """It is waited for, and the next sign of life ends the waiting."""
    other, said = elsewhere(place, lapse_s=8.0), []  # looked at every 0.8 s
    beat = threading.Timer(0.4, lambda: place.write(leases._beat(other), b"2"))
    beat.start()
    with pytest.raises(StoreHeld, match="process 1 on elsewhere"), lease(place, say=said.append):
        pass
    beat.join()
    assert place.read(KEY) == other.content()
    assert "waiting" in said[0]
    assert "for its lease to lapse" in said[0]


@pytest.mark.parametrize("shard", ["", "1-of-2"])
def test_a_lapsed_lease_of_another_machine_is_taken_over(place, short, monkeypatch, shard):
    if not isinstance(place, LocalPlace):  # this machine's clock does not count there
        monkeypatch.setattr(time, "time", lambda: 4e9)
    elsewhere(place, lapse_s=short)
    began = time.monotonic()
    with lease(place, shard) as held:
        assert 0.4 < time.monotonic() - began < 10
        held.require()
        assert [key for key in place.names("_run") if "elsewhere" in (place.read(key) or b"").decode()] == []
    assert place.names("_run") == []


def test_a_dead_process_of_this_machine_is_not_waited_for(place):
    gone = replace(this_process(75.0), pid=2**22 + 1)
    place.write(KEY, gone.content())
    with lease(place):
        pass
    reused = replace(this_process(75.0), started="1")  # the number is another process's by now
    if reused.started != this_process(75.0).started:
        place.write(KEY, reused.content())
        with lease(place):
            pass


def test_equal_names_in_two_containers_are_two_runs(place, monkeypatch):
    """The same host name and number, but another namespace of processes: only its age tells whether it lives."""
    monkeypatch.setattr(holders, "_machine", lambda: "boot/another namespace")
    other = replace(this_process(75.0), pid=2**22 + 1)
    monkeypatch.undo()
    place.write(KEY, other.content())
    assert not other.has_ended
    waited = []
    monkeypatch.setattr(leases, "clock_s", lambda: waited.append(1) or float(100 * len(waited)))
    with pytest.raises(StoreHeld), lease(place):
        pass


def test_leases_of_versions_before_and_torn_ones_lapse_too(place, dated_s, monkeypatch):
    for content in (b'{"host": "elsewhere", "pid": 1, "owner": "o"}', b""):
        place.write(KEY, content)
        monkeypatch.setattr(leases, "_OLD_LAPSE_S", max(0.3, dated_s))
        with lease(place) as held:
            held.require()
        assert place.names("_run") == []


def test_a_silent_lease_lapses_despite_coarse_file_times(place, dated_s, monkeypatch):
    """Ages are differences of two such dates: a tick too much before the wait, a tick too little after it."""
    place.write(KEY, replace(this_process(max(0.3, dated_s)), host="elsewhere", machine="elsewhere").content())
    exact, asked = leases._age_s, []

    def by_the_tick(*given):
        asked.append(1)
        age_s = exact(*given)
        return age_s if age_s is None else age_s + (0.01 if len(asked) == 1 else -0.01)

    monkeypatch.setattr(leases, "_age_s", by_the_tick)
    with lease(place) as held:
        held.require()


def test_an_own_lease_not_given_back_is_not_waited_for(tmp_path):
    """As after an outage of the object store that holds it, in a notebook that runs the same command again."""
    place = place_of(tmp_path / "a.zarr")
    with suppress(StoreUnreachable), lease(place):
        raise StoreUnreachable("the store is away")
    assert place.read(KEY) is not None
    with lease(place) as held:
        held.require()


def test_it_is_renewed_and_a_late_renewal_cannot_undo_a_takeover(place, short, dated_s, monkeypatch):
    monkeypatch.setattr(leases.Lease, "keep", lambda self, done: None)  # as if the process were stopped
    with lease(place) as held:
        time.sleep(short + dated_s + 0.1)
        monkeypatch.undo()
        monkeypatch.setenv(leases.LAPSE_ENV, str(short))
        with lease(place) as heir:  # this process lives, but its lease has lapsed
            for ask in (held.require, held.renew, lambda: held.place.write("x", b"")):
                with pytest.raises(LeaseLost, match="lease was lost"):
                    ask()
            heir.require()
            assert json.loads(place.read(KEY))["owner"] == heir.owner
    assert place.names("_run") == []
    assert place.read("x") is None


def test_a_holder_that_was_late_goes_on_when_nobody_came(place, short, monkeypatch):
    monkeypatch.setattr(leases.Lease, "keep", lambda self, done: None)
    with lease(place) as held:
        time.sleep(short)  # trusted for less
        held.place.write("x", b"mine")
        held.require()
    assert place.read("x") == b"mine"


def test_a_deleted_lease_is_lost_at_the_next_renewal(place):
    with lease(place) as held:
        place.delete(KEY)
        with pytest.raises(LeaseLost, match="somebody deleted it"):
            held.renew()
        assert held.lost
        place.write(KEY, b"another's")
    assert place.read(KEY) == b"another's"


def test_of_many_who_take_a_lapsed_lease_over_one_gets_it(place, short):
    """Threads stand for processes; all of them see the same lapsed lease."""
    elsewhere(place, lapse_s=short)
    inside, most, won, lock, done = [0], [0], [], threading.Lock(), threading.Event()

    def contend(number):
        try:
            with lease(place) as held:
                with lock:
                    inside[0] += 1
                    most[0] = max(most[0], inside[0])
                    won.append(number)
                done.wait(short / 2)
                held.require()
                with lock:
                    inside[0] -= 1
        except StoreHeld:
            pass

    threads = [threading.Thread(target=contend, args=(number,)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]
    assert won
    assert place.names("_run") == []


@pytest.mark.parametrize("text", ["soon", "0", "-3", "nan"])
def test_a_time_that_is_none_is_refused(tmp_path, monkeypatch, text):
    monkeypatch.setenv(leases.LAPSE_ENV, text)
    with pytest.raises(UsageError, match=leases.LAPSE_ENV), lease(tmp_path / "run.zarr"):
        pass


class TestFence:
    def test_lets_write_until_another_run_has_the_store(self, place, monkeypatch):
        monkeypatch.setattr("pipeline.store.current.TRUSTED_S", 0.0)
        Current("d" * 64, "first").put(place)
        fence = Fence(place, "d" * 64)
        guarded = place.guarded(fence.require)
        guarded.write("a", b"1")
        Current("d" * 64, "first", "a run that took over").put(place)
        for write in (
            lambda: guarded.write("a", b"2"),
            lambda: guarded.create("b", b"2"),
            lambda: guarded.delete("a"),
            lambda: guarded.writing().__enter__(),
        ):
            with pytest.raises(LeaseLost):
                write()
        assert (place.read("a"), place.read("b")) == (b"1", None)

    @pytest.mark.parametrize("how", ["write", "create", "writing"])
    def test_explains_failed_writes_to_a_store_begun_anew(self, tmp_path, monkeypatch, how):
        """Not the disk refuses: the folder that the file was to lie in is gone."""
        place = place_of(tmp_path / "run.zarr")
        Current("d" * 64, "first").put(place)
        guarded = place.guarded(Fence(place, "d" * 64).require)

        def begun_anew(*_given):
            monkeypatch.undo()
            Current("d" * 64, "second").put(place)
            raise FileNotFoundError(2, "No such file or directory")

        for module in ("place", "files"):
            monkeypatch.setattr(f"pipeline.store.{module}.put_file", begun_anew)

        def write():
            if how != "writing":
                getattr(guarded, how)("_run/receipts/a.json", b"1")
            with guarded.writing():
                begun_anew()

        with pytest.raises(LeaseLost, match="recreated"):
            write()

    def test_is_asked_before_every_chunk(self, place, monkeypatch):
        import zarr

        monkeypatch.setattr("pipeline.store.current.TRUSTED_S", 0.0)
        Current("d" * 64, "first").put(place)
        guarded = place.guarded(Fence(place, "d" * 64).require)
        group = zarr.create_group(guarded.zarr_store(), zarr_format=3)
        array = group.create_array("a", shape=(4,), chunks=(2,), dtype="uint16", fill_value=0)
        array[:2] = 7
        place.delete("_run/current.json")
        with pytest.raises(LeaseLost):
            array[2:] = 7
        with pytest.raises(LeaseLost):
            array[:2] = 0  # an empty chunk is deleted
        assert list(zarr.open_array(place.zarr_store(), path="a", mode="r")[:]) == [7, 7, 0, 0]

    def test_wants_the_store_of_the_plan(self, place):
        with pytest.raises(UsageError, match="does not exist"):
            Fence(place, "d" * 64)
        Current("e" * 64, "first").put(place)
        with pytest.raises(LeaseLost):
            Fence(place, "d" * 64)

    def test_reading_a_store_that_is_begun_anew_is_said(self, place):
        from pipeline.errors import Interrupted

        Current("d" * 64, "first").put(place)
        with unchanged(place):
            Current("d" * 64, "first", "a run that goes on").put(place)
        with pytest.raises(Interrupted, match="recreated"), unchanged(place):
            Current("d" * 64, "second").put(place)


class TestStanding:
    @pytest.mark.parametrize(
        ("files", "expected"),
        [
            ({}, Standing.EMPTY),
            ({"_run/lease.json": b"{}", "_run/lease.beat-1": b""}, Standing.EMPTY),
            ({"thesis.txt": b""}, Standing.FOREIGN),
            ({"zarr.json": b'{"attributes": {}}'}, Standing.FOREIGN),
            ({"zarr.json": b'{"attributes": {"plan_digest": "d"}}'}, Standing.ORPHANED),
            ({"zarr.json": b"{", "_run/receipts/u.json": b"{}"}, Standing.ORPHANED),
            ({"zarr.json": b"{", "_run/plan.json": b"{}"}, Standing.BEGUN),
            ({"zarr.json": b"{", "_run/beginning.json": b"{}"}, Standing.BEGINNING),
        ],
    )
    def test_is_known_by_what_is_there(self, place, files, expected):
        for key, content in files.items():
            place.write(key, content)
        assert standing(place) is expected

    def test_what_a_kill_left_of_the_first_file_is_nothing(self, tmp_path):
        store = tmp_path / "a.zarr"
        (store / "_run").mkdir(parents=True)
        (store / "_run" / f"beginning.json.{'0' * 32}.partial").write_text("{")
        assert standing(place_of(store)) is Standing.EMPTY
        (store / f"zarr.json.{'0' * 32}.partial").write_text("{")
        assert standing(place_of(store)) is Standing.FOREIGN, "a run puts nothing there before its own folder tells"

    def test_of_folders_and_files_that_are_not_ours(self, tmp_path):
        (tmp_path / "file").write_text("thesis")
        (tmp_path / "folders" / "deep").mkdir(parents=True)
        (tmp_path / "link").symlink_to(tmp_path / "nowhere")
        assert standing(place_of(tmp_path / "file")) is Standing.FOREIGN
        assert standing(place_of(tmp_path / "folders")) is Standing.FOREIGN
