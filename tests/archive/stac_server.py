"""A small STAC API on loopback, with the faults that real ones show, and items made for it."""

from __future__ import annotations

import json
import threading
import time
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlencode, urlsplit

from pyproj import Transformer

from pipeline.archive.read import gateway

COLLECTION = "sentinel-2-l2a"
BANDS = {
    **dict.fromkeys(("B02", "B03", "B04", "B08"), 10),
    **dict.fromkeys(("B05", "B06", "B07", "B8A", "B11", "B12"), 20),
    **dict.fromkeys(("B01", "B09"), 60),
}
CONFORMS_TO = [
    "https://api.stacspec.org/v1.0.0/core",
    "https://api.stacspec.org/v1.0.0/item-search",
    "http://www.opengis.net/spec/ogcapi-features-1/1.0/conf/geojson",
]


def footprint(epsg, left_m, top_m, side_m=109_800, width=1.0):
    """Polygon in degrees of a tile, or of its western part."""
    xs = [left_m, left_m + side_m * width, left_m + side_m * width, left_m, left_m]
    ys = [top_m, top_m, top_m - side_m, top_m - side_m, top_m]
    lons, lats = Transformer.from_crs(epsg, 4326, always_xy=True).transform(xs, ys)
    return {"type": "Polygon", "coordinates": [[list(pair) for pair in zip(lons, lats, strict=True)]]}


def make_item(
    day="20240617",
    *,
    baseline="05.10",
    tile="32TMR",
    left_m=399_960,
    top_m=5_100_000,
    epsg=32632,
    cloud=5.0,
    offset=-0.1,
    base="https://data.example.org/",
    made="20240617T150000",
    width=1.0,
    name=None,
    mission="S2B",
):
    """A full L2A item in the style of STAC 1.0; `base` is where its files are."""
    product = f"{mission}_MSIL2A_{day}T101559_N{baseline.replace('.', '')}_R065_T{tile}_{made}"
    name = name or product
    assets = {}
    for band, gsd in {**BANDS, "SCL": 20}.items():
        assets[band] = {
            "href": f"{base}{name}/{band}.tif",
            "gsd": gsd,
            "proj:transform": [gsd, 0, left_m, 0, -gsd, top_m],
            "proj:shape": [109_800 // gsd, 109_800 // gsd],
        }
        if band != "SCL":
            stated = {} if offset is None else {"scale": 0.0001, "offset": offset}
            assets[band]["raster:bands"] = [{"nodata": 0, "data_type": "uint16", **stated}]
    geometry = footprint(epsg, left_m, top_m, width=width)
    lons, lats = zip(*geometry["coordinates"][0], strict=True)
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": name,
        "collection": COLLECTION,
        "geometry": geometry,
        "bbox": [min(lons), min(lats), max(lons), max(lats)],
        "properties": {
            "datetime": f"{day[:4]}-{day[4:6]}-{day[6:]}T10:15:59.024Z",
            "platform": "sentinel-2b",
            "proj:epsg": epsg,
            "eo:cloud_cover": cloud,
            "s2:processing_baseline": baseline,
            "s2:product_uri": f"{product}.SAFE",
            "s2:generation_time": f"{made[:4]}-{made[4:6]}-{made[6:8]}T{made[9:11]}:00:00Z",
            "s2:datatake_id": f"GS2B_{day}T101559_017394_N{baseline}",
            "sat:relative_orbit": 65,
            "grid:code": f"MGRS-{tile}",
        },
        "links": [],
        "assets": assets,
    }


class StacServer:
    """State of the server: items, the fault to show, and every request it saw as (time, method, path, body)."""

    def __init__(self, items, page_items=2):
        self.items, self.page_items = items, page_items
        self.fault = None
        self.fault_count = 0
        self.retry_after = 1
        self.matched = True
        self.requests = []
        self.url = ""
        self.refusals = {}  # method -> status of searches
        self.collections = None  # ids that /collections lists; None: there is no such page
        self.documents = {}  # path -> JSON
        self.next_href = None  # of next links, instead of the address of the search
        self.next_by_get = False

    @property
    def searches(self):
        return [request for request in self.requests if request[2].startswith("/search")]

    def answer(self, method, path, body):
        """(status, headers, bytes) for a request."""
        if path in self.documents:
            return 200, {}, json.dumps(self.documents[path]).encode()
        if path == "/":
            return 200, {}, json.dumps(self.landing()).encode()
        if path.startswith("/collections") and self.collections is not None:
            return self.of_collections(path.removeprefix("/collections").strip("/"))
        if not path.startswith("/search"):
            return 404, {}, b"{}"
        if method in self.refusals:
            return self.refusals[method], {}, b'{"message": "not like this"}'
        faulty = getattr(self, f"fault_{self.fault}", None) if self.fault else None
        answer = faulty(body) if faulty else None
        return answer or (200, {}, json.dumps(self.page(body)).encode())

    def of_collections(self, name):
        """The list of collections, or one of them."""
        if name:
            found = name in self.collections
            return (200 if found else 404), {}, json.dumps({"type": "Collection", "id": name} if found else {}).encode()
        listed = [{"type": "Collection", "id": name} for name in self.collections]
        return 200, {}, json.dumps({"collections": listed, "links": []}).encode()

    def landing(self):
        links = [
            {"rel": "self", "href": self.url},
            {"rel": "root", "href": self.url},
            {"rel": "search", "href": f"{self.url}/search", "method": "GET", "type": "application/geo+json"},
            {"rel": "search", "href": f"{self.url}/search", "method": "POST", "type": "application/geo+json"},
        ]
        return {
            "type": "Catalog",
            "id": "test",
            "stac_version": "1.0.0",
            "description": "test",
            "conformsTo": CONFORMS_TO,
            "links": links,
        }

    def found(self, body):
        start, end = (body.get("datetime") or "../..").split("/")
        return [
            item
            for item in self.items
            if (not body.get("ids") or item["id"] in body["ids"])
            and (start == ".." or item["properties"]["datetime"] >= start)
            and (end == ".." or item["properties"]["datetime"] <= end)
        ]

    def page(self, body, size=None):
        found = self.found(body)
        first = int(body.get("token", 0))
        size = size or min(self.page_items, int(body.get("limit", 10)))
        part = found[first : first + size]
        links = [self.next_link({**body, "token": str(first + size)})] if first + size < len(found) else []
        page = {"type": "FeatureCollection", "features": part, "links": links}
        return {**page, "numberMatched": len(found)} if self.matched else page

    def next_link(self, body):
        href = f"{self.url}/search" if self.next_href is None else self.next_href
        if self.next_by_get or self.next_href is not None:
            return {"rel": "next", "href": f"{href}?{urlencode(body)}"}
        return {"rel": "next", "href": href, "method": "POST", "body": body}

    # -- faults: None means "answer normally"

    def _first(self, times):
        self.fault_count += 1
        return self.fault_count <= times

    def fault_429(self, _body):
        return (429, {"Retry-After": str(self.retry_after)}, b"slow down") if self._first(1) else None

    def fault_503_three_times(self, _body):
        return (503, {}, b"busy") if self._first(3) else None

    def fault_500_once(self, _body):
        return (500, {}, b"oops") if self._first(1) else None

    def fault_403_once(self, _body):
        return (403, {}, b'{"message":"Forbidden"}') if self._first(1) else None

    def fault_reset_once(self, _body):
        return (0, {}, b"") if self._first(1) else None

    def fault_truncated_once(self, body):
        return (-1, {}, json.dumps(self.page(body)).encode()) if self._first(1) else None

    def fault_html_once(self, _body):
        return (200, {"Content-Type": "text/html"}, b"<html>one moment</html>") if self._first(1) else None

    def fault_invalid_json(self, _body):
        return 200, {}, b'{"type": "FeatureCollection", "features": ['

    def fault_down(self, _body):
        return 503, {}, b"busy"

    def fault_bad_request(self, _body):
        return 400, {}, b'{"code":"BadRequest","description":"no such collection"}'

    def fault_hang(self, _body):
        time.sleep(3)
        return 200, {}, b"{}"

    def fault_empty_page(self, body):
        """The second page is empty and still has a next link."""
        if body.pop("after_empty", False) or body.get("token") != str(self.page_items):
            return None
        page = {**self.page(body), "features": [], "links": [self.next_link({**body, "after_empty": True})]}
        return 200, {}, json.dumps(page).encode()

    def fault_loop(self, body):
        """Long searches get the first page for ever; searches of a month are fine."""
        start, end = (body.get("datetime") or "../..").split("/")
        if start[:7] == end[:7]:
            return None
        page = self.page({**body, "token": "0"})
        page["links"] = [self.next_link({**body, "token": "1"})]
        return 200, {}, json.dumps(page).encode()

    def fault_loop_always(self, body):
        page = self.page({**body, "token": "0"})
        page["links"] = [self.next_link({**body, "token": "1"})]
        return 200, {}, json.dumps(page).encode()

    def fault_loses_the_rest(self, body):
        """Only the first page, without a next link, although more match; complete for a single month."""
        start, end = (body.get("datetime") or "../..").split("/")
        if start[:7] == end[:7]:
            return None
        return 200, {}, json.dumps({**self.page(body), "links": []}).encode()

    def fault_loses_without_count(self, body):
        """Always one item per search; only the long search says how many there are."""
        start, end = (body.get("datetime") or "../..").split("/")
        page = {**self.page(body), "links": []}
        page["features"] = page["features"][:1] if start[:7] != end[:7] or start[:7] == "2024-06" else []
        page["numberMatched"] = None if start[:7] == end[:7] else page["numberMatched"]
        return 200, {}, json.dumps(page).encode()

    def fault_estimates(self, body):
        """The count of long searches is an estimate, and too high."""
        start, end = (body.get("datetime") or "../..").split("/")
        if start[:7] == end[:7]:
            return None
        return 200, {}, json.dumps({**self.page(body), "numberMatched": 7}).encode()

    def fault_loses_always(self, body):
        page = self.page(body)
        page["features"] = page["features"][:1]
        return 200, {}, json.dumps({**page, "numberMatched": 99, "links": []}).encode()

    def fault_endless(self, body):
        page = self.page({**body, "token": "0"})
        page["links"] = [self.next_link({**body, "token": str(int(body.get("token", 0)) + 1)})]
        return 200, {}, json.dumps({**page, "numberMatched": None}).encode()

    def fault_duplicates(self, body):
        """Pages overlap by one item."""
        first = max(0, int(body.get("token", 0)) - 1) if body.get("token") else 0
        page = self.page({**body, "token": str(first)})
        if page["links"]:
            page["links"] = [self.next_link({**body, "token": str(int(body.get("token", 0)) + self.page_items)})]
        elif first + self.page_items < len(self.found(body)):
            page["links"] = [self.next_link({**body, "token": str(first + self.page_items)})]
        return 200, {}, json.dumps(page).encode()

    def fault_elsewhere(self, body):
        page = self.page(body)
        page["links"] = [{"rel": "next", "href": "http://169.254.169.254/search", "method": "GET"}]
        return 200, {}, json.dumps(page).encode()


def _handler(server):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, *_args):
            pass

        def do_GET(self):
            parts = urlsplit(self.path)
            body = {key: values[0] for key, values in parse_qs(parts.query).items()}
            self._reply("GET", parts.path, body)

        def do_POST(self):
            length = int(self.headers.get("Content-Length", 0))
            self._reply("POST", urlsplit(self.path).path, json.loads(self.rfile.read(length) or b"{}"))

        def _reply(self, method, path, body):
            server.requests.append((time.monotonic(), method, path, body))
            status, headers, content = server.answer(method, path, body)
            if status == 0:  # reset: close without an answer
                self.close_connection = True
                return
            short = status == -1  # truncated: announce all, send half, close
            self.send_response(200 if short else status)
            for name, value in {"Content-Type": "application/geo+json", **headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            with suppress(BrokenPipeError, ConnectionResetError):
                self.wfile.write(content[: len(content) // 2] if short else content)
            self.close_connection = self.close_connection or short

    return Handler


@contextmanager
def serving(handler_of):
    """Loopback HTTP server around `handler_of(...)`; yields its address."""
    http = ThreadingHTTPServer(("127.0.0.1", 0), handler_of)
    http.daemon_threads = True
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{http.server_address[1]}"
    finally:
        http.shutdown()
        http.server_close()
        for running in gateway._running:  # the next server may have this port and other files
            with suppress(OSError):
                running.ask("DELETE", "")


@contextmanager
def stac_server(items, page_items=2):
    """A running `StacServer` with these items."""
    server = StacServer(items, page_items)
    with serving(_handler(server)) as url:
        server.url = url
        yield server
