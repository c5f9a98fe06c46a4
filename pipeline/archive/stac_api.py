"""Items from a STAC API, all of them or an error: retries that happen, pages that are counted.

In: catalogue, AOI, period. Out: item dictionaries. Raises Interrupted (try later) or UpstreamError (it is refused).
"""

from __future__ import annotations

import json
import time
import warnings
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urljoin, urlsplit

from pipeline.archive.period import FIRST_DAY
from pipeline.archive.redaction import redact
from pipeline.archive.retry import TRANSIENT_STATUS, classify
from pipeline.errors import Interrupted, PipelineError, UpstreamError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pystac_client import Client, ItemSearch
    from pystac_client.stac_api_io import StacApiIO
    from urllib3 import BaseHTTPResponse
    from urllib3.util import Retry

    from pipeline.archive.aoi import Aoi
    from pipeline.archive.catalog import Catalog, Patience

MAX_EMPTY_PAGES = 3  # in a row, each with a link to a next one
MAX_SEARCH_VERTICES = 400  # of the geometry that is sent; the exact one decides afterwards, here
# Earth Search throttles with 403 (Element84/earth-search#19), so it is worth waiting for too.
RETRIED_STATUS = TRANSIENT_STATUS | {403}

Items = dict[tuple[str, str, str], dict[str, Any]]


def api_items(
    catalog: Catalog,
    aoi: Aoi,
    start: str | None,
    end: str | None,
    ids: Sequence[str],
    patience: Patience,
    notes: list[str],
) -> Iterator[dict[str, Any]]:
    """Every item of the collection that the archive finds for AOI and period (or for `ids`), each once."""
    api = _Api(catalog, patience)
    query: dict[str, Any] = {"collections": [catalog.collection], "limit": catalog.limits.page_items}
    if ids:
        items, matched, complete = api.collect(query | {"ids": list(ids)})
        if not complete:
            raise api.short(len(items), matched)
        return iter(items.values())
    query["intersects"] = _search_geometry(aoi)
    items, matched, complete = api.collect(query | _datetime(start, end))
    if not complete:
        slices = _slices(start, end)
        notes.append(f"{api.host} listed {len(items)} of {matched or 'many'} items; asked again in {len(slices)} parts")
        counted = True
        for first, last in slices:
            more, part, whole = api.collect(query | _datetime(first, last))
            items |= more
            counted &= part is not None
            if not whole:
                raise api.short(len(items), matched)
        # Large counts may be estimates; where every part was counted, the parts are the better witness.
        if not counted and matched is not None and len(items) < matched:
            raise api.short(len(items), matched)
    return iter(items.values())


class _Api:
    """One STAC API, opened through pystac-client with retries of our own."""

    def __init__(self, catalog: Catalog, patience: Patience) -> None:
        from pystac_client import Client
        from pystac_client.stac_api_io import StacApiIO

        self.host = urlsplit(catalog.url).netloc
        self.origin = urlsplit(catalog.url)[:2]
        self.max_pages = catalog.limits.max_pages
        self.patience = patience
        timeout = (patience.connect_s, patience.read_s)
        self.io: StacApiIO = StacApiIO(max_retries=_retry(patience))
        self.io.session.max_redirects = 3
        # The timeout goes through open(): what StacApiIO got before, open() silently sets back to none.
        self.client = cast("Client", self._asked(lambda: Client.open(catalog.url, stac_io=self.io, timeout=timeout)))

    def collect(self, query: dict[str, Any]) -> tuple[Items, int | None, bool]:
        """(items, how many the archive says it has, whether these are all of them)."""
        from pystac import Link

        search = self._search(query)
        parameters = search.get_parameters()
        page = self._page(search.url, search.method, parameters)
        items: Items = {}
        matched: int | None = None
        seen: set[str] = set()
        empty = 0
        for _ in range(self.max_pages):
            items |= {_identity(item): item for item in page["features"]}
            matched = _matched(page, matched)
            following = next((link for link in page.get("links") or [] if link.get("rel") == "next"), None)
            empty = 0 if page["features"] else empty + 1
            if following is None:
                return items, matched, matched is None or len(items) >= matched
            key = json.dumps(following, sort_keys=True)
            if key in seen or empty > MAX_EMPTY_PAGES:
                return items, matched, matched is not None and len(items) >= matched
            seen.add(key)
            self._check_origin(search.url, following)
            page = self._page(Link.from_dict(following), None, parameters)
        raise UpstreamError(
            f"{self.host} goes on after {self.max_pages} pages ({len(items)} items)",
            f"at most {self.max_pages} pages",
            "narrow area or period, or raise limits.max_pages in a catalogue file of your own",
        )

    def short(self, count: int, matched: int | None) -> UpstreamError:
        """Error for a list that stays incomplete; part of the scenes is never taken for all of them."""
        said = "its list runs in a circle" if matched is None else f"it says it has {matched} items and lists {count}"
        return UpstreamError(f"{self.host}: {said}", "all of them", "narrow area or period, or use another catalogue")

    def _search(self, query: dict[str, Any]) -> ItemSearch:
        from pystac_client.warnings import DoesNotConformTo

        try:
            return self.client.search(method="POST", **query)
        except (DoesNotConformTo, NotImplementedError) as error:
            raise UsageError(
                f"{self.host} offers no item search ({error})", "the root of a STAC API", "check the address"
            ) from None

    def _page(self, where: object, method: str | None, parameters: dict[str, Any]) -> dict[str, Any]:
        """One page: a FeatureCollection, whatever it takes within our patience."""

        def read() -> dict[str, Any]:
            page = self.io.read_json(where, parameters=parameters, **({"method": method} if method else {}))
            if not isinstance(page, dict) or not isinstance(page.get("features"), list):
                raise json.JSONDecodeError("no list of items", "", 0)
            return page

        return cast("dict[str, Any]", self._asked(read))

    def _asked(self, call: Callable[[], object]) -> object:
        """Result of a request. Statuses and connections were retried by urllib3; bodies cut or not JSON are not."""
        for attempt in range(1, max(1, self.patience.tries) + 1):
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of pystac-client, about conformance: search() decides
                    return call()
            except json.JSONDecodeError as error:  # a proxy's page instead of an answer
                failure = self._failure(f"the answer is not what a STAC API sends ({error})", "permanent")
            except PipelineError:
                raise
            except Exception as error:
                kind = classify(error)
                if kind == "bug":
                    found = f"{self.host} answers, but not as a STAC API ({type(error).__name__}: {error})"
                    raise UsageError(redact(found)[:400], "the root of a STAC API", "check the address") from None
                failure = self._failure(str(error), kind)
                if kind != "transient" or "Max retries exceeded" in str(error):
                    raise failure from None
            if attempt < self.patience.tries:
                time.sleep(min(60.0, self.patience.backoff_s * 2 ** (attempt - 1)))
        raise failure

    def _failure(self, text: str, kind: str) -> PipelineError:
        shown = redact(" ".join(text.split()))
        found = f"the catalogue at {self.host} cannot be searched: {shown[:300]}"
        if kind == "transient":
            return Interrupted(found, f"an answer within {self.patience.tries} tries", "run the same command later")
        if kind == "auth":
            return UpstreamError(found, "access", "wait if it limits requests, else check what it asks of its users")
        return UpstreamError(found, "a list of items", "check collection and address, or use another catalogue")

    def _check_origin(self, url: str, link: dict[str, Any]) -> None:
        """A next link must stay at its archive: it is sent with what the user's session carries."""
        target = urljoin(url, str(link.get("href", "")))
        if urlsplit(target)[:2] != self.origin:
            there = redact(target)[:100]
            raise UpstreamError(f"{self.host} sends the search on to {there}", f"pages at {self.host}")


def _retry(patience: Patience) -> Retry:
    """Retries of urllib3 that also cover POST and bad statuses (pystac-client's own number covers neither)."""
    from urllib3.util import Retry

    cap_s = patience.max_retry_after_s

    class CappedRetry(Retry):
        """Retry-After is honoured, up to what we are ready to wait."""

        def get_retry_after(self, response: BaseHTTPResponse) -> float | None:
            asked = super().get_retry_after(response)
            return None if asked is None else min(asked, cap_s)

    return CappedRetry(
        total=patience.tries,
        backoff_factor=patience.backoff_s,
        backoff_jitter=patience.backoff_s,
        backoff_max=60,
        status_forcelist=RETRIED_STATUS,
        allowed_methods=None,
    )


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
    """Number of items the archive claims, from whichever field it uses; the first page decides."""
    context = page.get("context")
    value = page.get("numberMatched", context.get("matched") if isinstance(context, dict) else None)
    return before if before is not None or not isinstance(value, int) else value


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
    """AOI for the request body, generously simplified when it has many vertices."""
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
    halves = [shape.intersection(shapely.box(west, -90, west + 180, 90)) for west in (-180, 0)]
    hulls = [shapely.box(*half.bounds) for half in halves if not half.is_empty]
    return cast("dict[str, Any]", mapping(shapely.MultiPolygon(hulls)))
