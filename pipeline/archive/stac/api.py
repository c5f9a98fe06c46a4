"""Complete item listings from a STAC API: counted pages, search by POST or GET.

A listing is complete or an error: Unreachable (try later), UpstreamError (refused) or UsageError (no such API or
collection).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote

from pipeline.aoi.period import FIRST_DAY
from pipeline.archive.stac.hrefs import links_of
from pipeline.archive.stac.http import Refused, StacHttp
from pipeline.archive.stac.static import is_static, static_items
from pipeline.errors import PipelineError, Unreachable, UpstreamError, UsageError
from pipeline.redaction import redact

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pipeline.aoi.aoi import Aoi
    from pipeline.archive.catalog import Catalog, RetryPolicy

MAX_EMPTY_PAGES = 3  # in a row, each with a link to a next one
MAX_SEARCH_VERTICES = 400  # of the geometry that is sent; results are filtered by the exact one
_NO_POST = frozenset({403, 404, 405, 501})  # answers of servers that search by GET only
_NO_GET = frozenset({400, 403, 404, 405, 414, 422, 501})
_ABSENT = frozenset({400, 404, 410, 422})
_NAMED_COLLECTIONS = 12  # of the existing ones, in a message

Items = dict[tuple[str, str, str], dict[str, Any]]


@dataclass
class _Listing:
    """Result of one search: items by identity, the number listed, and the number that the archive claims."""

    items: Items = field(default_factory=dict)
    listed: int = 0
    matched: int | None = None
    ended: bool = False  # by a page without a next link, not by a repeated page

    @property
    def complete(self) -> bool:
        """True when all items that the archive counts were listed, or it gives no count and the pages ended."""
        return self.ended if self.matched is None else len(self.items) >= self.matched

    @property
    def repeated(self) -> bool:
        """True when the archive lists and counts documents twice, and so has listed all."""
        return self.ended and self.matched is not None and self.listed >= self.matched


def api_items(
    catalog: Catalog,
    aoi: Aoi,
    start: str | None,
    end: str | None,
    ids: Sequence[str],
    retry_policy: RetryPolicy,
    notes: list[str],
) -> Iterator[tuple[dict[str, Any], str]]:
    """(item, base of its relative hrefs) of all matches for AOI and period (or for `ids`), each once."""
    http = StacHttp(catalog.url, retry_policy, catalog.hosts)
    landing = _landing(http, catalog.url)
    api = _Api(http, catalog, landing)
    if not api.searches and is_static(landing):
        return static_items(http, landing, catalog.url)
    api.check_search()
    try:
        items = api.of_ids(ids) if ids else api.within(aoi, start, end, notes)
    except Unreachable:
        raise
    except UpstreamError:
        api.check_collection()
        raise
    if not items:
        api.check_collection()
    return ((item, "") for item in items.values())


def _landing(http: StacHttp, url: str) -> dict[str, Any]:
    landing = http.document(url)
    if not {"type", "stac_version", "links", "conformsTo"} & set(landing):
        said = ", ".join(map(str, landing))[:60]
        found = f"{http.host} answers, but not as a STAC API (an object of {redact(said) or 'nothing'})"
        raise UsageError(found, "the root of a STAC API", "check the address")
    return landing


class _Api:
    """The item search of one API."""

    def __init__(self, http: StacHttp, catalog: Catalog, landing: dict[str, Any]) -> None:
        self.http, self.root, self.collection = http, catalog.url.rstrip("/"), catalog.collection
        self.limits = catalog.limits
        links = [link for link in links_of(landing) if link.get("rel") == "search"]
        stated = landing.get("conformsTo")
        self.classes = [str(name) for name in stated] if isinstance(stated, list) else []
        self.searches = bool(links) or any("item-search" in name for name in self.classes)
        here = (http.at_home(link["href"], f"{self.root}/") for link in links)
        self.url = next((address for address in here if address), f"{self.root}/search").partition("?")[0]
        # An API that names a method for its search and never POST takes GET; most that name none take both.
        methods = {str(link["method"]).upper() for link in links if link.get("method")}
        self.method = "GET" if methods and "POST" not in methods else "POST"

    def check_search(self) -> None:
        """UsageError where the landing page says that there is no item search."""
        stated = self.classes and not any("item-search" in name for name in self.classes)
        if stated or not self.searches:
            why = "its conformance classes do not name it" if stated else "no link to it, no conformance class"
            raise UsageError(
                f"{self.http.host} offers no item search ({why})", "the root of a STAC API", "check the address"
            )

    def of_ids(self, ids: Sequence[str]) -> Items:
        """All items with the given ids."""
        found = self._collect({"ids": list(ids)})
        if not (found.complete or found.repeated):
            raise self._short(found)
        return found.items

    def within(self, aoi: Aoi, start: str | None, end: str | None, notes: list[str]) -> Items:
        """Items of area and period. An incomplete list is requested again in parts."""
        place = _Place(aoi)
        whole = self._collect(_datetime(start, end), place)
        if whole.complete:
            return whole.items
        slices = _slices(start, end)
        many = whole.matched or "many"
        notes.append(f"{self.http.host} listed {len(whole.items)} of {many} items; asked again in {len(slices)} parts")
        items, counted, repeated = dict(whole.items), True, 0
        for first, last in slices:
            part = self._collect(_datetime(first, last), place)
            items |= part.items
            counted &= part.matched is not None
            if not part.complete:
                if not part.repeated:
                    raise self._short(_Listing(items, matched=whole.matched))
                repeated += part.listed - len(part.items)
        # Large counts may be estimates; if every part was counted, the sum of the parts is more reliable.
        if not counted and whole.matched is not None and len(items) < whole.matched:
            raise self._short(_Listing(items, matched=whole.matched))
        if repeated:
            notes.append(f"{self.http.host} lists {repeated} items twice; they count once")
        return items

    def _collect(self, query: dict[str, Any], place: _Place | None = None) -> _Listing:
        """All pages of one search."""
        query = {"collections": [self.collection], "limit": self.limits.page_items, **query}
        page, parameters = self._first_page(query, place)
        found, seen, empty = _Listing(), set(), 0
        for _ in range(self.limits.max_pages):
            found.items |= {_identity(item): item for item in page["features"]}
            found.listed += len(page["features"])
            found.matched = _matched(page, found.matched)
            following = next((link for link in links_of(page) if link.get("rel") == "next"), None)
            empty = 0 if page["features"] else empty + 1
            if following is None:
                found.ended = True
                return found
            key = json.dumps(following, sort_keys=True)
            if key in seen or empty > MAX_EMPTY_PAGES:
                return found
            seen.add(key)
            page = self._next_page(following, parameters)
        raise UpstreamError(
            f"{self.http.host} goes on after {self.limits.max_pages} pages ({len(found.items)} items)",
            f"at most {self.limits.max_pages} pages",
            "narrow area or period, or raise limits.max_pages in a catalogue file of your own",
        )

    def _first_page(self, query: dict[str, Any], place: _Place | None) -> tuple[dict[str, Any], dict[str, Any]]:
        """(page, parameters sent); the method that works is kept. 403 may also be a rate limit."""
        post = query | (place.posted() if place else {})
        get = _get_parameters(query | (place.gotten() if place else {}))
        if self.method == "GET":
            return self._page(self.url, "GET", get), get
        try:
            return self._page(self.url, "POST", post, refused=_NO_POST), post
        except Refused as refusal:
            try:
                page = self._page(self.url, "GET", get, refused=_NO_GET)
            except Refused:
                if refusal.status != 403:
                    raise refusal.failure from None
                return self._page(self.url, "POST", post), post
            self.method = "GET"
            return page, get

    def _next_page(self, link: dict[str, Any], parameters: dict[str, Any]) -> dict[str, Any]:
        """The page of a next link, which must stay on the archive's host: it is sent with the user's credentials."""
        url = self.http.at_home(link["href"], self.url, search=self.url)
        if url is None:
            there = redact(link["href"])[:100]
            raise UpstreamError(f"{self.http.host} sends the search on to {there}", f"pages at {self.http.host}")
        if str(link.get("method", "GET")).upper() != "POST":
            return self._page(url, "GET", {})
        body = link.get("body")
        sent = body if isinstance(body, dict) else {}
        return self._page(url, "POST", {**parameters, **sent} if link.get("merge") or not sent else sent)

    def _page(
        self, url: str, method: str, parameters: dict[str, Any], refused: frozenset[int] = frozenset()
    ) -> dict[str, Any]:
        """One page: an object with a list of items."""

        def is_page(document: dict[str, Any]) -> bool:
            return isinstance(document.get("features"), list)

        return self.http.document(url, method=method, parameters=parameters, check=is_page, refused=refused)

    def _short(self, found: _Listing) -> UpstreamError:
        """Error for an incomplete list; part of the scenes is never taken for all of them."""
        host, count = self.http.host, len(found.items)
        said = f"it says it has {found.matched} items and lists {count}"
        said = "its pages repeat" if found.matched is None else said
        return UpstreamError(f"{host}: {said}", "all of them", "narrow area or period, or use another catalogue")

    def check_collection(self) -> None:
        """UsageError listing the collections that there are, where ours is not among them."""
        try:
            self.http.document(f"{self.root}/collections/{quote(self.collection, safe='')}", refused=_ABSENT)
        except Refused:
            names = self._collections()
            if names and self.collection not in names:
                shown = ", ".join(names[:_NAMED_COLLECTIONS]) + (" ..." if len(names) > _NAMED_COLLECTIONS else "")
                raise UsageError(
                    f"{self.http.host} has no collection {self.collection!r}",
                    f"one of {shown}",
                    f"--catalog {self.root}/collections/{names[0]}",
                ) from None
        except PipelineError:
            return

    def _collections(self) -> list[str]:
        """Ids of the collections, those of Sentinel-2 first; [] where the API does not tell."""
        try:
            answer = self.http.document(f"{self.root}/collections", refused=_ABSENT | {403, 405, 501})
        except (Refused, PipelineError):
            return []
        listed = answer.get("collections")
        objects = [entry for entry in listed if isinstance(entry, dict)] if isinstance(listed, list) else []
        names = sorted({str(entry["id"])[:100] for entry in objects if isinstance(entry.get("id"), str)})
        names = [name for name in names if name.isprintable()]
        return sorted(names, key=lambda name: ("sentinel" not in name.lower(), "2" not in name, name))


class _Place:
    """The AOI as search parameters: outline for POST; box for GET, whose addresses must stay short."""

    def __init__(self, aoi: Aoi) -> None:
        self.aoi = aoi

    def posted(self) -> dict[str, Any]:
        """Outline, simplified where it has many vertices."""
        return {"intersects": _search_geometry(self.aoi)}

    def gotten(self) -> dict[str, Any]:
        """Bounding box, or the boxes on both sides of the antimeridian."""
        from shapely.geometry import mapping

        west, south, east, north = self.aoi.shape.bounds
        if east - west <= 180:
            return {"bbox": ",".join(f"{number:.9g}" for number in (west, south, east, north))}
        return {"intersects": json.dumps(mapping(_hulls(self.aoi)), separators=(",", ":"))}


def _get_parameters(query: dict[str, Any]) -> dict[str, Any]:
    """Parameters of a query string: lists joined by commas."""
    return {key: ",".join(value) if isinstance(value, list) else value for key, value in query.items()}


def _identity(item: object) -> tuple[str, str, str]:
    """Collection, id, and where the file is: two half granules may share an id."""
    if not isinstance(item, dict):
        return "", "", repr(item)
    assets = item.get("assets")
    hrefs = (
        sorted(str(a.get("href")) for a in assets.values() if isinstance(a, dict)) if isinstance(assets, dict) else []
    )
    return str(item.get("collection")), str(item.get("id")), hrefs[0] if hrefs else ""


def _matched(page: dict[str, Any], before: int | None) -> int | None:
    """Number of items that the archive claims, from whichever field it uses on the first page."""
    context = page.get("context")
    value = page.get("numberMatched", context.get("matched") if isinstance(context, dict) else None)
    return before if before is not None or type(value) is not int else value


def _datetime(start: str | None, end: str | None) -> dict[str, str]:
    return {"datetime": f"{start or '..'}/{end or '..'}"} if start or end else {}


def _slices(start: str | None, end: str | None) -> list[tuple[str, str]]:
    """The period in months, or in days when it is shorter than two months."""
    first = datetime.fromisoformat(start) if start else FIRST_DAY
    last = datetime.fromisoformat(end) if end else datetime.now(UTC)
    by_day = last - first < timedelta(days=62)
    out = []
    while first <= last:
        day = first.replace(hour=0, minute=0, second=0, microsecond=0)
        after = day + timedelta(days=1) if by_day else (day.replace(day=1) + timedelta(days=32)).replace(day=1)
        final = min(after - timedelta(milliseconds=1), last)
        out.append((_iso(first), _iso(final)))
        first = after
    return out


def _iso(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _search_geometry(aoi: Aoi) -> dict[str, Any]:
    """AOI for the request body, simplified outward when it has many vertices."""
    import shapely
    from shapely.geometry import mapping

    shape = aoi.shape
    if shapely.get_num_coordinates(shape) <= MAX_SEARCH_VERTICES:
        return aoi.geometry
    world = shapely.box(-180, -90, 180, 90)
    for tolerance_deg in (0.001, 0.01, 0.1):
        grown = shape.simplify(tolerance_deg).buffer(tolerance_deg, quad_segs=1).intersection(world)
        if shapely.get_num_coordinates(grown) <= MAX_SEARCH_VERTICES:
            return cast("dict[str, Any]", mapping(grown))
    return cast("dict[str, Any]", mapping(_hulls(aoi)))


def _hulls(aoi: Aoi) -> Any:  # noqa: ANN401
    """Bounding boxes of the AOI's western and eastern parts."""
    import shapely

    halves = [aoi.shape.intersection(shapely.box(west, -90, west + 180, 90)) for west in (-180, 0)]
    return shapely.MultiPolygon([shapely.box(*half.bounds) for half in halves if not half.is_empty])
