"""What files declare about their values is honoured in the pixels that are read: masks, nodata, sample types."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.enums import ColorInterp

from pipeline.archive.local.scan import scan
from pipeline.archive.read.access import Access
from pipeline.archive.read.cube import read_period
from pipeline.archive.scene import Raster
from pipeline.bands import BAND_NAMES, SCL
from pipeline.errors import ReadError, UsageError
from pipeline.grid.grid import Grid
from tests.archive.synthetic import make_scene, write_band

SIDE = 1200
GRID = Grid.covering(32632, (600000, 5098800, 601200, 5100000))
PROFILE = {
    "driver": "GTiff", "height": 120, "width": 120, "crs": "EPSG:32632",
    "transform": rasterio.Affine(10, 0, 600000, 0, -10, 5100000),
}  # fmt: skip
WEST = np.s_[:, :60]  # what the masks hide of a 10 m band


@pytest.fixture
def scene(tmp_path):
    return make_scene(tmp_path, scene_id="s", size_m=SIDE)


@pytest.fixture
def read(tmp_path):
    def read_band(scene, band="B03"):
        pixels = read_period([scene], "mosaic", GRID, BAND_NAMES, Access(roots=(str(tmp_path),)))
        gsd_m = next(g for g, names in pixels.bands.items() if band in names)
        return pixels.dn[gsd_m][pixels.bands[gsd_m].index(band)]

    return read_band


def values(path):
    with rasterio.open(path) as dataset:
        return dataset.read(1)


def rewritten(path, image, count=1, **profile):
    Path(path).unlink()
    with rasterio.open(path, "w", **{**PROFILE, "count": count, "dtype": image.dtype, **profile}) as dataset:
        dataset.write(image, 1)
        yield dataset


def internal_mask(path, image, mask):
    for dataset in rewritten(path, image):
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
            dataset.write_mask(mask)


def side_mask(path, image, mask):
    for _ in rewritten(path, image):
        pass
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False), rasterio.open(path, "r+") as dataset:
        dataset.write_mask(mask)
    assert Path(f"{path}.msk").is_file()


def alpha(path, image, mask):
    for dataset in rewritten(path, image, 2, photometric="minisblack", alpha="yes"):
        dataset.colorinterp = (ColorInterp.gray, ColorInterp.alpha)
        dataset.write(np.where(mask, 65535, 0).astype(np.uint16), 2)


def aux_nodata(path, image, mask):
    """`1` is nodata, says the `.aux.xml` alone, as QGIS and GDAL write it for files that they do not touch."""
    for _ in rewritten(path, np.where(mask, image, 1).astype(image.dtype)):
        pass
    Path(f"{path}.aux.xml").write_text(
        '<PAMDataset><PAMRasterBand band="1"><NoDataValue le_hex_equiv="000000000000F03F">1.0</NoDataValue>'
        "</PAMRasterBand></PAMDataset>"
    )


def nodata_tag(path, image, mask):
    for _ in rewritten(path, np.where(mask, image, 65535).astype(image.dtype), nodata=65535):
        pass


@pytest.mark.parametrize("declare", [internal_mask, side_mask, alpha, aux_nodata, nodata_tag])
def test_masks_and_nodata_of_files_hide_pixels(tmp_path, scene, read, declare):
    path = scene.hrefs["B03"]
    image, mask = values(path), np.full((120, 120), True)
    mask[WEST] = False
    declare(path, image, mask)
    expected = np.where(mask, image + 1000, 0)
    np.testing.assert_array_equal(read(scene), expected)
    (found,), _ = scan(tmp_path, datetime_utc="2024-06-17")
    np.testing.assert_array_equal(read(found), expected)


@pytest.mark.parametrize(
    ("aux", "said"),
    [
        ("<PAMDataset><GeoTransform>600010, 10, 0, 5100000, 0, -10</GeoTransform></PAMDataset>", "places it at 600010"),
        ('<PAMDataset><PAMRasterBand band="1"><Scale>0.0000275</Scale></PAMRasterBand></PAMDataset>', "scale 2.75e-05"),
        ("<PAMDataset><broken", "cannot be read"),
    ],
)
def test_side_files_that_contradict_the_file_are_refused(tmp_path, scene, read, aux, said):
    Path(f"{scene.hrefs['B03']}.aux.xml").write_text(aux)
    with pytest.raises(UsageError, match=said):
        scan(tmp_path, datetime_utc="2024-06-17")
    with pytest.raises(ReadError, match=rf"B03 of scene s.*{said}"):
        read(scene)


def test_offset_in_an_aux_xml_counts_and_statistics_do_not(tmp_path):
    scene = make_scene(tmp_path, scene_id="s", size_m=SIDE, offset_dn=-1000, scl=False, bands=("B02", "B03", "B04"))
    for href in scene.hrefs.values():
        Path(f"{href}.aux.xml").write_text(
            '<PAMDataset><PAMRasterBand band="1"><Scale>0.0001</Scale><Offset>-0.1</Offset>'
            '<Metadata><MDI key="STATISTICS_MEAN">1500</MDI></Metadata></PAMRasterBand></PAMDataset>'
        )
    (found,), _ = scan(tmp_path, datetime_utc="2024-06-17")
    assert found.offset.offset_dn == -1000


def test_an_aux_xml_makes_gdal_open_nothing(tmp_path, scene, read):
    """It may name any file as an overview; GDAL must not follow it."""
    shutil.copy(scene.hrefs["B04"], tmp_path / "other.ovr")
    for href in scene.hrefs.values():
        Path(f"{href}.aux.xml").write_text(
            '<PAMDataset><Metadata domain="OVERVIEWS">'
            f'<MDI key="OVERVIEW_FILE">{tmp_path}/other.ovr</MDI></Metadata></PAMDataset>'
        )
    np.testing.assert_array_equal(read(scene), values(scene.hrefs["B03"]) + 1000)


def test_a_mask_of_another_size_is_refused(tmp_path, scene, read):
    path = Path(scene.hrefs["B03"])
    write_band(path.with_name(f"{path.name}.msk.tif"), np.full((60, 60), 255, np.uint8),
               Raster(20, 600000, 5100000, 60, 60), 32632)  # fmt: skip
    path.with_name(f"{path.name}.msk.tif").rename(f"{path}.msk")
    with pytest.raises(ReadError, match=r"msk is a GTiff of 60 x 60 px; expected"):
        read(scene)


# --- sample types and impossible values


@pytest.mark.parametrize("offset_dn", [0, -1000])
def test_int16_bands_keep_negative_reflectance(tmp_path, read, offset_dn):
    scene = make_scene(tmp_path, scene_id="s", size_m=SIDE, offset_dn=offset_dn)
    path = scene.hrefs["B03"]
    image = values(path).astype(np.int16)
    image[0, :6] = [-9999, -1000, -999, -1, 0, 7]
    for _ in rewritten(path, image):
        pass
    expected = [0, 0, 1, 999, 0, 1007] if offset_dn == 0 else [0, 0, 0, 0, 0, 7]
    shown = read(scene)
    assert shown[0, :6].tolist() == expected
    assert shown.dtype == np.uint16
    np.testing.assert_array_equal(shown[1:], image[1:] + 1000 + offset_dn)


def test_wrapped_and_saturated_values_are_nodata_and_counted(tmp_path, read):
    """Where somebody took 1000 off in uint16, -40 became 65496."""
    scene = make_scene(tmp_path, scene_id="s", size_m=SIDE)
    path = scene.hrefs["B03"]
    image = values(path)
    image[:6] = 65496
    image[6, :3] = [64535, 64536, 65535]
    for _ in rewritten(path, image):
        pass
    shown = read(scene)
    assert (shown[:6] == 0).all()
    assert shown[6, :3].tolist() == [65535, 0, 0]
    (_,), notes = scan(tmp_path, datetime_utc="2024-06-17")
    assert any("5.01 % of B03 cannot be reflectance" in note and "nodata" in note for note in notes)


def test_scl_in_uint16_and_unknown_classes(tmp_path, read):
    scene = make_scene(tmp_path, scene_id="s", size_m=SIDE)
    raster = Raster(20, 600000, 5100000, 60, 60)
    classes = np.full((60, 60), 4, np.uint16)
    write_band(Path(scene.hrefs[SCL]), classes, raster, 32632)
    (found,), _ = scan(tmp_path, datetime_utc="2024-06-17")
    assert SCL in found.hrefs
    assert read(found).all()
    classes[3, 3] = 99
    write_band(Path(scene.hrefs[SCL]), classes, raster, 32632)
    with pytest.raises(ReadError, match=r"SCL of scene s holds class 99"):
        read(scene)


def test_ground_that_scl_calls_nodata_is_nodata(tmp_path):
    """In every band, whether one scene is read or several are composited."""
    classes = np.full((60, 60), 4, np.uint8)
    classes[:30] = 0
    classes[30, :3] = 0  # one row of a 60 m pixel of three: still data at 60 m
    scene = make_scene(tmp_path, scene_id="s", size_m=SIDE, scl=classes)
    other = make_scene(tmp_path, scene_id="t", size_m=SIDE, seed=1, scl=classes)
    access = Access(roots=(str(tmp_path),))
    for scenes, composite in (([scene], "mosaic"), ([scene, other], "mosaic"), ([scene, other], "median")):
        pixels = read_period(scenes, composite, GRID, BAND_NAMES, access)
        assert not pixels.dn[10][:, :60].any()
        assert not pixels.dn[20][:, :30].any()
        assert not pixels.dn[60][:, :10].any()
        assert not pixels.dn[10][:, 60:62, :6].any()
        assert pixels.dn[10][:, 62:].all()
        assert pixels.dn[60][:, 10:].all()
