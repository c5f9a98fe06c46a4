"""Remove secrets from messages and logs: query strings, user names in URLs, tokens, keys and passwords."""

from __future__ import annotations

import logging
import os
import re
import sys
import threading
import traceback
from typing import TYPE_CHECKING

from pipeline.plain import plain

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

_SECRET_NAMES = (
    r"sig|signature|skoid|sktid|ske|sks|skv|skt|sas|sas_?token|[\w-]*token|jwt|x-amz-[a-z-]+|awsaccesskeyid"
    r"|aws_secret_access_key|aws_access_key_id|aws_session_token|access_?key|[\w-]*secret(?:_?key)?|private_?key"
    r"|[\w-]*password|passwd|pwd|passphrase|(?:x-)?api[-_]?key|credentials?|session_?id|jsessionid"
    r"|subscription[-_]key|ocp-apim-subscription-key|set-cookie|cookie|userpwd"
)
# Environment variables whose values are removed wherever they appear.
_SECRET_VARIABLE = re.compile(
    r"SECRET|TOKEN|PASSWORD|PASSWD|API_?KEY|ACCESS_?KEY|ACCOUNT_?KEY|SUBSCRIPTION_?KEY|BEARER|USERPWD|COOKIE|HTTP_HEADERS"
)
_SCHEME = r"(?<![\w+.-])[a-zA-Z][\w+.-]*://"
_GATEWAY = re.compile(r"/vsicurl/http://127\.0\.0\.1:\d+/[\w-]{32}/[0-9a-f]{32}/([\w.-]*?)\.[0-9a-f]{16}\b")
_USERINFO = re.compile(r"(?<=://)[^/\s@'\"]+@")
_QUERY = re.compile(rf"({_SCHEME}[^\s?#'\"<>]+)([?#])(?!\[redacted\])[^\s'\"<>)\]}}]+")
_REQUEST = re.compile(r"((?:GET|HEAD|POST) [^\s?\"]+)\?(?!\[redacted\])[^\s\"]+")  # as logged by clients, without host
_JWT = re.compile(r"\beyJ[\w-]{8,}\.[\w-]{8,}(?:\.[\w-]*)?")
_BEARER = re.compile(r"\b(bearer) +(?!\[redacted)[\w.~+/=-]{8,}", re.IGNORECASE)
_SAS = re.compile(r"[\w-]+=[^\s&'\"]*(?:&[\w-]+=[^\s&'\"]*)*&?\bsig=[^\s'\"<>)\]}]*", re.IGNORECASE)
_HEADER = re.compile(r"(authorization['\"]?\s*[=:])(?!\s*['\"]?\[redacted\])\s*['\"]?[^'\"\n]+", re.IGNORECASE)
_PAIR = re.compile(rf"(\b(?:{_SECRET_NAMES})\b['\"]?\s*[=:]\s*['\"]?)(?!\[redacted)[^\s&'\",;)\]}}]+", re.IGNORECASE)


def redact(text: str) -> str:
    """Remove query strings, user names in URLs, tokens, keys, and values of secret environment variables."""
    for name, value in os.environ.items():
        if len(value) >= 8 and _SECRET_VARIABLE.search(name.upper()):  # shorter values may be ordinary words
            text = text.replace(value, "[redacted]")
    text = _GATEWAY.sub(r"\1", text)
    text = _USERINFO.sub("[redacted]@", text)
    text = _QUERY.sub(r"\1\2[redacted]", text)
    text = _REQUEST.sub(r"\1?[redacted]", text)
    text = _BEARER.sub(r"\1 [redacted]", _JWT.sub("[redacted]", text))
    text = _SAS.sub("[redacted]", text)
    text = _HEADER.sub(r"\1 [redacted]", text)
    return _PAIR.sub(r"\1[redacted]", text)


def redact_logs() -> None:
    """Redact all further log records and tracebacks of this process.

    Records are redacted when they are created. A filter on the root logger would miss records that other loggers
    propagate to it and those of loggers with their own handlers, such as `distributed`'s. Idempotent.
    """
    made = logging.getLogRecordFactory()
    if isinstance(made, _RedactedRecords):
        return
    logging.setLogRecordFactory(_RedactedRecords(made))
    if sys.excepthook is sys.__excepthook__:  # another library's hook stays
        sys.excepthook = _show
    if threading.excepthook is threading.__excepthook__:
        threading.excepthook = lambda failed: _show(failed.exc_type, failed.exc_value, failed.exc_traceback)


class _RedactedRecords:
    """A log record factory that wraps another."""

    def __init__(self, made: Callable[..., logging.LogRecord]) -> None:
        self._made = made

    def __call__(self, *arguments: object, **named: object) -> logging.LogRecord:
        record = self._made(*arguments, **named)
        try:
            text = record.getMessage()
        except (TypeError, ValueError):  # mismatched arguments, which logging would print unredacted
            record.msg, record.args = redact(f"{record.msg} {record.args}"), ()
        else:
            clean = plain(redact(text), lines=True)
            if clean != text:
                record.msg, record.args = clean, ()
        if record.exc_info and record.exc_info[0] is not None:  # formatters use an existing text
            record.exc_text = _trace(*record.exc_info)
        return record


def _trace(kind: type[BaseException], error: BaseException | None, where: TracebackType | None) -> str:
    return plain(redact("".join(traceback.format_exception(kind, error, where)).rstrip("\n")), lines=True)


def _show(kind: type[BaseException], error: BaseException | None, where: TracebackType | None) -> None:
    """Print a redacted traceback, as an exception hook."""
    print(_trace(kind, error, where), file=sys.stderr)
