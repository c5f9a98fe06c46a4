"""An archive whose files want a fresh token: a token service on loopback, and which tokens still count."""

import json
import threading
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qs, urlsplit

from pipeline.archive.read import signing
from tests.archive.stac_server import serving


class Tokens:
    """Tokens "SECRET-CONTAINER-1", "...-2" and so on; `revoke` makes all that were given out worthless."""

    def __init__(self, secret):
        self.secret, self.url = secret, ""
        self.given, self.worthless = {}, set()
        self.refused = 0
        self._lock = threading.Lock()

    def give(self, container):
        """The service's answer."""
        with self._lock:
            given = self.given.setdefault(container, [])
            given.append(f"{self.secret}-{container}-{len(given) + 1}")
            expiry = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
            return {"msft:expiry": expiry, "token": f"se=later&sig={given[-1]}"}

    def revoke(self):
        """What an archive does to tokens long before the end that it stated."""
        with self._lock:
            self.worthless = {token for tokens in self.given.values() for token in tokens}

    def good(self, request):
        """Whether a request carries a token for its file that still counts."""
        parts = urlsplit(request.path)
        (token,) = parse_qs(parts.query).get("sig", [""])
        with self._lock:
            fits = token in self.given.get(parts.path.split("/")[1], ()) and token not in self.worthless
            self.refused += not fits
            return fits


@contextmanager
def token_service(secret):
    """A running service; yields its `Tokens`."""
    tokens = Tokens(secret)

    class Service(BaseHTTPRequestHandler):
        def log_message(self, *_args):
            pass

        def do_GET(self):
            answer = json.dumps(tokens.give(self.path.rpartition("/")[2])).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

    with serving(Service) as tokens.url:
        yield tokens


def sign_here(setattr_, service_url):
    """Planetary Computer's signing for any host, with tokens of `service_url`; `setattr_` as monkeypatch has it."""
    fetch = signing._fetch_token
    setattr_(signing, "_BLOB_SUFFIX", "")  # every host
    setattr_(signing, "_fetch_token", lambda _endpoint, *key: fetch(service_url, *key))
    setattr_(signing, "_tokens", {})
