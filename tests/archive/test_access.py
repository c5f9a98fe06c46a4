"""Access: what may be opened, tokens fetched late and renewed, retries that classify, texts without secrets."""

from __future__ import annotations

import email.message
import errno
import json
import os
import pickle
import re
import subprocess
import sys
import threading
import urllib.error
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.archive.read import host_policy, signing
from pipeline.archive.read.access import Access
from pipeline.archive.read.band_file import gdal_options
from pipeline.archive.read.gdal import restrict_drivers
from pipeline.archive.read.retry import classify, retrying
from pipeline.errors import IntegrityError, ReadError, StorageError, Unreachable, UpstreamError, UsageError
from pipeline.redaction import redact
from tests.archive.stac_server import serving

CANARY = "cAnArY0123456789"
BLOB = "https://sentinel2l2a01.blob.core.windows.net/sentinel2-l2/31/T/CJ/B02.tif"

# -- policy

ALLOWED = [
    "https://data.example.org/a/B02.tif",
    "https://DATA.example.org/a/B02.tif",
    "https://data.example.org:443/B02.tif",
    "https://eu.cdn.example.net/B02.tif?v=1",
    "http://127.0.0.1:8080/B02.tif",
    "https://198.51.100.7:8443/B02.tif",
]
HOSTS = ("data.example.org", "*.cdn.example.net", "127.0.0.1:8080", "198.51.100.7:8443", "s3://bucket")
REFUSED = [
    ("http://data.example.org/B02.tif", "plain http"),
    ("http://127.0.0.1:9090/B02.tif", "plain http"),
    ("http://127.0.0.1/B02.tif", "plain http"),
    ("https://127.0.0.1/B02.tif", "addresses instead of names"),
    ("https://2130706433/B02.tif", "addresses instead of names"),
    ("https://0x7f.0.0.1/B02.tif", "addresses instead of names"),
    ("https://[::1]/B02.tif", "addresses instead of names"),
    ("https://[::1/B02.tif", "not an address"),
    ("https://169.254.169.254/latest/meta-data", "addresses instead of names"),
    ("https://data.example.org:8443/B02.tif", "port 8443"),
    ("https://data.example.org:http/B02.tif", "port is not a number"),
    ("https://data.example.org.evil.net/B02.tif", "is not listed"),
    ("https://cdn.example.net/B02.tif", "is not listed"),
    ("https://data.example.org@evil.net/B02.tif", "user name"),
    ("https://me:secret@data.example.org/B02.tif", "user name"),
    ("https://data.example.org/a/../b.tif", "climbs"),
    ("https://data.example.org/a/%2e%2e/b.tif", "climbs"),
    ("https://data.example.org/a/%252e%252e/b.tif", "climbs"),
    ("https://data.example.org/a.vrt", "point to other files"),
    ("https://data.example.org/a.VRT?x=1", "point to other files"),
    ("https://data.example.org/a\\b.tif", "backslashes"),
    ("https://data.example.org/a\0.tif", "control characters"),
    ("https://data.example.org/a\n.tif", "control characters"),
    ("s3://other/B02.tif", "bucket 'other'"),
    ("ftp://data.example.org/B02.tif", "scheme ftp"),
    ("gopher://data.example.org/B02.tif", "scheme gopher"),
    ("vrt:///tmp/a.tif?bands=1", "scheme vrt"),
    ("GTIFF_DIR:1:/tmp/a.tif", "scheme gtiff_dir"),
    ("ZARR:/tmp/a", "scheme zarr"),
    ("NETCDF:/tmp/a.nc:x", "scheme netcdf"),
    ("STACIT:/tmp/a", "scheme stacit"),
    ("/vsicurl/https://data.example.org/B02.tif", "virtual file systems"),
    ("/vsicurl?header_file=/etc/passwd&url=https://data.example.org/B02.tif", "virtual file systems"),
    ("/vsizip/a.zip/B02.tif", "virtual file systems"),
    ("/etc/passwd", "under none of the folders"),
    ("file:///etc/passwd", "under none of the folders"),
    ("B02.tif", "under none of the folders"),
    ("", "empty href"),
    ("   ", "empty href"),
    ("x" * 3000, "3000 characters"),
]


GATEWAY = r"/vsicurl/http://127\.0\.0\.1:\d+/[\w-]{32}/[0-9a-f]{32}/B02\.tif\.[0-9a-f]{16}"


@pytest.mark.parametrize("href", ALLOWED)
def test_listed_places_are_opened(href):
    """GDAL gets an address of this process, never the archive's."""
    access = Access(hosts=HOSTS)
    access.check(href)
    assert access.address(href) == href
    assert re.fullmatch(GATEWAY, access.href(href))
    assert access.href(href) == access.href(href)


def test_a_listed_bucket_is_opened():
    assert Access(hosts=HOSTS).href("s3://bucket/a/B02.tif") == "/vsis3/bucket/a/B02.tif"


@pytest.mark.parametrize(("href", "expected"), REFUSED)
def test_everything_else_is_refused(href, expected, tmp_path):
    access = Access(hosts=HOSTS, roots=(str(tmp_path),))
    for call in (access.check, access.href, access.refresh):
        with pytest.raises(UsageError, match=expected) as error:
            call(href)
        assert "secret" not in str(error.value)
        assert "\n" not in str(error.value)


def test_files_only_under_the_roots_links_followed(tmp_path):
    inside, outside = tmp_path / "data", tmp_path / "elsewhere"
    inside.mkdir()
    outside.mkdir()
    (outside / "B02.tif").write_text("x")
    (inside / "link.tif").symlink_to(outside / "B02.tif")
    (inside / "with space.tif").write_text("x")
    access = Access(roots=(str(inside),))
    assert access.href(str(inside / "with space.tif")) == str(inside / "with space.tif")
    assert access.href(f"file://{inside}/with%20space.tif") == str(inside / "with space.tif")
    for href in (inside / "link.tif", outside / "B02.tif", f"{inside}/../elsewhere/B02.tif"):
        with pytest.raises(UsageError):
            access.href(str(href))


def test_any_public_host_excludes_the_inner_network(monkeypatch):
    addresses = {
        "public.example.org": "93.184.216.34",
        "rebound.example.org": "10.0.0.7",
        "meta.example.org": "fd00::1",
    }

    def resolve(host, port, **_kwargs):
        if host not in addresses:
            raise OSError("no such name")
        return [(0, 0, 0, "", (addresses[host], port))]

    monkeypatch.setattr(host_policy.socket, "getaddrinfo", resolve)
    host_policy._resolves_inside.cache_clear()
    access = Access(hosts=("*",))
    for host in ("public.example.org", "unresolved.example.org"):
        assert access.address(f"https://{host}/a.tif") == f"https://{host}/a.tif"
    for host in ("rebound.example.org", "meta.example.org", "localhost", "printer.local", "metadata.google.internal"):
        with pytest.raises(UsageError, match="not a public one"):
            access.address(f"https://{host}/a.tif")
    with pytest.raises(UsageError, match="addresses instead of names"):
        access.href("https://10.0.0.7/a.tif")
    with pytest.raises(UsageError, match="plain http"):
        access.href("http://public.example.org/a.tif")
    with pytest.raises(UsageError, match="bucket"):
        access.href("s3://any/a.tif")
    host_policy._resolves_inside.cache_clear()


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(st.text(max_size=60))
def test_no_text_slips_through_an_access_that_allows_nothing(href):
    with pytest.raises(UsageError):
        Access().href(href)


def test_unknown_signing_is_a_usage_error():
    with pytest.raises(UsageError, match="one of none, planetary-computer"):
        Access(signing="magic")


def test_access_pickles_compares_and_accepts_lists():
    access = Access("planetary-computer", ("a.example.org",), ("/data",))
    assert pickle.loads(pickle.dumps(access)) == access
    assert Access("none", ["a"], ["b"]) == Access("none", ("a",), ("b",))
    assert hash(Access("none", ["a"])) == hash(Access("none", ("a",)))


# -- S3


def test_cdse_takes_keys_from_the_environment_and_hides_them(monkeypatch):
    access = Access("cdse-s3", ("s3://eodata",))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY", raising=False)
    access.check("s3://eodata/Sentinel-2/B02.jp2")
    with pytest.raises(UsageError, match="AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY is not set"):
        access.href("s3://eodata/Sentinel-2/B02.jp2")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", CANARY + "id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", CANARY)
    assert access.href("s3://eodata/Sentinel-2/B02.jp2") == "/vsis3/eodata/Sentinel-2/B02.jp2"
    assert access.gdal_env()["AWS_S3_ENDPOINT"] == "eodata.dataspace.copernicus.eu"
    assert CANARY not in json.dumps(access.gdal_env())
    assert CANARY.encode() not in pickle.dumps(access)
    assert CANARY not in redact(f"request with {CANARY} failed")


def test_public_buckets_are_read_without_signature():
    assert Access("none", ("s3://bucket",)).gdal_env()["AWS_NO_SIGN_REQUEST"] == "YES"
    assert "AWS_NO_SIGN_REQUEST" not in Access("s3-env", ("s3://bucket",)).gdal_env()
    assert "AWS_NO_SIGN_REQUEST" not in Access("none", ("data.example.org",)).gdal_env()


# -- tokens


class TokenService:
    """Loopback token service; `lifetime_s` of its tokens, and statuses to answer before it works."""

    def __init__(self):
        self.lifetime_s = 3600.0
        self.failures = []
        self.asked = []
        self.body = None
        self.keys = []


@pytest.fixture
def tokens(monkeypatch):
    service = TokenService()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_args):
            pass

        def do_GET(self):
            service.asked.append(self.path)
            service.keys.append(self.headers.get("Ocp-Apim-Subscription-Key"))
            status, headers = service.failures.pop(0) if service.failures else (200, {})
            expiry = datetime.now(UTC) + timedelta(seconds=service.lifetime_s)
            answer = {
                "msft:expiry": expiry.strftime("%Y-%m-%dT%H:%M:%SZ"),
                "token": f"st=2024&se=2025&sp=rl&sig={CANARY}{len(service.asked)}",
            }
            content = json.dumps(answer).encode() if service.body is None else service.body
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    monkeypatch.setattr(signing, "_tokens", {})
    with serving(Handler) as url:
        service.url = url
        service.access = Access("planetary-computer", ("*.blob.core.windows.net",), token_url=f"{url}/token")
        yield service


def test_tokens_are_fetched_once_per_container_and_appended(tokens):
    first, again = tokens.access.address(BLOB), tokens.access.address(BLOB.replace("B02", "B03"))
    assert first == f"{BLOB}?st=2024&se=2025&sp=rl&sig={CANARY}1"
    assert again.endswith(f"B03.tif?st=2024&se=2025&sp=rl&sig={CANARY}1")
    assert tokens.asked == ["/token/sentinel2l2a01/sentinel2-l2"]
    tokens.access.address(BLOB.replace("sentinel2-l2", "other"))
    assert tokens.asked[1:] == ["/token/sentinel2l2a01/other"]
    assert tokens.keys == [None, None]


def test_an_old_signature_on_the_href_is_replaced(tokens):
    assert tokens.access.address(f"{BLOB}?sig=old&se=2020").endswith(f"B02.tif?st=2024&se=2025&sp=rl&sig={CANARY}1")


def test_tokens_are_renewed_five_minutes_early(tokens):
    tokens.lifetime_s = 290.0
    assert tokens.access.address(BLOB).endswith("1")
    tokens.lifetime_s = 3600.0
    assert tokens.access.address(BLOB).endswith("2")
    assert tokens.access.address(BLOB).endswith("2")
    tokens.access.refresh(BLOB)
    assert tokens.access.address(BLOB).endswith("3")


def test_many_threads_fetch_one_token(tokens):
    results = []
    threads = [threading.Thread(target=lambda: results.append(tokens.access.address(BLOB))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(results)) == 1
    assert len(tokens.asked) == 1


def test_a_busy_token_service_is_waited_for(tokens):
    tokens.failures = [(429, {"Retry-After": "0.05"}), (503, {})]
    assert tokens.access.address(BLOB).endswith("3")


def test_a_failing_token_service_is_an_upstream_error(tokens, monkeypatch):
    monkeypatch.setattr("pipeline.archive.read.retry.time.sleep", lambda _s: None)
    monkeypatch.setattr("pipeline.archive.read.retry.random.uniform", lambda _a, _b: 0.0)
    tokens.failures = [(404, {})] * 9
    with pytest.raises(
        UpstreamError, match=r"token for sentinel2l2a01/sentinel2-l2 from 127.0.0.1:\d+: HTTP Error 404"
    ):
        tokens.access.address(BLOB)
    tokens.failures, tokens.body = [], b"<html>"
    with pytest.raises(UpstreamError, match="answer is not a token"):
        tokens.access.address(BLOB)


def test_the_token_service_may_not_redirect_the_key(tokens, monkeypatch):
    monkeypatch.setenv("PC_SDK_SUBSCRIPTION_KEY", CANARY)
    other = TokenService()

    class Elsewhere(BaseHTTPRequestHandler):
        def log_message(self, *_args):
            pass

        def do_GET(self):
            other.keys.append(self.headers.get("Ocp-Apim-Subscription-Key"))
            content = json.dumps({"msft:expiry": "2999-01-01T00:00:00Z", "token": "sig=x"}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    with serving(Elsewhere) as url:
        tokens.failures = [(302, {"Location": f"{url}/token"})]
        with pytest.raises(UpstreamError, match="redirect to .* is refused"):
            tokens.access.address(BLOB)
    assert tokens.keys == [CANARY]
    assert other.keys == []


# -- redaction


@pytest.mark.parametrize(
    "text",
    [
        f"HTTP error 403 on {BLOB}?st=1&se=2&sig={CANARY}%3D: denied",
        f"'/vsicurl/{BLOB}?sig={CANARY}' not recognized",
        f"https://bucket.s3.amazonaws.com/k?X-Amz-Credential={CANARY}&X-Amz-Signature={CANARY}",
        f"st=2024&se=2025&sp=rl&sig={CANARY}",
        json.dumps({"msft:expiry": "x", "token": f"st=2024&sig={CANARY}"}),
        json.dumps({"access_token": CANARY}),
        f"Authorization: Bearer {CANARY}",
        f"{{'Authorization': 'Bearer {CANARY}'}}",
        f"Authorization: AWS4-HMAC-SHA256 Credential={CANARY}/x, Signature={CANARY}",
        f"https://user:{CANARY}@host/path",
        f"s3://{CANARY}@bucket/key",
        f"AWS_SECRET_ACCESS_KEY={CANARY}",
        f"token = {CANARY}",
        f"Ocp-Apim-Subscription-Key: {CANARY}",
        *(f"https://h.example.org/a.tif?{name}={CANARY}" for name in ("key", "code", "sas", "k", "anything")),
        f"s3://bucket/key?key={CANARY}",
        f"https://h.example.org/a.tif#{CANARY}",
        f'127.0.0.1:80 "GET /a.tif?key={CANARY} HTTP/1.1" 206',
        *(f"{name}={CANARY}" for name in ("x-api-key", "client_secret", "jwt", "pwd", "sas", "id_token", "sessionid")),
        f"Cookie: {CANARY}",
        f"Bearer {CANARY}",
        f"eyJhbGciOiJIUzI1NiJ9.{CANARY}.{CANARY}",
    ],
)
def test_secrets_do_not_survive_redaction(text):
    assert CANARY not in redact(text)
    assert CANARY not in redact(redact(text))
    assert redact(redact(text)) == redact(text)


@pytest.mark.parametrize(
    "name",
    [
        "HF_TOKEN",
        "GDAL_HTTP_BEARER",
        "AZURE_STORAGE_ACCOUNT_KEY",
        "MY_API_KEY",
        "EARTHDATA_PASSWORD",
        "gdal_http_userpwd",
    ],
)
def test_secrets_of_the_environment_are_redacted_everywhere(monkeypatch, name):
    monkeypatch.setenv(name, CANARY)
    assert redact(f"the server says: {CANARY} is wrong") == "the server says: [redacted] is wrong"


def test_redaction_keeps_what_helps():
    text = redact(f"CURL error on {BLOB}?sig={CANARY}: 503")
    assert BLOB in text
    assert "503" in text
    assert redact("HTTP response code: 503; error code: 7") == "HTTP response code: 503; error code: 7"
    plain = "scene S2A_MSIL2A_20240617T101559 of tile 31TCJ: 12 bands, se=3"
    assert redact(plain) == plain


# -- retries


class Failing:
    """Raises the given errors one after the other, then answers "done"."""

    def __init__(self, *errors):
        self.errors, self.calls = list(errors), 0

    def __call__(self):
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return "done"


def http_error(status, **headers):
    message = email.message.Message()
    for name, value in headers.items():
        message[name.replace("_", "-")] = value
    return urllib.error.HTTPError("https://data.example.org/x", status, "status", message, None)


def gdal_error(text):
    from rasterio.errors import RasterioIOError

    return RasterioIOError(text)


def caused(text, cause):
    error = RuntimeError(text)
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (http_error(503), "transient"),
        (http_error(429), "transient"),
        (http_error(408), "transient"),
        (http_error(403), "auth"),
        (http_error(401), "auth"),
        (http_error(404), "gone"),
        (http_error(410), "gone"),
        (http_error(400), "permanent"),
        (gdal_error("HTTP response code: 503"), "transient"),
        (gdal_error("HTTP response code: 404"), "gone"),
        (gdal_error("HTTP response code: 403"), "auth"),
        (gdal_error("'/vsicurl/https://x' not recognized as being in a supported file format."), "transient"),
        (gdal_error("/data/B02.tif: No such file or directory"), "gone"),
        (gdal_error("'/vsis3/eodata/x' does not exist in the file system, and is not recognized"), "gone"),
        (gdal_error("InvalidAccessKeyId: The AWS Access Key Id you provided does not exist in our records"), "auth"),
        (gdal_error("Read failed. See previous exception for details."), "transient"),
        (gdal_error("TIFFReadEncodedTile() failed."), "transient"),
        (gdal_error("CURL error: Could not resolve host: nowhere"), "transient"),
        (caused("Error opening 'B02'", gdal_error("HTTP response code: 404")), "gone"),
        (caused("Read failed. See previous exception", gdal_error("HTTP response code: 403")), "auth"),
        (urllib.error.URLError(OSError("Name or service not known")), "transient"),
        (urllib.error.URLError(PermissionError(errno.EACCES, "denied")), "local"),
        (TimeoutError("timed out"), "transient"),
        (ConnectionResetError("reset by peer"), "transient"),
        (OSError(errno.ENOSPC, "No space left on device"), "local"),
        (PermissionError(errno.EACCES, "Permission denied"), "local"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory"), "gone"),
        (ZeroDivisionError("division by zero"), "bug"),
        (KeyError("B02"), "bug"),
        (MemoryError(), "bug"),
    ],
)
def test_errors_are_told_apart(error, kind):
    assert classify(error) == kind


def test_transient_errors_use_every_try_with_growing_jitter(monkeypatch):
    waits = []
    monkeypatch.setattr("pipeline.archive.read.retry.random.uniform", lambda _low, high: high)
    call = Failing(*[http_error(503)] * 3)
    assert retrying(call, what="B02", sleep=waits.append) == "done"
    assert waits == [0.5, 1.0, 2.0]
    call = Failing(*[http_error(503)] * 9)
    with pytest.raises(Unreachable, match=r"^B02 of S2A: HTTP Error 503: status \(after 4 tries\); cure: "):
        retrying(call, what="B02 of S2A", sleep=waits.append)
    assert call.calls == 4


def test_jitter_is_full_and_capped():
    waits = []
    with pytest.raises(ReadError):
        retrying(Failing(*[http_error(503)] * 20), what="x", tries=12, base_s=10.0, sleep=waits.append)
    assert len(waits) == 11
    assert all(0 <= wait <= 60 for wait in waits)
    assert len(set(waits)) == 11


@pytest.mark.parametrize(
    ("error", "wait"),
    [
        (http_error(429, Retry_After="7"), 7.0),
        (http_error(429, Retry_After="86400"), 300.0),
        (caused("Rate limit is exceeded. Try again in 23 seconds.", None), 23.0),
    ],
)
def test_what_the_server_asks_for_is_honoured(error, wait, monkeypatch):
    waits = []
    monkeypatch.setattr("pipeline.archive.read.retry.classify", lambda _error: "transient")
    assert retrying(Failing(error), what="x", sleep=waits.append) == "done"
    assert waits == [wait]


def test_refused_access_is_refreshed_once_and_retried_twice():
    refreshed, waits = [], []
    call = Failing(http_error(403))
    assert retrying(call, what="x", sleep=waits.append, on_auth=lambda: refreshed.append(1)) == "done"
    assert (refreshed, waits, call.calls) == ([1], [], 2)
    call = Failing(*[http_error(403)] * 9)
    with pytest.raises(ReadError, match=r"\(auth, after 4 tries\); cure: check the archive's credentials"):
        retrying(call, what="x", tries=6, sleep=waits.append, on_auth=lambda: refreshed.append(1))
    assert (len(refreshed), call.calls) == (2, 4)


def test_missing_files_are_looked_at_once_more():
    call = Failing(http_error(404))
    assert retrying(call, what="x", sleep=lambda _s: None) == "done"
    call = Failing(*[http_error(404)] * 9)
    with pytest.raises(ReadError, match="leave the scene out with --exclude ID"):
        retrying(call, what="x", sleep=lambda _s: None)
    assert call.calls == 2


def test_other_errors_are_not_retried():
    cases = [
        (http_error(400), ReadError),
        (OSError(errno.ENOSPC, "No space left on device"), StorageError),
        (ZeroDivisionError("x"), ZeroDivisionError),
        (IntegrityError("bytes differ"), IntegrityError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ]
    for error, expected in cases:
        call = Failing(error, error)
        with pytest.raises(expected):
            retrying(call, what="x", sleep=lambda _s: None)
        assert call.calls == 1


def test_final_errors_carry_no_secret_and_no_chain():
    error = gdal_error(f"HTTP response code: 503 on {BLOB}?sig={CANARY}\nmore")
    with pytest.raises(UpstreamError) as caught:
        retrying(Failing(*[error] * 9), what=f"{BLOB}?sig={CANARY}", sleep=lambda _s: None, raises=UpstreamError)
    assert type(caught.value) is Unreachable, "whatever is asked for, an archive that is down can be tried again"
    assert CANARY not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.__suppress_context__


# -- GDAL itself


class Files(BaseHTTPRequestHandler):
    """One GeoTIFF with ranges; `missing` answers 404 that often first."""

    content = b""
    missing = 0

    def log_message(self, *_args):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        cls = type(self)
        if cls.missing > 0:
            cls.missing -= 1
            self.send_error(404)
            return
        ranges = self.headers.get("Range")
        first, last = 0, len(self.content) - 1
        if ranges:
            low, _, high = ranges.removeprefix("bytes=").partition("-")
            first, last = int(low), min(int(high or last), last)
        part = self.content[first : last + 1]
        self.send_response(206 if ranges else 200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(self.content)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(part)


@pytest.fixture(scope="module")
def geotiff(tmp_path_factory):
    import numpy as np
    import rasterio
    from affine import Affine

    path = tmp_path_factory.mktemp("tif") / "B02.tif"
    profile = {"driver": "GTiff", "width": 60, "height": 60, "count": 1, "dtype": "uint16", "crs": "EPSG:32632"}
    with rasterio.open(path, "w", transform=Affine(10, 0, 399_960, 0, -10, 5_100_000), **profile) as file:
        file.write(np.arange(3600, dtype="uint16").reshape(1, 60, 60))
    return path


def test_a_404_that_goes_away_is_forgotten(geotiff):
    """GDAL caches a 404 for the life of the process unless CPL_VSIL_CURL_NON_CACHED is set."""
    import rasterio

    handler = type("Handler", (Files,), {"content": geotiff.read_bytes(), "missing": 0})
    with serving(handler) as url:
        access = Access(hosts=(url.removeprefix("http://"),))

        def read():
            with rasterio.Env(**gdal_options(access)), rasterio.open(access.href(f"{url}/a/B02.tif")) as file:
                return int(file.read(1)[59, 59])

        handler.missing = 1
        assert retrying(read, what="B02", base_s=0.0) == 3599
        handler.missing = 99
        access.forget(f"{url}/a/B02.tif")  # or what is kept of the file answers
        with pytest.raises(ReadError, match=r"\(gone, after 2 tries\)"):
            retrying(read, what="B02", base_s=0.0)


def test_every_option_is_accepted_by_rasterio_and_stackstac(geotiff):
    import rasterio
    import stackstac

    access = Access(hosts=("s3://bucket",))
    assert all(isinstance(value, str) for value in access.gdal_env().values())
    options = gdal_options(access)
    with rasterio.Env(**options) as running:
        assert running.options["GDAL_HTTP_MAX_RETRY"] == "1"
    assert stackstac.DEFAULT_GDAL_ENV.updated(always=options).always.options["GDAL_NUM_THREADS"] == "1"


SKIP_PROBE = """
import sys, warnings
warnings.simplefilter("ignore")
from pipeline.archive.read.gdal import open_raster, restrict_drivers
took = restrict_drivers()
import numpy as np, rasterio, stackstac
from rasterio.errors import RasterioIOError
from pipeline.errors import ReadError
tif, vrt, expected = sys.argv[1:]
assert took is (expected == "took"), took
for opened, refusal in ((rasterio.open, RasterioIOError), (open_raster, ReadError)):
    try:
        opened(vrt)
        if took or opened is open_raster:
            raise SystemExit(f"a VRT was opened by {opened}")
    except refusal:
        pass
assert open_raster(tif).driver == "GTiff"
item = {"type": "Feature", "stac_version": "1.0.0", "id": "x", "geometry": None, "bbox": [7.7, 45.9, 7.8, 46.1],
        "properties": {"datetime": "2024-01-01T00:00:00Z", "proj:epsg": 32632}, "links": [],
        "assets": {"B02": {"href": tif, "proj:transform": [10, 0, 399960, 0, -10, 5100000], "proj:shape": [60, 60]}}}
for shift in (0, 5):
    bounds = (399960 + shift, 5099400 + shift, 400560 + shift, 5100000 + shift)
    cube = stackstac.stack([item], assets=["B02"], epsg=32632, resolution=10, bounds=bounds, snap_bounds=False,
                           dtype="uint16", fill_value=np.uint16(0), rescale=False, errors_as_nodata=())
    values = cube.compute(scheduler="synchronous").values[0, 0]
    assert values.max() == 3599, values.max()
print("ok")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ({}, "took"),
        ({"GDAL_SKIP": "GPKG"}, "took"),
        ({"GDAL_SKIP": "GPKG PDF"}, "took"),
        ({"GDAL_SKIP": "GPKG,ESRI Shapefile"}, "took"),
        ({"GDAL_SKIP": ""}, "took"),
        ({"GDAL_SKIP": "GTiff,PNG"}, "took"),
        ({"GDAL_VRT_ENABLE_PYTHON": "YES"}, "took"),
        ({"GDAL_CONFIG_FILE": "{config}"}, "came too late"),
    ],
)
def test_no_gdal_configuration_lets_a_vrt_in(geotiff, tmp_path, own, expected):
    """A configuration file may register the driver all the same; each file is opened by a named driver."""
    vrt = tmp_path / "harmless.tif"
    vrt.write_text(
        '<VRTDataset rasterXSize="60" rasterYSize="60"><VRTRasterBand dataType="UInt16" band="1"><SimpleSource>'
        f"<SourceFilename>{geotiff}</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>"
    )
    config = tmp_path / "gdalrc"
    config.write_text("[directives]\nignore-env-vars=yes\n[configoptions]\nGDAL_SKIP=GPKG\n")
    environment = {key: value for key, value in os.environ.items() if key != "GDAL_SKIP"}
    environment |= {name: value.format(config=config) for name, value in own.items()}
    done = subprocess.run(
        [sys.executable, "-c", SKIP_PROBE, str(geotiff), str(vrt), expected],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.stdout.strip() == "ok", done.stderr


def test_restrict_drivers_says_when_it_came_too_late(monkeypatch):
    import rasterio

    monkeypatch.delenv("GDAL_SKIP", raising=False)
    with rasterio.Env() as env:
        late = "VRT" in env.drivers()
    assert restrict_drivers() is not late


def test_imports_stay_light():
    code = "import sys, pipeline.archive.read.access, pipeline.aoi.aoi, pipeline.archive.catalog as c; print(sorted("
    code += "{'rasterio', 'pyproj', 'shapely', 'pystac_client', 'requests', 'stackstac', 'torch'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
