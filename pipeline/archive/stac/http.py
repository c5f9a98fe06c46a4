"""JSON documents from a STAC server: pystac-client's requests with effective retries and classified errors."""

from __future__ import annotations

import json
import re
import time
import warnings
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, urljoin, urlsplit, urlunsplit

from pipeline.archive.read.connection import LATER, connection_fault, readable
from pipeline.archive.read.guarded_http import guarded
from pipeline.archive.read.host_policy import HostPolicy
from pipeline.archive.read.host_policy import Refused as RefusedByPolicy
from pipeline.archive.read.retry import TRANSIENT_STATUS, classify
from pipeline.errors import PipelineError, Unreachable, UpstreamError, UsageError
from pipeline.redaction import redact

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pystac_client.stac_api_io import StacApiIO
    from urllib3 import BaseHTTPResponse
    from urllib3.util import Retry

    from pipeline.archive.catalog import RetryPolicy

_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
_ONE_WORD = re.compile(r"[a-z][a-z0-9_-]*")  # messages for an unknown host
_NO_SUCH_HOST = re.compile(r"Name or service not known|No address associated|nodename nor servname|NXDOMAIN")
_NOT_TRUSTED = re.compile(
    r"certificate verify failed|CERTIFICATE_VERIFY_FAILED|hostname mismatch|doesn't match"
    r"|certificate that is not trusted"
)
_NOT_AN_ADDRESS = ("MissingSchema", "InvalidSchema", "InvalidURL", "LocationParseError", "TooManyRedirects")
_PERMANENT_STATUS = frozenset({501, 505, 511})


class Refused(Exception):
    """The server answered with a status that the caller handles."""

    def __init__(self, status: int, failure: PipelineError) -> None:
        super().__init__(status)
        self.status, self.failure = status, failure


class StacHttp:
    """One STAC server. Requests go to its host, redirects to it or to `hosts`; every failure is a PipelineError."""

    def __init__(self, url: str, retry_policy: RetryPolicy, hosts: Sequence[str] = ()) -> None:
        from pystac_client.stac_api_io import StacApiIO

        self.own = urlsplit(url)
        self.host = self.own.netloc
        self.retry_policy = retry_policy
        self.io: StacApiIO = StacApiIO()
        guarded(self.io.session, HostPolicy((self.host.lower(), *hosts)), retries=_retry(retry_policy))
        self.io.timeout = (retry_policy.connect_s, retry_policy.read_s)

    def document(
        self,
        url: str,
        *,
        method: str = "GET",
        parameters: dict[str, Any] | None = None,
        check: Callable[[dict[str, Any]], bool] = lambda _document: True,
        refused: frozenset[int] = frozenset(),
    ) -> dict[str, Any]:
        """JSON object that passes `check`. Raises Refused for the statuses `refused`, Unreachable, UpstreamError.

        urllib3 retries statuses and connections; truncated or non-JSON bodies are retried here, and 403, which Earth
        Search uses as a rate limit (Element84/earth-search#19).
        """
        tries = max(1, self.retry_policy.tries)
        failure: PipelineError | None = None
        for attempt in range(1, tries + 1):
            try:
                return self._once(url, method, parameters, check)
            except PipelineError:
                raise
            except Exception as error:
                if isinstance(error.__context__, RefusedByPolicy):  # pystac-client wraps what its session raises
                    raise error.__context__ from None
                status = getattr(error, "status_code", None)
                kind = "permanent" if isinstance(error, json.JSONDecodeError) else _kind(error)
                failure = self._failure(error, kind)
                if status in refused:
                    raise Refused(int(status or 0), failure) from None
                again = isinstance(error, json.JSONDecodeError) or kind == "transient" or status == 403
                if not again or "Max retries exceeded" in str(error):
                    raise failure from None
            if attempt < tries:
                time.sleep(min(60.0, self.retry_policy.backoff_s * 2 ** (attempt - 1)))
        assert failure is not None
        raise failure

    def _once(
        self, url: str, method: str, parameters: dict[str, Any] | None, check: Callable[[dict[str, Any]], bool]
    ) -> dict[str, Any]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pystac-client
            text = self.io.request(url, method=method, parameters=parameters)
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise json.JSONDecodeError(str(error)[:100], "", 0) from None
        if not isinstance(document, dict) or not check(document):
            raise json.JSONDecodeError("not the object that was asked for", "", 0)
        return document

    def _failure(self, error: Exception, kind: str) -> PipelineError:
        status = getattr(error, "status_code", None)
        fault = None if status or isinstance(error, json.JSONDecodeError) else connection_fault(error, self.host)
        if fault is not None:
            # to try again helps against all of them but a certificate that is not trusted
            kind_of = UpstreamError if _NOT_TRUSTED.search(fault[0]) else Unreachable
            return kind_of(redact(fault[0])[:300], "a reachable archive", fault[1])
        said = readable(error)
        said = f"the answer is not what a STAC API sends ({said})" if isinstance(error, ValueError) else said
        shown = redact(said)
        found = f"the catalogue at {self.host} cannot be searched: {shown[:300]}"
        if kind == "transient":
            return Unreachable(found, f"an answer within {self.retry_policy.tries} tries", LATER)
        if kind == "auth":
            return UpstreamError(found, "access", "wait if it limits requests, else check what it asks of its users")
        if kind == "bug":
            found = f"{self.host} answers, but not as a STAC API ({type(error).__name__}: {shown})"
            return UsageError(found[:400], "the root of a STAC API", "check the address")
        return UpstreamError(found, "a list of items", "check collection and address, or use another catalogue")

    def at_home(self, href: str, base: str, *, search: str = "") -> str | None:
        """The address of a link on the server's host; None if it leads elsewhere.

        Links may spell that host in capitals, with its port, as http behind an https proxy, or by its undotted name
        inside its own network. Paths of a search may lack a proxy's prefix; `search`, where known, replaces them.
        Nothing is ever sent to another host.
        """
        try:
            target = urlsplit(urljoin(base, href.strip()))
            host = (target.hostname or "").lower().rstrip(".")
        except ValueError:
            return None
        own = (self.own.hostname or "").lower().rstrip(".")
        if target.scheme not in ("http", "https") or not host:
            return None
        same = host == own or {host, own} <= _LOOPBACK
        internal = _ONE_WORD.fullmatch(host) is not None and search != ""
        if not (same or internal):
            return None
        searching = search and ((internal and not same) or target.path.rstrip("/").endswith("/search"))
        path = urlsplit(search).path if searching else target.path
        return urlunsplit(SplitResult(self.own.scheme, self.own.netloc, path, target.query, ""))


def _kind(error: BaseException) -> str:
    """As `retry.classify`, with lasting connection faults as "permanent"."""
    link: BaseException | None = error
    text = str(error)
    for _ in range(8):
        if link is None:
            break
        if type(link).__name__ in _NOT_AN_ADDRESS:
            return "permanent"
        text += f" {link}"
        link = link.__cause__ or link.__context__
    if getattr(error, "status_code", None) in _PERMANENT_STATUS or _lasting(text):
        return "permanent"
    return classify(error)


def _lasting(error: object) -> bool:
    """True for lasting connection faults: an unknown host, or an untrusted certificate."""
    text = str(error)
    return _NO_SUCH_HOST.search(text) is not None or _NOT_TRUSTED.search(text) is not None


def _retry(retry_policy: RetryPolicy) -> Retry:
    """Retries of urllib3 that also cover POST and bad statuses (pystac-client's own number covers neither)."""
    from urllib3.util import Retry

    cap_s = retry_policy.max_retry_after_s

    class CappedRetry(Retry):
        """Honours Retry-After up to a limit, and does not retry lasting faults."""

        def get_retry_after(self, response: BaseHTTPResponse) -> float | None:
            asked = super().get_retry_after(response)
            return None if asked is None else min(asked, cap_s)

        def is_exhausted(self) -> bool:
            return super().is_exhausted() or bool(self.history and _lasting(self.history[-1].error))

    return CappedRetry(
        total=retry_policy.tries,
        backoff_factor=retry_policy.backoff_s,
        backoff_jitter=retry_policy.backoff_s,
        backoff_max=60,
        status_forcelist=TRANSIENT_STATUS,
        allowed_methods=None,
    )
