"""Cubes: every pixel at its place on any phase, every file opened once, no failure turned into nodata."""

import dataclasses
import http.server
import os
import pickle
import re
import shutil
import threading
from typing import ClassVar

import numpy as np
import pytest
import rasterio

from pipeline.archive.read import access as access_module
from pipeline.archive.read.access import Access
from pipeline.archive.read.band_file import UNCLASSIFIED
from pipeline.archive.read.cube import open_cube, read, read_period
from pipeline.archive.scene import Raster
from pipeline.bands import BAND_NAMES, BY_NAME, GSDS_M, SCL, bands_at
from pipeline.errors import ReadError, UsageError
from pipeline.grid.grid import Grid, Phase, Window
from pipeline.grid.native_rasters import factor_at
from tests.archive.synthetic import coordinate_dn, make_scene, write_band

LEFT, TOP, SIDE = 600000, 5100000, 1200
PHASES = [(0.0, 0.0), (29.8352053782, 33.330553154), (10.0, 50.0)]


@pytest.fixture
def local(tmp_path):
    return Access(roots=(str(tmp_path),))


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    """Retries stay, their pauses go."""
    patient = access_module.retrying
    monkeypatch.setattr(access_module, "retrying", lambda call, **kw: patient(call, sleep=lambda _s: None, **kw))


def grid_over(scene, pad_m=120, phase=None):
    raster = scene.rasters[0]
    right, bottom = raster.left_m + raster.nx * raster.gsd_m, raster.top_m - raster.ny * raster.gsd_m
    bounds = raster.left_m - pad_m, bottom - pad_m, right + pad_m, raster.top_m + pad_m
    return Grid.covering(scene.epsg, bounds, scene.phase if phase is None else phase)


def expected(band, native, scene, shift=1000):
    """(y, x) canonical DN that `coordinate_dn` promises on `native`, 0 outside the scene."""
    window, raster = native.window, next(r for r in scene.rasters if r.gsd_m == BY_NAME[band].gsd_m)
    rows = np.arange(window.row, window.row_end)
    cols = np.arange(window.col, window.col_end)
    row0 = round((native.phase.y_m - raster.top_m) / raster.gsd_m)
    col0 = round((raster.left_m - native.phase.x_m) / raster.gsd_m)
    inside = ((rows >= row0) & (rows < row0 + raster.ny))[:, None] & ((cols >= col0) & (cols < col0 + raster.nx))
    return np.where(inside, coordinate_dn(band, rows, cols) + shift, 0)


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("pad_m", [120, -180])
def test_every_pixel_lies_where_its_value_says(tmp_path, local, phase, pad_m):
    scene = make_scene(
        tmp_path, scene_id="c", left_m=LEFT + phase[0], top_m=TOP + phase[1], size_m=SIDE, kind="coordinates"
    )
    grid = grid_over(scene, pad_m)
    pixels = read(open_cube([scene], grid, BAND_NAMES, local))
    for gsd_m in GSDS_M:
        assert pixels.bands[gsd_m] == bands_at(gsd_m)
        for band, image in zip(pixels.bands[gsd_m], pixels.dn[gsd_m], strict=True):
            np.testing.assert_array_equal(image, expected(band, grid.at_gsd(gsd_m), scene), err_msg=band)
            assert image.dtype == np.uint16
    assert pixels.scl.dtype == np.uint8
    assert set(np.unique(pixels.scl)) == ({0, 4} if pad_m > 0 else {4})


@pytest.mark.parametrize("phase", PHASES)
def test_coordinates_are_pixel_centres(tmp_path, local, phase):
    scene = make_scene(tmp_path, scene_id="c", left_m=LEFT + phase[0], top_m=TOP + phase[1], size_m=SIDE)
    grid = grid_over(scene, 0)
    for gsd_m, raster in open_cube([scene], grid, BAND_NAMES, local).rasters.items():
        np.testing.assert_allclose(raster.x, scene.rasters[0].left_m + gsd_m * (np.arange(raster.sizes["x"]) + 0.5))
        np.testing.assert_allclose(raster.y, scene.rasters[0].top_m - gsd_m * (np.arange(raster.sizes["y"]) + 0.5))


def test_a_window_is_the_same_place_cut_out(tmp_path, local):
    scene = make_scene(tmp_path, scene_id="a", size_m=SIDE)
    grid = grid_over(scene)
    cube = open_cube([scene], grid, BAND_NAMES, local)
    window = Window(grid.window.row + 48, grid.window.col + 24, 96, 120)
    whole, part = read(cube), read(cube, window)
    for gsd_m in GSDS_M:
        rows, cols = part.window.coarsen(factor_at(gsd_m)).slices(grid.window.coarsen(factor_at(gsd_m)))
        np.testing.assert_array_equal(part.dn[gsd_m], whole.dn[gsd_m][:, rows, cols])


def test_lazy_cube_gives_the_same_values_in_threads(tmp_path, local):
    scene = make_scene(tmp_path, scene_id="a", size_m=SIDE)
    grid = grid_over(scene)
    once = read(open_cube([scene], grid, BAND_NAMES, local))
    chunked = pickle.loads(pickle.dumps(open_cube([scene], grid, BAND_NAMES, local, chunk_px=36)))
    for gsd_m in GSDS_M:
        assert max(chunked.rasters[gsd_m].data.chunksize) == 36 * 10 // gsd_m
        np.testing.assert_array_equal(chunked.rasters[gsd_m].compute(scheduler="threads")[0], once.dn[gsd_m])


def test_time_keeps_the_order_given_and_bands_come_by_name(tmp_path, local):
    late = make_scene(tmp_path, scene_id="late", date="2024-07-01T10:00:00Z", size_m=SIDE, seed=1)
    early = make_scene(tmp_path, scene_id="early", date="2024-06-01T10:00:00Z", size_m=SIDE, seed=2)
    cube = open_cube([late, early], grid_over(late, 0), ("B12", "B04", "B8A", "B02"), local)
    assert list(cube.rasters[10].scene.values) == ["late", "early"]
    assert list(cube.rasters[10].band.values) == ["B04", "B02"]
    assert list(cube.rasters[20].band.values) == ["B12", "B8A"]
    assert 60 not in cube.rasters
    np.testing.assert_array_equal(read(cube, time=1).dn[10][1], stored(early, "B02") + 1000)


def stored(scene, band):
    with rasterio.open(scene.hrefs[band]) as dataset:
        return dataset.read(1).astype(int)


def test_both_offsets_give_the_same_canonical_dn(tmp_path, local):
    before = make_scene(tmp_path, scene_id="before", size_m=SIDE, offset_dn=0, nodata_left_m=200)
    after = make_scene(tmp_path, scene_id="after", size_m=SIDE, offset_dn=-1000, nodata_left_m=200)
    grid = grid_over(before)
    one, other = (read_period([scene], "mosaic", grid, BAND_NAMES, local) for scene in (before, after))
    for gsd_m in GSDS_M:
        np.testing.assert_array_equal(one.dn[gsd_m], other.dn[gsd_m])
    assert (one.dn[10] == 0).any()
    assert one.dn[10][one.dn[10] > 0].min() > 1000


def test_foreign_nodata_becomes_zero(tmp_path, local):
    scene = make_scene(tmp_path, scene_id="a", size_m=SIDE)
    with rasterio.open(scene.hrefs["B02"], "r+") as dataset:
        dataset.nodata = 9999
        image = dataset.read(1)
        image[:5] = 9999
        dataset.write(image, 1)
    assert (read(open_cube([scene], grid_over(scene, 0), ("B02",), local)).dn[10][0, :5] == 0).all()


def test_scene_without_scl_is_unclassified_next_to_one_with(tmp_path, local):
    bare = make_scene(tmp_path, scene_id="bare", size_m=SIDE, scl=False)
    full = make_scene(tmp_path, scene_id="full", size_m=SIDE)
    grid = grid_over(full, 0)
    assert open_cube([bare], grid, ("B02",), local).scl is None
    cube = open_cube([bare, full], grid, ("B02",), local)
    assert (read(cube, time=0).scl == UNCLASSIFIED).all()
    assert (read(cube, time=1).scl == 4).all()


# --- cost


@pytest.fixture
def opened(monkeypatch):
    """Names of the files that rasterio opens from here on."""
    names, plain = [], rasterio.open

    def counting(name, *args, **kwargs):
        names.append(str(name))
        return plain(name, *args, **kwargs)

    monkeypatch.setattr(rasterio, "open", counting)
    return names


@pytest.mark.parametrize("chunk_px", [None, 36])
def test_each_file_is_opened_once(tmp_path, local, opened, chunk_px):
    scene = make_scene(tmp_path, scene_id="a", size_m=SIDE)
    opened.clear()
    read(open_cube([scene], grid_over(scene), BAND_NAMES, local, chunk_px=chunk_px))
    assert sorted(opened) == sorted(scene.hrefs.values())


def test_building_a_cube_opens_nothing_and_far_scenes_stay_shut(tmp_path, local, opened):
    near = make_scene(tmp_path, scene_id="near", size_m=SIDE)
    far = make_scene(tmp_path, scene_id="far", size_m=SIDE, left_m=LEFT + 60000)
    opened.clear()
    cube = open_cube([far, near], grid_over(near), BAND_NAMES, local)
    assert opened == []
    assert not read(cube, time=0).dn[10].any()
    assert opened == []
    read_period([far, near], "median", grid_over(near), BAND_NAMES, local)
    assert sorted(opened) == sorted(near.hrefs.values())


def test_mosaic_reads_no_further_than_it_must(tmp_path, local, opened):
    clear = make_scene(tmp_path, scene_id="clear", size_m=SIDE)
    spare = make_scene(tmp_path, scene_id="spare", size_m=SIDE, seed=1)
    opened.clear()
    read_period([clear, spare], "mosaic", grid_over(clear, 0), BAND_NAMES, local)
    assert sorted(opened) == sorted(clear.hrefs.values())


def test_a_cell_cloudy_in_every_scene_opens_only_their_scl(tmp_path, local, opened):
    classes = np.full((SIDE // 20, SIDE // 20), 4)
    classes[5, 7] = 9
    scenes = [make_scene(tmp_path, scene_id=f"s{i}", size_m=SIDE, seed=i, scl=classes) for i in range(3)]
    opened.clear()
    pixels = read_period(scenes, "mosaic", grid_over(scenes[0], 0), BAND_NAMES, local)
    assert sorted(opened) == sorted([*scenes[0].hrefs.values(), scenes[1].hrefs[SCL], scenes[2].hrefs[SCL]])
    assert pixels.scenes == ("s0",)
    for gsd_m in GSDS_M:
        alone = read(open_cube(scenes[:1], grid_over(scenes[0], 0), BAND_NAMES, local))
        np.testing.assert_array_equal(pixels.dn[gsd_m], alone.dn[gsd_m])


def test_median_takes_each_day_once(tmp_path, local):
    days = ["2024-06-01T10:00:00Z", "2024-06-11T10:00:00Z", *["2024-06-21T10:00:00Z"] * 3]
    scenes = [
        make_scene(tmp_path, scene_id=f"s{i}", size_m=SIDE, seed=min(i, 2), date=day) for i, day in enumerate(days)
    ]
    pixels = read_period(scenes, "median", grid_over(scenes[0], 0), ("B02",), local)
    want = np.median([stored(scene, "B02") + 1000 for scene in scenes[:3]], axis=0)
    np.testing.assert_array_equal(pixels.dn[10][0], want)
    assert pixels.scenes == ("s0", "s1", "s2")


@pytest.mark.parametrize("composite", ["mosaic", "median"])
def test_stored_scl_does_not_depend_on_how_the_area_is_cut(tmp_path, local, composite):
    bare = make_scene(tmp_path, scene_id="bare", size_m=SIDE, scl=False, nodata_left_m=310)
    full = make_scene(tmp_path, scene_id="full", size_m=SIDE, left_m=LEFT + 900, seed=1, nodata_left_m=100)
    grid = Grid.covering(32632, (LEFT - 120, TOP - SIDE, LEFT + 2100, TOP + 120), bare.phase)
    edge_px = (900 + 120) * 2 // 5
    window = grid.window
    left = Window(window.row, window.col, window.ny, edge_px)
    right = Window(window.row, window.col + edge_px, window.ny, window.nx - edge_px)
    whole = read_period([bare, full], composite, grid, BAND_NAMES, local, with_scl=True)
    parts = [
        read_period(scenes, composite, grid.of(part), BAND_NAMES, local, with_scl=True)
        for scenes, part in (([bare], left), ([bare, full], right))
    ]
    np.testing.assert_array_equal(np.hstack([part.scl for part in parts]), whole.scl)
    assert set(np.unique(parts[0].scl)) == {0, UNCLASSIFIED}
    assert set(np.unique(parts[1].scl)) == {0, 4, UNCLASSIFIED}
    ground = parts[0].dn[20].any(axis=0)
    assert (parts[0].scl[ground] == UNCLASSIFIED).all()
    assert read_period([bare], composite, grid.of(left), BAND_NAMES, local).scl is None
    assert [part.scenes for part in parts] == [("bare",), ("bare", "full")]


# --- other phases and zones


def test_other_phase_is_refused_or_resampled_nearest(tmp_path, local):
    # without SCL, whose 20 m cells, moved by themselves, end up to 10 m inside the bands
    scene = make_scene(
        tmp_path, scene_id="off", left_m=LEFT + 13, top_m=TOP + 4, size_m=SIDE, kind="coordinates", scl=False
    )
    grid = grid_over(scene, 0, Phase())
    with pytest.raises(UsageError, match="off the grid"):
        read(open_cube([scene], grid, BAND_NAMES, local))
    pixels = read(open_cube([scene], grid, BAND_NAMES, local, resample=True))
    for gsd_m in GSDS_M:
        left, _, _, top = grid.bounds_m
        ny, nx = grid.at_gsd(gsd_m).shape
        rows = np.floor((TOP + 4 - (top - gsd_m * (np.arange(ny) + 0.5))) / gsd_m).astype(int)
        cols = np.floor((left + gsd_m * (np.arange(nx) + 0.5) - (LEFT + 13)) / gsd_m).astype(int)
        for band, image in zip(pixels.bands[gsd_m], pixels.dn[gsd_m], strict=True):
            source = np.pad(stored(scene, band) + 1000, 8)
            np.testing.assert_array_equal(image, source[np.ix_(rows + 8, cols + 8)], err_msg=band)


def test_resampling_does_not_depend_on_the_window(tmp_path, local):
    scene = make_scene(tmp_path, scene_id="off", left_m=LEFT + 5, top_m=TOP - 5, size_m=SIDE, kind="coordinates")
    grid = grid_over(scene, 0, Phase())
    whole = read(open_cube([scene], grid, BAND_NAMES, local, resample=True))
    part = grid.of(Window(grid.window.row + 120, grid.window.col + 48, 96, 96))
    alone = read(open_cube([scene], part, BAND_NAMES, local, resample=True))
    for gsd_m in GSDS_M:
        rows, cols = part.at_gsd(gsd_m).window.slices(grid.at_gsd(gsd_m).window)
        np.testing.assert_array_equal(alone.dn[gsd_m], whole.dn[gsd_m][:, rows, cols])


def test_other_zone_is_resampled_to_the_nearest_pixel(tmp_path, local):
    from pyproj import Transformer

    scene = make_scene(tmp_path, scene_id="west", left_m=720000, top_m=TOP, size_m=6000, kind="coordinates", scl=False)
    to_33 = Transformer.from_crs(32632, 32633, always_xy=True)
    x, y = to_33.transform(723000, TOP - 3000)
    grid = Grid.covering(32633, (x - 900, y - 900, x + 900, y + 900))
    with pytest.raises(UsageError, match="EPSG:32632"):
        read(open_cube([scene], grid, ("B02",), local))
    image = read(open_cube([scene], grid, ("B02",), local, resample=True)).dn[10][0]
    native = grid.at_gsd(10)
    xs = native.left_m + 10 * (np.arange(native.shape[1]) + 0.5)
    ys = native.top_m - 10 * (np.arange(native.shape[0]) + 0.5)
    from_x, from_y = to_33.transform(*np.meshgrid(xs, ys), direction="INVERSE")
    rows, cols = np.floor((TOP - from_y) / 10).astype(int), np.floor((from_x - 720000) / 10).astype(int)
    np.testing.assert_array_equal(image, stored(scene, "B02")[rows, cols] + 1000)
    assert (
        not read(open_cube([scene], Grid.covering(32633, (5e5, 5e6, 5.006e5, 5.0006e6)), ("B02",), local)).dn[10].any()
    )


# --- failures


def test_missing_band_names_scene_and_band(tmp_path, local):
    whole = make_scene(tmp_path, scene_id="whole", size_m=SIDE)
    gap = make_scene(tmp_path, scene_id="gap", size_m=SIDE, bands=tuple(b for b in BAND_NAMES if b != "B09"))
    for scenes in ([whole, gap], [gap]):
        with pytest.raises(ReadError, match="scene gap has no file for B09"):
            open_cube(scenes, grid_over(whole), BAND_NAMES, local)


def breaking(scene, band, change):
    """The scene with another file for one band."""
    path = scene.hrefs[band].replace(".tif", ".broken.tif")
    shutil.copy(scene.hrefs[band], path)
    change(path)
    return dataclasses.replace(scene, hrefs={**scene.hrefs, band: path})


def remove(path):
    os.unlink(path)


def truncate(path):
    with open(path, "r+b") as file:
        file.truncate(file.seek(0, 2) * 6 // 10)


def empty(path):
    open(path, "wb").close()


def scramble(path):
    """Damage the head of the first compressed block; deeper inside, deflate notices only most of the damage."""
    with rasterio.open(path) as dataset:
        start = int(dataset.get_tag_item("BLOCK_OFFSET_0_0", "TIFF", bidx=1))
    with open(path, "r+b") as file:
        file.seek(start)
        file.write(b"\x55" * 64)


def replaced(shape=(120, 120), dtype="uint16", gsd_m=10, left_m=LEFT, epsg=32632, fill=500):
    def change(path):
        write_band(path, np.full(shape, fill, dtype), Raster(gsd_m, left_m, TOP, *shape), epsg)

    return change


def page(path):
    with open(path, "w") as file:
        file.write("<html>503 Service Unavailable</html>")


def three_bands(path):
    profile = {"driver": "GTiff", "count": 3, "dtype": "uint16", "width": 120, "height": 120, "crs": "EPSG:32632"}
    with rasterio.open(path, "w", transform=rasterio.Affine(10, 0, LEFT, 0, -10, TOP), **profile) as dataset:
        dataset.write(np.ones((3, 120, 120), "uint16"))


damaged = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


@damaged
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (remove, "No such file"),
        (truncate, ""),
        (empty, "not recognized"),
        (page, "cannot be read as GeoTIFF"),
        (scramble, ""),
        (three_bands, "3 bands"),
        (replaced(dtype="int32"), "int32"),
        (replaced(dtype="float32"), "float32"),
        (replaced(dtype="uint8", fill=5), "uint8"),
        (replaced((100, 120)), "100 x 120"),
        (replaced(left_m=LEFT + 10), "600010"),
        (replaced((60, 60), gsd_m=20), r"pixel size \(20"),
        (replaced(epsg=32633), "EPSG:32633"),
    ],
)
def test_bad_file_is_an_error_that_names_scene_and_band(tmp_path, local, change, said):
    scene = breaking(make_scene(tmp_path, scene_id="bad", size_m=SIDE), "B03", change)
    with pytest.raises(ReadError, match="B03 of scene bad") as caught:
        read_period([scene], "mosaic", grid_over(scene), BAND_NAMES, local)
    assert "broken.tif" in str(caught.value)
    assert re.search(said, str(caught.value))


@damaged
def test_bad_scl_is_an_error_too(tmp_path, local):
    scene = breaking(make_scene(tmp_path, scene_id="bad", size_m=SIDE), SCL, truncate)
    with pytest.raises(ReadError, match="SCL of scene bad"):
        read_period([scene], "mosaic", grid_over(scene), BAND_NAMES, local)


def test_scene_without_raster_record_takes_the_file_at_its_word(tmp_path, local):
    scene = make_scene(tmp_path, scene_id="a", size_m=SIDE, kind="coordinates")
    grid = grid_over(scene)
    silent = dataclasses.replace(scene, rasters=())
    image = read(open_cube([silent], grid, ("B02",), local)).dn[10][0]
    np.testing.assert_array_equal(image, expected("B02", grid.at_gsd(10), scene))
    coarse = breaking(silent, "B02", replaced((60, 60), gsd_m=20))
    with pytest.raises(ReadError, match="pixel size"):
        read(open_cube([coarse], grid, ("B02",), local))


class _Gone(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_error(404)

    def do_HEAD(self):
        self.send_error(404)

    def log_message(self, *args):
        pass


class _Signing(Access):
    """Access whose addresses carry a secret, as signed ones do."""

    signed: ClassVar[list[str]] = []

    def address(self, href):
        self.signed.append(href)
        return f"{super().address(href)}?sig=CANARY"


def test_missing_remote_file_is_an_error_without_secrets(tmp_path):
    scene = make_scene(tmp_path, scene_id="remote", size_m=SIDE)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Gone)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    host = f"127.0.0.1:{server.server_address[1]}"
    scene = dataclasses.replace(scene, hrefs={band: f"http://{host}/{band}.tif" for band in BAND_NAMES})
    signing = _Signing(hosts=(host,))
    signing.signed.clear()
    cube = open_cube([scene], grid_over(scene), ("B02",), signing)
    assert signing.signed == []  # signatures expire: sign when opening, not when planning
    with pytest.raises(ReadError, match=r"B02 of scene remote at http://.*B02\.tif.*404") as caught:
        read(cube)
    server.shutdown()
    server.server_close()
    assert signing.signed  # anew for each request
    assert "CANARY" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"window": Window(-5, 0, 48, 48)}, "60 m pixels"),
        ({"scenes": []}, "0 scenes"),
        ({"bands": ()}, "0 bands"),
    ],
)
def test_impossible_cubes_are_refused(tmp_path, local, change, said):
    scene = make_scene(tmp_path, scene_id="a", size_m=120)
    grid = Grid(32632, change.get("window", Window(0, 0, 48, 48)))
    with pytest.raises(UsageError, match=said):
        open_cube(change.get("scenes", [scene]), grid, change.get("bands", ("B02",)), local)


def test_repeated_scenes_and_shared_files_are_refused(tmp_path, local):
    scene = make_scene(tmp_path, scene_id="a", size_m=120)
    with pytest.raises(UsageError, match="repeat"):
        open_cube([scene, scene], grid_over(scene), ("B02",), local)
    mixed = dataclasses.replace(scene, hrefs={**scene.hrefs, "B04": scene.hrefs["B03"]})
    with pytest.raises(UsageError, match="share one file"):
        open_cube([mixed], grid_over(scene), BAND_NAMES, local)
    with pytest.raises(UsageError, match="mosaic or median"):
        read_period([scene], "none", grid_over(scene), ("B02",), local)


@pytest.mark.shared_data
def test_real_scene_of_fractional_phase_is_read_whole(shared_data):
    from pipeline.archive.local.scan import scan

    scene = scan(shared_data / "s2_l2a/majortom_native/282D_485L_3_3", datetime_utc="2020-01-01")[0][0]
    access = Access(roots=(str(shared_data),))
    pixels = read_period([scene], "mosaic", grid_over(scene, 0), BAND_NAMES, access)
    for gsd_m in GSDS_M:
        for band, image in zip(pixels.bands[gsd_m], pixels.dn[gsd_m], strict=True):
            np.testing.assert_array_equal(image, stored(scene, band) + 1000)


def test_a_file_that_points_to_others_is_never_opened(tmp_path, local):
    scene = make_scene(tmp_path, scene_id="a", size_m=SIDE)
    real = shutil.move(scene.hrefs["B02"], tmp_path / "real.tif")
    source = f"<SimpleSource><SourceFilename>{real}</SourceFilename><SourceBand>1</SourceBand></SimpleSource>"
    with open(scene.hrefs["B02"], "w") as file:
        file.write(
            f'<VRTDataset rasterXSize="120" rasterYSize="120"><SRS>EPSG:32632</SRS>'
            f"<GeoTransform>{LEFT},10,0,{TOP},0,-10</GeoTransform>"
            f'<VRTRasterBand dataType="UInt16" band="1">{source}</VRTRasterBand></VRTDataset>'
        )
    with rasterio.Env() as env:
        if "VRT" in env.drivers():  # no test before has restricted this process
            with rasterio.open(scene.hrefs["B02"]) as dataset:
                assert dataset.driver == "VRT"
    with pytest.raises(ReadError, match="cannot be read as GeoTIFF or JPEG 2000"):
        read_period([scene], "mosaic", grid_over(scene, 0), ("B02",), local)
