"""Error classification and retries for remote reads."""

from __future__ import annotations

import random
import re
import time
from contextlib import nullcontext
from typing import TYPE_CHECKING, TypeVar

from pipeline.archive.read.connection import FAULT_WORDS, LOCAL_ERRNO, connection_fault
from pipeline.archive.read.rate_limit import MAX_RETRY_AFTER_S, retry_after_s
from pipeline.errors import PipelineError, ReadError, StorageError, Unreachable, UpstreamError
from pipeline.redaction import redact

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pipeline.archive.read.rate_limit import HostSlot

T = TypeVar("T")

MAX_WAIT_S = 60.0  # of our own back-off
TRANSIENT_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})

_STATUS = re.compile(
    r"(?:HTTP (?:response|error) code ?:? ?|HTTP Error |status[ _]code[ =:]*|too many (?=\d{3} error))(\d{3})",
    re.IGNORECASE,
)
_AUTH_WORDS = re.compile(r"AccessDenied|InvalidAccessKeyId|SignatureDoesNotMatch|ExpiredToken|AuthenticationFailed")
_GONE_WORDS = re.compile(r"No such file or directory|does not exist in the file system|NoSuchKey|BlobNotFound")
# GDAL's messages for a dropped, throttled, short or damaged response. A first "not recognized" is often a 503 page
# (gjoseph92/stackstac#18), and GDAL itself never retries a short body.
_TRANSIENT_WORDS = re.compile(
    r"CURL error|timed? ?out|reset by peer|Connection (?:refused|aborted|reset)|Temporary failure in name resolution"
    rf"|could not resolve|failed to resolve|Max retries exceeded|{FAULT_WORDS}"
    r"|not recognized as|SlowDown|ServerBusy|RequestTimeout|Read failed|read error|IReadBlock failed"
    r"|TIFFFillTile|TIFFReadEncoded|TIFFReadDirectory|TIFFFetch|Decoding error|inflate|ZSTD|incomplete|truncated"
    r"|Premature|opj_|Error reading Window|Range downloading not supported",
    re.IGNORECASE,
)
# Those that concern the archive as a whole rather than one damaged file.
_OUTAGE_WORDS = re.compile(
    r"CURL error|timed? ?out|reset by peer|Connection (?:refused|aborted|reset)|Temporary failure in name resolution"
    rf"|could not resolve|failed to resolve|Max retries exceeded|{FAULT_WORDS}|SlowDown|ServerBusy|RequestTimeout",
    re.IGNORECASE,
)
_BUSY_STATUS = frozenset({429, 503})  # pauses the host for this whole process
_BUSY_WORDS = re.compile(r"SlowDown|ServerBusy", re.IGNORECASE)
_WAIT_WORDS = re.compile(r"(?:try|retry) again in (\d+(?:\.\d+)?)", re.IGNORECASE)


def classify(error: BaseException) -> str:
    """One of "transient", "auth", "gone", "permanent", "local" or "bug", from the error and its causes.

    The outermost definite answer counts: "Read failed" says less than the "HTTP response code: 403" that caused it.
    """
    verdicts = [_classify_one(link) for link in _chain(error)]
    definite = [verdict for verdict in verdicts if verdict not in ("bug", "transient")]
    if definite:
        return definite[0]
    return "transient" if "transient" in verdicts else "bug"


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and its causes, outermost first; urllib keeps the cause in `reason`."""
    link: BaseException | None = error
    for _ in range(8):
        if link is None:
            return
        yield link
        reason = getattr(link, "reason", None)
        behind = None if link.__suppress_context__ else link.__context__
        link = reason if isinstance(reason, BaseException) else link.__cause__ or behind


def _classify_one(error: BaseException) -> str:
    text = str(error)
    status = _status(error, text)
    if status is not None:
        return _classify_status(status)
    if isinstance(error, OSError) and error.errno in LOCAL_ERRNO:
        return "local"
    if isinstance(error, FileNotFoundError) or _GONE_WORDS.search(text):
        return "gone"
    if _AUTH_WORDS.search(text):
        return "auth"
    if isinstance(error, TimeoutError | ConnectionError | EOFError) or _TRANSIENT_WORDS.search(text):
        return "transient"
    if isinstance(error, OSError):  # RasterioIOError and URLError are OSErrors: remote, cause unknown
        return "transient"
    return "bug"


def _status(error: BaseException, text: str) -> int | None:
    for name in ("status_code", "code", "status"):
        value = getattr(error, name, None)
        if isinstance(value, int) and 400 <= value < 600:
            return value
    found = _STATUS.search(text)
    return int(found[1]) if found and found[1] >= "400" else None


def _classify_status(status: int) -> str:
    if status in TRANSIENT_STATUS or status >= 500:
        return "transient"
    if status in (401, 403):
        return "auth"
    return "gone" if status in (404, 410) else "permanent"


def _asked_s(error: BaseException) -> float:
    """Seconds of the server's Retry-After, 0 without one; at most MAX_RETRY_AFTER_S."""
    for link in _chain(error):
        headers = getattr(link, "headers", None)
        words = _WAIT_WORDS.search(str(link))
        if headers is not None and hasattr(headers, "get") and (stated_s := retry_after_s(headers)):
            return stated_s
        if words:
            return min(float(words[1]), MAX_RETRY_AFTER_S)
    return 0.0


_CURES = {
    "transient": "run the same command again later, it continues where it stopped",
    "auth": "check the archive's credentials in the environment of this process, and the machine's clock",
    "gone": "the catalogue names a file that the archive does not have; leave the scene out with --exclude ID, or use "
    "another catalogue",
    "permanent": "leave the scene out with --exclude ID, or use another catalogue",
}


_TRIES = {"transient": 4, "auth": 4, "gone": 2, "permanent": 1}  # at most, where the host itself is up


def _is_outage(error: BaseException) -> bool:
    texts = [str(link) for link in _chain(error)]
    return any(_OUTAGE_WORDS.search(text) or _status(error, text) in TRANSIENT_STATUS for text in texts)


def _says_busy(error: BaseException) -> bool:
    return any(_BUSY_WORDS.search(str(link)) or _status(link, str(link)) in _BUSY_STATUS for link in _chain(error))


def retrying(
    call: Callable[[], T],
    *,
    what: str,
    tries: int = 4,
    base_s: float = 0.5,
    sleep: Callable[[float], object] = time.sleep,
    on_auth: Callable[[], object] | None = None,
    raises: type[UpstreamError] = ReadError,
    slot: HostSlot | None = None,
) -> T:
    """Result of `call`, tried up to `tries` times with full jitter (base_s, base_s*2, ... up to 60 s).

    Transient errors use every try, those of one damaged file four; 401/403 calls `on_auth` (to refresh the token)
    once and then has two more tries; 404 is tried once more. Local errors raise StorageError at once; programming
    errors and PipelineErrors pass unchanged. Anything else raises `raises` with `what` and a redacted text, or
    Unreachable where the archive is down rather than a file damaged. With a `slot`, each try
    waits for a connection, a busy host is paused for the whole process, and a host whose retry budget is spent
    counts as down.
    """
    refreshed = False
    for attempt in range(1, tries + 1):
        try:
            with slot.turn() if slot else nullcontext():
                return call()
        except PipelineError:
            raise
        except Exception as error:
            kind = classify(error)
            if kind == "bug":
                raise
            message = redact(f"{what}: {_said(error)}".replace("\n", " "))
            if kind == "local":
                raise StorageError(message, cure="free space or permissions on this machine, then run again") from None
            outage = kind == "transient" and _is_outage(error)
            allowed = tries if outage else min(tries, _TRIES[kind])
            if attempt >= allowed or (outage and slot is not None and not slot.may_retry()):
                raise _final(message, kind, attempt, raises, outage) from None
            if kind == "auth" and on_auth is not None and not refreshed:
                refreshed = True
                on_auth()
                continue
            wait_s = max(random.uniform(0, min(MAX_WAIT_S, base_s * 2 ** (attempt - 1))), _asked_s(error))
            if slot is not None and _says_busy(error):
                slot.pause(wait_s)
            else:
                sleep(wait_s)
    raise raises(f"{what}: no try was allowed (tries={tries})")


def _said(error: BaseException) -> str:
    """Return an error's text, without the objects that clients of HTTP name in it."""
    fault = connection_fault(error) if type(error).__module__.startswith(("requests.", "urllib3.")) else None
    return fault[0] if fault else str(error)


def _final(message: str, kind: str, attempt: int, raises: type[UpstreamError], outage: bool) -> UpstreamError:
    count = f"{attempt} {'try' if attempt == 1 else 'tries'}"
    if outage:
        return Unreachable(f"{message} (after {count})", cure=_CURES[kind])
    return raises(f"{message} ({kind}, after {count})", cure=_CURES[kind])
