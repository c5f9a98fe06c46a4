"""Texts without secrets: what is taken out of messages, and of all that a process logs.

In: text of errors and logs. Out: the same without query strings, user names in URLs, tokens, keys and passwords.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import threading
import traceback
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

_SECRET_NAMES = (
    r"sig|signature|skoid|sktid|ske|sks|skv|skt|access_?token|refresh_?token|token|x-amz-[a-z-]+|awsaccesskeyid"
    r"|aws_secret_access_key|aws_access_key_id|aws_session_token|access_?key|secret(?:_?key)?|password|api_?key"
    r"|subscription[-_]key|ocp-apim-subscription-key"
)
_SECRET_ENV = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID", "PC_SDK_SUBSCRIPTION_KEY")
_USERINFO = re.compile(r"(?<=://)[^/\s@'\"]+@")
_QUERY = re.compile(r"(https?://[^\s?'\"<>]+)\?(?!\[redacted\])[^\s'\"<>)\]}]*")
_SAS = re.compile(r"[\w-]+=[^\s&'\"]*(?:&[\w-]+=[^\s&'\"]*)*&?\bsig=[^\s'\"<>)\]}]*", re.IGNORECASE)
_HEADER = re.compile(r"(authorization['\"]?\s*[=:])(?!\s*['\"]?\[redacted\])\s*['\"]?[^'\"\n]+", re.IGNORECASE)
_PAIR = re.compile(rf"(\b(?:{_SECRET_NAMES})\b['\"]?\s*[=:]\s*['\"]?)(?!\[redacted)[^\s&'\",;)\]}}]+", re.IGNORECASE)


def redact(text: str) -> str:
    """The text without query strings, user names in URLs, tokens, keys, and values of secret environment variables."""
    for name in _SECRET_ENV:
        value = os.environ.get(name, "")
        if len(value) >= 8:  # shorter ones would blank out ordinary words
            text = text.replace(value, "[redacted]")
    text = _USERINFO.sub("[redacted]@", text)
    text = _QUERY.sub(r"\1?[redacted]", text)
    text = _SAS.sub("[redacted]", text)
    text = _HEADER.sub(r"\1 [redacted]", text)
    return _PAIR.sub(r"\1[redacted]", text)


def redact_logs() -> None:
    """From now on this process logs redacted texts, whichever logger writes them, and so are traces of its errors.

    Done where records are made. A filter on the root logger would see neither what other loggers hand on to it nor
    what loggers with handlers of their own write, and `distributed` has some. Again is the same as once.
    """
    made = logging.getLogRecordFactory()
    if isinstance(made, _RedactedRecords):
        return
    logging.setLogRecordFactory(_RedactedRecords(made))
    if sys.excepthook is sys.__excepthook__:  # somebody else's hook stays
        sys.excepthook = _show
    if threading.excepthook is threading.__excepthook__:
        threading.excepthook = lambda failed: _show(failed.exc_type, failed.exc_value, failed.exc_traceback)


class _RedactedRecords:
    """A log record factory around another."""

    def __init__(self, made: Callable[..., logging.LogRecord]) -> None:
        self._made = made

    def __call__(self, *arguments: object, **named: object) -> logging.LogRecord:
        record = self._made(*arguments, **named)
        try:
            text = record.getMessage()
        except (TypeError, ValueError):  # arguments that do not fit, which logging would print as they are
            record.msg, record.args = redact(f"{record.msg} {record.args}"), ()
        else:
            clean = redact(text)
            if clean != text:
                record.msg, record.args = clean, ()
        if record.exc_info and record.exc_info[0] is not None:  # formatters take a text that is there already
            record.exc_text = _trace(*record.exc_info)
        return record


def _trace(kind: type[BaseException], error: BaseException | None, where: TracebackType | None) -> str:
    return redact("".join(traceback.format_exception(kind, error, where)).rstrip("\n"))


def _show(kind: type[BaseException], error: BaseException | None, where: TracebackType | None) -> None:
    """The end of a process or thread, as Python shows it, redacted."""
    print(_trace(kind, error, where), file=sys.stderr)
