"""HTTP client under the host policy: requests, redirects and the addresses of connections are all checked.

A name is resolved once per connection, its addresses are checked, and the socket is opened to one of them; TLS still
verifies the name. Proxies (HTTPS_PROXY, ALL_PROXY, NO_PROXY) and certificates (REQUESTS_CA_BUNDLE, CURL_CA_BUNDLE) are
honoured as `requests` does. A proxy resolves names itself: behind one, only names are checked, and the addresses to
which this machine resolves them.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin

from pipeline.archive.read.host_policy import HostPolicy, Refused
from pipeline.redaction import redact

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from requests import PreparedRequest, Response, Session
    from requests.adapters import HTTPAdapter
    from urllib3 import HTTPConnectionPool
    from urllib3.connection import HTTPConnection

MAX_REDIRECTS = 5
CONNECT_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 60.0
_REDIRECTS = frozenset({301, 302, 303, 307, 308})


def guarded(session: Session, policy: HostPolicy, connections: int = 8, retries: object = 0) -> Session:
    """The session, with every request, redirect and connection under the policy. They raise Refused."""
    adapter = _adapter_class()(policy, pool_connections=connections, pool_maxsize=connections, max_retries=retries)
    session.mount("https://", adapter)
    session.mount("http://", adapter)
    session.max_redirects = MAX_REDIRECTS
    return session


def open_url(session: Session, url: str, headers: Mapping[str, str]) -> Response:
    """Response of a guarded session, body unread, after at most MAX_REDIRECTS redirects. Refused beyond those."""
    for _ in range(MAX_REDIRECTS + 1):
        timeout = CONNECT_TIMEOUT_S, READ_TIMEOUT_S
        answer = session.get(url, headers=headers, stream=True, allow_redirects=False, timeout=timeout)
        target = answer.headers.get("Location", "")
        if answer.status_code not in _REDIRECTS or not target:
            return answer
        answer.close()  # the body is not needed, and may be endless
        url = urljoin(url, target)
        session_policy(session).check(url, "redirect to")
    raise Refused(f"{redact(url[:200])!a} is the end of {MAX_REDIRECTS} redirects and redirects again", "a file")


def session_policy(session: Session) -> HostPolicy:
    """Policy of a guarded session."""
    policy = getattr(session.get_adapter("https://"), "policy", None)
    assert isinstance(policy, HostPolicy), "the session is not guarded"
    return policy


def _adapter_class() -> Callable[..., HTTPAdapter]:
    """HTTPAdapter under a policy; made here because `requests` is imported late."""
    from requests.adapters import HTTPAdapter

    class GuardedAdapter(HTTPAdapter):
        def __init__(self, policy: HostPolicy, **named: Any) -> None:  # noqa: ANN401
            self.policy = policy
            super().__init__(**named)

        def init_poolmanager(self, *arguments: Any, **named: Any) -> None:  # noqa: ANN401
            super().init_poolmanager(*arguments, **named)
            self.poolmanager.pool_classes_by_scheme = _pool_classes(self.policy)

        def send(self, request: PreparedRequest, *arguments: Any, **named: Any) -> Response:  # noqa: ANN401
            self.policy.check(str(request.url))
            return super().send(request, *arguments, **named)

    return GuardedAdapter


def _pool_classes(policy: HostPolicy) -> dict[str, type[HTTPConnectionPool]]:
    """urllib3 pools by scheme whose connections are opened to checked addresses only."""
    from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
    from urllib3.connection import HTTPConnection, HTTPSConnection

    class PinnedHTTP(HTTPConnection):
        def _new_conn(self) -> socket.socket:
            return _connected(self, policy, super()._new_conn)

    class PinnedHTTPS(HTTPSConnection):
        def _new_conn(self) -> socket.socket:
            return _connected(self, policy, super()._new_conn)

    class HTTPPool(HTTPConnectionPool):
        ConnectionCls = PinnedHTTP

    class HTTPSPool(HTTPSConnectionPool):
        ConnectionCls = PinnedHTTPS

    return {"http": HTTPPool, "https": HTTPSPool}


def _connected(connection: HTTPConnection, policy: HostPolicy, connect: Callable[[], socket.socket]) -> socket.socket:
    """Socket to the first checked address that answers; the name is put back before TLS verifies it."""
    from urllib3.exceptions import HTTPError, NameResolutionError, NewConnectionError

    name = connection._dns_host
    try:
        addresses = policy.addresses(name, connection.port)
    except socket.gaierror as error:
        raise NameResolutionError(name, connection, error) from None
    failure: Exception = NewConnectionError(connection, f"{name} has no address")
    try:
        for address in addresses:
            connection._dns_host = address
            try:
                return connect()
            except (HTTPError, OSError) as error:
                failure = error
    finally:
        connection._dns_host = name
    raise failure
