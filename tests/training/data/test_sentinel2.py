"""Sentinel-2 as training data: the loader of inference, tiles along the cells that decide splits, stacks undone."""

import json
import pickle

import numpy as np
import pytest
import xarray as xr
from pyproj import Transformer

from pipeline.bands import BAND_NAMES, BY_NAME, DN_SCALE, RGB
from pipeline.errors import UsageError
from pipeline.grid.grid import Window
from tests.archive.synthetic import coordinate_dn, make_archive, make_scene
from tests.training.imagery import corner_in, placed, write_raster, write_toml
from training.data.places import CELL_M, Georeference, cell_name, split_of
from training.data.sources import TrainingData, load_training_file
from training.data.tiles import BANDS, CELL_PX, Tile, TileCache, ground_pieces, named_pieces


def data_of(folder, **keys) -> TrainingData:
    source = {"name": '"a"', "role": '"sentinel2"', "path": '"scenes"', **keys}
    lines = [f"{key} = {value}" for key, value in source.items() if value is not None]
    return load_training_file(write_toml(folder, "\n".join(["[[source]]", *lines])))


def test_tiles_hold_what_inference_reads(tmp_path):
    """DN that name their own place arrive at that place, in every band, as reflectance."""
    make_scene(tmp_path / "scenes", scene_id="S2_A", size_m=1800, kind="coordinates", scl=False)
    (tile,) = data_of(tmp_path, split='"train"', offset_dn="0").tiles("train")
    assert (tile.shape, tile.place) == ((30, 30), "a/S2_A")
    for gsd, names in BANDS.items():
        row, col, side = -5100000 // gsd, 600000 // gsd, 1800 // gsd
        for index, name in enumerate(names):
            dn = coordinate_dn(name, np.arange(row, row + side), np.arange(col, col + side))
            np.testing.assert_allclose(tile.rho[gsd][index], dn * DN_SCALE, atol=1e-6)
    assert tile.valid.all()
    image = data_of(tmp_path, split='"train"', offset_dn="0").bracket[0]
    stored = image.reader.read(7, 11, 20, 30)  # not on 60 m pixels
    for index, name in enumerate(RGB):
        dn = coordinate_dn(name, np.arange(-510000 + 7, -510000 + 27), np.arange(60000 + 11, 60000 + 41))
        np.testing.assert_allclose(image.values.decode(stored)[index], dn * DN_SCALE, atol=1e-6)


@pytest.mark.parametrize("epsg", [32632, 32732])
def test_a_scene_is_cut_along_cells(tmp_path, epsg):
    """Of either hemisphere, whose phases differ: each tile in one cell, each cell's split the tile's."""
    left, top = 10 * CELL_M * 8 - 3000, 5_000_000 // CELL_M * CELL_M + 3000
    origin = {32632: 0, 32732: 40}[epsg]
    left, top = round(left / 60) * 60, round((top - origin) / 60) * 60 + origin
    size = {"size_m": 6000, "bands": ("B02", "B03", "B04", "B08", "B05")}
    make_scene(tmp_path / "scenes", scene_id="S2_A", epsg=epsg, left_m=left, top_m=top, scl=False, **size)
    data = data_of(tmp_path)
    tiles = [*data.tiles("train"), *data.tiles("held-out")]
    assert len(tiles) == 4
    for tile in tiles:
        inside = np.array([1e-3, -1e-3])
        x = left + 60 * np.array([tile.window.col, tile.window.col_end]) + inside
        south = 60 * np.array([tile.window.row, tile.window.row_end]) - top + inside
        cols, rows = np.floor(x / CELL_M), np.floor(south / CELL_M)
        assert cols[0] == cols[1]
        assert rows[0] == rows[1]
        assert tile.place == cell_name(epsg, int(rows[0]), int(cols[0]))
        assert tile.split == split_of(tile.place)
        assert tile.rho[10].shape[1:] == (tile.shape[0] * 6, tile.shape[1] * 6)


def test_scenes_and_photographs_of_one_place_share_its_split(tmp_path):
    """A photograph must not teach what a scene is judged on."""
    for split in ("train", "held-out"):
        left, top = corner_in(split)
        left, top = (round(metres / 60) * 60 for metres in (left + 600, top - 600))
        make_scene(tmp_path / "scenes", scene_id=split, left_m=left, top_m=top, size_m=1200, scl=False)
        photo = np.full((3, 200, 200), 100, np.uint8)
        write_raster(tmp_path / "photos" / f"{split}.tif", photo, **placed(left + 13, top - 17, 1.0))
    photos = '\n[[source]]\nname = "b"\nrole = "hr"\npath = "photos"'
    data = load_training_file(
        write_toml(tmp_path, '[[source]]\nname = "a"\nrole = "sentinel2"\npath = "scenes"' + photos)
    )
    for split in ("train", "held-out"):
        (tile,) = data.tiles(split)
        (photo,) = (image for image in data.images if image.split == split)
        assert photo.place == tile.place


def test_ground_in_two_splits_is_left_out():
    """A scene of the neighbouring zone: its own cells are not those of the ground."""
    x, y = Transformer.from_crs(4326, 32633, always_xy=True).transform(11.0, 45.0)  # zone 32 by its longitude
    raster = Georeference("EPSG:32633", (60.0, 0.0, round(x), 0.0, -60.0, round(y)), (900, 900))
    pieces = list(ground_pieces(raster))
    assert 0 < len(pieces) < 49
    for window, place, split in pieces:
        assert place.startswith("EPSG:32632/")
        assert split_of(place) == split
        assert max(window.shape) <= CELL_PX


def test_ground_with_a_name_is_cut_only_where_it_is_large():
    assert list(named_pieces((200, 37))) == [Window(0, 0, 200, 37)]
    pieces = list(named_pieces((300, 20)))
    assert [piece.shape for piece in pieces] == [(100, 20)] * 3
    assert not list(named_pieces((300, 15)))


def test_stacks_on_the_10_m_grid_are_undone(tmp_path):
    """Bands of 20 and 60 m repeated to 10 m come back as they were, for every date."""
    rng = np.random.default_rng(0)
    native = {
        name: rng.integers(200, 4000, (2, 960 * 2 // BY_NAME[name].gsd_m, 960 * 2 // BY_NAME[name].gsd_m))
        for name in BAND_NAMES
    }
    repeats = {name: np.ones((1, band.gsd_m // 10, band.gsd_m // 10), int) for name, band in BY_NAME.items()}
    fine = {name: np.kron(dn, repeats[name]) for name, dn in native.items()}
    stack = np.stack([fine[name][date] for date in range(2) for name in BAND_NAMES]).astype(np.uint16)
    write_raster(tmp_path / "stack.tif", stack)
    bands = "{ " + ", ".join(f"{name} = {index}" for index, name in enumerate(BAND_NAMES, 1)) + " }"
    data = data_of(tmp_path, path='"stack.tif"', dates="2", bands=bands, scale="1e-4", split='"train"')
    first, second = data.tiles("train")
    for date, tile in enumerate((first, second)):
        for gsd, names in BANDS.items():
            for index, name in enumerate(names):
                np.testing.assert_allclose(tile.rho[gsd][index], native[name][date] * 1e-4, rtol=1e-5)
    assert [image.reader.read(0, 0, 1, 1).ravel().tolist() for image in data.bracket] == [
        [int(native[name][date, 0, 0]) for name in RGB] for date in range(2)
    ]
    six = [image for image in data.native if image.bands == BANDS[20]]
    assert [image.reader.shape for image in six] == [(96, 96)] * 2
    assert [image.gsd_m for image in six] == [(20.0, 20.0)] * 2
    for date, image in enumerate(six):
        expected = np.stack([native[name][date, 3:7, 5:10] for name in BANDS[20]])
        np.testing.assert_array_equal(image.reader.read(3, 5, 4, 5), expected)


def test_a_stack_whose_scale_was_forgotten_is_refused(tmp_path):
    path = write_raster(tmp_path / "stack.tif", np.full((4, 120, 120), 1500, np.uint16))
    keys = {"path": '"stack.tif"', "bands": "{ B04 = 1, B03 = 2, B02 = 3, B05 = 4 }", "split": '"train"'}
    (tile,) = data_of(tmp_path, **keys).tiles("train")
    with pytest.raises(UsageError, match=rf"B04 of {path} has numbers around 1500; expected reflectance, 0 to 1"):
        tile.ground.load(tile.window)
    (tile,) = data_of(tmp_path, **keys, scale="1e-4").tiles("train")
    assert tile.rho[20].max() == pytest.approx(0.15)


def test_scenes_of_an_archive_are_read_within_the_area(tmp_path):
    """By the search of inference; only ground that the area's box touches becomes tiles."""
    left, top = corner_in("train")
    left, top = (round(metres / 60) * 60 for metres in (left + 120, top - 120))
    scene = make_scene(tmp_path / "files", scene_id="S2_A", left_m=left, top_m=top, size_m=6000, offset_dn=-1000)
    make_archive(tmp_path, [scene])
    corners = [
        (left + 1000, top - 1000),
        (left + 3000, top - 1000),
        (left + 3000, top - 3000),
        (left + 1000, top - 3000),
    ]
    to_degrees = Transformer.from_crs(32632, 4326, always_xy=True)
    ring = [list(to_degrees.transform(*corner)) for corner in [*corners, corners[0]]]
    (tmp_path / "area.geojson").write_text(json.dumps({"type": "Polygon", "coordinates": [ring]}))
    keys = {"path": None, "catalog": '"archive.json"', "aoi": '"area.geojson"', "period": '"2024-06"'}
    data = data_of(tmp_path, **keys)
    (tile,) = data.tiles("train")
    assert 33 <= tile.shape[0] <= 36
    assert 0.01 < tile.rho[10].mean() < 0.5  # the offset was applied
    assert data.bracket[0].reader.shape == (tile.shape[0] * 6, tile.shape[1] * 6)
    with pytest.raises(
        UsageError, match=r"source 'a': no scene in .*area.geojson \(1 scene left out: outside the period\)"
    ):
        _ = data_of(tmp_path, **{**keys, "period": '"2023"'}).scenes


def test_tiles_are_read_once_while_held(tmp_path, monkeypatch):
    make_scene(tmp_path / "scenes", scene_id="S2_A", size_m=1800, scl=False)
    (tile,) = data_of(tmp_path, split='"train"', offset_dn="0").tiles("train")
    loads = []
    plain = type(tile.ground).load
    monkeypatch.setattr(type(tile.ground), "load", lambda self, window: loads.append(window) or plain(self, window))
    assert isinstance(tile, Tile)
    for _ in range(3):
        assert tile.rho[20].shape == (6, 90, 90)
        assert tile.valid.shape == tile.shape
    assert loads == [tile.window]
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(tile)).rho[10], tile.rho[10])


def test_as_many_tiles_are_held_as_fit():
    tiles = [Tile.of(f"{n}", {10: np.full((4, 96, 96), n, np.float32)}, np.ones((16, 16), bool), ()) for n in range(3)]
    size = tiles[0].ground.nbytes
    assert size == 4 * 96 * 96 * 4 + 256
    cache, reads = TileCache(2 * size), []
    for tile in tiles:
        object.__setattr__(tile, "ground", Counted(tile.ground, reads))
    for number in (0, 1, 0, 2, 0, 1):  # 1 is the one not read for longest when 2 comes
        assert cache.loaded(tiles[number]).rho[10][0, 0, 0] == number
    assert reads == [0, 1, 2, 1]
    assert cache.held_bytes == 2 * size
    cache.limit_bytes = 0
    cache.loaded(tiles[2])
    assert cache.held_bytes == size


class Counted:
    def __init__(self, ground, reads):
        self.ground, self.reads = ground, reads

    def load(self, window):
        self.reads.append(int(self.ground.rho[10][0, 0, 0]))
        return self.ground.load(window)


def test_a_stack_on_another_grid_is_refused(tmp_path):
    path = write_raster(tmp_path / "stack.tif", np.ones((4, 120, 120), np.uint16), **placed(600_000, 5_000_000, 20.0))
    keys = {"path": '"stack.tif"', "bands": "{ B04 = 1, B03 = 2, B02 = 3, B05 = 4 }", "scale": "1e-4"}
    with pytest.raises(UsageError) as error:
        data_of(tmp_path, **keys).tiles("train")
    assert str(error.value) == (
        f"{tmp_path / 'mine.toml'}: source 'a': {path} has pixels of 20 m; expected a stack on the 10 m grid"
    )
    keys["bands"] = "{ B04 = 1, B03 = 2, B02 = 3, B05 = 5 }"
    with pytest.raises(UsageError, match=r"band 5 of .*stack.tif, which holds 4 bands; expected 1 to 4"):
        data_of(tmp_path, **keys).tiles("train")


def test_a_store_may_hold_the_stack(tmp_path):
    """As a folder of dates: (time, band, y, x) with Sentinel-2's own names of bands."""
    names = ["B02", "B03", "B04", "B08", "B05"]
    values = np.random.default_rng(0).uniform(0, 0.3, (2, 5, 120, 120)).astype(np.float32)
    left, top = (metres + 60 for metres in corner_in("train"))
    coords = {
        "band": np.array(names, object),
        "x": left + 5 + 10.0 * np.arange(120),
        "y": top - 65 - 10.0 * np.arange(120),
    }
    array = xr.DataArray(values, dims=("time", "band", "y", "x"), coords=coords)
    array.to_dataset(name="boa").to_zarr(tmp_path / "s.zarr", zarr_format=3, consolidated=False)
    data = data_of(tmp_path, path=None, zarr='"s.zarr"', variable='"boa"', split='"train"')
    first, second = data.tiles("train")
    np.testing.assert_array_equal(second.rho[10][:3], values[1, [2, 1, 0]])
    np.testing.assert_array_equal(first.rho[20][0], values[0, 4, ::2, ::2])
    assert first.present == ("B02", "B03", "B04", "B05", "B08")
    np.testing.assert_array_equal(data.bracket[0].reader.read(3, 4, 5, 6), values[0, [2, 1, 0], 3:8, 4:10])
