"""Parsing of `--catalog` addresses: a STAC API, a collection or item of one, or a static catalogue over https."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit, urlunsplit

from pipeline.archive.stac.assets import carries_secret
from pipeline.errors import UsageError
from pipeline.redaction import redact

DEFAULT_COLLECTION = "sentinel-2-l2a"
_LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True)
class Address:
    """What an address names. `url`: the root of an API, or a document of a static catalogue; `ids`: items of it."""

    host: str  # with its port
    url: str
    collection: str
    ids: tuple[str, ...]
    loopback: bool


def read_address(address: str) -> Address:
    """The parts of an address; UsageError, naming the form that works, for searches, web pages and credentials."""
    parts = _plain(address)
    loopback = parts.hostname in _LOOPBACK
    if parts.path.lower().endswith((".json", ".geojson")):
        return Address(parts.netloc, urlunsplit(parts), DEFAULT_COLLECTION, (), loopback)
    return Address(parts.netloc, *_api_parts(parts), loopback)


def same_place(one: str, other: str) -> bool:
    """True for two spellings of one https address."""
    return _comparable(one) == _comparable(other)


def _plain(address: str) -> SplitResult:
    """The parts of an https address without query, fragment or credentials."""
    try:
        parts = urlsplit(address.strip())
        _ = parts.port
    except ValueError as error:
        raise UsageError(f"catalogue address {redact(address)!r} is not valid ({error})", "an https address") from None
    if "@" in parts.netloc or carries_secret(address):
        raise UsageError(f"catalogue address {redact(address)!r} carries credentials", "a plain https address")
    scheme, host = parts.scheme.lower(), (parts.hostname or "").lower()
    if not host or (scheme != "https" and not (scheme == "http" and host in _LOOPBACK)):
        raise UsageError(f"catalogue address {redact(address)!r}", "an https address of a STAC API")
    if parts.fragment:
        _refuse_page(address, parts)
    if parts.query:
        _refuse_query(parts)
    return parts


def _api_parts(parts: SplitResult) -> tuple[str, str, tuple[str, ...]]:
    """(root, collection, ids) of an API's root, of its search, of a collection or of an item."""
    root, _, rest = urlunsplit(parts).partition("/collections/")
    root = root.rstrip("/").removesuffix("/search").removesuffix("/collections")
    names = [unquote(name) for name in rest.strip("/").split("/")]
    ids = (names[2],) if len(names) > 2 and names[1] == "items" else ()
    return root, names[0] or DEFAULT_COLLECTION, ids


def _comparable(root: str) -> str:
    parts = urlsplit(root.rstrip("/"))
    return f"{(parts.hostname or '').lower()}:{parts.port or 443}{parts.path}"


def _refuse_query(parts: SplitResult) -> NoReturn:
    """Refuse a search URL with parameters; the command's own options replace them."""
    root, collection, _ = _api_parts(parts._replace(query=""))
    asked = dict(parse_qsl(parts.query)).get("collections", "").split(",")[0] or collection
    plain = urlunsplit(parts._replace(query=""))
    raise UsageError(
        f"catalogue address {redact(plain)!r} has a query, ?{redact(parts.query)[:80]}",
        f"the root of the API, or a collection of it: {redact(root)}/collections/{asked[:80]}",
        "say place, time and cloud with --aoi, --start, --end and --max-cloud",
    )


def _refuse_page(address: str, parts: SplitResult) -> NoReturn:
    """Refuse a web page such as STAC Browser's, which names the API after the #."""
    _, _, inside = parts.fragment.partition("external/")
    inside = inside.split("?")[0].removeprefix("https://").removeprefix("https:/")
    hint = f"--catalog https://{redact(inside)[:200]}" if inside else ""
    raise UsageError(f"catalogue address {redact(address)[:200]!r} is a web page", "the root of a STAC API", hint)
