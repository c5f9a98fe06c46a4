"""What went wrong with a connection, in words: requests and urllib3 say it with the names of their own objects."""

from __future__ import annotations

import errno
import re
import socket
import ssl
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

# Of this machine, whatever was asked of it.
LOCAL_ERRNO = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EMFILE, errno.ENFILE})
_LINKS = 24  # of a chain of causes, at most
_OBJECT = re.compile(r"<[\w.]+ object at 0x[0-9a-f]+>|\b\w+\([^()]*host='[^()]*\)")
_MAX_RETRIES = re.compile(r"[^;]*Max retries exceeded with url: \S+ \(Caused by (?:\w+\()?(.*?)\)*$")
# How the faults below begin; the gateway hands them on as text.
FAULT_WORDS = (
    "cannot be resolved|cannot be reached|certificate that is not trusted|opens no TLS connection"
    "|refuses the connection|does not answer|breaks off the connection"
)
_ONLINE = "is this machine online? If so, check the address, and HTTPS_PROXY if a proxy is needed"
LATER = "run the same command again later"
_TRUSTED = (
    "check this machine's clock, and REQUESTS_CA_BUNDLE if a proxy here has a certificate of its own; the address "
    "may also be that of another server"
)


def connection_fault(error: BaseException, host: str = "") -> tuple[str, str] | None:
    """Return what is wrong with the connection and a cure; None if the error is not one of a connection.

    `host` is named if the error does not tell which host was asked.
    """
    links = list(_causes(error))
    host = next((found for link in links if (found := _host_of(link))), host) or "the server"
    for link in sorted(links, key=_behind_proxy):
        words = _words(link)
        if words is not None:
            return f"{host} {words[0]}", words[1]
    return None


def _words(link: BaseException) -> tuple[str, str] | None:
    """Return what one cause says of the host, and a cure; None for one that says nothing definite."""
    from urllib3.exceptions import ProxyError
    from urllib3.exceptions import TimeoutError as SlowError

    if isinstance(link, socket.gaierror):
        return f"cannot be resolved ({link.strerror or link})", _ONLINE
    if isinstance(link, ProxyError):
        return (
            f"cannot be reached through the proxy ({readable(link.original_error)})",
            "check HTTPS_PROXY and NO_PROXY",
        )
    if isinstance(link, ssl.SSLCertVerificationError):
        return f"has a certificate that is not trusted ({link.verify_message})", _TRUSTED
    if isinstance(link, ssl.SSLError):
        return f"opens no TLS connection ({(link.reason or str(link)).replace('_', ' ').lower()})", _TRUSTED
    if isinstance(link, ConnectionRefusedError):
        return "refuses the connection", f"{_ONLINE}; else {LATER}"
    if isinstance(link, SlowError | TimeoutError):
        return "does not answer (timed out)", f"{_ONLINE}; else {LATER}"
    if isinstance(link, ConnectionResetError | ConnectionAbortedError | BrokenPipeError):
        return "breaks off the connection", LATER
    if isinstance(link, OSError) and type(link) is OSError and link.strerror and link.errno not in LOCAL_ERRNO:
        return f"cannot be reached ({link.strerror})", _ONLINE
    return None


def _behind_proxy(link: BaseException) -> bool:
    """Return False for the error of a proxy, which comes first: links behind it tell of the proxy, not of the host."""
    from urllib3.exceptions import ProxyError

    return not isinstance(link, ProxyError)


def readable(error: BaseException) -> str:
    """Return the text of an error without the objects that urllib3 names in it."""
    text = _MAX_RETRIES.sub(r"\1", str(error))
    return " ".join(_OBJECT.sub("", text).split()).strip(" :,'\"") or type(error).__name__


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield the error and its causes, innermost first."""
    found: list[BaseException] = []
    wait: list[BaseException] = [error]
    while wait and len(found) < _LINKS:
        link = wait.pop(0)
        if any(link is one for one in found):
            continue
        found.append(link)
        behind = (getattr(link, "reason", None), *link.args, link.__cause__, link.__context__)
        wait += [one for one in behind if isinstance(one, BaseException)]
    return reversed(found)


def _host_of(link: BaseException) -> str:
    """Return the host (and an unusual port) of the pool of connections that an error of urllib3 names, or ""."""
    from urllib3.exceptions import PoolError

    pool = link.pool if isinstance(link, PoolError) else None
    host, port = getattr(pool, "host", None), getattr(pool, "port", None)
    if not isinstance(host, str):
        return ""
    return host if port in (80, 443, None) else f"{host}:{port}"
