"""What STAC items say of level, baseline, offset, classification and place, in the spellings that archives use."""

from __future__ import annotations

import copy
import dataclasses

import pytest

from pipeline.archive.catalog import Catalog, load_catalog
from pipeline.archive.radiometry import canonical_baseline
from pipeline.archive.stac.item import RejectedItem, scene_from_item
from tests.archive.stac_server import make_item

ANYWHERE = Catalog("test", "api", "https://stac.example.org", "sentinel-2-l2a", hosts=("*",))
PLANETARY = dataclasses.replace(ANYWHERE, offset_rule="baseline")
NEW, OLD = (
    "S2B_MSIL2A_20240617T101559_N0509_R065_T32TMR_20240617T150000",
    "S2B_MSIL2A_20240617T101559_N0214_R065_T32TMR_x",
)


def parse(item, catalog=ANYWHERE):
    return scene_from_item(item, catalog, catalog.access())


def bare(offset=None, **properties):
    """An item that says nothing of its baseline, but for `properties`; None among them removes one."""
    item = make_item(offset=offset, name="scene")
    for key in ("s2:processing_baseline", "s2:product_uri", "s2:datatake_id"):
        del item["properties"][key]
    item["properties"] |= properties
    for key in [key for key, value in properties.items() if value is None]:
        del item["properties"][key]
    return item


# -- the baseline


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        *(("05.09", "05.09"), ("5.09", "05.09"), ("N0509", "05.09"), ("0509", "05.09"), ("N05.09", "05.09")),
        *(
            (5.9, "05.09"),
            ("5.9", "05.09"),
            (5.1, "05.10"),
            (5.11, "05.11"),
            (509, "05.09"),
            (4.0, "04.00"),
            (4, "04.00"),
        ),
        *((2.1, "02.10"), (2.8, "02.08"), (3.1, "03.01"), ("99.99", "99.99"), (9999, "99.99"), (" 05.00 ", "05.00")),
        *(("02.11.00", ""), ("14", ""), ("five", ""), ("", ""), (None, ""), (True, ""), ([5.1], ""), (-5.1, "")),
        *((float("nan"), ""), (1e300, ""), ("٠٥.٠٩", "")),
    ],
)
def test_spellings_of_a_baseline(written, meant):
    assert canonical_baseline(written) == meant


TOLD = {
    # what says it: (item, baseline, offset)
    "the field": (bare(**{"s2:processing_baseline": "N0509"}), "05.09", -1000),
    "a number": (bare(**{"s2:processing_baseline": 5.9}), "05.09", -1000),
    "digits": (bare(**{"s2:processing_baseline": "0214"}), "02.14", 0),
    "the product name": (bare(**{"s2:product_uri": f"{NEW}.SAFE"}), "05.09", -1000),
    "the product id": (bare(**{"sentinel:product_id": OLD}), "02.14", 0),
    "the title": (bare(title=NEW), "05.09", -1000),
    "the granule": (bare(**{"s2:granule_id": "S2A_OPER_MSI_L2A_TL_2APS_20240617_A1_T32TMR_N05.09"}), "05.09", -1000),
    "a name of GDAL": (bare(title=f"SENTINEL2_L2A:/vsizip/{OLD}.zip/MTD_MSIL2A.xml:10m:EPSG_32632"), "02.14", 0),
    "the version": (bare(**{"processing:version": "05.00"}), "05.00", -1000),
    "the version as a number": (bare(**{"processing:version": 5.11}), "05.11", -1000),
    "the version of old": (bare(**{"processing:version": "02.14"}), "02.14", 0),
    "a version of Sen2Cor beside a name": (
        bare(**{"processing:version": "2.11", "s2:product_uri": f"{NEW}.SAFE"}),
        "05.09",
        -1000,
    ),
    "a padded version of Sen2Cor beside a name": (
        bare(**{"processing:version": "02.11", "s2:product_uri": f"{NEW}.SAFE"}),
        "05.09",
        -1000,
    ),
    "a version of Sen2Cor as a number": (
        bare(**{"processing:version": 2.11, "s2:product_uri": f"{NEW}.SAFE"}),
        "05.09",
        -1000,
    ),
    "99.99 beside a name": (
        bare(**{"s2:processing_baseline": "99.99", "s2:product_uri": f"{NEW}.SAFE"}),
        "05.09",
        -1000,
    ),
    "two on one side": (bare(**{"s2:processing_baseline": "05.10", "s2:product_uri": f"{NEW}.SAFE"}), "05.10", -1000),
}


@pytest.mark.parametrize("case", TOLD)
def test_the_baseline_is_taken_from_wherever_it_is(case):
    item, baseline, offset_dn = TOLD[case]
    scene = parse(item, PLANETARY)
    assert (scene.baseline, scene.offset.offset_dn, scene.offset.standing) == (baseline, offset_dn, "stated")


def test_the_baseline_is_in_the_paths_of_the_files():
    item = bare()
    for asset in item["assets"].values():
        asset["href"] = asset["href"].replace("/scene/", f"/{NEW}.SAFE/GRANULE/L2A_T32TMR/IMG_DATA/")
    assert parse(item).baseline == "05.09"


UNTOLD = {
    # what is missing or contradicts itself: (item, what the evidence names)
    "nothing": (bare(), ["does not say"]),
    "nothing but a date": (bare(datetime="2017-06-17T10:15:59Z"), ["does not say"]),
    "99.99": (bare(**{"s2:processing_baseline": "99.99"}), ["99.99", "does not say"]),
    "N9999": (bare(**{"s2:product_uri": NEW.replace("N0509", "N9999")}), ["99.99"]),
    "only a version of Sen2Cor": (bare(**{"processing:version": "2.11"}), ["does not say"]),
    "a whole version of Sen2Cor": (bare(**{"processing:version": "02.11.00"}), ["does not say"]),
    "the version of some program": (bare(**{"processing:version": "1.0"}), ["does not say"]),
    "a version 6.3 of some program": (bare(**{"processing:version": "6.3"}), ["does not say"]),
    "field against name": (
        bare(**{"s2:processing_baseline": "02.14", "s2:product_uri": f"{NEW}.SAFE"}),
        ["s2:processing_baseline", "02.14", "s2:product_uri", "05.09"],
    ),
    "name against id": ({**bare(**{"s2:product_uri": f"{NEW}.SAFE"}), "id": OLD}, ["s2:product_uri", "id", "02.14"]),
    "field against version": (
        bare(**{"s2:processing_baseline": "02.14", "processing:version": "05.00"}),
        ["s2:processing_baseline", "processing:version"],
    ),
    "declared against baseline": (bare(-0.1, **{"s2:processing_baseline": "02.14"}), ["-0.1", "02.14"]),
    "0 declared against baseline": (bare(0.0, **{"s2:processing_baseline": "05.10"}), ["0.0", "05.10"]),
}


@pytest.mark.parametrize("case", UNTOLD)
def test_what_is_unknown_or_contradicts_itself_stays_open(case):
    item, named = UNTOLD[case]
    scene = parse(item)
    assert scene.offset.standing == "open"
    assert not scene.offset.by_user
    for word in named:
        assert word in scene.offset.evidence, word
    assert parse(item, ANYWHERE.with_offset(-1000)).offset.offset_dn == -1000


@pytest.mark.parametrize("name", ["planetary-computer", "earth-search", "cdse"])
def test_no_archive_turns_an_unknown_offset_into_0(name):
    catalog = dataclasses.replace(load_catalog(name), hosts=("*",), aliases=ANYWHERE.aliases)
    assert parse(bare(), catalog).offset.standing == "open"


def test_files_of_an_open_scene_are_not_read():
    from pipeline.archive.read.band_file import BandFile
    from pipeline.errors import UsageError

    with pytest.raises(UsageError, match="offset of scene scene is unknown"):
        BandFile.of(parse(bare()), "B02")


def test_a_declared_offset_that_no_baseline_confirms_is_doubted():
    scene = parse(bare(-0.1))
    assert (scene.offset.offset_dn, scene.offset.standing) == (-1000, "doubted")


# -- declared scale and offset


def declared(on="bands", **fields):
    """An item of baseline 05.10 whose bands, or which itself, declares `fields`."""
    item = make_item(offset=None)
    if on == "item":
        item["properties"] |= {f"raster:{key}": value for key, value in fields.items()}
        return item
    for band, asset in item["assets"].items():
        if band != "SCL":
            asset["raster:bands"] = [{"data_type": "uint16", **fields}] if on == "bands" else asset["raster:bands"]
            asset |= {f"raster:{key}": value for key, value in fields.items()} if on == "assets" else {}
    return item


@pytest.mark.parametrize("on", ["bands", "assets", "item"])
@pytest.mark.parametrize(
    ("fields", "standing"),
    [
        ({"scale": 1, "offset": 0}, "stated"),  # DN as they are
        ({"scale": 1.0}, "stated"),
        ({"scale": 1, "offset": -1000}, "stated"),
        ({"scale": 0.0001, "offset": -1000}, "stated"),
        ({"scale": "0.0001", "offset": "-0.1"}, "stated"),
        ({"scale": 0.0001, "offset": 0}, "open"),  # against baseline 05.10
        ({"offset": 0.0}, "open"),
    ],
)
def test_scale_and_offset_of_item_asset_and_band(on, fields, standing):
    for catalog in (ANYWHERE, PLANETARY):
        offset = parse(declared(on, **fields), catalog).offset
        assert offset.standing == standing
        assert offset.offset_dn == (-1000 if standing == "stated" else 0)


@pytest.mark.parametrize("on", ["bands", "assets", "item"])
@pytest.mark.parametrize(
    "fields", [{"scale": 0.001}, {"scale": 1, "offset": -0.1}, {"scale": 10000}, {"offset": -0.2}, {"scale": "a"}]
)
def test_other_scales_are_refused(on, fields):
    with pytest.raises(RejectedItem, match="expected"):
        parse(declared(on, **fields))


def test_item_and_bands_must_agree():
    item = make_item()
    item["properties"]["raster:offset"] = 0.0
    with pytest.raises(RejectedItem, match="the item declares offset"):
        parse(item)


def test_rule_always_is_compared_too():
    always = dataclasses.replace(ANYWHERE, offset_rule="always")
    assert parse(make_item(), always).offset.standing == "stated"
    assert parse(declared(scale=0.0001, offset=0), always).offset.standing == "open"
    item = make_item(offset=None)
    item["properties"]["earthsearch:boa_offset_applied"] = True
    assert parse(item, always).offset.standing == "open"


# -- the level


def level(collection="sentinel-2-l2a", name=None, **properties):
    item = bare(**{"s2:processing_baseline": "05.10", **properties})
    return {**item, "collection": collection, "id": name or item["id"]}


LEVEL_1C = {
    **{f"level {word}": level(**{"processing:level": word}) for word in ("Level-1C", "LEVEL1C", "S2MSI1C", "1C")},
    **{f"level {word}": level(**{"processing:level": word}) for word in ("L1", "level 1c", "Level 1C", "l1c", "L1B")},
    **{f"type {word}": level(**{"s2:product_type": word}) for word in ("S2MSI1C", "S2MSIL1C", "MSIL1C", "L1C")},
    "type of another name": level(**{"product:type": "S2MSI1C"}),
    "level of another name": level(**{"s2:processing_level": "Level-1C"}),
    **{f"collection {word}": level(word) for word in ("l1c", "sentinel-2-l1c", "sentinel-s2-l1c", "S2_L1C")},
    "collection with underscore": level("SENTINEL-2_L1C"),
    **{f"id {word}": level(name=word) for word in (NEW.replace("L2A", "L1C"), "S2A_T32TMR_L1C", "s2-level-1c-x")},
    "title": level(title=NEW.replace("L2A", "L1C")),
    "product id": level(**{"sentinel:product_id": NEW.replace("L2A", "L1C")}),
}  # fmt: skip


@pytest.mark.parametrize("case", LEVEL_1C)
def test_level_1_is_recognised_in_every_spelling(case):
    with pytest.raises(RejectedItem, match=r"Level-1[BC]? product by its .*expected Level-2A"):
        parse(LEVEL_1C[case])


def test_level_1c_by_its_bucket_or_its_cirrus_band():
    item = level(None)
    for asset in item["assets"].values():
        asset["href"] = asset["href"].replace("data.example.org/", "sentinel-s2-l1c.s3.example.org/")
    with pytest.raises(RejectedItem, match="Level-1C product by the address of B01"):
        parse(item)
    item = level(None)
    item["assets"]["B10"] = {"href": "https://data.example.org/B10.jp2"}
    with pytest.raises(RejectedItem, match="Level-1C product, as it has B10"):
        parse(item)


@pytest.mark.parametrize(
    "item",
    [
        *(level(**{"processing:level": word}) for word in ("L2", "L2A", "Level-2A", "2A", "S2MSI2A", "S2MSI2Ap", "")),
        level(title="Level-2A, made of the Level-1C product"),
        level(name="S2A_T31CTC_20240617_L2A"),
        level("s2-l2a"),
        level("my-1c-tests"),
    ],
)
def test_level_2a_is_no_level_1c(item):
    assert parse(item).offset.offset_dn == -1000


def test_a_folder_called_l1c_does_not_make_an_item_level_1c():
    item = make_item(base="https://data.example.org/from_L1C/")
    assert parse(item).hrefs["B02"].startswith("https://data.example.org/from_L1C/S2B_MSIL2A")


def test_level_3_is_refused():
    with pytest.raises(RejectedItem, match="Level-3A product by its processing:level"):
        parse(level(**{"processing:level": "L3A"}))


# -- the classification


def scl_as(key, href="https://data.example.org/x/classes.tif", **fields):
    item = make_item()
    asset = item["assets"].pop("SCL")
    item["assets"][key] = {**asset, "href": href, **fields}
    return item


CLASSES = [{"value": value} for value in range(12)]
FOUND_SCL = {
    **{f"key {key}": scl_as(key) for key in ("SCL-20m", "scl_20m", "SCL_20M", "scl20m", "Scl", "scene_classification")},
    "band name": scl_as("asset-13", **{"eo:bands": [{"name": "SCL"}]}),
    "band name of STAC 1.1": scl_as("asset-13", bands=[{"name": "scl"}]),
    "title": scl_as("asset-13", title="Scene classification map (SCL)"),
    "title misspelled": scl_as("asset-13", title="Scene classfication map - 20m"),
    "role": scl_as("asset-13", roles=["scene-classification"]),
    "role scl": scl_as("asset-13", roles=["data", "scl"]),
    "classes": scl_as("asset-13", **{"raster:bands": [{"classification:classes": CLASSES}]}),
    "file": scl_as("asset-13", "https://data.example.org/T32TMR_20240617T101559_SCL_20m.jp2"),
    "short file": scl_as("asset-13", "https://data.example.org/R20m/SCL.jp2"),
    "gsd of the product": scl_as("SCL-20m", **{"gsd": 10, "proj:transform": None}),
}


@pytest.mark.parametrize("case", FOUND_SCL)
def test_the_classification_is_found(case):
    item = FOUND_SCL[case]
    assert parse(item).hrefs["SCL"] == next(reversed(item["assets"].values()))["href"]


NO_SCL = {
    "resampled": scl_as("SCL_60m", gsd=60, **{"proj:transform": [60, 0, 399960, 0, -60, 5100000]}),
    "resampled by its title": scl_as("asset-13", title="Scene classification map (SCL) - 60m"),
    "resampled by its file": scl_as("asset-13", "https://data.example.org/T32TMR_SCL_60m.jp2", title="SCL"),
    "a picture": scl_as("scl", roles=["thumbnail"]),
    "another mask": scl_as("cloud-mask", roles=["classification"], title="Cloud mask"),
    "other classes": scl_as("mask", **{"classification:classes": CLASSES[:4]}),
    "no address": scl_as("SCL", None),
}


@pytest.mark.parametrize("case", NO_SCL)
def test_what_is_not_the_classification_is_not_taken_for_it(case):
    assert "SCL" not in parse(NO_SCL[case]).hrefs


def test_geotiff_before_jpeg2000_and_known_keys_first():
    item = scl_as("scl-jp2", "https://data.example.org/a_SCL.jp2", type="image/jp2")
    item["assets"]["scl-20m"] = {
        **item["assets"]["scl-jp2"],
        "href": "https://data.example.org/b.tif",
        "type": "image/tiff",
    }
    assert parse(item).hrefs["SCL"].endswith("/b.tif")
    item["assets"]["SCL"] = {"href": "https://data.example.org/c.tif"}
    assert parse(item).hrefs["SCL"].endswith("/c.tif")


# -- spellings of place, time, files


def edited(change):
    item = copy.deepcopy(make_item())
    change(item)
    return item


def of_assets(**fields):
    def change(item):
        for asset in item["assets"].values():
            asset |= fields

    return edited(change)


def of_item(**fields):
    return edited(lambda item: item.update(fields))


def of_properties(**fields):
    return edited(lambda item: item["properties"].update(fields))


def in_gdal_order(item):
    for asset in item["assets"].values():
        a, b, c, d, e, f = asset["proj:transform"]
        asset["proj:transform"] = [c, a, b, f, d, e]


def gsd_10_everywhere(item):
    for asset in item["assets"].values():
        asset |= {"gsd": 10}
        del asset["proj:transform"], asset["proj:shape"]


def other_keys(item):
    item["assets"] = {f"{key.lower()}-{asset['gsd']}m": asset for key, asset in item["assets"].items()}


def by_vsicurl(item):
    for asset in item["assets"].values():
        asset["href"] = f"/vsicurl/{asset['href']}"


def by_alternate(item):
    for asset in item["assets"].values():
        asset |= {"href": "s3://eodata/x.jp2", "alternate": {"https": {"href": asset["href"]}}}


def only_wkt(item):
    from pyproj import CRS

    del item["properties"]["proj:epsg"]
    item["properties"] |= {"proj:epsg": None, "proj:wkt2": CRS.from_epsg(32632).to_wkt()}


def only_projjson(item):
    from pyproj import CRS

    del item["properties"]["proj:epsg"]
    item["properties"]["proj:projjson"] = CRS.from_epsg(32632).to_json_dict()


BOX = make_item()["bbox"]
SAME = {
    "transform in GDAL's order": edited(in_gdal_order),
    "gsd 10 everywhere": edited(gsd_10_everywhere),
    "gsd as text": of_assets(gsd=None),
    "keys in another case": edited(other_keys),
    "/vsicurl/": edited(by_vsicurl),
    "alternate": edited(by_alternate),
    "only wkt2": edited(only_wkt),
    "only projjson": edited(only_projjson),
    "code as URN": of_properties(**{"proj:epsg": None, "proj:code": "urn:ogc:def:crs:EPSG::32632"}),
    "code as address": of_properties(**{"proj:epsg": None, "proj:code": "http://www.opengis.net/def/crs/EPSG/0/32632"}),
    "code as text": of_properties(**{"proj:epsg": "EPSG:32632"}),
    "code as float": of_properties(**{"proj:epsg": 32632.0}),
    "orbit empty": of_properties(**{"sat:relative_orbit": ""}),
    "orbit null": of_properties(**{"sat:relative_orbit": None}),
    "orbit as text": of_properties(**{"sat:relative_orbit": "R065"}),
    "orbit nonsense": of_properties(**{"sat:relative_orbit": [65]}),
    "links null": of_item(links=None),
    "links odd": of_item(links=[None, 7, {"rel": "self"}, {"rel": "self", "href": 7}]),
    "naive time": of_properties(datetime="2024-06-17T10:15:59.024"),
    "time with a space": of_properties(datetime="2024-06-17 10:15:59.024z"),
    "platform S2A": of_properties(platform="S2A"),
    "platform Sentinel2A": of_properties(platform="Sentinel2A"),
    "platform sentinel_2b": of_properties(platform="sentinel_2b"),
    "constellation": of_properties(platform=None, constellation="Sentinel-2"),
    "null geometry": of_item(geometry=None),
    "null geometry with heights": of_item(geometry=None, bbox=[*BOX[:2], 0, *BOX[2:], 4000]),
    "geometry collection": of_item(geometry={"type": "GeometryCollection", "geometries": [make_item()["geometry"]]}),
    "geometry collection with a point": of_item(
        geometry={
            "type": "GeometryCollection",
            "geometries": [{"type": "Point", "coordinates": [7.8, 45.6]}, make_item()["geometry"]],
        }
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SAME)
def test_other_spellings_make_the_same_scene(case):
    plain, scene = parse(make_item()), parse(SAME[case])
    assert (scene.id, scene.epsg, scene.datetime_utc, scene.baseline) == (
        *(plain.id, plain.epsg, plain.datetime_utc, plain.baseline),
    )
    assert scene.hrefs == plain.hrefs
    assert scene.offset == plain.offset
    assert scene.rasters == (() if case == "gsd 10 everywhere" else plain.rasters)
    west, south, east, north = BOX
    from pipeline.aoi.footprints import footprint_shape

    assert footprint_shape(scene.footprint).bounds == pytest.approx((west, south, east, north))
    assert scene.properties["relative_orbit"] == 65


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        (of_item(geometry=None, bbox=None), "no footprint polygon, and no bbox either"),
        (of_item(geometry=None, bbox=[7, 45, 7, 46]), "bbox without area"),
        (of_item(geometry=None, bbox=[7, 45, "8", 46]), "no bbox either"),
        (of_item(geometry={"type": "Point", "coordinates": [7, 45]}), "no footprint polygon but a Point"),
        (of_item(geometry={"type": "Polygon"}), "footprint is no polygon"),
        (
            of_item(geometry={"type": "Polygon", "coordinates": [[[4e5, 5e6], [5e5, 5e6], [5e5, 5.1e6], [4e5, 5e6]]]}),
            "footprint reaches 500000 5.1e.06; expected longitude and latitude",
        ),
        (of_item(id="a\u202eb"), "not a plain name"),
        (of_item(id="a\ud800b"), "not a plain name"),
        (of_properties(**{"proj:epsg": None, "proj:wkt2": "PROJCRS[nonsense"}), "no CRS"),
        (of_properties(platform="landsat-8"), "not Sentinel-2"),
        (of_properties(platform="sentinel-1a"), "not Sentinel-2"),
        (of_properties(platform="sentinel-20"), "not Sentinel-2"),
        (of_assets(**{"proj:transform": "10,0,399960"}), "proj:transform '10,0,399960'; expected a list of numbers"),
        (of_assets(**{"proj:transform": [10, 0, None, 0, -10, 0]}), "proj:transform 'None'; expected finite numbers"),
        (of_assets(**{"proj:shape": {"y": 1}}), "proj:shape"),
        (of_assets(gsd="ten", **{"proj:transform": None}), "gsd 'ten'; expected finite numbers"),
        (of_assets(href="/vsicurl/http://10.0.0.1/x.tif"), "plain http"),
        (of_assets(href="/vsizip//vsicurl/https://data.example.org/x.zip/B02.tif"), "virtual file systems"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_named(item, expected):
    with pytest.raises(RejectedItem, match=expected) as caught:
        parse(item)
    assert "malformed item" not in str(caught.value)


def test_spaces_and_letters_of_an_https_address_are_escaped():
    item = make_item(base="https://data.example.org/scène 1/")
    assert parse(item).hrefs["B02"].startswith("https://data.example.org/sc%C3%A8ne%201/S2B")
    item = make_item(base="https://data.example.org/sc%20ne/")
    assert parse(item).hrefs["B02"].startswith("https://data.example.org/sc%20ne/S2B")


def test_zarr_products_are_called_by_name():
    item = make_item()
    item["assets"] = {
        "SR_10m": {
            "href": "https://objects.example.org/S2A_MSIL2A.zarr/measurements/r10m",
            "type": "application/vnd+zarr",
        }
    }
    with pytest.raises(RejectedItem, match="Zarr store .EOPF.*--catalog cdse"):
        parse(item)
