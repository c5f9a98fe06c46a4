"""Hrefs of a STAC item's files, made absolute, unsigned, checked by policy, and percent-encoded."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urljoin, urlsplit

from pipeline.archive.stac.assets import unsigned, without_query
from pipeline.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pipeline.archive.read.access import Access

_GDAL_PREFIX = re.compile(r"/vsicurl(?:_streaming)?/(?=https?://)|/vsis3(?:_streaming)?/(?=[^/])")
_HTTP = re.compile(r"https?://[^/?#]*", re.IGNORECASE)


class RejectedItem(ValueError):
    """An item that cannot be used, with the reason. Never fatal for a search."""


def absolute_href(href: str, base: str) -> str:
    """The href itself when absolute, else relative to the address or folder `base`."""
    if not href or urlsplit(href).scheme or href.startswith("/"):
        return href
    if "://" in base:
        return urljoin(base, href)
    return os.path.normpath(os.path.join(base, href)) if base else href


def plain_href(href: str) -> str:
    """The address behind GDAL's /vsicurl/ or /vsis3/; https addresses are percent-encoded."""
    prefix = _GDAL_PREFIX.match(href)
    if prefix:
        rest = href[prefix.end() :]
        href = f"s3://{rest}" if prefix[0].startswith("/vsis3") else rest
    address = _HTTP.match(href)
    if address:  # control characters and backslashes stay, and are refused later
        return address[0] + re.sub(r"[ \u0080-\U0010ffff]+", lambda found: quote(found[0]), href[address.end() :])
    return href


def storable_href(href: str, access: Access) -> str:
    """The href without signature, allowed by the policy. RejectedItem for Azure files that cannot be signed again."""
    spelled = plain_href(href)
    access.check(spelled)
    plain, signed = unsigned(spelled)
    host = urlsplit(plain).hostname or ""
    azure = host.endswith(".blob.core.windows.net") and access.signing != "planetary-computer"
    if azure and (signed or not access.lists(host)):
        raise RejectedItem(
            f"its files on {host} need a fresh signature every hour; cure: --catalog planetary-computer, or a "
            'catalogue file with signing = "planetary-computer" (or with this host listed, if it is public)'
        )
    return plain


def first_storable(hrefs: Iterable[str], base: str, access: Access) -> str:
    """The first readable address of an asset (its own, then its alternates); else raises the first refusal."""
    refusal: Exception | None = None
    for href in hrefs:
        try:
            return storable_href(absolute_href(href, base), access)
        except (UsageError, ValueError) as error:
            refusal = refusal or error
    raise refusal or RejectedItem("an asset has no address")


def self_href(item: dict[str, Any]) -> str:
    """Address of the item itself, without query, from which relative hrefs start; "" without one."""
    for link in links_of(item):
        if link.get("rel") == "self" and str(link.get("href", "")).startswith("https://"):
            return without_query(str(link["href"]))
    return ""


def links_of(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Links of an item, catalogue or page that have an href."""
    links = document.get("links")
    if not isinstance(links, list):
        return []
    return [link for link in links if isinstance(link, dict) and isinstance(link.get("href"), str)]
