"""Files behind the gateway: no redirect, changing name or wrong range gets GDAL past the policy or a pixel wrong."""

import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler

import numpy as np
import pytest
import rasterio

from pipeline.archive.read import access as access_module
from pipeline.archive.read import gateway, host_policy, retry
from pipeline.archive.read.access import Access
from pipeline.archive.read.band_file import gdal_options
from pipeline.archive.read.gdal import open_raster
from pipeline.archive.read.guarded_http import guarded, open_url
from pipeline.archive.read.host_policy import HostPolicy, Refused, is_public
from pipeline.errors import ReadError, Unreachable, UpstreamError
from tests.archive.stac_server import serving

SIDE = 1100


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    """A tiled, uncompressed GeoTIFF of several MB: any wrong byte of it would be a wrong pixel without an error."""
    path = tmp_path_factory.mktemp("tif") / "B02.tif"
    values = np.random.default_rng(0).integers(1, 10_000, (1, SIDE, SIDE), dtype="uint16")
    with rasterio.open(
        path, "w", driver="GTiff", width=SIDE, height=SIDE, count=1, dtype="uint16", crs="EPSG:32632", tiled=True,
        blockxsize=256, blockysize=256, transform=rasterio.Affine(10, 0, 399_960, 0, -10, 5_100_000),
    ) as file:  # fmt: skip
        file.write(values)
    return path.read_bytes(), values[0]


@contextmanager
def archive(content, answer=lambda request, first, last: None):
    """(host:port, requests) of a server of one file under any path; `answer` may answer a request otherwise, truly."""
    requests = []

    class Files(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, *_):
            pass

        def do_HEAD(self):
            self.do_GET()

        def do_POST(self):
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.do_GET()

        def do_GET(self):
            low, _, high = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
            first, last = int(low), min(int(high or len(content) - 1), len(content) - 1)
            requests.append((self.path, dict(self.headers), first))
            if not answer(self, first, last):
                self.part(first, last, content[first : last + 1], len(content))

        def part(self, first, last, body, total):
            self.send_response(206 if "Range" in self.headers else 200)
            if "Range" in self.headers:
                self.send_header("Content-Range", f"bytes {first}-{last}/{total}")
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def redirect(self, target, status=302):
            self.send_response(status)
            self.send_header("Location", target)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return True

    with serving(Files) as url:
        yield url.removeprefix("http://"), requests


def read(access, href, **options):
    """The whole file, as the pipeline reads files."""

    def attempt():
        with rasterio.Env(**gdal_options(access), **options), open_raster(access.href(href), sharing=False) as file:
            return file.read(1)

    return access.reading(href, attempt, what="B02")


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Our waits between tries and GDAL's, cut short."""
    asked = Access.gdal_env
    monkeypatch.setattr(Access, "gdal_env", lambda self: {**asked(self), "GDAL_HTTP_RETRY_DELAY": "0.02"})
    monkeypatch.setattr(retry, "MAX_WAIT_S", 0.02)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize(
    "target",
    ["http://{inner}/secret", "https://{inner}/secret", "file:///etc/passwd", "ftp://127.0.0.1/x", "//{inner}/x"],
)
def test_a_redirect_past_the_policy_is_never_followed(content, status, target):
    data, _ = content
    with archive(data) as (inner, seen):
        where = target.format(inner=inner)
        with archive(data, lambda request, *_: request.redirect(where, status)) as (host, asked):
            with pytest.raises(ReadError, match=r"B02 at .*B02\.tif: redirect to .* is refused") as caught:
                read(Access(hosts=(host,)), f"http://{host}/B02.tif")
            assert type(caught.value) is ReadError
            assert 1 <= len(asked) <= 2, "not tried again"
        assert seen == []


def test_a_redirect_in_the_middle_of_a_read_is_refused_too(content):
    data, _ = content
    with archive(data) as (inner, seen):

        def later(request, first, _last):
            return first > 0 and request.redirect(f"http://{inner}/secret")

        with archive(data, later) as (host, _), pytest.raises(ReadError, match="redirect to .* is refused"):
            read(Access(hosts=(host,)), f"http://{host}/B02.tif")
        assert seen == []


def test_redirects_among_listed_hosts_are_followed_once(content):
    """A target with a signature that ends: its 403 sends us back to the address that redirects."""
    data, values = content
    signatures = []

    def storage(request, *_):
        if request.path.rpartition("=")[2] == str(len(signatures)):
            return None
        request.send_response(403)
        request.send_header("Content-Length", "0")
        request.end_headers()
        return True

    with archive(data, storage) as (store, stored):

        def front(request, *_):
            signatures.append(1)
            return request.redirect(f"http://{store}/B02.tif?sig={len(signatures)}")

        with archive(data, front) as (host, asked):
            access = Access(hosts=(host, store))
            np.testing.assert_array_equal(read(access, f"http://{host}/B02.tif"), values)
            assert len(asked) == 1, "the target was kept"
            access.forget(f"http://{host}/B02.tif")
            signatures.append(1)  # what was given out has ended
            np.testing.assert_array_equal(read(access, f"http://{host}/B02.tif"), values)
            assert len(asked) == 2
    assert len(stored) > 4


def test_redirects_without_end_are_an_error(content):
    with archive(content[0], lambda request, *_: request.redirect("/again.tif")) as (host, asked):
        access = Access(hosts=(host,))
        with pytest.raises(ReadError, match="end of 5 redirects"):
            read(access, f"http://{host}/B02.tif")
    assert len(asked) <= 14


def test_dns_rebinding_after_the_check_reaches_nothing(content, monkeypatch):
    """DNS rebinding: public when it is checked, loopback when it is connected to."""
    answers = iter(["93.184.216.34", "127.0.0.1", "::1", "169.254.169.254", "::ffff:127.0.0.1"])
    resolved = []

    def resolve(host, port, *_args, **_kwargs):
        resolved.append(next(answers) if host == "rebound.example.org" else host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (resolved[-1], port))]

    monkeypatch.setattr(host_policy.socket, "getaddrinfo", resolve)
    host_policy._resolves_inside.cache_clear()
    from requests import Session

    session = guarded(Session(), HostPolicy(("*",)))
    for inner in ("127.0.0.1", "::1", "169.254.169.254", "::ffff:127.0.0.1"):
        with pytest.raises(Refused, match=f"it resolves to {inner}, which is not a public address"):
            open_url(session, "https://rebound.example.org/a.tif", {})
    host_policy._resolves_inside.cache_clear()


def test_the_connection_goes_to_the_address_that_was_checked(monkeypatch):
    """The name is resolved once per connection: what is connected to is what was looked at."""
    from requests import ConnectionError as Failed
    from requests import Session

    tried = []

    def connect(address, *_args, **_kwargs):
        tried.append(address)
        raise OSError("not in this test")

    def resolve(host, port, *_args, **_kwargs):
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (a, port)) for a in ("93.184.216.34", "93.184.216.35")]

    monkeypatch.setattr("urllib3.util.connection.create_connection", connect)
    monkeypatch.setattr(host_policy.socket, "getaddrinfo", resolve)
    with pytest.raises(Failed):
        open_url(guarded(Session(), HostPolicy(("*",))), "https://two.example.org/a.tif", {})
    assert tried == [("93.184.216.34", 443), ("93.184.216.35", 443)]


REBOUND = """
import socket
asked, real = [], socket.getaddrinfo
def resolve(host, port, *a, **k):
    if host == "rebound.example.org":
        asked.append(1)
        host = "93.184.216.34" if len(asked) == 1 else "127.0.0.1"
    return real(host, port, *a, **k)
socket.getaddrinfo = resolve
"""


def test_gdal_is_kept_from_dns_rebinding(content, tmp_path, monkeypatch):
    """As above, through a gateway and GDAL: the early check sees a public address, the connection another."""
    (tmp_path / "sitecustomize.py").write_text(REBOUND)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(gateway, "_running", [])
    monkeypatch.setattr(host_policy, "_resolves_inside", lambda _host: False)  # what this process saw
    with pytest.raises(ReadError, match="it resolves to 127.0.0.1, which is not a public address"):
        read(Access(hosts=("*",)), "https://rebound.example.org/B02.tif")
    gateway._stop(gateway._running[0])


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True), ("2606:2800:220:1::1", True), ("64:ff9b::5db8:d822", True),
        ("127.0.0.1", False), ("10.0.0.1", False), ("172.16.0.1", False), ("192.168.1.1", False), ("0.0.0.0", False),
        ("169.254.169.254", False), ("100.64.0.1", False), ("224.0.0.1", False), ("255.255.255.255", False),
        ("198.18.0.1", False), ("240.0.0.1", False), ("::", False), ("::1", False), ("fe80::1%eth0", False),
        ("fd00::1", False), ("ff02::1", False), ("::ffff:127.0.0.1", False), ("::ffff:10.0.0.1", False),
        ("64:ff9b::7f00:1", False), ("64:ff9b::a9fe:a9fe", False), ("2002:7f00:1::", False),
        ("2001:0:4136:e378:8000:63bf:80ff:fffe", False), ("::ffff:93.184.216.34", True),
    ],
)  # fmt: skip
def test_public_addresses(address, public):
    assert is_public(address) is public


def test_a_server_that_answers_another_range_is_never_believed(content):
    """GDAL takes the bytes as those it asked for: wrong pixels of an uncompressed file, without an error."""
    data, _ = content

    def shifted(request, first, last):
        if first == 0:
            return False
        request.part(first - 512, last - 512, data[first - 512 : last - 511], len(data))
        return True

    with archive(data, shifted) as (host, _), pytest.raises(ReadError, match="bytes .* were asked for"):
        read(Access(hosts=(host,)), f"http://{host}/B02.tif")


def test_a_file_that_is_replaced_while_it_is_read_is_read_again(content):
    """Once: the second try finds the new file whole. Its old header never meets its new bytes."""
    data, values = content
    grown = []

    def replaced(request, first, last):
        if not grown and first == 0:
            return False
        if first > 0:
            grown.append(1)
        request.part(first, last, (data + b"\0")[first : last + 1], len(data) + 1)
        return True

    with archive(data, replaced) as (host, asked):
        np.testing.assert_array_equal(read(Access(hosts=(host,)), f"http://{host}/B02.tif"), values)
    assert sum(first == 0 for _, _, first in asked) >= 2, "opened again"


@pytest.mark.parametrize("share", [0.0, 0.5, 0.999])
def test_a_short_body_is_never_taken_for_the_whole(content, share):
    data, _ = content

    def short(request, first, last):
        if first == 0:
            return False
        request.send_response(206)
        request.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        request.send_header("Content-Length", str(last - first + 1))
        request.end_headers()
        request.wfile.write(data[first : first + int((last - first) * share)])
        request.close_connection = True
        return True

    with archive(data, short) as (host, _), pytest.raises(ReadError):
        read(Access(hosts=(host,)), f"http://{host}/B02.tif")


def test_secrets_of_gdals_configuration_reach_no_archive(content, tmp_path, monkeypatch):
    (tmp_path / "headers").write_text("X-Canary: CANARY-file\n")
    options = {
        "GDAL_HTTP_HEADERS": "X-Canary: CANARY-header", "GDAL_HTTP_COOKIE": "CANARY=cookie",
        "GDAL_HTTP_USERPWD": "me:CANARY", "GDAL_HTTP_BEARER": "CANARY", "GDAL_HTTP_AUTH": "BEARER",
        "GDAL_HTTP_HEADER_FILE": str(tmp_path / "headers"), "GDAL_HTTP_USERAGENT": "CANARY",
    }  # fmt: skip
    for name, value in options.items():
        monkeypatch.setenv(name, value)
    with archive(content[0]) as (host, asked):
        np.testing.assert_array_equal(read(Access(hosts=(host,)), f"http://{host}/B02.tif"), content[1])
    assert asked
    assert "CANARY" not in repr(asked)


@pytest.mark.parametrize("name", ["http_proxy", "https_proxy", "ALL_PROXY", "GDAL_HTTP_PROXY"])
def test_a_proxy_does_not_come_between_gdal_and_gateway(content, name):
    with archive(content[0]) as (host, _):
        code = f"from tests.archive.test_gateway import *; print(read(Access(hosts=({host!r},)), 'http://{host}/B02.tif').sum())"
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=100,
            env={**os.environ, name: "http://127.0.0.1:9", "NO_PROXY": "example.org"},
        )  # fmt: skip
    assert done.stdout.strip() == str(content[1].sum()), done.stderr


def test_a_gateway_that_was_killed_is_started_again(content):
    with archive(content[0]) as (host, _):
        access = Access(hosts=(host,))
        read(access, f"http://{host}/B02.tif")
        os.kill(gateway._running[0].process.pid, signal.SIGKILL)
        np.testing.assert_array_equal(read(access, f"http://{host}/B02.tif"), content[1])


def test_a_gateway_ends_with_the_process_that_started_it(content):
    with archive(content[0]) as (host, _):
        code = (
            f"from tests.archive.test_gateway import *; read(Access(hosts=({host!r},)), 'http://{host}/B02.tif');"
            "print(gateway._running[0].process.pid, flush=True); os.kill(os.getpid(), 9)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    pid = int(done.stdout)
    for _ in range(100):
        try:
            with open(f"/proc/{pid}/stat") as file:
                if file.read().split()[2] == "Z":
                    return
        except FileNotFoundError:
            return
        threading.Event().wait(0.1)
    raise AssertionError("still there")


def test_strangers_get_nothing_from_the_gateway(content):
    import urllib.error
    import urllib.request

    with archive(content[0]) as (host, asked):
        path = Access(hosts=(host,)).href(f"http://{host}/B02.tif").removeprefix("/vsicurl/")
        key = path.split("/")[3]
        for wrong in (path.replace(key, "x" * 32), path.replace(key, ""), path.replace(f"/{key}", "")):
            with pytest.raises(urllib.error.HTTPError, match="404"):
                urllib.request.urlopen(wrong)
        assert asked == []


def test_a_files_own_metadata_leads_gdal_nowhere(content, tmp_path):
    """OVERVIEW_FILE names another file, which GDAL opens with any driver. Own process: GDAL would wait for our lock."""
    path = tmp_path / "B02.tif"
    profile = {
        "width": 64,
        "height": 64,
        "count": 1,
        "dtype": "uint16",
        "transform": rasterio.Affine(10, 0, 0, 0, -10, 0),
    }
    with archive(content[0]) as (inner, seen):
        with rasterio.open(path, "w", driver="GTiff", **profile) as file:
            file.write(np.ones((1, 64, 64), "uint16"))
            file.update_tags(ns="OVERVIEWS", OVERVIEW_FILE=f"/vsicurl/http://{inner}/secret.tif")
        for fence in ("{}", "gdal_options(Access())"):
            code = (
                "from tests.archive.test_gateway import *\n"
                f"with rasterio.Env(**{fence}), rasterio.open({str(path)!r}) as f: f.overviews(1)"
            )
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
            assert done.returncode == 0, done.stderr
            assert (seen != []) is (fence == "{}"), "GDAL without the fence goes there"
            seen.clear()


def test_a_host_that_does_not_answer_is_unreachable_and_says_why(monkeypatch):
    monkeypatch.setattr(access_module, "READ_TRIES", 2)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(Unreachable, match=f": {host} refuses the connection"):
            read(Access(hosts=(host,)), f"http://{host}/B02.tif")


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_searches_are_under_the_same_policy(content, method):
    """A STAC API that redirects inside is refused; one that redirects at its own host is followed."""
    from pipeline.archive.catalog import RetryPolicy
    from pipeline.archive.stac.http import StacHttp

    def home(request, *_):
        if request.path != "/home":
            return request.redirect("/home", 307)
        request.part(0, 1, b"{}", 2)
        return True

    with archive(content[0]) as (inner, seen):
        with archive(content[0], lambda request, *_: request.redirect(f"http://{inner}/", 307)) as (host, _):
            http = StacHttp(f"http://{host}", RetryPolicy(tries=1), (host, "*"))
            with pytest.raises(UpstreamError, match=r"address .* is refused: plain http"):
                http.document(f"http://{host}/search", method=method, parameters={"limit": 1})
        assert seen == []
    with archive(content[0], home) as (host, _):
        assert StacHttp(f"http://{host}", RetryPolicy(tries=1)).document(f"http://{host}/search", method=method) == {}


@contextmanager
def versions(content, marks):
    """A server whose answers carry `marks` as ETag: the first the file's, the last for good."""
    left = list(marks)

    def answer(request, first, last):
        request.send_response(206)
        request.send_header("ETag", left.pop(0) if len(left) > 1 else left[0])
        request.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        request.send_header("Content-Length", str(last + 1 - first))
        request.end_headers()
        request.wfile.write(content[first : last + 1])
        return True

    with archive(content, answer) as found:
        yield found


def test_what_was_read_is_not_fetched_again(content):
    """Neither by the same process nor by one that shares the gateway."""
    with archive(content[0]) as (host, asked):
        access, href = Access(hosts=(host,)), f"http://{host}/B02.tif"
        np.testing.assert_array_equal(read(access, href), content[1])
        before = len(asked)
        assert before > 1
        np.testing.assert_array_equal(read(access, href), content[1])
        code = f"from tests.archive.test_gateway import *; print(read(Access(hosts=({host!r},)), {href!r}).sum())"
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=100,
            env={**os.environ, **gateway.shared()},
        )  # fmt: skip
        assert done.stdout.strip() == str(content[1].sum()), done.stderr
        assert len(asked) == before
        access.forget(href)
        np.testing.assert_array_equal(read(access, href), content[1])
        assert len(asked) == 2 * before


def test_a_window_beside_another_brings_only_what_is_new(content):
    with archive(content[0]) as (host, asked):
        access, href = Access(hosts=(host,)), f"http://{host}/B02.tif"

        def window(cols):
            def attempt():
                with rasterio.Env(**gdal_options(access)), open_raster(access.href(href), sharing=False) as file:
                    return file.read(1, window=((0, 256), cols))

            return access.reading(href, attempt, what="B02")

        window((0, 500))
        with_two = len(asked)
        np.testing.assert_array_equal(window((300, 700)), content[1][:256, 300:700])  # the second and third block
        assert len(asked) == with_two + 1
        window((0, 768))
        assert len(asked) == with_two + 1


def test_damaged_bytes_are_fetched_again(content):
    """Bytes that made a read fail are not kept: a compressed file whose first answer is inverted."""
    import io

    with rasterio.MemoryFile() as memory:
        with memory.open(
            driver="GTiff", width=SIDE, height=SIDE, count=1, dtype="uint16", crs="EPSG:32632", tiled=True,
            blockxsize=256, blockysize=256, compress="deflate", transform=rasterio.Affine(10, 0, 0, 0, -10, 0),
        ) as file:  # fmt: skip
            file.write(content[1][None])
        packed = io.BytesIO(memory.read()).getvalue()
    damaged = []

    def once(request, first, last):
        if first == 0 or damaged:
            return False
        damaged.append(first)
        request.part(first, last, bytes(255 - byte for byte in packed[first : last + 1]), len(packed))
        return True

    with archive(packed, once) as (host, _):
        np.testing.assert_array_equal(read(Access(hosts=(host,)), f"http://{host}/B02.tif"), content[1])
    assert damaged


def test_a_file_of_another_version_is_read_anew(content):
    """Of the same size: only its ETag tells that blocks are not those of the header."""
    data, values = content
    with versions(data, ["a", "b"]) as (host, asked):
        np.testing.assert_array_equal(read(Access(hosts=(host,)), f"http://{host}/B02.tif"), values)
        assert sum(first == 0 for _, _, first in asked) == 2, "opened again"
    with versions(data, ["a"]) as (host, asked):
        read(Access(hosts=(host,)), f"http://{host}/B02.tif")
        assert sum(first == 0 for _, _, first in asked) == 1
