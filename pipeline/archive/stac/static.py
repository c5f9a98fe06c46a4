"""Static STAC over https: items, ItemCollections, and catalogues that link to them, all on one host."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.archive.stac.hrefs import links_of
from pipeline.errors import UsageError
from pipeline.redaction import redact

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.archive.stac.http import StacHttp

MAX_DOCUMENTS = 20_000  # of one static catalogue


def is_static(document: dict[str, Any]) -> bool:
    """True for a document that holds or links items instead of offering a search."""
    if document.get("type") in ("Feature", "FeatureCollection"):
        return True
    return any(link.get("rel") in ("child", "item", "items") for link in links_of(document))


def static_items(http: StacHttp, document: dict[str, Any], url: str) -> Iterator[tuple[dict[str, Any], str]]:
    """(item, address of the document that holds it) of everything that `document`, found at `url`, links to."""
    waiting, seen = [(url, document)], {url}
    while waiting:
        here, found = waiting.pop()
        features = found.get("features")
        if found.get("type") == "Feature":
            yield found, here
        elif isinstance(features, list):
            yield from ((item, here) for item in features)
        for target in reversed(_targets(http, found, here)):
            if target not in seen:
                seen.add(target)
                waiting.append((target, http.document(target)))
        if len(seen) > MAX_DOCUMENTS:
            raise UsageError(f"{redact(url)} links to more than {MAX_DOCUMENTS} documents", "a smaller catalogue")


def _targets(http: StacHttp, document: dict[str, Any], here: str) -> list[str]:
    """Addresses of children, items and further pages. UsageError where one lies at another host."""
    followed = ("next",) if document.get("type") == "FeatureCollection" else ("child", "item", "items")
    found = []
    for link in links_of(document) if document.get("type") != "Feature" else []:
        if link.get("rel") not in followed:
            continue
        target = http.at_home(link["href"], here)
        if target is None:
            raise UsageError(
                f"{redact(here)} links to {redact(link['href'])[:100]}", f"documents at {http.host}",
                "give the address of that catalogue itself",
            )  # fmt: skip
        found.append(target)
    return found
