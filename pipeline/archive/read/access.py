"""What GDAL may open, signed just before it does: href policy, tokens, GDAL options, retries, redaction.

In: unsigned hrefs of scenes. Out: paths for GDAL, and errors without secrets. An `Access` holds no secret and pickles.
https files are read through `gateway`, which checks redirects and the addresses that names resolve to.
"""

from __future__ import annotations

import functools
import json
import os
import re
import threading
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import SplitResult, quote, unquote, urlsplit

from pipeline.archive.read import zipped
from pipeline.archive.read.drivers import ALLOWED_DRIVERS, open_raster, restrict_drivers, skipped_drivers
from pipeline.archive.read.host_policy import ANY_PUBLIC_HOST, HostPolicy, listing_cure
from pipeline.archive.read.rate_limit import Visit, host_of
from pipeline.archive.read.retry import retrying
from pipeline.errors import PipelineError, ReadError, UpstreamError, UsageError
from pipeline.redaction import redact

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "ALLOWED_DRIVERS", "ANY_PUBLIC_HOST", "SIGNINGS", "Access", "open_raster", "redact", "restrict_drivers", "retrying",
]  # fmt: skip

T = TypeVar("T")

SIGNINGS: tuple[str, ...] = ("none", "planetary-computer", "cdse-s3", "s3-env")
PLANETARY_TOKEN_URL = "https://planetarycomputer.microsoft.com/api/sas/v1/token"
CDSE_S3_ENDPOINT = "eodata.dataspace.copernicus.eu"
MAX_HREF_CHARS = 2048  # real hrefs stay under 400; GDAL itself cuts file names at 2048
READ_TRIES = 6  # of a file whose host does not answer or is busy
TOKEN_MARGIN_S = 300.0  # a token this close to its end is not handed out any more
_BLOB_SUFFIX = ".blob.core.windows.net"

_S3_EXTENSIONS = " .tif .tiff .jp2 .TIF .TIFF .JP2"
_INDIRECT_SUFFIXES = (".vrt", ".gti", ".xml", ".json", ".til", ".zip", ".tar", ".tgz", ".gz")

_tokens: dict[tuple[str, str, str], tuple[str, float]] = {}  # (endpoint, account, container) -> (token, expiry)
_tokens_lock = threading.Lock()


@dataclass(frozen=True)
class Access:
    """How the files of one archive may be reached.

    `hosts`: allowed "host", "*.suffix", "127.0.0.1:8080" (also over http), "s3://bucket", or "*" (any public https
    host). `roots`: folders under which plain paths may lie. `connections`: how many a host grants to all our processes
    together.
    """

    signing: str = "none"
    hosts: tuple[str, ...] = ()
    roots: tuple[str, ...] = ()
    token_url: str = PLANETARY_TOKEN_URL
    s3_endpoint: str = CDSE_S3_ENDPOINT  # only for cdse-s3
    connections: int = 8

    def __post_init__(self) -> None:
        object.__setattr__(self, "hosts", tuple(self.hosts))  # lists where it comes from JSON
        object.__setattr__(self, "roots", tuple(self.roots))
        if self.signing not in SIGNINGS:
            raise UsageError(f"signing {self.signing!r} is unknown", f"one of {', '.join(SIGNINGS)}")
        if type(self.connections) is not int or self.connections < 1:
            raise UsageError(f"limits.connections = {self.connections!r}", "a number of connections, at least 1")

    @property
    def _reads_s3(self) -> bool:
        return any(host.startswith("s3://") for host in self.hosts)

    @property
    def policy(self) -> HostPolicy:
        """Which hosts may be talked to."""
        return HostPolicy(self.hosts)

    def href(self, href: str) -> str:
        """Path that GDAL may open, signed where the archive wants it. UsageError when the policy refuses `href`."""
        kind, parts = self._admitted(href)
        if kind == "path":
            return parts.path
        if kind == "s3":
            if self.signing in ("cdse-s3", "s3-env"):
                _require_s3_keys(self.signing)
            return f"/vsis3/{parts.netloc}{parts.path}"
        from pipeline.archive.read.gateway import gdal_path

        return gdal_path(self._identity(href), self.address(href), self.policy, self.connections)

    def address(self, href: str) -> str:
        """Address of an https file, signed for now. UsageError when the policy refuses `href`."""
        _, parts = self._admitted(href)
        if self.signing == "planetary-computer" and parts.netloc.endswith(_BLOB_SUFFIX):
            return f"{parts.scheme}://{parts.netloc}{parts.path}?{self._token(parts)}"
        return parts.geturl()

    def _identity(self, href: str) -> str:
        return f"{self!r} {href}"

    def check(self, href: str) -> None:
        """Raise UsageError when the policy refuses `href`; needs neither network nor credentials."""
        self._admitted(href)

    def lists(self, host: str) -> bool:
        """True where a host is allowed by its name or a pattern, not only as any public host."""
        return self.policy.lists(host)

    def refresh(self, href: str) -> None:
        """Forget the token for `href`: call it when the archive answered 401 or 403."""
        kind, parts = self._admitted(href)
        if kind == "https" and self.signing == "planetary-computer" and parts.netloc.endswith(_BLOB_SUFFIX):
            with _tokens_lock:
                _tokens.pop(self._token_key(parts), None)

    def reading(self, href: str, call: Callable[[], T], *, what: str) -> T:
        """Result of `call`, which reads the file at `href`: in its turn, tried again, signed anew once if refused.

        ReadError, or Unreachable, with `what` and the file in the message.
        """
        place = f"{what} at {redact(href)}"

        def attempt() -> T:
            try:
                return call()
            except PipelineError:
                raise
            except Exception as error:
                explained = self._explained(href, place)
                if explained is None:
                    raise
                raise explained from error

        return retrying(
            attempt, what=place, tries=READ_TRIES, on_auth=lambda: self.refresh(href), visit=self._visit(href)
        )

    def _explained(self, href: str, place: str) -> Exception | None:
        """What the gateway knows of a failure, if anything. A refused redirect is final."""
        from pipeline.archive.read.gateway import last_failure

        known = last_failure(self._identity(href))
        if known.get("refused"):
            found, expected, cure = known["refused"]
            return ReadError(f"{place}: {found}", expected, cure)
        return ConnectionError(known["trouble"]) if known.get("trouble") else None

    def _visit(self, href: str) -> Visit | None:
        """Turns at the host of `href`; None for a path."""
        from pipeline.archive.read.gateway import last_failure

        kind, parts = self._admitted(href)
        if kind == "path":
            return None
        if kind == "s3":
            return Visit(host_of(parts.netloc), self.connections)
        host = host_of(parts.netloc.lower())
        return Visit(host, self.connections, lambda: float(last_failure(self._identity(href)).get("wait_s", 0.0)))

    def gdal_env(self) -> dict[str, str]:
        """GDAL options as environment variables (reasons: each line).

        rasterio.Env wants the cache size in bytes and as a number: `bandfile.gdal_options` gives that form. GDAL_SKIP
        is here for the environment of new processes; see `restrict_drivers` for the present one.
        """
        env = {
            "GDAL_HTTP_MAX_RETRY": "1",  # a hiccup in a long read; beyond that, `retrying` knows more
            "GDAL_HTTP_RETRY_DELAY": "1",
            # GDAL >= 3.10. 408 is not in its own list; 429 and 503 make all reads of the host wait, not this one alone.
            "GDAL_HTTP_RETRY_CODES": "408,500,502,504",
            "GDAL_HTTP_CONNECTTIMEOUT": "10",
            "GDAL_HTTP_TIMEOUT": "60",
            "GDAL_HTTP_LOW_SPEED_TIME": "30",  # give up on a connection that delivers less than
            "GDAL_HTTP_LOW_SPEED_LIMIT": "1000",  # 1000 bytes/s for 30 s
            "GDAL_HTTP_MERGE_CONSECUTIVE_RANGES": "YES",
            "GDAL_HTTP_MULTIRANGE": "SERIAL",  # one read, one connection; YES opens one for each row of blocks
            "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",  # no listing, no side-car files
            "GDAL_INGESTED_BYTES_AT_OPEN": "32768",  # the header of a COG in one request
            "GDAL_CACHEMAX": "256",  # MB per process; the default is 5 % of RAM for every worker
            "GDAL_NUM_THREADS": "1",
            "GDAL_SKIP": skipped_drivers(),
            **self.fence(),
            "VSICURL_PC_URL_SIGNING": "NO",  # nor does GDAL sign
            "CPL_CURL_VERBOSE": "NO",  # headers, with what they hold, on the terminal
            "GDAL_VRT_ENABLE_PYTHON": "NO",
            # GDAL remembers a 404 for the life of the process unless told not to, so that a retry would be a fake.
            # It splits this list at every colon, hence prefixes without host.
            "CPL_VSIL_CURL_NON_CACHED": "/vsicurl/http:/vsis3/",
        }
        if self.signing == "none" and self._reads_s3:
            env["AWS_NO_SIGN_REQUEST"] = "YES"
        if self.signing == "cdse-s3":
            env |= {"AWS_S3_ENDPOINT": self.s3_endpoint, "AWS_VIRTUAL_HOSTING": "FALSE", "AWS_HTTPS": "YES"}
        return env

    def fence(self) -> dict[str, str]:
        """The GDAL option that keeps this process from all network files but the gateway's and listed buckets'.

        A GeoTIFF's own metadata can name another file for its overviews (OVERVIEW_FILE), anywhere.
        """
        from pipeline.archive.read.gateway import SUFFIX

        return {"CPL_VSIL_CURL_ALLOWED_EXTENSIONS": SUFFIX + (_S3_EXTENSIONS if self._reads_s3 else "")}

    def _admitted(self, href: str) -> tuple[str, SplitResult]:
        """("path" | "s3" | "https", parts) of an href that the policy allows; UsageError names the rule it broke."""
        _check_text(href)
        scheme = re.match(r"([A-Za-z][A-Za-z0-9+._-]*):", href)
        if scheme is None:
            return "path", SplitResult("", "", self._local_path(href), "", "")
        name = scheme[1].lower()
        if name == "file":
            return "path", SplitResult("", "", self._local_path(unquote(_split(href).path)), "", "")
        if name not in ("https", "http", "s3"):
            raise _refused(href, f"scheme {name}: is not one of https, s3, file")
        parts = _split(href)
        if ".." in unquote(unquote(parts.path)).split("/"):
            raise _refused(href, "it climbs with '..'")
        if name == "s3":
            if f"s3://{parts.netloc}" not in self.hosts:
                raise _refused(href, f"bucket {parts.netloc!r} is not listed", f"s3://{parts.netloc}")
            return "s3", parts
        self._check_host(href, parts)
        return "https", parts

    def _local_path(self, path: str) -> str:
        if path.startswith("/vsi"):
            raise _refused(path, "GDAL's virtual file systems are not for catalogues to choose")
        if ".." in Path(path).parts:
            raise _refused(path, "it climbs with '..'")
        real = Path(path).resolve()
        if not any(real.is_relative_to(Path(root).resolve()) for root in self.roots):
            rule = f"it lies under none of the folders {list(self.roots)}"
            cure = "list the files with python -m pipeline.index FOLDER, or name their folder in SEN2FINE_ROOTS"
            raise _refused(path, rule, cure=cure)
        # A path that leads through a zip file: the archive is what lies under the roots. Only its own members can be
        # reached, since the path has no "..", and only by the drivers allowed for any file.
        return str(real) if zipped.split(real) is None else f"/vsizip/{real}"

    def _check_host(self, href: str, parts: SplitResult) -> None:
        """Allow-list by exact name with port, by name, or by pattern; plain http only for listed loopback addresses."""
        fault = self.policy.fault(parts)
        if fault:
            raise _refused(href, *fault)

    def _token_key(self, parts: SplitResult) -> tuple[str, str, str]:
        container = parts.path.lstrip("/").split("/", 1)[0]
        return self.token_url, parts.netloc[: -len(_BLOB_SUFFIX)], container

    def _token(self, parts: SplitResult) -> str:
        """SAS token of (account, container), kept until five minutes before it ends. One request at a time."""
        key = self._token_key(parts)
        with _tokens_lock:
            token, expiry_s = _tokens.get(key, ("", 0.0))
            if not token or expiry_s - time.time() < TOKEN_MARGIN_S:
                what = f"token for {key[1]}/{key[2]} from {urlsplit(self.token_url).netloc}"
                fetch: Callable[[], tuple[str, float]] = functools.partial(_fetch_token, *key)
                token, expiry_s = retrying(fetch, what=what, raises=UpstreamError)
                _tokens[key] = token, expiry_s
            return token


def _fetch_token(endpoint: str, account: str, container: str) -> tuple[str, float]:
    """(token, expiry in seconds since 1970) from the Planetary Computer's token service, which stays at its host."""
    from email.message import Message
    from urllib.error import HTTPError

    from requests import Session

    from pipeline.archive.read.guarded_http import guarded, open_url

    headers = {"Accept": "application/json"}
    key = os.environ.get("PC_SDK_SUBSCRIPTION_KEY")
    if key:  # never sent to another host: redirects may not lead there
        headers["Ocp-Apim-Subscription-Key"] = key
    address = f"{endpoint}/{quote(account)}/{quote(container)}"
    policy = HostPolicy((urlsplit(endpoint).netloc.lower(),))
    with guarded(Session(), policy) as session, open_url(session, address, headers) as response:
        body = response.raw.read(65536, decode_content=True)
    if response.status_code != 200:
        raise HTTPError(address, response.status_code, str(response.reason), Message(), None)
    try:
        answer: dict[str, Any] = json.loads(body)
        expiry = datetime.fromisoformat(str(answer["msft:expiry"]))
        return str(answer["token"]).lstrip("?"), expiry.timestamp()
    except (KeyError, TypeError, ValueError) as error:  # a proxy's error page with status 200
        msg = f"the token service answered something else than a token ({type(error).__name__})"
        raise ConnectionError(msg) from None


def _check_text(href: str) -> None:
    if not href.strip():
        raise UsageError("an asset has an empty href", "an address or a path")
    if len(href) > MAX_HREF_CHARS:
        raise UsageError(f"an asset's href has {len(href)} characters", f"at most {MAX_HREF_CHARS}")
    if any(ord(char) <= 0x20 or char in "\\\x7f" for char in href.replace(" ", "")):
        raise _refused(href, "it holds control characters or backslashes")
    if _split(href).path.lower().endswith(_INDIRECT_SUFFIXES):
        raise _refused(href, "files that point to other files are not opened")


def _split(href: str) -> SplitResult:
    try:
        return urlsplit(href)
    except ValueError as error:
        raise _refused(href, f"it is not an address ({error})") from None


def _refused(href: str, rule: str, listing: str = "", cure: str = "") -> UsageError:
    shown = redact(href if len(href) <= 200 else href[:200] + "...")
    return UsageError(f"asset href {shown!a} is refused: {rule}", cure=listing_cure(listing) or cure)


def _require_s3_keys(signing: str) -> None:
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    absent = [name for name in names if not os.environ.get(name)]
    if absent:
        raise UsageError(
            f"archive access {signing!r} needs S3 keys and {' and '.join(absent)} is not set",
            "keys in the environment of every process that reads",
            "create keys on the archive's account page and export them; they are never written to a plan or a log",
        )
