"""Folders of files: what is a scene, what is left out and why, and indexes that lose nothing."""

import dataclasses
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio

from pipeline.aoi.aoi import aoi_from_bbox
from pipeline.archive.catalog import load_catalog
from pipeline.archive.local import scan as local_module
from pipeline.archive.local.metadata import from_names, to_utc
from pipeline.archive.local.names import Names
from pipeline.archive.local.scan import AUDIT_KEY, sample_scenes, scan
from pipeline.archive.read.access import Access
from pipeline.archive.read.cube import read_period
from pipeline.archive.scene import Phase, Raster, Scene
from pipeline.archive.search import search
from pipeline.archive.stac.index_file import write_index
from pipeline.bands import BAND_NAMES, BY_NAME, SCL, bands_at
from pipeline.decoding import decode
from pipeline.errors import StorageError, UsageError
from pipeline.grid.grid import Grid
from pipeline.index import main
from tests.archive.safe_product import OFFSETS, PRODUCT, safe
from tests.archive.synthetic import make_archive, make_scene, write_band

NAME = "S2A_MSIL2A_20170617T113321_36_85"
SIDE = 1200


def patch(folder, scene_id=NAME, **options):
    return make_scene(folder, scene_id=scene_id, size_m=SIDE, **{"scl": False, **options})


def renamed(scene, folder, name_of):
    """The scene's files moved to `folder` under the names that `name_of(band)` gives."""
    folder.mkdir(parents=True, exist_ok=True)
    for band, href in scene.hrefs.items():
        target = folder / name_of(band)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(href, target)
    shutil.rmtree(Path(next(iter(scene.hrefs.values()))).parent)
    return folder


# --- files per band


def test_patch_with_a_product_like_name(tmp_path):
    made = patch(tmp_path)
    (scene,), notes = scan(tmp_path)
    assert scene.id == NAME
    assert scene.datetime_utc == "2017-06-17T11:33:21Z"
    assert (scene.epsg, scene.rasters, scene.hrefs) == (made.epsg, made.rasters, made.hrefs)
    assert scene.footprint == made.footprint
    assert scene.phase == Phase.official(scene.epsg)
    assert scene.offset.offset_dn == 0
    assert "no processing baseline" in scene.offset.evidence
    assert "the pixels show it" in scene.offset.evidence
    assert scene.properties[AUDIT_KEY].startswith("agrees")
    assert notes == ()


@pytest.mark.parametrize(
    "name_of",
    [
        lambda band: f"{band}.tif",
        lambda band: f"{band.replace('B0', 'B')}.TIF",
        lambda band: f"{band.lower()}.tiff",
        lambda band: f"T32TMS_20240617T101559_{band}_{BY_NAME[band].gsd_m}m.tif",
        lambda band: f"img.{band}.tif",
    ],
)
def test_names_of_band_files(tmp_path, name_of):
    folder = renamed(patch(tmp_path), tmp_path / "field", name_of)
    (scene,), _ = scan(folder, datetime_utc="2024-06-17")
    assert tuple(scene.hrefs) == BAND_NAMES
    dated = "T10" in name_of("B02")
    assert scene.datetime_utc == ("2024-06-17T10:15:59Z" if dated else "2024-06-17T00:00:00Z")


def test_several_scenes_in_one_folder_and_below(tmp_path):
    first = patch(tmp_path, "S2A_MSIL2A_20170617T113321_1_1", left_m=600000)
    second = patch(tmp_path, "S2A_MSIL2A_20170613T101031_1_1", left_m=601200)
    for scene in (first, second):
        for href in scene.hrefs.values():
            shutil.move(href, tmp_path)
    patch(tmp_path / "deep" / "down", "S2B_MSIL2A_20170924T93021_41_29")
    scenes, _ = scan(tmp_path)
    assert [scene.id for scene in scenes] == [second.id, first.id, "S2B_MSIL2A_20170924T93021_41_29"]
    assert scenes[2].datetime_utc == "2017-09-24T09:30:21Z"


def test_fractional_phase_is_kept(tmp_path):
    made = patch(tmp_path, left_m=790236.0403820039, top_m=7198039.252334285, epsg=32722)
    (scene,), _ = scan(tmp_path)
    assert scene.rasters == made.rasters
    assert scene.phase == Phase(36.040382, 19.2523343)


def test_20m_origin_may_lie_10m_west_of_the_10m_origin(tmp_path):
    made = patch(tmp_path, bands=bands_at(20), left_m=599980)
    for band in bands_at(10):
        write_band(
            Path(made.hrefs["B05"]).parent / f"{NAME}_{band}.tif",
            np.full((118, 119), 800, np.uint16),
            Raster(10, 599990, 5100000, 118, 119),
            32632,
        )
    (scene,), (note,) = scan(tmp_path)
    assert scene.phase == Phase.official(scene.epsg)
    assert "without B01, B09" in note


def test_folder_without_a_date_needs_one(tmp_path):
    patch(tmp_path, "meadow")
    with pytest.raises(UsageError, match="--datetime"):
        scan(tmp_path)
    with pytest.raises(UsageError, match="soon"):
        scan(tmp_path, datetime_utc="soon")
    assert scan(tmp_path, datetime_utc="2024-06-17T12:00:00+02:00")[0][0].datetime_utc == "2024-06-17T10:00:00Z"


def test_bands_of_other_resolutions_are_not_usable_and_named(tmp_path):
    scene = patch(tmp_path)
    for band in ("B02", "B11"):
        write_band(
            Path(scene.hrefs[band]), np.full((20, 20), 900, np.uint16), Raster(60, 600000, 5100000, 20, 20), 32632
        )
    (found,), (note,) = scan(tmp_path, offset_dn=0)
    assert not {"B02", "B11"} & set(found.hrefs)
    assert "without B02, B11 (B02: 60 m pixels instead of 10 m; B11: 60 m pixels instead of 20 m)" in note


def replaced(band, array, gsd_m=10, left_m=600000, epsg=32632):
    def change(scene):
        raster = Raster(gsd_m, left_m, 5100000, *array.shape[-2:])
        write_band(Path(scene.hrefs[band]), array, raster, epsg)

    return change


def with_l1c(scene):
    shutil.copy(scene.hrefs["B09"], scene.hrefs["B09"].replace("B09", "B10"))


def garbage(scene):
    Path(scene.hrefs["B03"]).write_bytes(b"\0" * 100)


def truncated(scene):
    path = Path(scene.hrefs["B03"])
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (replaced("B03", np.ones((120, 120), np.float32)), "B03.tif is float32; expected uint16"),
        (replaced("B03", np.ones((119, 120), np.uint16)), "B03 lies on"),
        (replaced("B03", np.ones((120, 120), np.uint16), left_m=600010), "B03 lies on"),
        (replaced("B03", np.ones((120, 120), np.uint16), epsg=32633), "one UTM zone"),
        (with_l1c, "Level-1C"),
        (garbage, "B03"),
        (truncated, "B03"),
    ],
)
def test_unusable_scene_is_left_out_with_its_reason(tmp_path, monkeypatch, change, said):
    from pipeline.archive.read import access

    patient = access.retrying
    monkeypatch.setattr(access, "retrying", lambda call, **kw: patient(call, sleep=lambda _s: None, **kw))
    change(patch(tmp_path))
    with pytest.raises(UsageError, match=said):
        scan(tmp_path)
    good = "S2A_MSIL2A_20170613T101031_87_48"
    patch(tmp_path, good)
    (scene,), notes = scan(tmp_path)
    assert scene.id == good
    assert any(NAME in note and "left out" in note for note in notes)


def test_many_bands_in_one_file_are_refused(tmp_path):
    profile = {"driver": "GTiff", "count": 4, "dtype": "uint16", "width": 60, "height": 60, "crs": "EPSG:32632"}
    with rasterio.open(tmp_path / "all.tif", "w", transform=rasterio.Affine(10, 0, 0, 0, -10, 0), **profile) as dataset:
        dataset.write(np.ones((4, 60, 60), np.uint16))
    with pytest.raises(UsageError, match=r"all\.tif holds 4 bands in one file.*one file per band"):
        scan(tmp_path)
    shutil.move(tmp_path / "all.tif", tmp_path / "B02.tif")
    with pytest.raises(UsageError, match="4 bands"):
        scan(tmp_path, datetime_utc="2024-01-01")


def test_no_files_no_folder_wrong_offset(tmp_path):
    with pytest.raises(UsageError, match="no raster files"):
        scan(tmp_path)
    with pytest.raises(UsageError, match="not a folder"):
        scan(tmp_path / "none")
    with pytest.raises(UsageError, match="offset 1000"):
        scan(tmp_path, offset_dn=1000)


def test_same_scene_twice_is_taken_once(tmp_path):
    patch(tmp_path / "a")
    patch(tmp_path / "b")
    scenes, notes = scan(tmp_path)
    assert len(scenes) == 1
    assert any("another folder holds this scene" in note for note in notes)


def test_without_baseline_the_offset_follows_pixels_or_user(tmp_path):
    patch(tmp_path, offset_dn=-1000)
    with pytest.raises(UsageError, match=r"nothing tells its BOA offset.*just above 1000.*--offset -1000"):
        scan(tmp_path)
    (scene,), _ = scan(tmp_path, offset_dn=-1000)
    assert (scene.offset.offset_dn, scene.offset.evidence) == (-1000, "set by the user")
    assert scene.properties[AUDIT_KEY].startswith("agrees")
    (wrong,), _ = scan(tmp_path, offset_dn=0)
    assert wrong.properties[AUDIT_KEY].startswith("contradicts")


# --- names, items, products


def test_what_names_say():
    meta = from_names("x", Names((PRODUCT,)))
    assert (meta.datetime_utc, meta.baseline, meta.tile) == ("2024-06-17T10:15:59Z", "05.10", "32TMS")
    assert [decision.offset_dn for decision in meta.offsets] == [-1000]
    assert meta.properties == {"platform": "sentinel-2b"}
    silent = from_names("x", Names(("scene_12", "T2024")))
    assert (silent.datetime_utc, silent.baseline, silent.offsets, silent.tile) == ("", "", (), "")
    assert from_names("x", Names(("S2B_MSIL2A_20180204T94161_57_38",))).datetime_utc == "2018-02-04T09:41:59Z"


@pytest.mark.parametrize(
    ("text", "utc"),
    [
        ("2024-06-17", "2024-06-17T00:00:00Z"),
        ("2024-06-17T10:00:00Z", "2024-06-17T10:00:00Z"),
        ("2022-10-05T11:56:49.581767Z", "2022-10-05T11:56:49.581Z"),
    ],
)
def test_times_are_utc(text, utc):
    assert to_utc(text) == utc


def item(**properties):
    return {
        "type": "Feature", "stac_version": "1.0.0", "id": "S2A_32TMS_20240617_0_L2A", "assets": {},
        "properties": {
            "datetime": "2024-06-17T10:25:00.123Z", "eo:cloud_cover": 12.5, "grid:code": "MGRS-32TMS", **properties,
        },
    }  # fmt: skip


def test_cogs_beside_their_item(tmp_path):
    folder = renamed(patch(tmp_path, offset_dn=-1000), tmp_path / "cogs", lambda band: f"{band}.tif")
    (folder / "notes.json").write_text("[1]")
    (folder / "item.json").write_text(json.dumps(item(**{"s2:processing_baseline": "05.10"})))
    (scene,), _ = scan(tmp_path)
    assert scene.id == "S2A_32TMS_20240617_0_L2A"
    assert (scene.datetime_utc, scene.cloud_pct, scene.tile) == ("2024-06-17T10:25:00.123Z", 12.5, "32TMS")
    assert (scene.baseline, scene.offset.offset_dn) == ("05.10", -1000)


@pytest.mark.parametrize(
    ("properties", "bands", "stored", "expected"),
    [
        ({"s2:processing_baseline": "05.10", "earthsearch:boa_offset_applied": True}, {"offset": -0.1}, 0, 0),
        ({"s2:processing_baseline": "05.10"}, {"offset": -0.1, "scale": 1e-4}, -1000, -1000),
        ({"s2:processing_baseline": "02.14", "earthsearch:boa_offset_applied": False}, {}, 0, 0),
        ({}, {}, 0, 0),
        ({"s2:processing_baseline": "02.14"}, {"offset": -0.1}, 0, "contradicts processing baseline"),
        # Earth Search's wrong flag: says not applied, but the pixels are shifted already
        ({"s2:processing_baseline": "05.10", "earthsearch:boa_offset_applied": False}, {}, 0, "impossible with"),
    ],
)
def test_offset_by_item(tmp_path, properties, bands, stored, expected):
    folder = renamed(patch(tmp_path, offset_dn=stored), tmp_path / "cogs", lambda band: f"{band}.tif")
    record = item(**properties)
    record["assets"] = {"red": {"href": "B04.tif", "raster:bands": [bands]}, "scl": {"href": "SCL.tif"}}
    (folder / "item.json").write_text(json.dumps(record))
    if isinstance(expected, str):
        with pytest.raises(UsageError, match=expected):
            scan(tmp_path)
    else:
        assert scan(tmp_path)[0][0].offset.offset_dn == expected


def test_sen2cor_product_is_read_at_native_resolution(tmp_path):
    root = safe(tmp_path)
    (scene,), notes = scan(tmp_path)
    assert notes == ()
    assert scene.id == PRODUCT
    assert (scene.datetime_utc, scene.baseline, scene.tile) == ("2024-06-17T10:20:31.500Z", "05.10", "32TMS")
    assert scene.cloud_pct == 3.25
    assert scene.offset.offset_dn == -1000
    assert "BOA_ADD_OFFSET" in scene.offset.evidence
    assert set(scene.hrefs) == {*BAND_NAMES, SCL}
    for band, href in scene.hrefs.items():
        assert f"_{band}_{20 if band == SCL else BY_NAME[band].gsd_m}m.jp2" in href
        assert "IMG_DATA" in href
    grid = Grid.covering(32632, (600000, 5098800, 601200, 5100000))
    pixels = read_period([scene], "mosaic", grid, BAND_NAMES, Access(roots=(str(tmp_path),)))
    with rasterio.open(scene.hrefs["B03"]) as dataset:
        np.testing.assert_array_equal(pixels.dn[10][1], dataset.read(1))
    assert (pixels.scl == 4).all()
    assert scan(root)[0] == (scene,)


def test_truncated_jpeg2000_is_an_error(tmp_path, monkeypatch):
    from pipeline.archive.read import access
    from pipeline.errors import ReadError

    patient = access.retrying
    monkeypatch.setattr(access, "retrying", lambda call, **kw: patient(call, sleep=lambda _s: None, **kw))
    safe(tmp_path)
    (scene,), _ = scan(tmp_path)
    path = Path(scene.hrefs["B08"])
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    grid = Grid.covering(32632, (600000, 5098800, 601200, 5100000))
    with pytest.raises(ReadError, match="B08"):
        read_period([scene], "mosaic", grid, BAND_NAMES, Access(roots=(str(tmp_path),)))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"offsets": ""}, "no BOA_ADD_OFFSET though baseline 05.10"),
        ({"offsets": OFFSETS.replace("-1000", "-900", 1)}, "-1000, -900"),
        ({"quantum": 1000}, "1000 DN per unit"),
        ({"stored": 0}, "impossible with"),
        ({"baseline": "05.10</PROCESSING_BASELINE"}, "cannot be read"),
    ],
)
def test_product_that_contradicts_itself_is_left_out(tmp_path, options, said):
    safe(tmp_path, **options)
    with pytest.raises(UsageError, match=said):
        scan(tmp_path)


def test_old_product_without_offset(tmp_path):
    safe(tmp_path, baseline="02.14", offsets="", stored=0)
    assert scan(tmp_path)[0][0].offset.offset_dn == 0


# --- indexes


def reread(path):
    """Scenes of an index, as a run finds them."""
    found = search(load_catalog(str(path)), aoi_from_bbox(-179.9, -79, 179.9, 83, max_area_km2=1e10), None, None, None)
    assert found.rejected == ()
    return found.scenes


def test_index_loses_nothing_and_is_stac(tmp_path):
    import pystac

    made = [patch(tmp_path, "a", cloud_pct=3.5, scl=True), patch(tmp_path, "b", offset_dn=-1000, left_m=600012.5)]
    made[0] = dataclasses.replace(made[0], tile="32TMS", properties={"platform": "sentinel-2a"})
    path = make_archive(tmp_path, made)
    assert reread(path) == tuple(made)
    collection = pystac.ItemCollection.from_file(str(path))
    assert [element.id for element in collection] == ["a", "b"]
    first = collection[0]
    assert first.properties["proj:code"] == "EPSG:32632"  # pystac's STAC 1.1 spelling of proj:epsg
    assert first.assets["B8A"].extra_fields["proj:transform"] == [20, 0, 600000, 0, -20, 5100000]
    assert first.assets["B8A"].extra_fields["proj:shape"] == [60, 60]
    assert first.bbox[0] < first.bbox[2]
    assert not any("raster:bands" in asset.extra_fields for asset in first.assets.values())
    assert Path(first.assets["B02"].href).is_absolute()


def test_relative_index_moves_with_its_files(tmp_path):
    patch(tmp_path / "here")
    (scene,), _ = scan(tmp_path / "here")
    write_index([scene], tmp_path / "here" / "archive.json", relative=True)
    assert json.loads((tmp_path / "here/archive.json").read_text())["features"][0]["assets"]["B02"]["href"][0] != "/"
    shutil.move(tmp_path / "here", tmp_path / "there")
    (moved,) = reread(tmp_path / "there" / "archive.json")
    assert Path(moved.hrefs["B02"]).is_file()
    assert dataclasses.replace(moved, hrefs={}) == dataclasses.replace(scene, hrefs={})


def test_index_is_written_whole_or_not_at_all(tmp_path):
    made = patch(tmp_path)
    out = tmp_path / "archive.json"
    out.write_text("old")
    broken = dataclasses.replace(made, cloud_pct=float("nan"))
    with pytest.raises(ValueError, match="JSON"):
        write_index([broken], out)
    assert out.read_text() == "old"
    with pytest.raises(StorageError, match="cannot be written"):
        write_index([made], tmp_path / "none" / "archive.json")
    assert sorted(path.name for path in tmp_path.iterdir()) == [NAME, "archive.json"]


@pytest.mark.parametrize("offset_dn", [0, -1000])
def test_an_offset_set_by_hand_is_marked_through_the_index(tmp_path, offset_dn):
    patch(tmp_path / "scenes", offset_dn=0)
    path = tmp_path / "archive.json"
    (judged,), _ = scan(tmp_path / "scenes")
    (chosen,), _ = scan(tmp_path / "scenes", offset_dn=offset_dn)
    for scene, by_user in ((judged, False), (chosen, True)):
        write_index([scene], path)
        (again,) = reread(path)
        assert again == scene
        assert again.offset.by_user is by_user
        assert decode(Scene, json.loads(json.dumps(again.to_json())), "scene") == scene


# --- the sample


def test_sample_is_found_without_importing_its_package():
    (scene,) = sample_scenes()
    assert scene.id == NAME
    assert (scene.datetime_utc, scene.baseline, scene.offset.offset_dn) == ("2017-06-17T11:33:21Z", "02.05", 0)
    assert tuple(scene.hrefs) == BAND_NAMES
    assert scene.rasters[0] == Raster(10, 643200.0, 5798040.0, 120, 120)
    assert "bigearthnet_patch_interface" not in sys.modules


def test_missing_sample_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(local_module, "SAMPLE_PACKAGE", "no-such-package-here")
    with pytest.raises(UsageError, match=r'pip install "sen2fine\[sample\]"') as caught:
        sample_scenes()
    assert "\n" not in str(caught.value)


def test_sample_region_covers_exactly_the_patch():
    from pyproj import Transformer

    region = json.loads((Path(__file__).parents[2] / "catalogs/sample/region.geojson").read_text())
    (ring,) = region["features"][0]["geometry"]["coordinates"]
    xs, ys = Transformer.from_crs(4326, 32629, always_xy=True).transform(*zip(*ring, strict=True))
    grid = Grid.covering(32629, (min(xs), min(ys), max(xs), max(ys)))
    assert grid.bounds_m == (643200, 5796840, 644400, 5798040)


# --- the command


def test_command_writes_an_index_and_says_what_it_found(tmp_path, capsys):
    patch(tmp_path, scl=True)
    out = tmp_path / "archive.json"
    assert main([str(tmp_path), "--out", str(out)]) == 0
    line, where, summary = capsys.readouterr().out.strip().splitlines()
    assert where.startswith("bounds --bbox=")
    for word in (NAME, "2017-06-17T11:33:21Z", "EPSG:32632", "all 12 bands, with SCL", "offset 0"):
        assert word in line
    assert line.count("the pixels show it") == 1
    assert "audit" not in line, "the pixels decided, which is said once"
    assert summary.startswith("1 scene in ")
    assert len(reread(out)) == 1


def test_command_in_json_with_overrides(tmp_path, capsys):
    patch(tmp_path, "meadow", offset_dn=-1000, left_m=600001.25, bands=("B02", "B05"))
    arguments = [
        "--out",
        str(tmp_path / "i.json"),
        "--datetime",
        "2024-06-17",
        "--offset",
        "-1000",
        "--relative",
        "--json",
    ]
    assert main([str(tmp_path), *arguments]) == 0
    said = json.loads(capsys.readouterr().out)
    (scene,) = said["scenes"]
    assert scene["bands"] == ["B02", "B05"]
    assert scene["offset_dn"] == -1000
    assert scene["phase_m"] == [1.25, 0.0]
    assert any("without B01" in note for note in said["notes"])


def test_command_explains_failures_in_one_line(tmp_path, capsys):
    assert main([str(tmp_path / "none")]) == 2
    assert main([str(tmp_path), "--out", str(tmp_path / "x.json")]) == 2
    patch(tmp_path)
    assert main([str(tmp_path), "--out", str(tmp_path / "no" / "x.json")]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 3
    assert all(line.startswith("error: ") for line in lines)


# --- real folders


@pytest.mark.shared_data
def test_every_real_folder_is_indexed_or_refused_with_its_reason(shared_data, tmp_path, capsys):
    root = shared_data / "s2_l2a"
    out = tmp_path / "archive.json"
    codes = {}
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        codes[folder.name] = main([str(folder), "--out", str(out), "--datetime", "2025-06-15", "--json"])
    said = capsys.readouterr()
    reports = {Path(r["scenes"][0]["id"]).name: r for r in map(json.loads, said.out.splitlines())}
    assert codes == {
        "argentina_pampas_32720": 0, "bigearthnet": 0, "majortom_native": 0, "safe_T29UNU_R60m": 0,
        "isan_thailand_20200223_a": 0, "isan_thailand_20200223_b": 0, "bigearthnet_v2_T33UUP_75_43": 0,
        "arctic_sea_ice_32609": 2, "decimated_29RKH_all12": 2, "ftw_vienna_rgbn": 2, "theia_bouconne_7dates": 2,
    }  # fmt: skip
    errors = said.err.splitlines()
    assert any("arctic" in line and "nothing tells its BOA offset" in line for line in errors)  # too bright to tell
    assert any("100 m pixels instead of 10 m" in line for line in errors)
    assert any("holds 8 bands in one file" in line for line in errors)
    assert any("holds 70 bands in one file" in line for line in errors)
    patches = reports["S2A_MSIL2A_20170613T101031_87_48"]["scenes"]
    assert len(patches) == 9
    assert all(len(p["bands"]) == 12 and p["audit"].startswith("agrees") and p["phase_m"] == [0, 0] for p in patches)
    (pampas,) = reports["argentina_pampas_32720"]["scenes"]
    assert len(pampas["bands"]) == 8
    (granule,) = next(r["scenes"] for name, r in reports.items() if "T29UNU" in name)
    assert (granule["bands"], granule["offset_dn"]) == (["B01", "B09"], -1000)
    cells = reports["282D_485L_3_3"]
    assert [cell["id"] for cell in cells["scenes"]] == ["282D_485L_3_3", "609U_541L_3_0"]
    assert cells["scenes"][0]["phase_m"] == [36.040382, 19.2523343]


@pytest.mark.shared_data
def test_full_granule_of_jpeg2000_is_read_at_its_place(shared_data):
    folder = shared_data / "s2_l2a/safe_T29UNU_R60m"
    (scene,), _ = scan(folder)
    grid = Grid.covering(32629, (499980 + 163 * 60, 5900040 - 128 * 60, 499980 + 291 * 60, 5900040))
    pixels = read_period([scene], "mosaic", grid, ("B01", "B09"), Access(roots=(str(shared_data),)))
    for band, image in zip(pixels.bands[60], pixels.dn[60], strict=True):
        with rasterio.open(scene.hrefs[band]) as dataset:
            np.testing.assert_array_equal(image, dataset.read(1)[:128, 163:291])
