"""Catalogues: what is read from items of every archive, and searches that end with all scenes or a clear error."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import pickle
import socket

import pytest

from pipeline.aoi.aoi import aoi_from_bbox
from pipeline.archive.catalog import Catalog, Limits, RetryPolicy, known_catalogs, load_catalog
from pipeline.archive.radiometry import offset_from_rule
from pipeline.archive.read.access import Access
from pipeline.archive.search import search, summarised
from pipeline.archive.stac.index_file import write_index
from pipeline.archive.stac.item import RejectedItem, scene_from_item
from pipeline.bands import BAND_NAMES, BY_NAME
from pipeline.errors import Unreachable, UpstreamError, UsageError
from tests.archive.stac_server import footprint, make_item, stac_server

AOI = aoi_from_bbox(7.8, 45.6, 7.9, 45.7)
QUICK = RetryPolicy(connect_s=2, read_s=0.5, tries=3, backoff_s=0.01, max_retry_after_s=2)
ANYWHERE = Catalog("test", "file", "", hosts=("*", "data.example.org"))
EARTH_SEARCH_KEYS = {
    **{"B01": "coastal", "B02": "blue", "B03": "green", "B04": "red", "B05": "rededge1", "B06": "rededge2"},
    **{"B07": "rededge3", "B08": "nir", "B8A": "nir08", "B09": "nir09", "B11": "swir16", "B12": "swir22"},
}

# -- catalogue files


def test_every_catalogue_loads_and_names_all_bands():
    assert set(known_catalogs()) == {"earth-search", "earth-search-c1", "planetary-computer", "cdse"}
    for name in known_catalogs():
        catalog = load_catalog(name)
        assert catalog.name == name
        assert tuple(catalog.aliases) == BAND_NAMES
        assert catalog.known_issues
        assert catalog.licence
        assert catalog.access().signing == catalog.signing
        assert pickle.loads(pickle.dumps(catalog)) == catalog


def test_unknown_names_list_the_known_ones():
    with pytest.raises(UsageError, match=r"one of sample, cdse, earth-search.*did you mean 'earth-search'"):
        load_catalog("earth-serch")


@pytest.mark.parametrize(
    ("address", "name", "rule"),
    [
        ("https://earth-search.aws.element84.com/v1", "earth-search", "earth-search-v1"),
        ("https://earth-search.aws.element84.com/v1/", "earth-search", "earth-search-v1"),
        ("https://earth-search.aws.element84.com/v1/collections/sentinel-2-c1-l2a", "earth-search-c1", "always"),
        # Same collection id, opposite meaning: v2 must not inherit the rule of v1.
        ("https://earth-search.aws.element84.com/v2", "earth-search.aws.element84.com", "declared-or-baseline"),
        ("https://stac.example.org/api/search", "stac.example.org", "declared-or-baseline"),
    ],
)
def test_addresses_take_the_rule_of_their_collection(address, name, rule):
    catalog = load_catalog(address)
    assert (catalog.name, catalog.offset_rule, catalog.kind) == (name, rule, "api")


@pytest.mark.parametrize("address", ["http://stac.example.org/v1", "ftp://x/y", "https://user:pw@stac.example.org/v1"])
def test_addresses_must_be_https_without_credentials(address):
    with pytest.raises(UsageError) as error:
        load_catalog(address)
    assert "pw" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"offset_rule": "guess"}, "one of always, baseline"),
        ({"signing": "magic"}, "one of none"),
        ({"surprise": 1}, "keys name, url"),
        ({"licens": "MIT"}, "did you mean 'licence'"),
        ({"hosts": "example.org"}, "a list"),
        ({"url": None}, "url missing"),
        ({"bands": {"B99": ["x"]}}, "lists of asset names"),
        ({"limits": {"speed": 3}}, "page_items"),
        ({"limits": {"max_page": 3}}, "limits.max_page is unknown.*did you mean 'max_pages'"),
        ({"limits": {"page_items": "many"}}, "limits.page_items = 'many'.*at least 1"),
        ({"limits": {"max_pages": 0}}, "limits.max_pages = 0.*at least 1"),
    ],
)
def test_bad_catalogue_files_name_the_key(change, expected, tmp_path):
    content = {
        "name": "mine",
        "url": "https://stac.example.org",
        "collection": "s2",
        "hosts": ["stac.example.org"],
        "offset_rule": "baseline",
        "bands": {"B02": ["blue"]},
        **change,
    }
    lines = [f"{key} = {json.dumps(value)}" for key, value in content.items() if value and not isinstance(value, dict)]
    for key in ("bands", "limits"):
        lines += [f"[{key}]", *(f"{k} = {json.dumps(v)}" for k, v in content.get(key, {}).items())]
    path = tmp_path / "mine.toml"
    path.write_text("\n".join(lines))
    with pytest.raises(UsageError, match=expected):
        load_catalog(str(path))


def test_the_sample_is_a_catalogue_without_network():
    catalog = load_catalog("sample")
    europe = aoi_from_bbox(-30, 30, 40, 70, max_area_km2=1e8)
    (scene,) = search(catalog, europe, None, None, None).scenes
    assert catalog.access().href(scene.hrefs["B02"]) == os.path.realpath(scene.hrefs["B02"])
    assert catalog.licence == "CDLA-Permissive-1.0"
    assert search(catalog, AOI, None, None, None).notes == ("1 scene left out: outside the area",)


# -- offset rules


@pytest.mark.parametrize(
    ("rule", "baseline", "declared", "applied", "expected"),
    [
        ("none", "05.11", -0.1, None, 0),
        ("always", "", None, None, -1000),
        ("baseline", "02.12", None, None, 0),
        ("baseline", "03.01", None, None, 0),
        ("baseline", "04.00", None, None, -1000),
        ("baseline", "N0500", None, None, -1000),
        ("declared-or-baseline", "05.00", -0.1, None, -1000),
        ("declared-or-baseline", "02.14", 0.0, None, 0),
        ("declared-or-baseline", "99.99", -0.1, None, -1000),
        ("declared-or-baseline", "04.00", None, None, -1000),
        ("declared-or-baseline", "05.11", -0.1, True, 0),
        ("earth-search-v1", "05.11", -0.1, True, 0),
        ("earth-search-v1", "05.11", -0.1, False, -1000),
        ("earth-search-v1", "05.11", -0.1, None, -1000),
        ("earth-search-v1", "02.14", 0.0, False, 0),
    ],
)
def test_offset_rules(rule, baseline, declared, applied, expected):
    assert offset_from_rule(rule, baseline=baseline, declared=declared, applied=applied).offset_dn == expected


@pytest.mark.parametrize(
    ("rule", "baseline", "declared", "message"),
    [
        ("baseline", "", None, "does not say"),
        ("baseline", "99.99", None, "'99.99' does not say"),
        ("declared-or-baseline", "02.14", -0.1, r"-0.1 .*contradicts processing baseline 02.14 \(0 DN\)"),
        ("declared-or-baseline", "05.00", 0.0, r"0.0 .*contradicts processing baseline 05.00 \(-1000 DN\)"),
        ("declared-or-baseline", "05.00", -0.2, "-2000 DN"),
        ("declared-or-baseline", "", None, "does not say"),
        ("guess", "05.00", None, "unknown"),
    ],
)
def test_contradictions_name_both_facts(rule, baseline, declared, message):
    with pytest.raises(ValueError, match=message):
        offset_from_rule(rule, baseline=baseline, declared=declared, applied=None)


def test_an_unreliable_flag_is_said_to_be_one():
    decision = offset_from_rule("earth-search-v1", baseline="05.11", declared=-0.1, applied=False)
    assert "pixel audit must confirm" in decision.evidence


# -- real items: id -> (catalogue, tile, baseline, cloud, epsg, offset, assets)

NATIVE = {name: f"{name}_{BY_NAME[name].gsd_m}m" for name in BAND_NAMES}
SAME = {name: name for name in BAND_NAMES}
REAL = {
    "cdse/S2A_MSIL2A_20200301T090901_N0500_R050_T35UPU_20230630T033416": (
        *("cdse", "35UPU", "05.00", 95.42, 32635, -1000, NATIVE),
    ),
    "cdse/S2A_MSIL2A_20200703T103031_N0500_R108_T32TNT_20230613T212700": (
        *("cdse", "32TNT", "05.00", 98.39, 32632, -1000, NATIVE),
    ),
    "cdse/S2B_MSIL2A_20200705T101559_N0500_R065_T32TMT_20230530T175912": (
        *("cdse", "32TMT", "05.00", 11.32, 32632, -1000, NATIVE),
    ),
    "cdse/S2B_MSIL2A_20200705T101559_N0500_R065_T32TNT_20230530T175912": (
        *("cdse", "32TNT", "05.00", 31.64, 32632, -1000, NATIVE),
    ),
    "earth_search_v0/S2A_28QCH_20200714_0_L2A": ("file", "28QCH", "02.14", 2.36, 32628, 0, SAME),
    "earth_search_v0/S2A_31NBJ_20190524_0_L2A": ("file", "31NBJ", "02.12", None, 32631, 0, SAME),
    "earth_search_v1/S2A_12RWT_20240106_0_L2A": (
        *("earth-search", "12RWT", "05.10", 1.051041, 32612, 0, EARTH_SEARCH_KEYS),
    ),
    "earth_search_v1/S2A_29RKH_20200219_0_L2A": (
        *("earth-search", "29RKH", "02.14", 4.051854, 32629, 0, EARTH_SEARCH_KEYS),
    ),
    "earth_search_v1/S2A_33TWL_20230815_0_L2A": (
        *("earth-search", "33TWL", "05.09", 0.20399, 32633, 0, EARTH_SEARCH_KEYS),
    ),
    "earth_search_v1/S2B_20EPT_20250731_0_L2A": (
        *("earth-search", "20EPT", "05.11", 26.02542, 32720, 0, EARTH_SEARCH_KEYS),
    ),
    "earth_search_v1/S2B_33TWM_20230820_0_L2A": (
        *("earth-search", "33TWM", "05.09", 1.33675, 32633, 0, EARTH_SEARCH_KEYS),
    ),
    "earth_search_v1/S2B_T20EPT_20250731T131905_L2A": (
        *("earth-search-c1", "20EPT", "05.11", 26.02542, 32720, -1000, EARTH_SEARCH_KEYS),
    ),
    "planetary_computer/S2A_MSIL2A_20190101T000001_R116_T59VPE_20201007T214658": (
        *("planetary-computer", "59VPE", "02.12", 60.399535, 32659, 0, SAME),
    ),
    "planetary_computer/S2A_MSIL2A_20190101T000001_R116_T60VUJ_20201007T214652": (
        *("planetary-computer", "60VUJ", "02.12", 36.231313, 32660, 0, SAME),
    ),
    "planetary_computer/S2A_MSIL2A_20190101T000001_R116_T60VUK_20201007T214652": (
        *("planetary-computer", "60VUK", "02.12", 56.297088, 32660, 0, SAME),
    ),
    "planetary_computer/S2B_MSIL2A_20190629T212529_R043_T06VVN_20201006T080531": (
        *("planetary-computer", "06VVN", "02.12", 0.314306, 32606, 0, SAME),
    ),
    "planetary_computer/S2B_MSIL2A_20190629T212529_R043_T06VVN_20201006T080531_raster_ext": (
        *("planetary-computer", "06VVN", "02.12", 0.314306, 32606, 0, SAME),
    ),
    "stactools_generated/S2B_T33XWJ_20220413T150756_L2A": (
        *("file", "33XWJ", "04.00", 98.944211, 32633, -1000, EARTH_SEARCH_KEYS),
    ),
}


@pytest.mark.shared_data
@pytest.mark.parametrize("key", REAL)
def test_real_items_become_scenes_with_files_and_offset(key, shared_data):
    name, tile, baseline, cloud, epsg, offset_dn, keys = REAL[key]
    path = shared_data / "stac_items" / f"{key}.json"
    item = json.loads(path.read_text())
    catalog = load_catalog(str(path)) if name == "file" else load_catalog(name)
    access = dataclasses.replace(catalog.access(), roots=(str(path.parent),))
    scene = scene_from_item(item, catalog, access, base=str(path.parent))
    assert (scene.id, scene.tile, scene.baseline, scene.cloud_pct, scene.epsg) == (
        *(item["id"], tile, baseline, cloud, epsg),
    )
    assert scene.offset.offset_dn == offset_dn
    assert set(scene.hrefs) == {*BAND_NAMES, "SCL"}
    for band in BAND_NAMES:
        href = item["assets"][keys[band]]["href"]
        assert scene.hrefs[band].endswith(href.removeprefix("./")), band
    sizes = [(raster.gsd_m, raster.ny, raster.nx) for raster in scene.rasters]
    assert sizes == [(10, 10980, 10980), (20, 5490, 5490), (60, 1830, 1830)]
    # The false northing of southern zones, 10 000 000 m, is no multiple of 60 m.
    assert (scene.phase.x_m, scene.phase.y_m) == ((0.0, 40.0) if epsg == 32720 else (0.0, 0.0))
    assert scene.properties["sensing_start"].startswith(scene.datetime_utc[:10].replace("-", ""))


@pytest.mark.shared_data
def test_all_real_items_are_listed_above(shared_data):
    folder = shared_data / "stac_items"
    present = {str(path.relative_to(folder).with_suffix("")) for path in folder.glob("*/*.json")}
    assert present - {"cdse/collection_sentinel-2-l2a"} == set(REAL)


# -- synthetic items: what is rejected, what is tolerated


def edited(*path, value=None, drop=False, **kwargs):
    item = make_item(**kwargs)
    node = item
    for step in path[:-1]:
        node = node[step]
    if drop:
        del node[path[-1]]
    else:
        node[path[-1]] = value
    return item


def with_asset(band, **fields):
    item = make_item()
    item["assets"][band] = {**item["assets"][band], **fields}
    return item


def everywhere(**fields):
    item = make_item()
    for asset in item["assets"].values():
        asset.update(fields)
    return item


REJECTED = {
    "1 not a feature": (edited("type", value="Thing"), "not a GeoJSON Feature"),
    "2 no id": (edited("id", drop=True), "plain name"),
    "3 id climbs": (edited("id", value="../../x"), "plain name"),
    "3 id NUL": (edited("id", value="a\0b"), "plain name"),
    "3 id long": (edited("id", value="x" * 300), "plain name"),
    "4 geometry null": ({**edited("geometry", value=None), "bbox": None}, "no footprint"),
    "4 geometry NaN": (edited("geometry", "coordinates", 0, 0, 0, value=float("nan")), "footprint is no polygon"),
    "5 no datetime": (edited("properties", "datetime", value=None), "no datetime"),
    "5 bad": (edited("properties", "datetime", value="yesterday"), "is not one"),
    "5 leap second": (edited("properties", "datetime", value="2016-12-31T23:59:60Z"), "is not one"),
    "6 no assets": (edited("assets", value={}), "no assets"),
    "7 band missing": (edited("assets", "B09", drop=True), "bands B09 are missing"),
    "8 file": (with_asset("B02", href="file:///etc/passwd"), "under none of the folders"),
    "8 path": (with_asset("B02", href="/etc/passwd"), "under none of the folders"),
    "8 metadata address": (with_asset("B02", href="http://169.254.169.254/latest"), "plain http"),
    "8 address": (with_asset("B02", href="https://169.254.169.254/latest"), "instead of names"),
    "8 gopher": (with_asset("B02", href="gopher://example.org/x"), "scheme gopher"),
    "8 vsi": (with_asset("B02", href="/vsigs/bucket/x.tif"), "virtual file systems"),
    "8 vrt": (with_asset("B02", href="https://data.example.org/x.vrt"), "point to other files"),
    "8 empty": (with_asset("B02", href=""), "empty href"),
    "8 100 kB": (with_asset("B02", href="https://data.example.org/" + "x" * 100_000), "100025 characters"),
    "8 no href": (with_asset("B02", href=None), "asset B02 has no href"),
    "9 no CRS": (edited("properties", "proj:epsg", drop=True), "no CRS"),
    "9 null with wkt2": (edited("properties", "proj:epsg", value=None), "no CRS"),
    "9 not UTM": (edited("properties", "proj:epsg", value=3857), "EPSG:3857 is not a UTM zone"),
    "9 bands disagree": (with_asset("B02", **{"proj:epsg": 32633}), "different CRS"),
    "10 rotated": (with_asset("B03", **{"proj:transform": [10, 1, 399960, 1, -10, 5100000]}), "rotated"),
    "10 south-up": (
        with_asset("B03", **{"proj:transform": [10, 0, 399960, 0, 10, 5100000]}),
        "rotated or not north-up",
    ),
    "10 other grid": (with_asset("B03", **{"proj:transform": [10, 0, 399970, 0, -10, 5100000]}), "another grid"),
    "10 other shape": (with_asset("B03", **{"proj:shape": [5000, 5000]}), "another grid"),
    "10 negative shape": (with_asset("B03", **{"proj:shape": [-5, 5]}), "-5 x 5 pixels"),
    "11 scale 1": (with_asset("B03", **{"raster:bands": [{"scale": 1.0, "offset": -0.1}]}), "scale"),
    "11 bands disagree": (with_asset("B03", **{"raster:bands": [{"offset": 0.0}]}), "different offsets"),
    "11 asset against band": (with_asset("B03", **{"raster:offset": 0.0}), "different offsets"),
    "16 float": (with_asset("B03", **{"raster:bands": [{"data_type": "float32"}]}), "B03 is float32"),
    "16 other nodata": (with_asset("B03", **{"raster:bands": [{"nodata": 65535}]}), "nodata 65535"),
    "16 resampled": (
        with_asset("B01", **{"proj:transform": [20, 0, 399960, 0, -20, 5100000]}),
        "B01 is offered at 20 m",
    ),
    "17 mislabelled": (edited("geometry", value=footprint(32632, 399960, 6_000_000)), "far from its footprint"),
    "18 L1C": (edited("properties", "s2:product_type", value="S2MSI1C"), "Level-1C"),
    "18 L1C by name": (
        edited("properties", "s2:product_uri", value=make_item()["id"].replace("L2A", "L1C")),
        "Level-1C",
    ),
    "18 Landsat": (edited("properties", "platform", value="landsat-8"), "landsat-8"),
    "24 neighbour zone": (edited("properties", "proj:epsg", value=32633), "far from its footprint"),
    "24 southern northing": (edited("properties", "proj:epsg", value=32732), "far from its footprint"),
    "25 same file": (
        with_asset("B03", href=make_item()["assets"]["B04"]["href"]),
        "B0[34] and B0[34] are the same file",
    ),
    "assets is a list": (edited("assets", value=[1]), "no assets"),
    "properties missing": (edited("properties", drop=True), "no properties"),
}


def parse(item, catalog=ANYWHERE, **kwargs):
    return scene_from_item(item, catalog, catalog.access(), **kwargs)


@pytest.mark.parametrize("case", REJECTED)
def test_bad_items_are_rejected_with_a_reason(case):
    item, expected = REJECTED[case]
    with pytest.raises(RejectedItem, match=expected) as error:
        parse(item)
    assert len(str(error.value)) < 600


TOLERATED = {
    "start_datetime": edited("properties", "datetime", value=None),
    "proj:code": edited("properties", "proj:epsg", drop=True),
    "stac 1.1": everywhere(**{"proj:code": "EPSG:32632"}),
    "11 declared twice alike": everywhere(**{"raster:offset": -0.1, "raster:scale": 0.0001}),
    "14 cloud text": edited("properties", "eo:cloud_cover", value="12"),
    "14 cloud -1": edited("properties", "eo:cloud_cover", value=-1),
    "14 cloud 120": edited("properties", "eo:cloud_cover", value=120),
    "14 cloud NaN": edited("properties", "eo:cloud_cover", value=float("nan")),
    "15 no SCL": edited("assets", "SCL", drop=True),
    "12 baseline from the product name": edited("properties", "s2:processing_baseline", drop=True),
    "12 baseline float": edited("properties", "s2:processing_baseline", value=5.1),
    "20 unknown extension": edited("stac_extensions", value=["https://example.org/x.json"]),
    "22 large properties": edited("properties", "noise", value="x" * 1_000_000),
}
TOLERATED["start_datetime"]["properties"]["start_datetime"] = "2024-06-17T12:15:59.024+02:00"
TOLERATED["proj:code"]["properties"]["proj:code"] = "EPSG:32632"


@pytest.mark.parametrize("case", TOLERATED)
def test_odd_items_are_still_scenes(case):
    scene = parse(TOLERATED[case])
    assert scene.offset.offset_dn == -1000
    assert (scene.epsg, scene.tile, scene.baseline) == (32632, "32TMR", "05.10")
    assert scene.datetime_utc == "2024-06-17T10:15:59.024000Z"
    assert ("SCL" in scene.hrefs) == (case != "15 no SCL")
    assert (scene.cloud_pct is None) == case.startswith("14")
    assert len(json.dumps(scene.to_json())) < 20_000


def test_10_without_transform_the_scene_has_no_rasters():
    item = make_item()
    for asset in item["assets"].values():
        del asset["proj:transform"], asset["proj:shape"]
    assert parse(item).rasters == ()


def test_bands_found_by_name_when_the_keys_say_nothing():
    item = make_item()
    item["assets"] = {
        f"asset-{n}": {**asset, "eo:bands": [{"name": key}]}
        for n, (key, asset) in enumerate(item["assets"].items())
        if key != "SCL"
    }
    jp2 = {**item["assets"]["asset-0"], "href": "https://data.example.org/B02.jp2", "type": "image/jp2"}
    item["assets"] = {"a-jp2": jp2, **item["assets"]}
    scene = parse(item)
    assert scene.hrefs["B02"].endswith("/B02.tif")
    assert set(scene.hrefs) == set(BAND_NAMES)


def test_native_resolution_is_chosen_among_copies():
    item = make_item()
    copies = {"B01_20m": ("B01", 20), "B01_60m": ("B01", 60), "B02_60m": ("B02", 60), "B02_10m": ("B02", 10)}
    for key, (band, gsd) in copies.items():
        item["assets"][key] = {
            "href": f"https://data.example.org/{key}.tif",
            "proj:transform": [gsd, 0, 399_960, 0, -gsd, 5_100_000],
            "proj:shape": [109_800 // gsd] * 2,
        }
        item["assets"].pop(band, None)
    catalog = dataclasses.replace(
        ANYWHERE, aliases={**ANYWHERE.aliases, "B01": ("B01_20m", "B01_60m"), "B02": ("B02_60m", "B02_10m")}
    )
    scene = parse(item, catalog)
    assert scene.hrefs["B01"].endswith("B01_60m.tif")
    assert scene.hrefs["B02"].endswith("B02_10m.tif")


def test_fewer_bands_may_be_asked_for():
    item = edited("assets", "B09", drop=True)
    scene = parse(item, bands=("B04", "B03", "B02", "B08"))
    assert "B09" not in scene.hrefs
    assert "B01" in scene.hrefs


def test_flagged_items_in_a_file_follow_their_archives_rule():
    item = make_item()
    item["properties"]["earthsearch:boa_offset_applied"] = False
    assert "pixel audit must confirm" in parse(item).offset.evidence
    item["properties"]["earthsearch:boa_offset_applied"] = True
    assert parse(item).offset.offset_dn == 0


def test_the_users_offset_wins():
    contradictory = make_item(baseline="02.14")
    scene = parse(contradictory, ANYWHERE.with_offset(0))
    assert (scene.offset.offset_dn, scene.offset.evidence) == (0, "set by the user")
    assert scene.offset.by_user
    assert not parse(make_item(), ANYWHERE).offset.by_user
    with pytest.raises(UsageError, match="0 or -1000"):
        ANYWHERE.with_offset(-500)


def test_relative_hrefs_start_from_base_or_the_items_address(tmp_path):
    item = make_item(base="./")
    catalog = Catalog("local", "file", "", roots=(str(tmp_path),))
    scene = parse(item, catalog, base=str(tmp_path))
    assert scene.hrefs["B02"] == str(tmp_path / item["id"] / "B02.tif")
    item["links"] = [{"rel": "self", "href": "https://data.example.org/items/x.json"}]
    assert parse(item).hrefs["B02"] == f"https://data.example.org/items/{item['id']}/B02.tif"
    outside = make_item(base="../../")
    with pytest.raises(RejectedItem, match="under none of the folders"):
        parse(outside, catalog, base=str(tmp_path))


# -- reprocessings


def found(items, **kwargs):
    """What a search over these items answers."""
    with stac_server(items, page_items=50) as server:
        return search(api(server, **kwargs), AOI, None, None, None, retry_policy=QUICK)


def api(server, **kwargs):
    catalog = load_catalog(server.url)
    return dataclasses.replace(catalog, hosts=(*catalog.hosts, "data.example.org"), **kwargs)


def ids(result):
    return [scene.id for scene in result.scenes]


def test_of_a_reprocessed_scene_the_highest_baseline_stays():
    old = make_item(baseline="02.12", offset=0, made="20240618T000000")
    new = make_item(baseline="05.10", made="20250101T000000")
    operator = make_item(baseline="99.99", made="20260101T000000")
    result = found([old, new, operator])
    assert ids(result) == [new["id"]]
    assert {name for name, _ in result.rejected} == {old["id"], operator["id"]}
    assert all(f"superseded by {new['id']}" in reason for _, reason in result.rejected)


def test_of_equal_baselines_the_latest_generation_stays():
    first, second = make_item(made="20240617T150000"), make_item(made="20240619T150000")
    assert ids(found([second, first])) == [second["id"]]


def test_two_halves_of_one_granule_are_both_kept():
    west = make_item(made="20240617T150000", width=0.6)
    whole = make_item(made="20240617T160000")
    other_tile = make_item(tile="32TLR", left_m=299_940, made="20240617T150000")
    assert set(ids(found([west, whole, other_tile]))) >= {west["id"], whole["id"]}


# -- searches through pystac-client

DAYS = ["20240305", "20240412", "20240520", "20240617", "20240724"]
MANY = [make_item(day, made=f"{day}T150000") for day in DAYS]


@pytest.fixture(scope="module")
def server():
    with stac_server(MANY) as running:
        yield running


@pytest.fixture
def archive(server):
    server.fault, server.fault_count, server.matched, server.requests = None, 0, True, []
    return server


def run_search(server, **kwargs):
    arguments = {"start": "2024-01-01T00:00:00Z", "end": "2024-12-31T23:59:59Z", "max_cloud": None, **kwargs}
    return search(api(server), AOI, retry_policy=arguments.pop("retry_policy", QUICK), **arguments)


def test_all_pages_are_read_in_order_of_time(archive):
    result = run_search(archive)
    assert [scene.datetime_utc[:10].replace("-", "") for scene in result.scenes] == DAYS
    assert len(archive.searches) == 3
    assert archive.searches[0][1] == "POST"
    assert archive.searches[0][3]["intersects"] == AOI.geometry


def test_period_cloud_and_place_are_decided_here(archive):
    odd = [*MANY, make_item("20240801", cloud=80.0), make_item("20240802", left_m=699_960), make_item("20240803")]
    odd[-1]["properties"]["eo:cloud_cover"] = None
    with stac_server(odd) as server:
        result = run_search(server, start="2024-05-20T00:00:00Z", end="2024-08-31T23:59:59Z", max_cloud=20.0)
    assert [scene.datetime_utc[:10] for scene in result.scenes] == [
        "2024-05-20",
        "2024-06-17",
        "2024-07-24",
        "2024-08-03",
    ]
    assert result.notes == (
        *("1 scene left out: cloudier than 20 %", "1 scene left out: outside the area"),
        "1 scene kept although its cloud cover is unknown",
    )


def test_open_ends_are_passed_on(archive):
    assert len(run_search(archive, start="2024-05-01T00:00:00Z", end=None).scenes) == 3
    assert len(run_search(archive, start=None, end="2024-05-01T00:00:00Z").scenes) == 2
    assert len(run_search(archive, start=None, end=None).scenes) == 5
    sent = [request[3].get("datetime") for request in archive.searches if "token" not in request[3]]
    assert sent == ["2024-05-01T00:00:00Z/..", "../2024-05-01T00:00:00Z", None]


def test_ids_can_be_asked_for(archive):
    result = run_search(archive, ids=[MANY[1]["id"], "nothing"])
    assert ids(result) == [MANY[1]["id"]]
    assert "not found: nothing" in result.notes


@pytest.mark.parametrize(
    "fault",
    [
        *("429", "503_three_times", "500_once", "403_once", "reset_once", "truncated_once", "html_once"),
        *("empty_page", "loop", "loses_the_rest", "duplicates", "estimates"),
    ],
)
def test_faults_that_pass_cost_no_scene(archive, fault):
    archive.fault, archive.retry_after = fault, 1
    result = run_search(archive)
    assert [scene.datetime_utc[:10].replace("-", "") for scene in result.scenes] == DAYS
    assert archive.searches, "the server was asked"


def test_retry_after_is_honoured_up_to_our_patience(archive):
    archive.fault, archive.retry_after = "429", 1
    run_search(archive)
    assert archive.searches[1][0] - archive.searches[0][0] >= 1.0
    archive.fault_count, archive.retry_after, archive.requests = 0, 3600, []
    run_search(archive, retry_policy=dataclasses.replace(QUICK, max_retry_after_s=0.1))
    assert len(archive.searches) == 4


def test_a_loop_without_a_count_is_split_by_month(archive):
    archive.fault, archive.matched = "loop", False
    result = run_search(archive)
    assert len(result.scenes) == 5
    assert any("asked again in 12 parts" in note for note in result.notes)


@pytest.mark.parametrize(
    ("fault", "error", "expected"),
    [
        ("down", Unreachable, "too many 503"),
        ("hang", Unreachable, "timed out"),
        ("bad_request", UpstreamError, "no such collection"),
        ("invalid_json", UpstreamError, "not what a STAC API sends"),
        ("elsewhere", UpstreamError, "on to http://169.254.169.254"),
        ("loses_without_count", UpstreamError, "it says it has 5 items and lists 2"),
        ("loses_always", UpstreamError, "it says it has 99 items and lists"),
    ],
)
def test_faults_that_stay_end_in_one_line_with_the_host(archive, fault, error, expected):
    archive.fault = fault
    with pytest.raises(error, match=expected) as caught:
        run_search(archive, retry_policy=dataclasses.replace(QUICK, tries=2))
    host = archive.url.removeprefix("http://")
    assert host in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == (75 if error is Unreachable else 5)


def test_a_list_that_runs_in_a_circle_is_an_error(archive):
    archive.fault, archive.matched = "loop_always", False
    with pytest.raises(UpstreamError, match="its pages repeat"):
        run_search(archive)


def test_endless_pages_are_cut_off(archive):
    archive.fault = "endless"
    with pytest.raises(UpstreamError, match="goes on after 7 pages"):
        search(api(archive, limits=Limits(max_pages=7)), AOI, None, None, None, retry_policy=QUICK)


def test_a_dead_host_is_named():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(Unreachable, match=f"^127.0.0.1:{port} refuses the connection; expected a reachable archive"):
        search(load_catalog(f"http://127.0.0.1:{port}"), AOI, None, None, None, retry_policy=QUICK)


def test_a_page_that_is_no_stac_api_is_a_usage_error(archive, monkeypatch):
    monkeypatch.setattr(archive, "landing", lambda: {"hello": "world"})
    with pytest.raises(UsageError, match="not as a STAC API"):
        run_search(archive)


def test_an_api_without_item_search_is_a_usage_error(archive, monkeypatch):
    landing = archive.landing()
    monkeypatch.setattr(archive, "landing", lambda: {**landing, "conformsTo": landing["conformsTo"][:1]})
    with pytest.raises(UsageError, match="no item search"):
        run_search(archive)


def test_detailed_areas_are_simplified_for_the_request_only(archive):
    import shapely
    from shapely.geometry import mapping

    circle = shapely.Point(7.85, 45.65).buffer(0.05, quad_segs=500)
    aoi = dataclasses.replace(AOI, geometry=mapping(circle))
    result = search(api(archive), aoi, None, None, None, retry_policy=QUICK)
    sent = archive.searches[0][3]["intersects"]
    assert len(sent["coordinates"][0]) <= 400
    assert shapely.geometry.shape(sent).contains(circle)
    assert len(result.scenes) == 5


# -- files


def test_item_collections_items_and_folders(tmp_path):
    collection = tmp_path / "items.json"
    collection.write_text(json.dumps({"type": "FeatureCollection", "features": MANY}))
    folder = tmp_path / "folder"
    folder.mkdir()
    for item in MANY[:2]:
        (folder / f"{item['id']}.json").write_text(json.dumps(item))
    for source, count in ((collection, 5), (folder, 2), (folder / f"{MANY[0]['id']}.json", 1)):
        catalog = dataclasses.replace(load_catalog(str(source)), hosts=("data.example.org",))
        assert len(search(catalog, AOI, None, None, None).scenes) == count


def test_static_catalogues_are_walked(tmp_path):
    (tmp_path / "2024").mkdir()
    item = make_item(base="./")
    (tmp_path / "2024" / "item.json").write_text(json.dumps(item))
    root = {"type": "Catalog", "stac_version": "1.0.0", "id": "r", "description": "r"}
    child = {**root, "links": [{"rel": "item", "href": "./item.json"}, {"rel": "child", "href": "../catalog.json"}]}
    (tmp_path / "catalog.json").write_text(json.dumps({**root, "links": [{"rel": "child", "href": "2024/c.json"}]}))
    (tmp_path / "2024" / "c.json").write_text(json.dumps(child))
    for source in (tmp_path, tmp_path / "catalog.json"):
        result = search(load_catalog(str(source)), AOI, None, None, None)
        assert ids(result) == [item["id"]]
        assert result.scenes[0].hrefs["B02"] == str(tmp_path / "2024" / item["id"] / "B02.tif")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("{", "is not JSON"),
        ("[]", "not a JSON object"),
        ('{"type": "Topology"}', "of type 'Topology'"),
        ('{"type": "Catalog", "links": [{"rel": "item", "href": "https://example.org/i.json"}]}', "address of its API"),
        ('{"type": "Catalog", "links": [{"rel": "item", "href": "../../etc/x.json"}]}', "outside its folder"),
        ('{"type": "Catalog", "links": [{"rel": "item", "href": "gone.json"}]}', "cannot be read"),
    ],
)
def test_bad_files_are_usage_errors(content, expected, tmp_path):
    path = tmp_path / "catalog.json"
    path.write_text(content)
    with pytest.raises(UsageError, match=expected):
        search(load_catalog(str(path)), AOI, None, None, None)


@pytest.mark.parametrize("relative", [True, False])
def test_our_own_index_comes_back_unchanged(tmp_path, relative):
    home = tmp_path / "scenes"
    item = make_item(base=f"{home}/", offset=None, baseline="02.14")
    scene = parse(item, Catalog("local", "file", "", roots=(str(home),)))
    scene = dataclasses.replace(scene, offset=dataclasses.replace(scene.offset, offset_dn=-1000, evidence="audited"))
    index = (home if relative else tmp_path) / "index" / "index.json"
    index.parent.mkdir(parents=True)
    write_index([scene], home / "index.json" if relative else index, relative=relative)
    path = home / "index.json" if relative else index
    result = search(load_catalog(str(path)), AOI, None, None, None)
    assert result.scenes == (scene,)
    assert result.rejected == ()
    assert load_catalog(str(path)).access().href(scene.hrefs["B02"]) == os.path.realpath(scene.hrefs["B02"])


def test_an_index_cannot_lie_about_the_offset():
    item = make_item()
    item["properties"]["sen2fine:offset_dn"] = -7
    with pytest.raises(RejectedItem, match="expected 0 or -1000"):
        parse(item)


def test_items_across_the_antimeridian_are_found():
    aoi = aoi_from_bbox(179.99, 64.0, -179.99, 64.05)
    item = make_item(epsg=32660, left_m=600_000, top_m=7_200_000, tile="60WWA")
    wrapped = copy.deepcopy(item)
    ring = wrapped["geometry"]["coordinates"][0]
    assert min(lon for lon, _ in ring) < 0 < max(lon for lon, _ in ring)
    assert ids_of(wrapped, aoi) == [item["id"]]
    unwrapped = copy.deepcopy(item)
    unwrapped["geometry"]["coordinates"][0] = [[lon % 360, lat] for lon, lat in ring]
    assert ids_of(unwrapped, aoi) == [item["id"]]
    assert ids_of(item, aoi_from_bbox(0.0, 64.0, 0.1, 64.05)) == []


def ids_of(item, aoi):
    with stac_server([item]) as server:
        return ids(search(api(server), aoi, None, None, None, retry_policy=QUICK))


def test_access_of_a_catalogue_is_no_wider_than_its_hosts():
    access = load_catalog("earth-search").access()
    assert isinstance(access, Access)
    with pytest.raises(UsageError, match="is not listed"):
        access.href("https://evil.example.org/B02.tif")


def test_rejections_are_summed_up_by_reason():
    rejected = [(f"S2A_{i}", "lacks B05") for i in range(300)] + [("S2B_0", "no datetime")]
    assert summarised(rejected) == [
        "300 items left out: lacks B05 (S2A_0, S2A_1, S2A_2 ...)",
        "1 item left out: no datetime (S2B_0)",
    ]
    assert summarised([]) == []


CANARY = "SECRETsecretSECRET"
SAS = "st=2026-01-01T00%3A00%3A00Z&se=2026-01-02&sp=rl&sv=2025-07-05&sr=c&skoid=a&sktid=b&skt=c&ske=d&sks=b&skv=e"


def signed_item(host, query):
    item = make_item(base=f"https://{host}/s2/", offset=None)
    for asset in item["assets"].values():
        asset["href"] += f"?{query}" if query else ""
    item["links"] = [{"rel": "self", "href": f"https://{host}/items/x.json?{query}"}]
    return item


@pytest.mark.parametrize(
    ("catalog", "host", "query", "left"),
    [
        (load_catalog("planetary-computer"), "sentinel2l2a01.blob.core.windows.net", f"{SAS}&sig={CANARY}%3D", ""),
        (ANYWHERE, "data.example.org", f"X-Amz-Credential={CANARY}&x-amz-signature={CANARY}&X-Amz-Expires=60", ""),
        (ANYWHERE, "data.example.org", f"AWSAccessKeyId={CANARY}&Signature={CANARY}&Expires=17", ""),
        (ANYWHERE, "data.example.org", f"version=3&X%2DGoog%2DSignature={CANARY}&f=a%20b", "?version=3&f=a%20b"),
        (ANYWHERE, "data.example.org", "version=3", "?version=3"),
    ],
)
def test_signatures_are_never_kept(catalog, host, query, left):
    scene = parse(signed_item(host, query), catalog)
    assert CANARY not in json.dumps(scene.to_json())
    assert scene.hrefs["B02"] == f"https://{host}/s2/{scene.id}/B02.tif{left}"
    assert scene.properties["item"] == f"https://{host}/items/x.json"


@pytest.mark.parametrize("query", [f"{SAS}&sig={CANARY}", ""])
def test_files_that_cannot_be_signed_again_are_rejected(query):
    with pytest.raises(RejectedItem, match="--catalog planetary-computer") as caught:
        parse(signed_item("sentinel2l2a01.blob.core.windows.net", query), ANYWHERE)
    assert CANARY not in str(caught.value)
    public = dataclasses.replace(ANYWHERE, hosts=("mine.blob.core.windows.net",))
    assert parse(signed_item("mine.blob.core.windows.net", ""), public).hrefs["B02"].endswith("B02.tif")


SECRET_NAMES = [
    "token", "access_token", "apikey", "api_key", "subscription-key", "key", "x-api-key", "secret", "client_secret",
    "jwt", "sas", "pwd", "passwd", "password", "code", "auth", "authorization", "session", "sid", "user", "login",
    "credential", "ticket", "k", "hash", "id", "path", "KEY", "Api%2DKey", "unknown",
]  # fmt: skip


@pytest.mark.parametrize("name", SECRET_NAMES)
@pytest.mark.parametrize("scheme", ["https", "s3"])
def test_addresses_with_possible_secrets_are_rejected(name, scheme):
    """Kept, they would lie in a plan that anybody may read; dropped, the address may be another file's."""
    catalog = dataclasses.replace(ANYWHERE, hosts=("*", "s3://data.example.org"))
    item = signed_item("data.example.org", f"{name}={CANARY}")
    for asset in item["assets"].values():
        asset["href"] = asset["href"].replace("https://", f"{scheme}://")
    with pytest.raises(RejectedItem, match=r"query parameter .* may be a secret.*cure: ") as caught:
        parse(item, catalog)
    assert CANARY not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda href: href.replace("https://", f"https://me:{CANARY}@"), "user name or password"),
        (lambda href: href.replace("https://", f"https://{CANARY}@"), "user name or password"),
        (lambda href: href.replace("B02", f"B02;jsessionid={CANARY}"), "parameters in their path"),
        (lambda href: href.replace("B02", f"B02%3Btoken={CANARY}"), "parameters in their path"),
        (lambda href: f"{href}?version={CANARY * 10}", "may be a secret"),
        (lambda href: f"{href}?{CANARY}", "query parameter without a name"),
    ],
)
def test_secrets_elsewhere_in_an_address_are_not_shown(change, said):
    item = make_item()
    item["assets"]["B02"]["href"] = change(item["assets"]["B02"]["href"])
    with pytest.raises(RejectedItem, match=said) as caught:
        parse(item, ANYWHERE)
    assert CANARY.lower() not in str(caught.value).lower()


def test_a_fragment_is_never_kept():
    item = make_item()
    item["assets"]["B02"]["href"] += f"#token={CANARY}"
    item["links"] = [{"rel": "self", "href": f"https://data.example.org/x.json?key={CANARY}#{CANARY}"}]
    scene = parse(item, ANYWHERE)
    assert scene.hrefs["B02"].endswith("B02.tif")
    assert CANARY not in json.dumps(scene.to_json())


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (f'headers = {{ Authorization = "Bearer {CANARY}" }}', "headers is not a field"),
        (f'api_key = "{CANARY}"', "api_key is not a field"),
        (f'url = "https://me:{CANARY}@stac.example.org/v1"', "carries credentials"),
        (f'url = "https://stac.example.org/v1?key={CANARY}"', "carries credentials"),
        (f'url = "https://stac.example.org/v1#{CANARY}"', "is a web page"),
        (f'hosts = ["me:{CANARY}@data.example.org"]', "hosts holds"),
        (f'name = ["https://me:{CANARY}@data.example.org"]', "name = "),
    ],
)
def test_secrets_in_a_catalogue_file_are_refused_and_not_shown(tmp_path, line, said):
    content = known_catalogs()["earth-search"].read_text()
    key = line.split(" = ")[0]
    kept = [other for other in content.splitlines() if not other.startswith(f"{key} = ")]
    path = tmp_path / "mine.toml"
    path.write_text("\n".join([line, *kept]))
    with pytest.raises(UsageError, match=said) as caught:
        load_catalog(str(path))
    assert CANARY not in str(caught.value)
