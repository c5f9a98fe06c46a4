"""STAC servers as they are: searches by GET only, odd links, static files, and documents of any shape."""

from __future__ import annotations

import copy
import dataclasses
import errno
import json
import random
import re
import socket
import ssl
import threading
import time

import pytest
import urllib3
from requests.exceptions import RetryError, SSLError
from urllib3 import HTTPSConnectionPool
from urllib3.exceptions import MaxRetryError, ResponseError

from pipeline.aoi.aoi import aoi_from_bbox
from pipeline.archive.catalog import RetryPolicy, load_catalog
from pipeline.archive.read.connection import connection_fault, readable
from pipeline.archive.search import search
from pipeline.archive.stac.http import StacHttp
from pipeline.errors import PipelineError, Unreachable, UpstreamError, UsageError
from tests.archive.stac_server import CONFORMS_TO, make_item, serving, stac_server

AOI = aoi_from_bbox(7.8, 45.6, 7.9, 45.7)
QUICK = RetryPolicy(connect_s=2, read_s=0.5, tries=3, backoff_s=0.01, max_retry_after_s=2)
DAYS = ["20240305", "20240412", "20240520", "20240617", "20240724"]
MANY = [make_item(day, made=f"{day}T150000") for day in DAYS]


@pytest.fixture
def archive():
    with stac_server(copy.deepcopy(MANY)) as running:
        running.next_by_get = True
        yield running


def days(address, aoi=AOI, **kwargs):
    catalog = dataclasses.replace(load_catalog(address), hosts=("*",))
    arguments = {"start": "2024-01-01T00:00:00Z", "end": "2024-12-31T23:59:59Z", "max_cloud": None, **kwargs}
    result = search(catalog, aoi, retry_policy=arguments.pop("retry_policy", QUICK), **arguments)
    return [scene.datetime_utc[:10].replace("-", "") for scene in result.scenes]


# -- methods


@pytest.mark.parametrize("status", [403, 404, 405, 501])
def test_a_server_that_searches_by_get_only(archive, status):
    archive.refusals = {"POST": status}
    begun = time.monotonic()
    assert days(archive.url) == DAYS
    assert time.monotonic() - begun < 5
    methods = [request[1] for request in archive.searches]
    assert methods == ["POST", "GET", "GET", "GET"]
    sent = archive.searches[1][3]
    assert [float(number) for number in sent["bbox"].split(",")] == pytest.approx([7.8, 45.6, 7.9, 45.7])
    assert sent["collections"] == "sentinel-2-l2a"


def test_a_landing_page_that_names_get_alone_is_believed(archive, monkeypatch):
    landing = archive.landing()
    landing["links"] = [link for link in landing["links"] if link.get("method") != "POST"]
    monkeypatch.setattr(archive, "landing", lambda: landing)
    assert days(archive.url) == DAYS
    assert {request[1] for request in archive.searches} == {"GET"}


def test_an_area_across_the_antimeridian_by_get():
    item = make_item(epsg=32660, left_m=600_000, top_m=7_200_000, tile="60WWA")
    with stac_server([item]) as server:
        server.refusals = {"POST": 405}
        assert days(server.url, aoi_from_bbox(179.99, 64.0, -179.99, 64.05)) == ["20240617"]
        sent = server.searches[-1][3]
    assert "bbox" not in sent
    assert len(json.loads(sent["intersects"])["coordinates"]) == 2


@pytest.mark.parametrize("status", [403, 405])
def test_a_server_that_searches_in_no_way_is_refused_soon(archive, status):
    archive.refusals = {"POST": status, "GET": status}
    with pytest.raises(UpstreamError) as caught:
        days(archive.url)
    assert caught.value.exit_code == 5
    assert len(archive.searches) <= 2 + QUICK.tries


# -- next links


@pytest.mark.parametrize(
    "href",
    [
        *("search", "/search", "./search", "?", "HTTP://127.0.0.1:{port}/search", "http://localhost:{port}/search"),
        *(
            "https://127.0.0.1/search",
            "http://127.0.0.1/api/v1/search",
            "http://stac-api:8080/search",
            "//127.0.0.1/search",
        ),
        *(" {url}/search ", "http://user:secret@127.0.0.1/search"),
    ],
)
def test_next_links_that_spell_their_host_in_another_way(archive, href):
    port = archive.url.rsplit(":", 1)[1]
    archive.next_href = href.format(port=port, url=archive.url).removesuffix("?")
    begun = time.monotonic()
    assert days(archive.url) == DAYS
    assert len(archive.searches) == 3
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize(
    "href",
    [
        *(
            "http://169.254.169.254/search",
            "https://evil.example.org/search",
            "http://2852039166/search",
            "file:///search",
        ),
        *(
            "http://0xa9fea9fe/search",
            "http://[::ffff:169.254.169.254]/search",
            "http://[bad/search",
            "http://10.0.0.1/",
        ),
    ],
)
def test_next_links_to_other_hosts_are_not_followed(archive, href):
    archive.next_href = href
    with pytest.raises(UpstreamError, match="sends the search on to"):
        days(archive.url)


# -- what is counted


def test_a_document_that_is_listed_and_counted_twice_counts_once(archive):
    archive.items = [*archive.items, copy.deepcopy(archive.items[3])]
    catalog = dataclasses.replace(load_catalog(archive.url), hosts=("*",))
    result = search(catalog, AOI, "2024-01-01T00:00:00Z", "2024-12-31T23:59:59Z", None, retry_policy=QUICK)
    assert len(result.scenes) == 5
    assert any("lists 1 items twice" in note for note in result.notes)


# -- landing pages


@pytest.mark.parametrize("without", [("conformsTo",), ("type", "stac_version"), ("conformsTo", "type", "id")])
def test_a_landing_page_with_a_search_link_is_enough(archive, monkeypatch, without):
    landing = {key: value for key, value in archive.landing().items() if key not in without}
    monkeypatch.setattr(archive, "landing", lambda: landing)
    assert days(archive.url) == DAYS


def test_a_conformance_class_without_link_is_enough(archive, monkeypatch):
    monkeypatch.setattr(archive, "landing", lambda: {"conformsTo": CONFORMS_TO, "links": None})
    assert days(archive.url) == DAYS


# -- collections


def test_an_unknown_collection_is_named_with_the_known(archive):
    archive.items, archive.collections = [], ["landsat-c2-l2", "sentinel-1-grd", "sentinel-2-c1-l2a", "naip"]
    with pytest.raises(UsageError, match="no collection 'sentinel-2-l2a'") as caught:
        days(archive.url)
    assert "one of sentinel-2-c1-l2a, sentinel-1-grd, landsat-c2-l2, naip" in str(caught.value)
    assert caught.value.cure == f"--catalog {archive.url}/collections/sentinel-2-c1-l2a"
    asked = [request[2] for request in archive.requests if request[2].startswith("/collections")]
    assert asked == ["/collections/sentinel-2-l2a", "/collections"]


def test_a_search_refused_for_its_collection_says_so(archive):
    archive.fault, archive.collections = "bad_request", ["sentinel-2-c1-l2a"]
    with pytest.raises(UsageError, match="no collection 'sentinel-2-l2a'"):
        days(archive.url)


def test_an_empty_search_of_a_known_collection_is_empty(archive):
    archive.items, archive.collections = [], ["sentinel-2-l2a"]
    assert days(archive.url) == []
    archive.collections = None  # an API without such pages
    assert days(archive.url) == []


def test_a_search_that_finds_something_does_not_ask(archive):
    archive.collections = ["other"]
    assert days(archive.url) == DAYS
    assert not [request for request in archive.requests if request[2].startswith("/collections")]


# -- faults that stay


def test_a_name_that_does_not_exist_is_not_worth_waiting_for(monkeypatch):
    def unknown(*_args, **_kwargs):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    begun = time.monotonic()
    with pytest.raises(Unreachable) as caught:
        days("https://stac.exmaple.org", retry_policy=RetryPolicy(tries=6, backoff_s=1.0))
    assert caught.value.exit_code == 75
    assert caught.value.found == "stac.exmaple.org cannot be resolved (Name or service not known)"
    assert "online" in caught.value.cure
    assert time.monotonic() - begun < 5


def test_a_name_service_that_is_away_passes(monkeypatch):
    def away(*_args, **_kwargs):
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", away)
    with pytest.raises(PipelineError) as caught:
        days("https://stac.example.org")
    assert caught.value.exit_code == 75
    assert caught.value.found == "stac.example.org cannot be resolved (Temporary failure in name resolution)"


def test_a_server_that_speaks_no_tls_is_said_in_words():
    with socket.create_server(("127.0.0.1", 0)) as plain:
        port = plain.getsockname()[1]

        def answer():
            for _ in range(2):
                with plain.accept()[0] as connection:
                    connection.recv(2000)
                    connection.sendall(b"HTTP/1.0 400 Bad Request\r\n\r\n")

        threading.Thread(target=answer, daemon=True).start()
        with pytest.raises(Unreachable) as caught:
            StacHttp(f"https://127.0.0.1:{port}", RetryPolicy(tries=1, backoff_s=0.0)).document(
                f"https://127.0.0.1:{port}/"
            )
    assert re.fullmatch(rf"127\.0\.0\.1:{port} opens no TLS connection \([\w ]+\)", caught.value.found)


def test_a_certificate_that_is_not_trusted_is_said_in_words():
    refusal = ssl.SSLCertVerificationError(1, "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed")
    refusal.verify_message = "self-signed certificate"
    pool = HTTPSConnectionPool("stac.example.org", 443)
    error = SSLError(MaxRetryError(pool, "/v1", urllib3.exceptions.SSLError(refusal)))
    assert "HTTPSConnectionPool" in str(error)
    fault = connection_fault(error)
    assert fault[0] == "stac.example.org has a certificate that is not trusted (self-signed certificate)"
    assert "REQUESTS_CA_BUNDLE" in fault[1]


def test_a_certificate_that_is_not_trusted_is_not_tried_again(monkeypatch):
    """A job that ends with 75 is run again, which helps against servers that are down, and not against this."""
    refusal = ssl.SSLCertVerificationError(1, "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed")
    refusal.verify_message = "self-signed certificate"
    pool = HTTPSConnectionPool("stac.example.org", 443)
    asked = []

    def request(_io, source, **_):
        asked.append(source)
        raise SSLError(MaxRetryError(pool, "/v1", urllib3.exceptions.SSLError(refusal)))

    monkeypatch.setattr("pystac_client.stac_api_io.StacApiIO.request", request)
    with pytest.raises(UpstreamError, match="not trusted") as caught:
        StacHttp("https://stac.example.org", RetryPolicy(tries=3, backoff_s=0.0)).document("https://stac.example.org/")
    assert (caught.value.exit_code, len(asked)) == (5, 1)


def test_a_proxy_that_refuses_is_not_taken_for_the_host():
    refused = urllib3.exceptions.NewConnectionError(None, "refused")
    refused.__cause__ = ConnectionRefusedError(111, "Connection refused")
    behind = urllib3.exceptions.ProxyError("Unable to connect to proxy", refused)
    fault = connection_fault(MaxRetryError(HTTPSConnectionPool("stac.example.org", 443), "/v1", behind))
    assert fault[0].startswith("stac.example.org cannot be reached through the proxy")
    assert "HTTPS_PROXY" in fault[1]


def test_a_fault_of_this_machine_is_none_of_the_connection():
    assert connection_fault(OSError(errno.EMFILE, "Too many open files")) is None
    assert connection_fault(OSError(errno.ENETUNREACH, "Network is unreachable"), "a.example")[0].startswith(
        "a.example "
    )


def test_statuses_are_said_without_the_objects_of_the_client():
    pool = HTTPSConnectionPool("stac.example.org", 443)
    error = RetryError(MaxRetryError(pool, "/v1", ResponseError("too many 503 error responses")))
    assert connection_fault(error) is None
    assert readable(error) == "too many 503 error responses"


# -- addresses


def test_the_address_of_an_item_means_that_item(archive):
    address = f"{archive.url}/collections/sentinel-2-l2a/items/{MANY[1]['id']}"
    assert days(address, start=None, end=None) == [DAYS[1]]
    assert days(f"{archive.url}/collections/sentinel-2-l2a/items") == DAYS
    assert days(f"{archive.url}/collections/sentinel-2-l2a/") == DAYS
    assert days(f"{archive.url}/collections") == DAYS
    assert days(f"{archive.url}/search") == DAYS


def test_an_item_of_a_known_archive_keeps_its_rules():
    catalog = load_catalog("https://Earth-Search.aws.element84.com:443/v1/collections/sentinel-2-l2a/items/S2A_X")
    assert (catalog.name, catalog.offset_rule, catalog.ids) == ("earth-search", "earth-search-v1", ("S2A_X",))


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("https://stac.example.org/v1/search?collections=s2&limit=1", "https://stac.example.org/v1/collections/s2"),
        ("https://stac.example.org/v1/search?bbox=1,2,3,4", "--aoi, --start, --end"),
        ("https://stac.example.org/v1?f=json", "the root of the API"),
        ("https://stac.example.org/v1?token=SECRET", "carries credentials"),
        ("https://stac.example.org/v1?X-Amz-Signature=SECRET", "carries credentials"),
        ("https://user:SECRET@stac.example.org/v1", "carries credentials"),
        (
            "https://radiantearth.github.io/stac-browser/#/external/stac.example.org/v1/collections/s2?.language=en",
            "--catalog https://stac.example.org/v1/collections/s2",
        ),
        ("http://stac.example.org/v1", "an https address"),
        ("https://[bad/v1", "is not valid"),
        ("https://stac.example.org:port/v1", "is not valid"),
        ("https:///v1", "an https address"),
    ],
)
def test_addresses_that_do_not_work_are_told_which_would(address, said):
    with pytest.raises(UsageError) as caught:
        load_catalog(address)
    assert said in str(caught.value)
    assert "SECRET" not in str(caught.value)
    if "?" in address and "credentials" not in said:
        assert "credentials" not in str(caught.value)


# -- static catalogues over http


def static(archive):
    """Root with a child, which has two items; a collection; and an ItemCollection in two pages."""
    head = {"type": "Catalog", "stac_version": "1.0.0", "id": "c", "description": "d"}
    items = copy.deepcopy(MANY[:3])
    for asset in items[0]["assets"].values():
        asset["href"] = asset["href"].rsplit("/", 1)[-1]
    archive.documents = {
        "/cat/catalog.json": {**head, "links": [link("child", "./2024/catalog.json"), link("root", "./catalog.json")]},
        "/cat/2024/catalog.json": {
            **head,
            "links": [
                *(
                    link("item", "./a.json"),
                    link("item", f"{archive.url}/cat/2024/b.json"),
                    link("parent", "../catalog.json"),
                ),
                *(link("child", "../catalog.json"), None, {"rel": "item"}, link("items", "more.json")),
            ],
        },
        "/cat/2024/a.json": items[0],
        "/cat/2024/b.json": items[1],
        "/cat/2024/more.json": {
            "type": "FeatureCollection",
            "features": [items[2]],
            "links": [link("next", "more2.json")],
        },
        "/cat/2024/more2.json": {"type": "FeatureCollection", "features": [MANY[3]], "links": None},
    }
    return f"{archive.url}/cat/catalog.json"


def link(rel, href):
    return {"rel": rel, "href": href}


def test_static_catalogues_are_walked_over_http(archive):
    address = static(archive)
    port = archive.url.rsplit(":", 1)[1]
    catalog = dataclasses.replace(load_catalog(address), hosts=(f"127.0.0.1:{port}", "*"))
    result = search(catalog, AOI, None, None, None, retry_policy=QUICK)
    assert [scene.datetime_utc[:10].replace("-", "") for scene in result.scenes] == DAYS[:4]
    assert result.scenes[0].hrefs["B02"] == f"{archive.url}/cat/2024/B02.tif"
    assert days(f"{archive.url}/cat/2024/b.json") == [DAYS[1]]
    assert days(f"{archive.url}/cat/2024/more.json") == DAYS[2:4]


def test_a_root_without_search_that_links_to_items_is_static(archive):
    static(archive)
    archive.documents["/"] = {
        **archive.documents["/cat/catalog.json"],
        "links": [link("child", "/cat/2024/catalog.json")],
    }
    assert days(archive.url) == DAYS[1:4]  # of the first, files are on plain http


def test_static_catalogues_stay_at_their_host(archive):
    address = static(archive)
    archive.documents["/cat/catalog.json"]["links"].append(link("child", "http://169.254.169.254/catalog.json"))
    with pytest.raises(UsageError, match=r"links to http://169\.254\.169\.254"):
        days(address)


def test_a_static_catalogue_with_a_hole_is_an_error(archive):
    address = static(archive)
    del archive.documents["/cat/2024/b.json"]
    with pytest.raises(UpstreamError, match="404|cannot be searched"):
        days(address)


# -- any shape of document: never a traceback

ODD = [None, [], {}, "", "x", 0, -1, True, 1e308, [None], [[]], {"": None}, ["x"], {"rel": "next"}, [{"rel": "next"}]]
PAGES = [
    *({"links": [None]}, {"links": None}, {"links": "next"}, {"links": [{"rel": "next", "href": None}]}),
    *({"features": None}, {"features": "x"}, {"features": {}}, {"features": [None]}, {"features": ["x", 7, [], {}]}),
    *({"numberMatched": "many"}, {"numberMatched": -1}, {"numberMatched": True}, {"context": 7}),
    {"context": {"matched": []}},
]  # fmt: skip


@pytest.mark.parametrize("change", PAGES, ids=str)
def test_pages_of_any_shape(archive, monkeypatch, change):
    page = archive.page
    monkeypatch.setattr(archive, "page", lambda body: {**page(body, size=10), **change})
    found, said = set(), ""
    try:
        found = set(days(archive.url))
    except PipelineError as error:
        said = str(error)
    assert found <= set(DAYS)
    assert "\n" not in said


def mutated(document, rng):
    """The document with one value, anywhere in it, replaced by an odd one or removed."""
    document = copy.deepcopy(document)
    places = []

    def walk(node):
        entries = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        for key, value in entries:
            places.append((node, key))
            walk(value)

    walk(document)
    node, key = rng.choice(places)
    if rng.random() < 0.2 and isinstance(node, dict):
        del node[key]
    else:
        node[key] = copy.deepcopy(rng.choice(ODD))
    return document


def small():
    """An item of three bands, so that most mutations hit something that matters."""
    item = make_item()
    item["assets"] = {name: item["assets"][name] for name in ("B02", "B03", "SCL")}
    item["links"] = [link("self", "https://data.example.org/items/x.json")]
    item["assets"]["B02"]["alternate"] = {"s3": {"href": "s3://bucket/x.tif"}}
    item["properties"]["proj:projjson"] = {"type": "ProjectedCRS"}
    item["properties"]["raster:bands"] = [{"scale": 1}]
    return item


@pytest.mark.parametrize("seed", range(4))
def test_items_of_any_shape(tmp_path, seed):
    """Each mutated item is used or left out with a reason in words, alone and among others."""
    rng = random.Random(seed)
    path = tmp_path / "items.json"
    for _ in range(150):
        item = mutated(small(), rng)
        if rng.random() < 0.3:
            item = mutated(item, rng)
        path.write_text(json.dumps({"type": "FeatureCollection", "features": [small() | {"id": "good"}, item]}))
        result = search(load_catalog(str(path)), AOI, None, None, 50.0, bands=("B02", "B03"))
        assert result.scenes
        for name, reason in result.rejected:
            assert name.isprintable()
            assert "\n" not in reason
            assert "malformed item" not in reason, (reason, item)


@pytest.mark.parametrize("seed", range(3))
def test_collections_on_disk_of_any_shape(tmp_path, seed):
    rng, said = random.Random(seed), []
    document = {"type": "FeatureCollection", "features": [small()], "links": [link("self", "x")]}
    root = {"type": "Catalog", "stac_version": "1.0.0", "id": "r", "links": [link("item", "item.json")]}
    (tmp_path / "item.json").write_text(json.dumps(small()))
    for base in (document, root):
        for _ in range(60):
            path = tmp_path / "catalog.json"
            path.write_text(json.dumps(mutated(base, rng)))
            try:
                catalog = load_catalog(str(path))
                search(catalog, AOI, None, None, 50.0, bands=("B02", "B03"))
            except PipelineError as error:
                said.append(str(error))
    assert not [text for text in said if "\n" in text]


@pytest.mark.parametrize("seed", range(3))
def test_landing_and_collection_pages_of_any_shape(archive, monkeypatch, seed):
    rng, said = random.Random(seed), []
    archive.items, archive.collections = archive.items[:1], ["other"]
    landing, page = archive.landing(), archive.page({})
    once = dataclasses.replace(QUICK, tries=1)
    for _ in range(25):
        archive.documents = {"/": mutated(landing, rng), "/search": mutated(page, rng)}
        if rng.random() < 0.3:
            archive.documents["/search"] = {"features": []}
            listed = {"collections": [{"id": "other"}, {"id": "sentinel-2-l1c"}]}
            archive.documents["/collections"] = mutated(listed, rng)
        try:
            days(archive.url, retry_policy=once)
        except PipelineError as error:
            said.append(str(error))
    assert not [text for text in said if "\n" in text]


def test_a_server_of_other_things(tmp_path):
    from http.server import BaseHTTPRequestHandler

    class Handler(BaseHTTPRequestHandler):
        answer = b"[]"

        def log_message(self, *_args):
            pass

        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(self.answer)

    with serving(Handler) as url:
        for answer in (b"[]", b"null", b"7", b'"x"', b"{}", b"<html>", b"\xff\xfe", b"[" * 50_000, b"1" * 5000):
            Handler.answer = answer
            with pytest.raises(PipelineError) as caught:
                days(url, retry_policy=dataclasses.replace(QUICK, tries=1))
            assert caught.value.exit_code in (2, 5)
