"""Weights of the hub, against a loopback server: what is fetched, when nothing is, and what is said when it fails."""

import hashlib
import json
import logging
import os
import shutil
import socket
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from pipeline.errors import IntegrityError, PipelineError, StorageError, Unreachable, UpstreamError, UsageError
from pipeline.models.bundle import save_bundle
from pipeline.models.difffusr import Networks, difffusr_bundle
from pipeline.superres import hub
from pipeline.superres.system import _loaded
from pipeline.superres.weights import File, choose
from tests.models.test_difffusr import SMALL, ruled, shapes_of
from tests.superres.hub_server import COMMIT, LATER, SIGNATURE, connected, hub_server, point_at

constants = pytest.importorskip("huggingface_hub.constants")

REPO, FILE = "some-people/nice.weights", "naip/sr.safetensors"
ADDRESS = f"hf://{REPO}/{FILE}"
PINNED = f"hf://{REPO}@{COMMIT}/{FILE}"
CONTENT = bytes(range(256)) * 40


@pytest.fixture
def server(tmp_path, monkeypatch):
    """The hub with one file, empty cache, no waiting between retries."""
    with hub_server(REPO, {FILE: CONTENT}) as running, connected(running.url, tmp_path, monkeypatch):
        yield running


def refused(kind, code, call, *texts):
    """The one line that a failure is, which quotes no signature."""
    with pytest.raises(PipelineError) as caught:
        call()
    assert type(caught.value) is kind
    assert caught.value.exit_code == code
    said = str(caught.value)
    assert len(said.splitlines()) == 1
    assert SIGNATURE not in said
    assert caught.value.cure
    for text in texts:
        assert text in said
    return said


# --- addresses -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("hf://a/b/c.safetensors", ("a/b", "c.safetensors", "main", "")),
        ("hf://a/b.v2@v1.0/d/e/c-1.safetensors", ("a/b.v2", "d/e/c-1.safetensors", "v1.0", "")),
        ("hf://a/b@refs%2Fpr%2F1/c.safetensors", ("a/b", "c.safetensors", "refs/pr/1", "")),
        ("hf://a/b/c.safetensors@" + "AB" * 32, ("a/b", "c.safetensors", "main", "ab" * 32)),
        (f"hf://a/b@{COMMIT}/c.safetensors@" + "0" * 64, ("a/b", "c.safetensors", COMMIT, "0" * 64)),
    ],
)
def test_addresses_have_these_parts(address, expected):
    file = hub.parse(address)
    assert (file.repo, file.path, file.revision, file.sha256) == expected
    again = hub.parse(str(file))
    assert (again.repo, again.path, again.revision) == expected[:3]


@pytest.mark.parametrize(
    "address",
    [
        "hf://a/c.safetensors",
        "hf://a/b/",
        "hf://a/b/c.safetensors@abc",
        "hf://a/b/c.safetensors@" + "g" * 64,
        "hf://a/b@/c.safetensors",
        "hf://a/b@v1@v2/c.safetensors",
        "hf://a/b/../c.safetensors",
        "hf://a/b//c.safetensors",
        "hf://../b/c.safetensors",
        "hf://a/b/c.safetensors?download=true",
        "hf://datasets/a/b/c.safetensors",
        "hf://",
    ],
)
def test_other_addresses_are_refused_with_the_grammar(address):
    with pytest.raises(UsageError, match="hf://OWNER/REPO") as caught:
        hub.parse(address)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["last.ckpt", "model.pt", "weights.bin@" + "0" * 64])
def test_other_formats_are_sent_to_the_converter(name):
    with pytest.raises(UsageError, match="training.convert"):
        hub.parse(f"hf://a/b/{name}")


@pytest.mark.parametrize(
    "path", ["weights.safetensors", "/abs/w.safetensors", "shipped:lite-sr.safetensors", "hf:/a/b"]
)
def test_paths_are_no_addresses(path):
    assert not hub.is_address(path)


# --- fetching --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("revision", ["", "@v1", "@refs%2Fpr%2F1", f"@{COMMIT}"])
def test_an_address_is_pinned_and_fetched_into_the_cache(server, tmp_path, revision):
    pinned, path = hub.settle(f"hf://{REPO}{revision}/{FILE}")
    assert pinned == PINNED
    assert path.read_bytes() == CONTENT
    assert path.is_relative_to(tmp_path / "cache")
    assert [request[:2] for request in server.requests] == [("hub", "HEAD"), ("storage", "GET")]


def test_what_is_in_the_cache_is_not_fetched_twice(server):
    hub.settle(ADDRESS)
    server.requests.clear()
    assert hub.settle(ADDRESS)[0] == PINNED
    assert [request[:2] for request in server.requests] == [("hub", "HEAD")]  # a branch may have moved
    server.requests.clear()
    assert hub.settle(PINNED)[0] == PINNED
    assert hub.located(PINNED).read_bytes() == CONTENT
    assert server.requests == []


def test_a_moved_branch_is_followed_and_a_pin_kept(server):
    hub.settle(ADDRESS)
    server.commits[LATER], server.revisions["main"] = {FILE: CONTENT[::-1]}, LATER
    pinned, path = hub.settle(ADDRESS)
    assert pinned == PINNED.replace(COMMIT, LATER)
    assert path.read_bytes() == CONTENT[::-1]
    assert hub.located(PINNED).read_bytes() == CONTENT


def test_a_worker_without_the_file_fetches_the_same_commit(server, tmp_path, monkeypatch):
    pinned, _ = hub.settle(ADDRESS)
    server.commits[LATER], server.revisions["main"] = {FILE: CONTENT[::-1]}, LATER
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "elsewhere"))
    path = hub.located(pinned)
    assert path.read_bytes() == CONTENT
    assert path.is_relative_to(tmp_path / "elsewhere")


def test_without_a_network_the_cache_is_enough(server, monkeypatch):
    hub.settle(ADDRESS)
    server.fault = "down"
    assert hub.settle(ADDRESS)[0] == PINNED
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert hub.settle(ADDRESS)[0] == PINNED
    assert hub.located(PINNED).read_bytes() == CONTENT


def test_a_small_file_that_the_hub_keeps_itself_is_fetched(server):
    server.large = False
    assert hub.settle(ADDRESS)[1].read_bytes() == CONTENT


def test_a_broken_download_goes_on_where_it_stopped(server, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1024)
    server.fault = "truncated once"
    try:
        path = hub.settle(ADDRESS)[1]
    except Unreachable:  # huggingface_hub 1.x leaves the second try to the next run
        path = hub.settle(ADDRESS)[1]
    assert path.read_bytes() == CONTENT
    assert [request[3] for request in server.asked("storage")] == ["", f"bytes={len(CONTENT) // 2}-"]


def test_the_librarys_own_log_is_as_before(server):
    logger = logging.getLogger("huggingface_hub")
    before = logger.level
    hub.settle(ADDRESS)
    assert logger.level == before


# --- digests ---------------------------------------------------------------------------------------------------------


def test_a_wrong_digest_is_a_usage_error(server):
    digest = hashlib.sha256(CONTENT).hexdigest()
    assert hub.settle(f"{ADDRESS}@{digest}")[0] == PINNED
    refused(UsageError, 2, lambda: hub.settle(f"{ADDRESS}@{'0' * 64}"), digest, "0" * 64, "@REVISION")
    server.large = False  # not stored under its digest
    shutil.rmtree(constants.HF_HUB_CACHE)
    refused(UsageError, 2, lambda: hub.settle(f"{ADDRESS}@{'0' * 64}"), digest)
    assert hub.settle(f"{ADDRESS}@{digest}")[0] == PINNED


def test_damaged_downloads_are_said_and_the_cure_works(server):
    server.fault = "damaged"
    said = refused(IntegrityError, 7, lambda: hub.settle(ADDRESS), hashlib.sha256(CONTENT).hexdigest(), "delete")
    Path(said.split("delete ")[1].split(" and run")[0]).unlink()
    server.fault = ""
    assert hub.settle(ADDRESS)[1].read_bytes() == CONTENT


def test_a_cache_shared_between_repositories_works(server, tmp_path):
    _, path = hub.settle(ADDRESS)
    blob = path.resolve()
    shared = tmp_path / ("f" * 64)  # stored under another kind of name
    blob.rename(shared)
    blob.symlink_to(shared)
    assert hub.settle(ADDRESS) == (PINNED, path)


# --- failures --------------------------------------------------------------------------------------------------------


@pytest.fixture
def librarys_words():
    """What huggingface_hub would print itself."""
    words = []
    handler = logging.Handler()
    handler.emit = words.append
    logger = logging.getLogger("huggingface_hub")
    logger.addHandler(handler)
    yield words
    logger.removeHandler(handler)


FAILURES = {
    "down": (Unreachable, 75, "status 503"),
    "busy": (Unreachable, 75, "status 429"),
    "unauthorised": (UpstreamError, 5, "HF_TOKEN"),
    "forbidden": (UpstreamError, 5, "HF_TOKEN"),
    "gated": (UpstreamError, 5, "accept its terms"),
    "hidden": (UsageError, 2, "shows no repository"),
    "teapot": (UpstreamError, 5, "status 418"),
    "no commit": (UpstreamError, 5, "HF_ENDPOINT"),
    "storage busy": (Unreachable, 75, "status 503"),
    "truncated": (Unreachable, 75, "was not downloaded completely"),
    "short": (Unreachable, 75, "was not downloaded completely"),
}


@pytest.mark.parametrize("fault", FAILURES)
def test_every_fault_is_one_line(server, librarys_words, fault):
    kind, code, text = FAILURES[fault]
    server.fault = fault
    refused(kind, code, lambda: hub.settle(ADDRESS), text, REPO)
    assert librarys_words == []
    assert not list(Path(constants.HF_HUB_CACHE).rglob("sr.safetensors"))


@pytest.mark.parametrize(
    ("address", "text"),
    [
        (f"hf://other/nice.weights/{FILE}", "no repository other/nice.weights"),
        (f"hf://{REPO}@v9/{FILE}", "no revision v9"),
        (f"hf://{REPO}@{LATER}/{FILE}", f"no revision {LATER}"),
        (f"hf://{REPO}/absent.safetensors", "no file absent.safetensors"),
        (f"hf://{REPO.replace('nice', 'ni--ce')}/{FILE}", "is not a valid repository name"),
    ],
)
def test_what_does_not_exist_is_a_usage_error(server, address, text):
    with pytest.raises(UsageError, match=text) as caught:
        hub.settle(address)
    assert len(str(caught.value).splitlines()) == 1


def test_no_network(server, monkeypatch):
    with socket.socket() as free:  # nobody listens there afterwards
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    point_at(url, monkeypatch)
    refused(Unreachable, 75, lambda: hub.settle(ADDRESS), "does not answer", "ConnectError")


def test_offline_by_setting(server, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    refused(UsageError, 2, lambda: hub.settle(ADDRESS), "HF_HUB_OFFLINE")
    assert server.requests == []


def test_without_the_package_one_line_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    refused(UsageError, 2, lambda: hub.settle(ADDRESS), "sen2fine[hub]")


def test_a_cache_that_cannot_be_written_is_a_storage_error(server, tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    refused(StorageError, 6, lambda: hub.settle(ADDRESS), "HF_HOME")


# --- as a system's weights -------------------------------------------------------------------------------------------


@pytest.fixture
def weights(tmp_path):
    """Bytes of a small bundle."""
    bundle = difffusr_bundle(SMALL)
    path = tmp_path / "sr.safetensors"
    save_bundle(path, bundle, ruled(shapes_of(Networks(**bundle.architecture))))
    return path.read_bytes()


def test_a_choice_records_commit_and_digest_and_loads_elsewhere(server, weights, tmp_path, monkeypatch):
    server.commits[COMMIT][FILE] = weights
    digest = hashlib.sha256(weights).hexdigest()
    choice = choose("difffusr", (f"{ADDRESS}@{digest}",))
    assert choice.of("sr") == File("sr", PINNED, digest)
    assert str(tmp_path) not in json.dumps(asdict(choice))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "elsewhere"))
    server.requests.clear()
    assert _loaded.__wrapped__(choice, "cpu").bundles["sr"].digest == digest
    assert [request[:2] for request in server.requests] == [("hub", "HEAD"), ("storage", "GET")]


def test_a_worker_refuses_other_bytes_than_the_plans(server, weights):
    server.commits[COMMIT][FILE] = weights
    choice = choose("difffusr", (ADDRESS,))
    blob = hub.located(PINNED).resolve()
    os.chmod(blob, 0o644)
    blob.write_bytes(weights[:-4] + b"\0\0\0\1")
    refused(UsageError, 2, lambda: _loaded.__wrapped__(choice, "cpu"), choice.of("sr").sha256, "fetched anew")


def test_the_weights_must_still_fit_the_system(server, weights):
    server.commits[COMMIT][FILE] = weights
    with pytest.raises(UsageError, match="are for 'difffusr-sr'"):
        choose("lite", (f"fusion={ADDRESS}",))
    server.commits[COMMIT]["x.safetensors"] = CONTENT
    with pytest.raises(UsageError, match="not a readable safetensors file"):
        choose("difffusr", (f"hf://{REPO}/x.safetensors",))


@pytest.mark.parametrize("address", [f"https://huggingface.co/{REPO}/resolve/main/{FILE}", f"HF://{REPO}/{FILE}"])
def test_other_addresses_are_not_taken_for_paths(address):
    with pytest.raises(UsageError, match="hf://OWNER/REPO"):
        choose("difffusr", (address,))


def test_missing_weights_are_said_before_fetching(server):
    with pytest.raises(UsageError, match="training.convert"):
        choose("difffusr", (f"fusion={ADDRESS}",))
    assert server.requests == []
