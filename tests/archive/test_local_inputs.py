"""Folders as they come from users: names, layouts, links, archives, copies. Each right value was read with rasterio."""

import json
import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import rasterio

from pipeline.aoi.aoi import aoi_from_bbox
from pipeline.archive.catalog import load_catalog
from pipeline.archive.local.metadata import from_names
from pipeline.archive.local.names import Names, product_name, require_level_2a, sensing_time
from pipeline.archive.local.scan import scan
from pipeline.archive.read.access import Access
from pipeline.archive.read.cube import read_period
from pipeline.archive.scene import Raster
from pipeline.archive.search import search
from pipeline.archive.stac.index_file import write_index
from pipeline.bands import BAND_NAMES, BY_NAME, SCL
from pipeline.errors import UsageError
from pipeline.grid.grid import Grid
from tests.archive.safe_product import PRODUCT, safe
from tests.archive.synthetic import make_scene, write_band

SIDE = 1200
TILE = "T32TMS_20240617T101559"
GRID = Grid.covering(32632, (600000, 5098800, 601200, 5100000))
RGBN = ("B02", "B03", "B04", "B08")


def files(folder, name_of, *, offset_dn=-1000, **options):
    """Files of a scene in `folder` under the names that `name_of(band)` gives; returns the scene as made."""
    made = make_scene(folder / ".made", scene_id="made", size_m=SIDE, offset_dn=offset_dn, **options)
    for band, href in made.hrefs.items():
        target = folder / name_of(band)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(href, target)
    shutil.rmtree(folder / ".made")
    return made


def gsd(band):
    return 20 if band == SCL else BY_NAME[band].gsd_m


def canonical(scene, band, folder):
    """DN of the store's convention as the pipeline reads them."""
    pixels = read_period([scene], "mosaic", GRID, (band,), Access(roots=(str(folder),)))
    return pixels.dn[BY_NAME[band].gsd_m][0]


def stored(path):
    with rasterio.open(path) as dataset:
        return dataset.read(1)


def stac_item(name, *, hrefs, day="2024-06-17", **properties):
    said = {"datetime": f"{day}T10:15:59.024Z", "s2:processing_baseline": "05.09", **properties}
    assets = {key: {"href": href} for key, href in hrefs.items()}
    return {"type": "Feature", "stac_version": "1.0.0", "id": name, "properties": said, "assets": assets}


# --- layouts


def test_names_of_the_cog_bucket_are_dated_each_by_itself(tmp_path):
    for day in ("20200620", "20200625"):
        files(tmp_path / f"S2A_29UPU_{day}_0_L2A", lambda band: f"{band}.tif", offset_dn=0)
    scenes, notes = scan(tmp_path, datetime_utc="2021-01-01")
    assert [(s.id, s.datetime_utc) for s in scenes] == [
        ("S2A_29UPU_20200620_0_L2A", "2020-06-20T00:00:00Z"),
        ("S2A_29UPU_20200625_0_L2A", "2020-06-25T00:00:00Z"),
    ]
    assert {s.tile for s in scenes} == {"29UPU"}
    assert sum("not 2021-01-01T00:00:00Z as --datetime says" in note for note in notes) == 2
    hour, _ = scan(tmp_path, datetime_utc="2020-06-20T11:03:41Z")
    assert [s.datetime_utc for s in hour] == ["2020-06-20T11:03:41Z", "2020-06-25T00:00:00Z"]


@pytest.mark.parametrize("leaf", ["bands", "R10m", "img", "0", "IMG_DATA"])
def test_equal_leaf_folders_are_two_scenes(tmp_path, leaf):
    for day in ("2024-06-17", "2024-06-22"):
        files(tmp_path / day / leaf, lambda band: f"{band}.tif", bands=RGBN, scl=False, offset_dn=0)
    scenes, _ = scan(tmp_path, datetime_utc="2024-01-01")
    assert [scene.datetime_utc[:10] for scene in scenes] == ["2024-06-17", "2024-06-22"]
    assert all(day in scene.id for day, scene in zip(("2024-06-17", "2024-06-22"), scenes, strict=True))


def test_folders_of_the_aws_bucket(tmp_path):
    for day in ("17", "22"):
        root = tmp_path / "tiles/32/T/MS/2024/6" / day / "0"
        files(root, lambda band: f"R{gsd(band)}m/{band}.tif", offset_dn=0)
    scenes, notes = scan(tmp_path)
    assert [s.datetime_utc for s in scenes] == ["2024-06-17T00:00:00Z", "2024-06-22T00:00:00Z"]
    assert len({s.id for s in scenes}) == 2
    assert all(set(s.hrefs) == {*BAND_NAMES, SCL} for s in scenes)
    assert notes == ()


def test_a_product_without_its_xml_is_one_scene(tmp_path):
    root = safe(tmp_path)
    whole = scan(tmp_path)[0][0]
    for xml in root.rglob("*.xml"):
        xml.unlink()
    (scene,), notes = scan(tmp_path)
    assert (scene.id, scene.hrefs, scene.rasters) == (PRODUCT, whole.hrefs, whole.rasters)
    assert (scene.datetime_utc, scene.offset.offset_dn) == ("2024-06-17T10:15:59Z", -1000)
    assert notes == ()


def test_an_empty_xml_falls_back_to_names_and_says_so(tmp_path):
    root = safe(tmp_path)
    (root / "MTD_MSIL2A.xml").write_bytes(b"")
    (scene,), (note,) = scan(tmp_path)
    assert (scene.id, scene.offset.offset_dn) == (PRODUCT, -1000)
    assert "MTD_MSIL2A.xml is empty" in note


@pytest.mark.parametrize("collected", [False, True])
def test_items_claim_the_files_that_they_name(tmp_path, collected):
    """A download of two scenes with their items into one folder, as from the Planetary Computer."""
    items = []
    for day, offset_dn in (("20240617", -1000), ("20240622", -1000)):
        files(tmp_path, lambda band, day=day: f"T32TMS_{day}T101559_{band}_{gsd(band)}m.tif", offset_dn=offset_dn)
        hrefs = {
            band: f"https://x.blob.core.windows.net/s2/a/T32TMS_{day}T101559_{band}_{gsd(band)}m.tif?sig=x"
            for band in (*BAND_NAMES, SCL)
        }
        dated = f"{day[:4]}-{day[4:6]}-{day[6:]}"
        items.append(stac_item(f"S2B_MSIL2A_{day}T101559_R065_T32TMS", hrefs=hrefs, day=dated))
    if collected:
        (tmp_path / "items.json").write_text(json.dumps({"type": "FeatureCollection", "features": items}))
    else:
        for item in items:
            (tmp_path / f"{item['id']}.json").write_text(json.dumps(item))
    scenes, notes = scan(tmp_path)
    assert [(s.id, s.baseline, s.offset.offset_dn) for s in scenes] == [(i["id"], "05.09", -1000) for i in items]
    assert all(set(s.hrefs) == {*BAND_NAMES, SCL} for s in scenes)
    assert notes == ()


def test_files_named_after_colours_beside_their_item(tmp_path):
    names = {"B02": "blue", "B03": "green", "B04": "red", "B08": "nir", "B8A": "nir08", SCL: "scl", "B12": "swir22"}
    made = files(tmp_path / "x", lambda band: f"{names[band]}.tif", bands=tuple(n for n in names if n != SCL))
    item = stac_item("S2B_32TMS_20240617_0_L2A", hrefs={name: f"./{name}.tif" for name in names.values()})
    (tmp_path / "x" / "item.json").write_text(json.dumps(item))
    (scene,), _ = scan(tmp_path)
    assert set(scene.hrefs) == set(made.hrefs)
    assert scene.hrefs["B8A"].endswith("/nir08.tif")
    np.testing.assert_array_equal(canonical(scene, "B04", tmp_path), stored(tmp_path / "x/red.tif"))


def test_items_of_another_day_or_of_the_same_files_are_refused(tmp_path):
    files(tmp_path, lambda band: f"{TILE}_{band}.tif", bands=RGBN, scl=False)
    hrefs = {band: f"{TILE}_{band}.tif" for band in RGBN}
    (tmp_path / "a.json").write_text(json.dumps(stac_item("A", hrefs=hrefs, day="2024-06-22")))
    with pytest.raises(UsageError, match="item A says 2024-06-22 and its names say 2024-06-17"):
        scan(tmp_path)
    (tmp_path / "a.json").write_text(json.dumps(stac_item("A", hrefs=hrefs)))
    (tmp_path / "b.json").write_text(json.dumps(stac_item("B", hrefs=hrefs, **{"s2:processing_baseline": "02.14"})))
    with pytest.raises(UsageError, match="named by item B too"):
        scan(tmp_path)


def test_an_item_that_names_other_files_says_nothing_of_these(tmp_path):
    files(tmp_path, lambda band: f"field_{band}.tif", bands=RGBN, scl=False)
    (tmp_path / "a.json").write_text(json.dumps(stac_item("A", hrefs={"red": "other/B04.tif"})))
    with pytest.raises(UsageError, match="nothing tells its BOA offset"):
        scan(tmp_path, datetime_utc="2024-06-17")


def test_an_item_finds_its_files_in_another_folder(tmp_path):
    files(tmp_path / "tifs", lambda band: f"{band}.tif", bands=RGBN, scl=False)
    (tmp_path / "items").mkdir()
    item = stac_item("A", hrefs={band: f"../tifs/{band}.tif" for band in RGBN})
    (tmp_path / "items/a.json").write_text(json.dumps(item))
    (scene,), _ = scan(tmp_path)
    assert (scene.id, scene.offset.offset_dn) == ("A", -1000)


def test_an_item_claims_what_lies_in_resolution_folders(tmp_path):
    files(tmp_path, lambda band: f"R{gsd(band)}m/{TILE}_{band}_{gsd(band)}m.tif")
    hrefs = {band: f"https://x.example/a/{TILE}_{band}_{gsd(band)}m.tif" for band in (*BAND_NAMES, SCL)}
    (tmp_path / "a.json").write_text(json.dumps(stac_item("A", hrefs=hrefs)))
    (scene,), notes = scan(tmp_path)
    assert (scene.id, scene.offset.offset_dn, len(scene.hrefs)) == ("A", -1000, 13)
    assert notes == ()


def test_an_index_of_ours_beside_the_files_is_no_item(tmp_path):
    files(tmp_path, lambda band: f"field_{band}.tif", bands=RGBN, scl=False)
    forced, _ = scan(tmp_path, datetime_utc="2024-06-17", offset_dn=0)
    write_index(forced, tmp_path / "archive.json")
    with pytest.raises(UsageError, match="nothing tells its BOA offset"):
        scan(tmp_path, datetime_utc="2024-06-17")


def test_granules_of_one_product_are_scenes_of_their_own(tmp_path):
    """Products before December 2016 hold several tiles."""
    root = safe(tmp_path)
    (first,) = (root / "GRANULE").iterdir()
    second = shutil.copytree(first, first.with_name(first.name.replace("32TMS", "32TNS")))
    for path in sorted(second.rglob("*32TMS*")):
        path.rename(path.with_name(path.name.replace("32TMS", "32TNS")))
    scenes, notes = scan(tmp_path)
    assert {scene.id for scene in scenes} == {f"{PRODUCT}_32TMS", f"{PRODUCT}_32TNS"}
    assert all(f"T{scene.tile}_" in href for scene in scenes for href in scene.hrefs.values())
    assert notes == ()


# --- dates and levels in names


@pytest.mark.parametrize(
    ("names", "day"),
    [
        ((f"{PRODUCT}",), "2024-06-17"),
        (("made_20250101T000000", PRODUCT), "2024-06-17"),
        (("S2A_USER_PRD_MSIL2A_PDMC_20160504T163055_R065_V20160501T101032_20160501T101559",), "2016-05-01"),
        (("S2A_29UPU_20200620_0_L2A",), "2020-06-20"),
        (("B02", "2020.06.20"), "2020-06-20"),
        (("field_20200620T110341_processed",), "2020-06-20"),
        (("20200620_20200625",), ""),  # which of them?
        (("20200620T110341_20200625T110341",), ""),
        (("20201399",), ""),
    ],
)
def test_the_sensing_time_is_that_of_the_product_name(names, day):
    assert sensing_time(Names(names))[0][:10] == day


def test_names_of_two_days_are_refused():
    with pytest.raises(ValueError, match="2024-06-22 and .* 2024-06-17"):
        sensing_time(Names(("T32TMS_20240622T101559",), (PRODUCT,)))
    assert sensing_time(Names(("field",), ("download_2024-06-17",))) == ("", False)
    assert sensing_time(Names(("field",), (PRODUCT,)))[0] == "2024-06-17T10:15:59Z"
    assert product_name(Names(("B02", "R10m", f"{PRODUCT}.SAFE"))) == PRODUCT


@pytest.mark.parametrize(
    "text", ["S2MSI1C", "Level-1C", "LEVEL1C", "level_1c", "L1C", "1C", "S2A_MSIL1C_20240617T101559", "sentinel-2-l1c"]
)
def test_level_1_by_every_spelling(text):
    with pytest.raises(ValueError, match="Level-1C; expected Level-2A"):
        require_level_2a("", text)
    require_level_2a(text.upper().replace("1C", "2A"), text)  # the first that speaks decides


@pytest.mark.parametrize("text", ["sentinel-2a", "S2A", "T31CDM", "b1c", "image", "S2C_x", "L1"])
def test_what_states_no_level(text):
    require_level_2a(text)


def test_level_1_products_are_refused(tmp_path):
    product = PRODUCT.replace("MSIL2A", "MSIL1C")
    files(tmp_path / f"{product}.SAFE", lambda band: f"{TILE}_{band}.jp2.tif".replace(".jp2", ""), scl=False)
    with pytest.raises(UsageError, match="Level-1C"):
        scan(tmp_path)
    shutil.rmtree(tmp_path / f"{product}.SAFE")
    root = safe(tmp_path)
    xml = root / "MTD_MSIL2A.xml"
    xml.write_text(xml.read_text().replace("<PRODUCT_URI>", "<PRODUCT_TYPE>S2MSI1C</PRODUCT_TYPE><PRODUCT_URI>"))
    with pytest.raises(UsageError, match="S2MSI1C says Level-1C"):
        scan(tmp_path)


def test_the_xml_of_level_1_counts_whatever_the_folder_is_called(tmp_path):
    root = safe(tmp_path)
    (root / "MTD_MSIL2A.xml").rename(root / "MTD_MSIL1C.xml")
    with pytest.raises(UsageError, match="its XML says Level-1C"):
        scan(tmp_path)


def test_numbers_of_an_xml_that_are_none(tmp_path):
    root = safe(tmp_path)
    xml = root / "MTD_MSIL2A.xml"
    xml.write_text(xml.read_text().replace("3.25", "n/a"))
    assert scan(tmp_path)[0][0].cloud_pct is None
    xml.write_text(xml.read_text().replace(">-1000<", ">x<"))
    with pytest.raises(UsageError, match=r"BOA_ADD_OFFSET \['x'\]; expected one of 0, -1000"):
        scan(tmp_path)


def test_two_tiles_in_one_folder_of_a_product_are_two_scenes(tmp_path):
    for tile in ("T32TMS", "T32TNS"):
        files(tmp_path / PRODUCT, lambda band, tile=tile: f"{tile}_20240617T101559_{band}.tif", bands=RGBN, scl=False)
    scenes, _ = scan(tmp_path)
    assert {scene.tile for scene in scenes} == {"32TMS", "32TNS"}
    assert len({scene.id for scene in scenes}) == 2


def test_items_of_level_1_are_refused(tmp_path):
    files(tmp_path, lambda band: f"{band}.tif", scl=False)
    item = stac_item("x", hrefs={}, **{"processing:level": "L1C"})
    (tmp_path / "item.json").write_text(json.dumps(item))
    with pytest.raises(UsageError, match="Level-1C"):
        scan(tmp_path)


# --- several files for one band


def test_a_clip_inside_a_product_does_not_win(tmp_path):
    root = safe(tmp_path)
    (root / "AOI_clip").mkdir()
    write_band(root / "AOI_clip" / f"{TILE}_B02_10m.tif", np.full((30, 30), 1500, np.uint16),
               Raster(10, 600300, 5099700, 30, 30), 32632)  # fmt: skip
    (scene,), notes = scan(tmp_path)
    assert "IMG_DATA" in scene.hrefs["B02"]
    assert any("AOI_clip left out" in note for note in notes)


def test_of_several_files_that_of_full_extent_is_taken(tmp_path):
    files(tmp_path, lambda band: f"{PRODUCT}_{band}.tif", scl=False)
    clip = tmp_path / f"{PRODUCT}_B2.tif"
    write_band(clip, np.full((30, 30), 1500, np.uint16), Raster(10, 600300, 5099700, 30, 30), 32632)
    (scene,), (note,) = scan(tmp_path)
    assert scene.hrefs["B02"].endswith("_B02.tif")
    assert "B02 in" in note
    assert "covers less" in note
    shutil.copy(tmp_path / f"{PRODUCT}_B02.tif", clip)
    with pytest.raises(UsageError, match=r"_B0?2\.tif and .*_B0?2\.tif both could be B02"):
        scan(tmp_path)


# --- links, archives, hidden files


def test_links_are_followed_once(tmp_path):
    root = safe(tmp_path / "elsewhere")
    here = tmp_path / "here"
    here.mkdir()
    (here / root.name).symlink_to(root)
    (here / "loop").symlink_to(here)
    (here / "dangling").symlink_to(tmp_path / "nothing")
    (scene,), notes = scan(here)
    assert scene.id == PRODUCT
    assert notes == ()
    other = PRODUCT.replace("20240617T101559", "20240622T101559")
    files(here / other, lambda band: f"{band}.tif", offset_dn=-1000)
    assert len(scan(here)[0]) == 2


def zipped(root, archive, *, level=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(archive, "w", level) as opened:
        for path in sorted(root.rglob("*")):
            opened.write(path, path.relative_to(root.parent))
    shutil.rmtree(root)


@pytest.mark.parametrize("level", [zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED])
def test_a_zipped_product_is_read_through_its_archive(tmp_path, level):
    root = safe(tmp_path)
    (before,), _ = scan(tmp_path)
    expected = canonical(before, "B03", tmp_path)
    zipped(root, tmp_path / f"{PRODUCT}.zip", level=level)
    (scene,), notes = scan(tmp_path)
    assert (scene.id, scene.offset, scene.cloud_pct) == (before.id, before.offset, before.cloud_pct)
    assert notes == ()
    np.testing.assert_array_equal(canonical(scene, "B03", tmp_path), expected)
    for relative in (False, True):
        index = tmp_path / "archive.json"
        write_index([scene], index, relative=relative)
        aoi = aoi_from_bbox(10.29, 46.03, 10.30, 46.04)
        catalog = load_catalog(str(index))
        (again,) = search(catalog, aoi, None, None, None).scenes
        np.testing.assert_array_equal(
            read_period([again], "mosaic", GRID, ("B03",), catalog.access()).dn[10][0], expected
        )


def test_a_zip_beside_a_folder_adds_its_scene(tmp_path):
    root = safe(tmp_path)
    shutil.copytree(root, tmp_path / "copy" / root.name)
    zipped(tmp_path / "copy" / root.name, tmp_path / "copy.zip")
    other = tmp_path / "S2A_MSIL2A_20240622T101559_N0510_R065_T32TMS_20240622T130000"
    files(other, lambda band: f"{band}.tif")
    zipped(other, tmp_path / "other.zip")
    scenes, notes = scan(tmp_path)
    assert [s.id for s in scenes] == [PRODUCT, other.name]
    assert ".zip" not in scenes[0].hrefs["B02"]
    assert any("holds a copy" in note for note in notes)


def test_archives_that_cannot_be_read_are_named(tmp_path):
    safe(tmp_path)
    (tmp_path / "broken.zip").write_bytes(b"PK\3\4 no zip at all")
    (tmp_path / "packed.SAFE.tar.gz").write_bytes(b"x")
    (scene,), notes = scan(tmp_path)
    assert scene.id == PRODUCT
    assert any("broken.zip left out" in note for note in notes)
    assert any("packed.SAFE.tar.gz is not looked into: unpack it" in note for note in notes)


def test_the_path_policy_holds_for_archives(tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("in/a.zip", "out.zip"):
        with zipfile.ZipFile(tmp_path / name, "w") as opened:
            opened.writestr("x/B02.tif", b"II*\0")
    access = Access(roots=(str(tmp_path / "in"),))
    assert access.href(str(tmp_path / "in/a.zip/x/B02.tif")) == f"/vsizip/{tmp_path}/in/a.zip/x/B02.tif"
    for refused in (
        tmp_path / "out.zip/x/B02.tif",
        tmp_path / "in/a.zip/../../out.zip/x/B02.tif",
        tmp_path / "in/a.zip",
        f"/vsizip/{tmp_path}/in/a.zip/x/B02.tif",
        tmp_path / "in/a.zip/x/evil.vrt",
    ):
        with pytest.raises(UsageError, match="refused"):
            access.href(str(refused))
    os.symlink(tmp_path / "out.zip", tmp_path / "in/link.zip")
    with pytest.raises(UsageError, match="lies under none"):
        access.href(str(tmp_path / "in/link.zip/x/B02.tif"))


def test_hidden_copies_are_ignored_with_a_note(tmp_path):
    root = safe(tmp_path)
    images = next(root.rglob("R10m"))
    (images / f"._{TILE}_B02_10m.jp2").write_bytes(b"\0\5\x16\7AppleDouble")
    trash = tmp_path / ".Trash-1000" / "files"
    trash.mkdir(parents=True)
    shutil.copy(images / f"{TILE}_B02_10m.jp2", trash)
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / "__MACOSX" / "B02.tif").write_bytes(b"x")
    (scene,), (note,) = scan(tmp_path)
    assert scene.id == PRODUCT
    assert note.startswith("3 hidden files ignored")
    assert f"._{TILE}_B02_10m.jp2" in note


def test_names_of_a_scan_come_from_the_folder_as_it_was_given(tmp_path, monkeypatch):
    files(tmp_path / PRODUCT, lambda band: f"{band}.tif", scl=False)
    monkeypatch.chdir(tmp_path / PRODUCT)
    (scene,), _ = scan(Path())
    assert (scene.id, scene.datetime_utc, scene.offset.offset_dn) == (PRODUCT, "2024-06-17T10:15:59Z", -1000)


@pytest.mark.parametrize("name", ["SCL", "scl_20m", "SceneClassification", "scene_classification_20m"])
def test_names_of_the_scene_classification(tmp_path, name):
    files(tmp_path, lambda band: f"{PRODUCT}_{name if band == SCL else band}.tif")
    (scene,), _ = scan(tmp_path)
    assert SCL in scene.hrefs


def test_scl_of_another_resolution_is_said(tmp_path):
    files(tmp_path, lambda band: f"{PRODUCT}_{band}.tif")
    path = tmp_path / f"{PRODUCT}_SCL.tif"
    write_band(path, np.full((120, 120), 4, np.uint8), Raster(10, 600000, 5100000, 120, 120), 32632)
    (scene,), (note,) = scan(tmp_path)
    assert SCL not in scene.hrefs
    assert "without SCL (SCL: 10 m pixels instead of 20 m)" in note


def test_meta_of_names_is_empty_where_they_are_silent():
    meta = from_names("x", Names(("meadow",)))
    assert (meta.datetime_utc, meta.baseline, meta.tile, meta.offsets, meta.properties) == ("", "", "", (), {})
