"""Places: one suite for folders and for an object store, and what lost answers, refusals and outages come to."""

import pickle
import sys
import uuid
from pathlib import Path

import numpy as np
import pytest
import zarr

import pipeline
from pipeline.errors import StorageError, StoreUnreachable, UsageError
from pipeline.grid.grid import Grid
from pipeline.store import layout
from pipeline.store.layout import RegionWriter, verify_chunks
from pipeline.store.place import place_of
from pipeline.store.receipts import Ledger, Receipt
from pipeline.store.template import Template, create, create_root
from tests.store.s3_server import KEY_ID, SECRET, Fault, s3_server

BANDS = ("B02", "B03", "B04")


@pytest.fixture(scope="module")
def server():
    with s3_server() as rig:
        yield rig


@pytest.fixture
def far(server):
    """A new place in the object store."""
    yield place_of(f"s3://bucket/{uuid.uuid4().hex}/run.zarr")
    server.heal()


@pytest.fixture(params=["folder", "object store"])
def place(request, tmp_path):
    if request.param == "folder":
        return place_of(tmp_path / "run.zarr")
    return request.getfixturevalue("far")


def test_files_are_read_as_written_and_absent_ones_are_none(place):
    assert not place.exists()
    assert (place.read("a/b"), place.size("a/b"), place.age_s("a/b")) == (None, None, None)
    place.write("a/b", b"one")
    place.write("a/b", b"three")
    assert (place.read("a/b"), place.size("a/b")) == (b"three", 5)
    assert -2 < place.age_s("a/b") < 60
    assert place.exists()
    assert list(place.walk()) == ["a/b"]
    place.delete("a/b")
    place.delete("a/b")
    assert place.read("a/b") is None
    assert place.names("_run") == []  # asking for the time leaves nothing


def test_names_are_those_of_one_folder_in_order(place):
    for key in ("q/b.json", "q/a.json", "q/deep/c.json", "other/d.json", "qq.json"):
        place.write(key, b"x")
    assert place.names("q") == ["q/a.json", "q/b.json"]
    assert place.names("nothing") == []


def test_of_two_who_create_one_succeeds(place):
    assert place.create("_run/lease.json", b"mine")
    assert not place.create("_run/lease.json", b"yours")
    assert place.read("_run/lease.json") == b"mine"
    assert place.names("_run") == ["_run/lease.json"]


def test_places_travel_and_show_their_name(place):
    again = pickle.loads(pickle.dumps(place))
    place.write("x", b"1")
    assert again.read("x") == b"1"
    assert (again, str(again)) == (place, str(place))
    assert place_of(str(place)) == place_of(place) == place
    assert place.shown("x") == f"{place}/x"
    assert place.picture.name == "run.png"
    assert not [word for word in (KEY_ID, SECRET) if word.encode() in pickle.dumps(place)]


def test_removal_leaves_nothing(place):
    for key in ("zarr.json", "_run/plan.json", "reflectance/c/0/0/0"):
        place.write(key, b'{"attributes": {"status": "complete"}}')
    place.write("overviews/a", b"x")
    place.write("_run/overviews/a", b"x")
    place.write("_run/lease.json", b"x")
    place.clear(("_run/lease",))
    assert list(place.walk()) == ["_run/lease.json"]
    place.delete("_run/lease.json")
    place.tidy(whole=True)
    assert not place.exists()


def template():
    grid = Grid.covering(32632, (600000.0, 5099400.0, 600600.0, 5099880.0))
    return Template(grid, BANDS, ("2024-06-17T10:20:31Z",), 96, BANDS, attributes={"plan_digest": "d", "groups": [""]})


@pytest.mark.parametrize("group", ["", "utm32n"])
def test_a_store_is_written_checked_published_and_opened(place, group):
    if group:
        create_root(place, {"groups": [group], "plan_digest": "d"})
    create(place, group, template())
    pixels = np.arange(3 * 96 * 96, dtype=np.uint16).reshape(3, 96, 96) + 1000
    facts = RegionWriter(place, group, 0).write(slice(0, 96), slice(96, 192), {"reflectance": pixels})
    assert list(facts) == ["reflectance/c/0/0/0/1"]
    nothing = np.zeros((3, 96, 96), np.uint16)
    assert RegionWriter(place, group, 0).write(slice(0, 96), slice(0, 96), {"reflectance": nothing}) == {}
    assert verify_chunks(place, facts, full=True, group=group) == []

    ledger = Ledger(place, "d")
    ledger.record(Receipt("u1", "d", "done", group, facts, {"B02": 5}, 10, None, ("s",)))
    layout.finish(place, [group], {"units": 1})
    assert layout.status(place) == layout.STATUS_COMPLETE
    opened = pipeline.open_store(str(place))
    dataset = opened[group].to_dataset() if group else opened
    assert dataset.reflectance.values[0, :, :96, 96:192] == pytest.approx((pixels - 1000.0) * 1e-4, abs=1e-6)
    assert np.isnan(dataset.reflectance.values[0, :, :96, :96]).all()

    key = f"{group}/{next(iter(facts))}".lstrip("/")
    content = place.read(key)
    place.write(key, bytes(len(content)))
    assert ledger.faults("u1", "size") == []
    assert "different checksum" in ledger.faults("u1", "full")[0]
    place.write(key, content[:-1])
    assert "bytes, expected" in ledger.faults("u1", "size")[0]
    place.delete(key)
    found = dict(zip(("u1", "u2"), ledger.survey(["u1", "u2"], "size"), strict=True))
    assert "missing" in found["u1"][1][0]
    assert found["u2"] == (None, ["no valid receipt"])


def test_what_is_no_store_is_said_so(place):
    with pytest.raises(UsageError, match="not a Zarr store"):
        pipeline.open_store(place)
    with pytest.raises(UsageError, match="holds no plan"):
        pipeline.load_plan(str(place))


class TestNames:
    @pytest.mark.parametrize(
        ("text", "shown"),
        [
            ("run.zarr", "run.zarr"), ("C:/x/run.zarr", "C:/x/run.zarr"), ("file:///x/a%20b.zarr", "/x/a b.zarr"),
            ("s3://b/x/run.zarr/", "s3://b/x/run.zarr"), (Path("s3://b/run.zarr"), "s3://b/run.zarr"),
            ("gs://b/run.zarr", "gs://b/run.zarr"), ("abfs://c@account.dfs.core.windows.net/r", "abfs://c@account.dfs.core.windows.net/r"),
        ],
    )  # fmt: skip
    def test_are_folders_or_addresses(self, text, shown):
        assert str(place_of(text)) == shown

    @pytest.mark.parametrize(
        "text",
        ["s3://bucket", "s3://bucket/", "s3:///run.zarr", "ftp://host/run.zarr", f"s3://{KEY_ID}:{SECRET}@b/run.zarr",
         f"az://c/run.zarr?sig={SECRET}", f"s3://{SECRET}@b/run.zarr"],
    )  # fmt: skip
    def test_that_are_none_are_refused_without_repeating_a_secret(self, text):
        with pytest.raises(UsageError) as caught:
            place_of(text)
        assert SECRET not in str(caught.value)

    def test_need_a_package_for_addresses_only(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "obstore", None)
        assert str(place_of("run.zarr")) == "run.zarr"
        with pytest.raises(UsageError, match=r"sen2fine\[s3\]"):
            place_of("s3://b/run.zarr")

    def test_of_other_kinds_of_stores_reach_their_library(self):
        with pytest.raises(StorageError, match="az://c/run.zarr"):
            place_of("az://c/run.zarr").exists()  # no account named


class TestFaults:
    """Of the object store; a folder has none of them."""

    @pytest.mark.parametrize(
        ("kind", "times"), [(503, 1), (503, 3), (500, 2), (429, 2), ("lost", 1), ("lost", 2), ("slow", 1)]
    )
    def test_that_pass_are_sat_out(self, server, far, kind, times):
        server.faults[:] = [Fault("PUT", "a$", kind, times), Fault("GET", "a$", kind, times)]
        far.write("a", b"content")
        assert far.read("a") == b"content"
        assert [fault.times for fault in server.faults] == [0, 0]
        assert len(server.objects(far.url.removeprefix("s3://bucket/"))) == 1

    @pytest.mark.parametrize("kind", [503, 500, "lost"])
    def test_an_answer_lost_after_creating_is_no_conflict(self, server, far, kind):
        server.faults[:] = [Fault("PUT", "lease", kind)]
        assert far.create("lease", b"mine")
        assert server.faults[0].times == 0
        assert not far.create("lease", b"another's")
        assert far.read("lease") == b"mine"

    def test_a_lost_answer_to_a_lost_creation_is_a_conflict(self, server, far):
        far.write("lease", b"another's")
        server.faults[:] = [Fault("PUT", "lease", "lost")]
        assert not far.create("lease", b"mine")
        assert far.read("lease") == b"another's"

    def test_a_creation_lost_to_one_gone_since_may_be_retried(self, server, far):
        server.faults[:] = [Fault("PUT", "lease", 412)]
        assert not far.create("lease", b"mine")
        assert far.create("lease", b"mine")

    def test_a_server_without_conditional_puts_lets_the_last_win(self, server, far, monkeypatch):
        monkeypatch.setenv("SEN2FINE_STORE_PATIENCE_S", "0.2")
        server.faults[:] = [Fault("PUT", "lease", 501, times=99)]
        with pytest.raises(StoreUnreachable):
            far.create("lease", b"mine")
        server.faults[:] = [Fault("PUT", "lease", 501, times=1)]
        assert far.create("lease", b"mine")

    @pytest.mark.parametrize(
        "call",
        [
            lambda p: p.write("a", b"x"), lambda p: p.read("a"), lambda p: p.create("a", b"x"), lambda p: p.size("a"),
            lambda p: p.exists(), lambda p: p.names("a"), lambda p: p.delete("a"), layout.status,
            lambda p: create(p, "", template()), pipeline.open_store, pipeline.load_plan,
            lambda p: Ledger(p, "d").faults("u"),
        ],
    )  # fmt: skip
    def test_that_last_are_an_outage_named_by_host(self, server, far, call, monkeypatch):
        monkeypatch.setenv("SEN2FINE_STORE_PATIENCE_S", "0.2")
        server.dead = True
        with pytest.raises(StoreUnreachable, match=server.host) as caught:
            call(far)
        assert caught.value.exit_code == 75
        assert len(str(caught.value).splitlines()) == 1
        assert not [word for word in (KEY_ID, SECRET) if word in str(caught.value)]

    def test_a_refusal_repeats_nothing_of_the_answer(self, server, far):
        server.faults[:] = [Fault("PUT", "a", 403, times=99), Fault("GET", "a", 403, times=99)]
        for call in (lambda: far.write("a", b"x"), lambda: far.read("a"), lambda: far.create("a", b"x")):
            with pytest.raises(StorageError, match="denies access") as caught:
                call()
            assert caught.value.exit_code == 6
            assert "SignatureDoesNotMatch" in str(caught.value)
            assert not [word for word in (KEY_ID, SECRET) if word in str(caught.value)]

    def test_a_full_store_is_full(self, server, far, monkeypatch):
        monkeypatch.setenv("SEN2FINE_STORE_PATIENCE_S", "0.2")
        server.faults[:] = [Fault("PUT", "a", 507, times=99)]
        with pytest.raises(StorageError, match="no space left"):
            far.write("a", b"x")

    @pytest.mark.parametrize(
        "call", [lambda p: p.write("a", b"x"), lambda p: p.read("a"), lambda p: p.exists(),
                 lambda p: p.create("a", b"x"), lambda p: create(p, "", template())],
    )  # fmt: skip
    def test_a_missing_bucket_is_named(self, server, call):
        with pytest.raises(StorageError, match=r"s3://nowhere/run\.zarr: there is no such bucket") as caught:
            call(place_of("s3://nowhere/run.zarr"))
        assert caught.value.exit_code == 6

    def test_missing_credentials_are_said_at_once(self, server, far, monkeypatch):
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        monkeypatch.setenv("SEN2FINE_STORE_PATIENCE_S", "0.2")
        monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:9")
        with pytest.raises(StorageError, match="AWS_SECRET_ACCESS_KEY") as caught:
            far.read("a")
        assert caught.value.exit_code == 6

    @pytest.mark.parametrize("text", ["soon", "0", "-3", "nan"])
    def test_a_patience_that_is_none_is_refused(self, far, monkeypatch, text):
        monkeypatch.setenv("SEN2FINE_STORE_PATIENCE_S", text)
        with pytest.raises(UsageError, match="SEN2FINE_STORE_PATIENCE_S"):
            far.read("a")


def test_zarr_sees_plain_arrays(far):
    create(far, "", template())
    assert zarr.open_group(far.zarr_store(), mode="r")["reflectance"].shape == (1, 3, 192, 240)
