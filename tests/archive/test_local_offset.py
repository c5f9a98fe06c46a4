"""The offset of local scenes: who may tell it, what disagrees, and an audit that nodata cannot mislead."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import rasterio

from pipeline.archive.local.scan import AUDIT_KEY, scan
from pipeline.archive.offset_audit import audit_scene, judge_scene
from pipeline.archive.read.access import Access
from pipeline.archive.read.sampling import away_from_nodata
from pipeline.archive.scene import OffsetDecision, Raster
from pipeline.errors import UsageError
from tests.archive.safe_product import PRODUCT, safe
from tests.archive.synthetic import make_scene, write_band

RGBN = ("B02", "B03", "B04", "B08")
SIDE = 1200


def folder_of_files(tmp_path, place, offset_dn, *, bands=RGBN, prefix="field", **options):
    """Files `prefix`_B02.tif ... in tmp_path/place."""
    made = make_scene(tmp_path, scene_id="made", size_m=SIDE, offset_dn=offset_dn, bands=bands, scl=False, **options)
    folder = tmp_path / place
    folder.mkdir(parents=True)
    for band, href in made.hrefs.items():
        shutil.move(href, folder / f"{prefix}_{band}.tif")
    (tmp_path / "made").rmdir()
    return folder


def tagged(folder, **tags):
    for path in sorted(folder.glob("*.tif")):
        with rasterio.open(path, "r+") as dataset:
            dataset.scales, dataset.offsets = (tags["scale"],), (tags["offset"],)


# --- nobody tells


@pytest.mark.parametrize("bands", [RGBN, ("B02", "B03", "B04", "B12"), ("B04", "B08"), ("B05", "B11")])
@pytest.mark.parametrize("prefix", ["field", "field_20240617T101559", "2016-05-04_field"])
def test_a_folder_of_which_nobody_tells_the_baseline_is_refused(tmp_path, bands, prefix):
    folder_of_files(tmp_path, "data", -1000, bands=bands, prefix=prefix)
    with pytest.raises(UsageError, match=r"nothing tells its BOA offset.*--offset -1000.*--offset 0"):
        scan(tmp_path, datetime_utc="2024-06-17")
    (scene,), _ = scan(tmp_path, datetime_utc="2024-06-17", offset_dn=-1000)
    assert scene.offset == OffsetDecision(-1000, "set by the user", by_user=True)


def test_dark_pixels_prove_that_no_offset_is_in_them(tmp_path):
    folder_of_files(tmp_path, "data", 0)
    (scene,), _ = scan(tmp_path, datetime_utc="2024-06-17")
    assert scene.offset.offset_dn == 0
    assert "impossible with +1000" in scene.offset.evidence


@pytest.mark.parametrize(
    ("place", "prefix"),
    [
        ("data", PRODUCT),
        (PRODUCT, "T32TMS_20240617T101559"),
        (f"{PRODUCT}.SAFE/deep/R10m", "T32TMS_20240617T101559"),
        ("S2_N0510/2024-06-17", "field"),
    ],
)
def test_the_name_of_any_folder_above_tells(tmp_path, place, prefix):
    folder_of_files(tmp_path, place, -1000, prefix=prefix)
    (scene,), _ = scan(tmp_path)
    assert (scene.offset.offset_dn, scene.baseline) == (-1000, "05.10")
    assert scene.datetime_utc[:10] == "2024-06-17"
    (again,), _ = scan(tmp_path / place)  # also where the scan begins below the folder that tells
    assert again.offset.offset_dn == -1000


def test_an_xml_without_baseline_and_offset_decides_nothing(tmp_path):
    root = safe(tmp_path, baseline="", offsets="", stored=-1000)
    xml = root / "MTD_MSIL2A.xml"
    xml.write_text(xml.read_text().replace(PRODUCT, "S2B_X"))
    root.rename(tmp_path / "product")
    with pytest.raises(UsageError, match="nothing tells its BOA offset"):
        scan(tmp_path)


# --- tags, and sources that disagree


def test_scale_and_offset_tags_are_honoured(tmp_path):
    folder = folder_of_files(tmp_path, "data", -1000)
    tagged(folder, scale=0.0001, offset=-0.1)
    (scene,), _ = scan(tmp_path, datetime_utc="2024-06-17")
    assert scene.offset.offset_dn == -1000
    assert "tags" in scene.offset.evidence


@pytest.mark.parametrize(
    ("scale", "offset"), [(0.0000275, -0.2), (0.0001, -0.05), (1, -0.1), (0.0001, -1000), (0.001, 0)]
)
def test_tags_that_are_no_dn_of_this_kind_are_refused(tmp_path, scale, offset):
    tagged(folder_of_files(tmp_path, "data", 0), scale=scale, offset=offset)
    with pytest.raises(UsageError, match="its tags state scale"):
        scan(tmp_path, datetime_utc="2024-06-17", offset_dn=0)


def test_pixels_settle_disputes_of_name_and_tags(tmp_path):
    folder = folder_of_files(tmp_path, "N0510", 0)
    tagged(folder, scale=0.0001, offset=0)
    silent, _ = scan(tmp_path, datetime_utc="2024-06-17")  # scale alone says 0, the name says -1000
    assert silent[0].offset.offset_dn == 0
    assert "the pixels settle" in silent[0].offset.evidence
    bright = folder_of_files(tmp_path / "b", "N0510", -1000)
    tagged(bright, scale=0.0001, offset=0)
    with pytest.raises(UsageError, match=r"disagree.*-1000 by processing baseline 05.10.*0 by scale and offset"):
        scan(tmp_path / "b", datetime_utc="2024-06-17")


def test_bands_whose_tags_differ_are_refused(tmp_path):
    folder = folder_of_files(tmp_path, "data", -1000)
    tagged(folder, scale=0.0001, offset=-0.1)
    with rasterio.open(folder / "field_B08.tif", "r+") as dataset:
        dataset.offsets = (0,)
    with pytest.raises(UsageError, match="differ"):
        scan(tmp_path, datetime_utc="2024-06-17")


def test_a_version_of_sen2cor_is_no_baseline(tmp_path):
    folder = folder_of_files(tmp_path, "data", -1000)
    name = PRODUCT.replace("N0510", "N0509")
    properties = {"datetime": "2024-06-17T10:15:59Z", "processing:version": "2.11", "s2:product_uri": f"{name}.SAFE"}
    item = {"type": "Feature", "stac_version": "1.0.0", "id": name, "assets": {}, "properties": properties}
    (folder / "item.json").write_text(json.dumps(item))
    (scene,), _ = scan(tmp_path)
    assert (scene.offset.offset_dn, scene.baseline) == (-1000, "05.09")


@pytest.mark.parametrize("stored", [0, -1000])
def test_pixels_settle_disputes_of_item_and_name(tmp_path, stored):
    folder = folder_of_files(tmp_path, PRODUCT, stored)
    properties = {"datetime": "2024-06-17T10:15:59Z", "s2:processing_baseline": "02.14"}
    item = {"type": "Feature", "stac_version": "1.0.0", "id": "x", "assets": {}, "properties": properties}
    (folder / "item.json").write_text(json.dumps(item))
    if stored:
        with pytest.raises(UsageError, match=r"disagree.*0 by processing baseline 02.14.*-1000 by .*05.10"):
            scan(tmp_path)
    else:
        assert scan(tmp_path)[0][0].offset.offset_dn == 0


def test_xml_and_folder_name_that_disagree_are_refused(tmp_path):
    root = safe(tmp_path, baseline="02.14", offsets="", stored=-1000)
    (root / "MTD_MSIL2A.xml").write_text((root / "MTD_MSIL2A.xml").read_text().replace("N0510", "N0214"))
    for path in root.rglob("*_B12_*.jp2"):  # without SWIR the pixels cannot tell
        path.unlink()
    with pytest.raises(UsageError, match=r"disagree.*02.14.*05.10"):
        scan(tmp_path)
    (scene,), _ = scan(tmp_path, offset_dn=-1000)
    assert scene.offset.by_user


# --- overviews that mix ground with nodata


def sliver(tmp_path, how, *, width=12, side_m=6000, offset_dn=-1000):
    """A scene with +1000 in its pixels that is nodata but for slivers of `width` pixels, or specks of nodata."""
    made = make_scene(
        tmp_path, scene_id=PRODUCT, size_m=side_m, offset_dn=offset_dn, bands=("B02", "B03", "B04", "B12"), scl=False
    )
    hrefs = {}
    for band, href in made.hrefs.items():
        gsd_m = 20 if band == "B12" else 10
        with rasterio.open(href) as dataset:
            image = dataset.read(1)
        rows, cols = (np.arange(side) * gsd_m // 10 for side in image.shape)
        if how == "specks":
            keep = (rows[:, None] // 2 * 7 + cols[None, :] // 2 * 3) % 5 > 2
        else:
            keep = np.abs((cols[None, :] + rows[:, None] // 8) % 400 - 200) < width / 2
        image = np.where(keep, image, 0).astype(np.uint16)
        Path(href).unlink()
        path = Path(href).with_suffix(".jp2" if how == "jp2" else ".tif")
        raster = Raster(gsd_m, 600000, 5100000, *image.shape)
        if how == "jp2":
            kept = {"count": 1, "dtype": "uint16", "crs": "EPSG:32632", "width": raster.nx, "height": raster.ny}
            grid = rasterio.Affine(gsd_m, 0, 600000, 0, -gsd_m, 5100000)
            options = {"QUALITY": 100, "REVERSIBLE": "YES", "RESOLUTIONS": 6}
            with rasterio.open(path, "w", driver="JP2OpenJPEG", transform=grid, **options, **kept) as dataset:
                dataset.write(image, 1)
        else:
            write_band(path, image, raster, 32632)
            with rasterio.open(path, "r+") as dataset:
                dataset.nodata = None  # as many writers leave it: overviews average 0 in
            with rasterio.open(path, "r+") as dataset:
                dataset.build_overviews([2, 4, 8, 16], rasterio.enums.Resampling.average)
        hrefs[band] = str(path)
    return dataclasses.replace(made, hrefs=hrefs)


@pytest.mark.parametrize("how", ["average", "jp2", "specks"])
def test_overviews_mixing_nodata_contradict_nothing(tmp_path, how):
    scene = sliver(tmp_path, how)
    access = Access(roots=(str(tmp_path),))
    with rasterio.open(scene.hrefs["B02"]) as dataset:
        mixed = dataset.read(1, out_shape=(75, 75))
    assert np.percentile(mixed[mixed > 0], 5) < 800  # what misleads
    assert audit_scene(scene, access).verdict in ("agrees", "unknown")
    assert judge_scene(scene, access).offset_dn in (-1000, None)
    (found,), _ = scan(tmp_path)
    assert found.offset.offset_dn == -1000
    assert not found.properties[AUDIT_KEY].startswith("contradicts")


@pytest.mark.parametrize("how", ["average", "jp2"])
def test_a_sliver_still_betrays_a_wrong_record(tmp_path, how):
    scene = sliver(tmp_path, how, width=40, offset_dn=0)
    wrong = dataclasses.replace(scene, offset=OffsetDecision(-1000, "the catalogue says so"))
    assert audit_scene(wrong, Access(roots=(str(tmp_path),))).verdict == "contradicts"
    with pytest.raises(UsageError, match="impossible with"):
        scan(tmp_path)


def test_a_handful_of_pixels_contradicts_no_record(tmp_path):
    """A crop of 300 m: too little evidence to overrule what an XML or a name states."""
    made = make_scene(tmp_path, scene_id=PRODUCT, size_m=300, bands=("B02", "B03", "B04", "B12"), scl=False)
    assert made.rasters[0].nx == 30
    (scene,), _ = scan(tmp_path)
    assert scene.offset.offset_dn == -1000
    assert scene.properties[AUDIT_KEY].startswith("unknown: fewer than 1000")


def test_remote_tags_contradict_a_record_unless_pixels_agree(tmp_path):
    made = make_scene(tmp_path, scene_id="s", size_m=SIDE, offset_dn=-1000, bands=("B02", "B03", "B04"), scl=False)
    access = Access(roots=(str(tmp_path),))
    wrong = dataclasses.replace(made, offset=OffsetDecision(0, "the catalogue says so"))
    assert audit_scene(wrong, access).verdict == "unknown"  # haze and offset look alike without SWIR
    tagged(tmp_path / "s", scale=0.0001, offset=-0.1)
    audit = audit_scene(wrong, access)
    assert audit.verdict == "contradicts"
    assert "tags say -1000" in audit.fact
    assert audit_scene(made, access).verdict == "unknown"
    dark = make_scene(tmp_path, scene_id="d", size_m=SIDE, bands=("B02", "B03", "B04"), scl=False)
    tagged(tmp_path / "d", scale=0.0001, offset=-0.1)
    assert audit_scene(dark, access).verdict == "agrees"


def test_margins_around_nodata():
    valid = np.ones((9, 9), bool)
    valid[4, 4] = False
    kept = away_from_nodata(valid, 2)
    assert not kept[2:7, 2:7].any()
    assert kept.sum() == 81 - 25
