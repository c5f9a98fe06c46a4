"""Aerial photographs in archives: found by place and time, refused by the same rules as scenes."""

from __future__ import annotations

import json

import pytest

from pipeline.aoi.aoi import aoi_from_bbox
from pipeline.archive.catalog import Catalog, RetryPolicy, load_catalog
from pipeline.archive.image_search import search_rasters
from pipeline.errors import Unreachable
from tests.archive.stac_server import stac_server

AOI = aoi_from_bbox(-120.0, 38.0, -119.9, 38.1)
QUICK = RetryPolicy(connect_s=2, read_s=1, tries=3, backoff_s=0.01, max_retry_after_s=2)
HOST = "naipeuwest.blob.core.windows.net"


def naip(name="ca_m_1", day="2020-05-24", west=-120.0, south=38.0, asset="image", href=None, **properties):
    """An item as the Planetary Computer has them: one asset of four bands, no platform, metres in proj:*."""
    ring = [[west + dx, south + dy] for dx, dy in ((0, 0), (0.06, 0), (0.06, 0.06), (0, 0.06), (0, 0))]
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": name,
        "collection": "naip",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "bbox": [west, south, west + 0.06, south + 0.06],
        "properties": {
            "datetime": f"{day}T00:00:00Z",
            "gsd": 0.6,
            "naip:year": day[:4],
            "proj:epsg": 26910,
            **properties,
        },
        "links": [],
        "assets": {
            asset: {"href": href or f"https://{HOST}/naip/{name}.tif"},
            "thumbnail": {"href": "https://a.b/t.jpg"},
        },
    }


def found(items, start="2020-01-01T00:00:00Z", end="2020-12-31T23:59:59Z", **kwargs):
    with stac_server(items) as server:
        catalog = Catalog("test", "api", server.url, hosts=(HOST,), signing="planetary-computer")
        result = search_rasters(
            catalog, AOI, start, end, asset="image", collection="naip", retry_policy=QUICK, **kwargs
        )
        return result, server


def test_items_without_sentinel_2_bands_are_found():
    result, server = found([naip("b", "2020-06-01"), naip("a"), naip("c", "2020-06-01")])
    assert [item.id for item in result.items] == ["a", "b", "c"]
    assert result.items[0].href == f"https://{HOST}/naip/a.tif"
    assert result.items[0].datetime_utc == "2020-05-24T00:00:00Z"
    assert server.searches[0][3]["collections"] == ["naip"]
    assert len(server.searches) == 2  # two pages


def test_place_and_time_are_decided_here():
    elsewhere, early = naip("elsewhere", west=-110.0), naip("early", "2012-05-24")
    result, _ = found([naip("in"), elsewhere, early])
    assert [item.id for item in result.items] == ["in"]


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        (naip("x", asset="other"), "no asset 'image'; it has other, thumbnail"),
        (naip("x", href="https://evil.example.org/a.tif"), "host 'evil.example.org' is not listed"),
        (naip("x", href="http://169.254.169.254/a.tif"), "plain http is only for listed loopback addresses"),
        (naip("x", href="/etc/passwd"), "it lies under none of the folders"),
        (naip("x", href="/vsigs/a/b.tif"), "GDAL's virtual file systems are not for catalogues to choose"),
        ({**naip("x"), "geometry": None, "bbox": None}, "no footprint polygon"),
        ({**naip("x"), "assets": None}, "malformed item"),
        (naip("x", datetime="2020-06-01T25:00:00Z"), "is not one"),
    ],
)
def test_items_that_cannot_be_used_are_left_out_with_a_reason(item, reason):
    result, _ = found([naip("good"), item])
    assert [item.id for item in result.items] == ["good"]
    ((name, said),) = result.rejected
    assert name == "x"
    assert reason in said


def test_signatures_are_dropped_before_hrefs_are_kept():
    result, _ = found([naip("a", href=f"https://{HOST}/naip/a.tif?sv=1&se=2&sr=b&sp=r&sig=SECRET%3D")])
    assert result.items[0].href == f"https://{HOST}/naip/a.tif"


def test_an_archive_that_stays_away_is_named():
    with stac_server([naip()]) as server:
        catalog = Catalog("test", "api", server.url, hosts=(HOST,))
        server.fault = "down"
        with pytest.raises(Unreachable, match="cannot be searched"):
            search_rasters(catalog, AOI, None, None, asset="image", collection="naip", retry_policy=QUICK)


def test_files_of_a_stac_file_lie_beside_it(tmp_path):
    (tmp_path / "a.tif").touch()
    items = [naip("a", href="a.tif"), naip("b", href="../b.tif"), {**naip("c", href="c.tif"), "collection": "other"}]
    path = tmp_path / "items.json"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": items}))
    result = search_rasters(load_catalog(str(path)), AOI, None, None, asset="image", collection="naip")
    assert [item.href for item in result.items] == [str(tmp_path / "a.tif")]
    assert [name for name, _ in result.rejected] == ["b"]


def test_the_planetary_computer_may_serve_naip():
    access = load_catalog("planetary-computer").access()
    access.check(f"https://{HOST}/naip/v002/ca/2020/ca_060cm_2020/38120/m_3812001_ne_10_060_20200524.tif")
    assert access.signing == "planetary-computer"
