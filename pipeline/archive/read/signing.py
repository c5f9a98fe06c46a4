"""Credentials for archives: SAS tokens of the Planetary Computer, and S3 keys from the environment."""

from __future__ import annotations

import functools
import json
import os
import threading
import time
from datetime import datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, quote, urlsplit

from pipeline.archive.read.host_policy import HostPolicy
from pipeline.archive.read.retry import retrying
from pipeline.errors import UpstreamError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

SIGNINGS: tuple[str, ...] = ("none", "planetary-computer", "cdse-s3", "s3-env")
PLANETARY_TOKEN_URL = "https://planetarycomputer.microsoft.com/api/sas/v1/token"
CDSE_S3_ENDPOINT = "eodata.dataspace.copernicus.eu"
TOKEN_MARGIN_S = 300.0  # a token this close to its expiry is replaced
_BLOB_SUFFIX = ".blob.core.windows.net"

_tokens: dict[tuple[str, str, str], tuple[str, float]] = {}  # (endpoint, account, container) -> (token, expiry)
_tokens_lock = threading.Lock()


def takes_token(parts: SplitResult) -> bool:
    """True for files in Azure blob storage, which need a SAS token."""
    return parts.netloc.endswith(_BLOB_SUFFIX)


def token_for(parts: SplitResult, token_url: str) -> str:
    """SAS token of an address's account and container, cached until five minutes before it expires.

    One request at a time. UpstreamError if the token service does not answer.
    """
    key = _token_key(parts, token_url)
    with _tokens_lock:
        token, expiry_s = _tokens.get(key, ("", 0.0))
        if not token or expiry_s - time.time() < TOKEN_MARGIN_S:
            what = f"token for {key[1]}/{key[2]} from {urlsplit(token_url).netloc}"
            fetch: Callable[[], tuple[str, float]] = functools.partial(_fetch_token, *key)
            token, expiry_s = retrying(fetch, what=what, raises=UpstreamError)
            _tokens[key] = token, expiry_s
        return token


def forget_token(parts: SplitResult, token_url: str) -> None:
    """Drop the cached token of an address, after the archive refused it."""
    with _tokens_lock:
        _tokens.pop(_token_key(parts, token_url), None)


def _token_key(parts: SplitResult, token_url: str) -> tuple[str, str, str]:
    container = parts.path.lstrip("/").split("/", 1)[0]
    return token_url, parts.netloc[: -len(_BLOB_SUFFIX)], container


def _fetch_token(endpoint: str, account: str, container: str) -> tuple[str, float]:
    """(token, expiry in seconds since 1970) from the Planetary Computer's token service, without foreign redirects."""
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
    except (KeyError, TypeError, ValueError) as error:  # such as a proxy's error page with status 200
        msg = f"the token service's answer is not a token ({type(error).__name__})"
        raise ConnectionError(msg) from None


def require_s3_keys(signing: str) -> None:
    """UsageError if the environment holds no S3 keys."""
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    absent = [name for name in names if not os.environ.get(name)]
    if absent:
        raise UsageError(
            f"archive access {signing!r} needs S3 keys and {' and '.join(absent)} is not set",
            "keys in the environment of every process that reads",
            "create keys on the archive's account page and export them; they are never written to a plan or a log",
        )
