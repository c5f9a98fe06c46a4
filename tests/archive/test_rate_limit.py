"""Politeness: connections counted at the server, pauses that hold for every read of a host, a budget of retries."""

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import numpy as np
import pytest
import rasterio

from pipeline.archive.catalog import Catalog, Limits
from pipeline.archive.read import rate_limit
from pipeline.archive.read.access import Access
from pipeline.archive.read.band_file import gdal_options
from pipeline.archive.read.rate_limit import Host, HostSlot, connections_here, host_of, retry_after_s, share
from pipeline.archive.read.retry import retrying
from pipeline.errors import ReadError, Unreachable, UsageError
from tests.faults.files import Faults, file_server

FILES = 6


class Clock:
    """Time that passes only where somebody sleeps."""

    def __init__(self):
        self.now, self.slept, self._lock = 1000.0, [], threading.Lock()

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        with self._lock:
            self.slept.append(seconds)
            self.now += seconds


@pytest.fixture(autouse=True)
def strangers(monkeypatch):
    """No host is known yet, and no other process."""
    monkeypatch.delenv(rate_limit.PROCESSES_VARIABLE, raising=False)
    rate_limit.forget()
    yield
    rate_limit.forget()


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(rate_limit, "clock", made)
    monkeypatch.setattr(rate_limit, "sleep", made.sleep)
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Tiled files of 36 blocks, so that a read takes several rows of them."""
    place = tmp_path_factory.mktemp("files")
    values = np.arange(768 * 768, dtype="uint16").reshape(1, 768, 768)
    rng = np.random.default_rng(0)
    for number in range(FILES):
        noisy = values ^ rng.integers(0, 2**16, values.shape, dtype="uint16")  # so that blocks keep their size
        with rasterio.open(
            place / f"{number}.tif", "w", driver="GTiff", width=768, height=768, count=1, dtype="uint16", tiled=True,
            blockxsize=128, blockysize=128, crs="EPSG:32632", transform=rasterio.Affine(10, 0, 0, 0, -10, 0),
        ) as file:  # fmt: skip
            file.write(noisy)
    return place


def reader(access, url):
    """A function that reads part of file `number`, from several rows of blocks, and returns its sum."""

    def read(number):
        href = f"{url}/{number}.tif"

        def attempt():
            with rasterio.Env(**gdal_options(access)), rasterio.open(access.href(href)) as file:
                return int(file.read(1, window=((100, 500), (100, 300))).sum())

        return access.reading(href, attempt, what=f"file {number}")

    return read


def sums(folder):
    found = []
    for number in range(FILES):
        with rasterio.open(folder / f"{number}.tif") as file:
            found.append(int(file.read(1, window=((100, 500), (100, 300))).sum()))
    return found


@pytest.mark.parametrize(("granted", "processes", "expected"), [(2, 1, 2), (4, 2, 2), (3, 3, 1), (1, 1, 1), (2, 5, 1)])
def test_a_host_sees_this_processes_share_of_connections(folder, granted, processes, expected):
    """Two at once do happen where two are granted (requests wait for each other), and never one more."""
    share(processes)
    company = threading.Barrier(expected)

    def rule(_name, count, _request):
        if count == 0:
            company.wait(20)
        time.sleep(0.005)  # one too many would be here by now
        return None

    faults = Faults(rule)
    with file_server(folder, faults) as url, ThreadPoolExecutor(FILES) as pool:
        access = Access(hosts=(url.removeprefix("http://"),), connections=granted)
        assert list(pool.map(reader(access, url), range(FILES))) == sums(folder)
    assert faults.peak == expected


@pytest.mark.parametrize("code", ["429", "503"])
def test_a_host_that_asks_to_wait_is_left_alone_by_all_reads(folder, clock, code):
    """One read is refused and asks how long; until then no other read begins. All are done in the end."""
    begun = clock.now
    seen = []

    def rule(name, _count, _request):
        refused = clock.now < begun + 30
        seen.append((clock.now, name, refused))
        return f"{code}/30" if refused else None

    faults = Faults(rule)
    with file_server(folder, faults) as url, ThreadPoolExecutor(FILES) as pool:
        access = Access(hosts=(url.removeprefix("http://"),), connections=1)
        assert list(pool.map(reader(access, url), range(FILES))) == sums(folder)
    refusals = [entry for entry in seen if entry[2]]
    assert len({name for _, name, _ in refusals}) == 1, refusals
    assert len(refusals) <= 3  # GDAL's own request or two, and ours that reads the header
    assert clock.slept[0] == 30
    assert {name for _, name, refused in seen if not refused} == {f"{number}.tif" for number in range(FILES)}


def test_reads_of_other_hosts_go_on(clock):
    busy, other = host_of("busy"), host_of("other")
    busy.pause(lambda: 60.0)
    with other.turn(1):
        assert clock.slept == []
    with busy.turn(1):
        assert clock.slept == [60.0]


def test_a_host_that_gives_no_time_is_paused_for_our_own_backoff(clock, monkeypatch):
    monkeypatch.setattr(random, "uniform", lambda low, high: high)
    host = Host("h")
    answers = [OSError("HTTP response code: 503"), OSError("HTTP response code: 503"), None]

    def call():
        error = answers.pop(0)
        if error:
            raise error
        return "done"

    assert retrying(call, what="x", slot=HostSlot(host, 1), base_s=2.0) == "done"
    assert clock.slept == [2.0, 4.0]


def test_those_refused_together_ask_once(clock):
    host, asked, all_there = Host("h"), [], threading.Barrier(5)

    def ask():
        asked.append(1)
        return 7.0

    def refused(_):
        all_there.wait(20)
        host.pause(ask)

    with ThreadPoolExecutor(5) as pool:
        list(pool.map(refused, range(5)))
    assert asked == [1]


def test_nobody_begins_while_the_host_is_being_asked(clock):
    host, asking, answer, begun = Host("h"), threading.Event(), threading.Event(), []

    def ask():
        asking.set()
        answer.wait(20)
        begun.append("answered")
        return 0.0

    def read():
        with host.turn(8):
            begun.append("read")

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(host.pause, ask)
        asking.wait(20)
        second = pool.submit(read)
        answer.set()
        first.result(20)
        second.result(20)
    assert begun == ["answered", "read"]


def test_failing_requests_leave_nothing_held():
    host = Host("h")
    with pytest.raises(ZeroDivisionError):
        host.pause(lambda: 1 / 0)
    for _ in range(3):
        with pytest.raises(KeyError), host.turn(1):
            raise KeyError
    with host.turn(1):
        pass


def test_retries_beyond_the_budget_mean_that_the_host_is_away(clock, monkeypatch):
    monkeypatch.setattr(rate_limit, "BUDGET_RETRIES", 2)
    host, calls = Host("h"), []

    def call():
        calls.append(1)
        raise ConnectionResetError("Connection reset by peer")

    with pytest.raises(Unreachable, match="after 3 tries"):
        retrying(call, what="B02", tries=6, sleep=clock.sleep, slot=HostSlot(host, 1))
    assert len(calls) == 3
    for _ in range(10):  # reads that succeed earn new retries, one in ten
        retrying(lambda: "done", what="B02", slot=HostSlot(host, 1))
    with pytest.raises(Unreachable, match="after 2 tries"):
        retrying(call, what="B02", tries=6, sleep=clock.sleep, slot=HostSlot(host, 1))


def test_a_damaged_file_costs_four_tries_and_no_budget(clock, monkeypatch):
    monkeypatch.setattr(rate_limit, "BUDGET_RETRIES", 0)

    def call():
        raise OSError("TIFFReadEncodedTile failed")

    with pytest.raises(ReadError, match="after 4 tries") as caught:
        retrying(call, what="B02", tries=6, sleep=clock.sleep, slot=HostSlot(Host("h"), 1))
    assert type(caught.value) is ReadError


def test_without_a_pool_the_environment_counts_processes(monkeypatch):
    assert connections_here(8) == 8
    monkeypatch.setenv(rate_limit.PROCESSES_VARIABLE, "4")
    assert connections_here(8) == 2
    share(8)
    assert connections_here(8) == 1
    rate_limit.forget()
    for wrong in ("0", "-1", "many", ""):
        monkeypatch.setenv(rate_limit.PROCESSES_VARIABLE, wrong)
        with pytest.raises(UsageError, match="SEN2FINE_PROCESSES"):
            connections_here(8)


@pytest.mark.parametrize("connections", [0, -1, "4", 2.0, True])
def test_a_catalogue_grants_a_number_of_connections(connections):
    with pytest.raises(UsageError, match=r"limits\.connections"):
        Catalog("x", "api", "https://x", limits=Limits(connections=connections)).access()
    assert Catalog("x", "api", "https://x", limits=Limits(connections=3)).access().connections == 3


def test_the_wait_in_both_forms():
    later = datetime.now(UTC) + timedelta(seconds=100)
    assert retry_after_s({"Retry-After": "7"}) == 7
    assert 90 <= retry_after_s({"Retry-After": format_datetime(later, usegmt=True)}) <= 100
    assert retry_after_s({"Retry-After": "86400"}) == rate_limit.MAX_RETRY_AFTER_S
    for nothing in ("", "soon", "-5", "nan", "Sat, 01 Jan 2000 00:00:00 GMT"):
        assert retry_after_s({"Retry-After": nothing}) == 0


def test_the_clock_is_monotonic():
    assert rate_limit.clock is time.monotonic
