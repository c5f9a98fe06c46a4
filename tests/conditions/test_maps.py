"""Maps beside the scenes: pixels by their centres, whichever window asks; other files than the plan's are refused."""

import dataclasses
import warnings

import numpy as np
import pyogrio.raw
import pytest
import rasterio
import shapely

from pipeline.conditions import vector_map
from pipeline.conditions.frozen import Frozen, content_digest, freeze
from pipeline.conditions.maps import TILE_PX, ZoneMaps
from pipeline.conditions.settle import settle
from pipeline.errors import ReadError, UsageError
from pipeline.grid.grid import Grid, Window
from pipeline.superres.declared import Condition, MapClass

EPSG = 32632
GRID = Grid(EPSG, Window(-2040000, 240000, 24, 24))  # 2.5 m
GSD_M = 1.25
MAP = Condition("map", "a map", classes=(MapClass("house", "kind = 'house'"), MapClass("road", "kind = 'road'", 7.0)))
HEIGHTS = Condition("heights", "heights", kind="raster", bands=("height", "slope"), resampling="nearest")
LEFT, TOP = 600000.0, 5100000.0
# a triangle and a bent road that cross borders of tiles
HOUSE = shapely.Polygon([(LEFT + 10.3, TOP - 20.1), (LEFT + 700.9, TOP - 333.7), (LEFT + 55.5, TOP - 905.2)])
ROAD = shapely.LineString([(LEFT - 50, TOP - 10), (LEFT + 400, TOP - 420), (LEFT + 420, TOP - 1200)])
WINDOW = Window(-4080000 - 40, 480000 - 60, 900, 800)  # px of 1.25 m


def write(path, shapes, kinds, crs=f"EPSG:{EPSG}", driver="GPKG"):
    if crs and crs != f"EPSG:{EPSG}":
        from pyproj import Transformer

        turn = Transformer.from_crs(EPSG, crs, always_xy=True).transform
        shapes = [shapely.transform(one, lambda xy: np.column_stack(turn(xy[:, 0], xy[:, 1]))) for one in shapes]
    geometries = shapely.to_wkb(np.array(shapes, dtype=object))
    fields = [np.array(kinds, dtype=object)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of a file without a CRS, which one test is about
        pyogrio.raw.write(path, geometries, fields, fields=["kind"], geometry_type="Unknown", crs=crs, driver=driver)
    return path


@pytest.fixture(scope="module")
def town(tmp_path_factory):
    return write(tmp_path_factory.mktemp("map") / "town.gpkg", [HOUSE, ROAD], ["house", "road"])


def maps_of(path, declared=MAP):
    return ZoneMaps({declared.name: (declared, freeze(declared, str(path)))}, GRID)


def centres(window):
    rows, cols = np.arange(window.row, window.row_end), np.arange(window.col, window.col_end)
    return np.meshgrid((cols + 0.5) * GSD_M, -(rows + 0.5) * GSD_M)


def test_a_pixel_has_the_class_of_the_feature_at_its_centre(town):
    house, road = maps_of(town).over("map", ("house", "road"), WINDOW, GSD_M)
    x, y = centres(WINDOW)
    assert np.array_equal(house > 0, shapely.contains_xy(HOUSE, x, y))
    near = shapely.distance(ROAD, shapely.points(x, y))
    clear = np.abs(near - 3.5) > 0.05  # the buffer is a polygon
    assert np.array_equal((road > 0)[clear], (near < 3.5)[clear])
    assert set(np.unique(house)) == {0.0, 1.0}


def test_no_pixel_depends_on_the_window_that_asks(town):
    maps = maps_of(town)
    whole = maps.over("map", ("road", "house"), WINDOW, GSD_M)
    for part in (Window(WINDOW.row + 7, WINDOW.col + 11, 300, 400), Window(WINDOW.row + 501, WINDOW.col + 333, 1, 77)):
        assert np.array_equal(maps.over("map", ("road", "house"), part, GSD_M), whole[(..., *part.slices(WINDOW))])
    assert WINDOW.ny > TILE_PX


@pytest.mark.parametrize(
    ("suffix", "driver"), [(".fgb", "FlatGeobuf"), (".geojson", "GeoJSON"), (".shp", "ESRI Shapefile")]
)
@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:3857"])
def test_other_formats_and_coordinates_give_the_same(town, tmp_path, suffix, driver, crs):
    if (driver, crs) == ("GeoJSON", "EPSG:3857"):
        return  # it is in degrees
    shapes, kinds = ([HOUSE], ["house"]) if driver == "ESRI Shapefile" else ([HOUSE, ROAD], ["house", "road"])
    there = write(tmp_path / f"town{suffix}", shapes, kinds, crs, driver)
    found = maps_of(there).over("map", ("house",), WINDOW, GSD_M)
    assert (found != maps_of(town).over("map", ("house",), WINDOW, GSD_M)).mean() < 1e-4


def test_a_map_that_was_not_given_is_not_there(town):
    assert maps_of(town).over("other", ("house",), WINDOW, GSD_M) is None
    assert ZoneMaps.of((), "bicubic", GRID) is None


def test_ground_beyond_the_map_is_empty(town):
    far = dataclasses.replace(WINDOW, col=WINDOW.col + 100000)
    assert not maps_of(town).over("map", ("house", "road"), far, GSD_M).any()


def test_another_file_than_the_plans_is_refused(tmp_path):
    path = write(tmp_path / "town.gpkg", [HOUSE], ["house"])
    frozen = freeze(MAP, str(path))
    assert vector_map.require_same(frozen) == path
    vector_map.require_same.cache_clear()
    write(path, [ROAD], ["road"])
    assert content_digest(path) != frozen.sha256
    with pytest.raises(UsageError, match="has changed since the plan was made"):
        vector_map.channels(MAP, frozen, GRID)


def refused(path, declared=MAP):
    with pytest.raises(UsageError) as caught:
        settle((declared,), {declared.name: str(path)}, "toy")
    return caught.value


def test_what_is_no_map_is_refused_before_anything_is_read(tmp_path):
    assert "does not exist" in refused(tmp_path / "none.gpkg").found
    text = tmp_path / "notes.txt"
    text.write_text("roads")
    assert ".gpkg, .fgb" in refused(text).expected
    disguised = tmp_path / "town.gpkg"
    disguised.write_text("<OGRVRTDataSource><OGRVRTLayer name='a'><SrcDataSource>/etc/passwd</SrcDataSource>")
    assert "is no GPKG file" in refused(disguised).found
    folder = tmp_path / "folder.gpkg"
    folder.mkdir()
    assert "is no file" in refused(folder).found
    assert "on this machine" in refused("https://example.org/town.gpkg").expected
    nowhere = write(tmp_path / "nowhere.gpkg", [HOUSE], ["house"], crs=None)
    assert "has no CRS" in refused(nowhere).found


def test_a_map_without_the_attributes_is_named(tmp_path):
    path = tmp_path / "plain.gpkg"
    pyogrio.raw.write(
        path, shapely.to_wkb(np.array([HOUSE])), [np.array([1])], fields=["id"], geometry_type="Polygon",
        crs=f"EPSG:{EPSG}", driver="GPKG",
    )  # fmt: skip
    with pytest.raises(ReadError, match="kind") as caught:
        maps_of(path).over("map", ("house",), WINDOW, GSD_M)
    assert "kind = 'house'" in caught.value.expected


def raster(path, values, nodata=None, count=None):
    transform = rasterio.Affine(2.5, 0, LEFT, 0, -2.5, TOP)
    profile = {"driver": "GTiff", "dtype": "float32", "crs": EPSG, "transform": transform, "nodata": nodata}
    height, width = values.shape[1:]
    with rasterio.open(path, "w", width=width, height=height, count=count or len(values), **profile) as file:
        file.write(values[: count or len(values)])
    return path


def test_a_raster_map_lies_where_it_lies(tmp_path):
    values = np.random.default_rng(0).random((2, 40, 60)).astype(np.float32)
    values[0, 5, 7] = -99
    path = raster(tmp_path / "heights.tif", values, nodata=-99)
    maps = maps_of(path, HEIGHTS)
    window = Window(-4080000 - 10, 480000 - 10, 100, 140)
    slope, height = maps.over("heights", ("slope", "height"), window, GSD_M)
    inside = (slice(10, 90), slice(10, 130))
    assert np.array_equal(slope[inside], values[1].repeat(2, 0).repeat(2, 1))
    assert not height[20:22, 24:26].any()
    assert not height[:10].any()
    part = Window(window.row + 13, window.col + 17, 30, 50)
    assert np.array_equal(maps.over("heights", ("slope",), part, GSD_M)[0], slope[part.slices(window)])


def test_a_raster_map_has_the_bands_that_are_declared(tmp_path):
    path = raster(tmp_path / "heights.tif", np.ones((1, 4, 4), np.float32))
    assert "has 1 bands" in refused(path, HEIGHTS).found
    assert Frozen(**dataclasses.asdict(freeze(HEIGHTS, str(path)))) == freeze(HEIGHTS, str(path))


def write_image(path, gsd_m, values, nodata=None):
    profile = {"driver": "GTiff", "crs": f"EPSG:{EPSG}", "transform": rasterio.Affine(gsd_m, 0, LEFT, 0, -gsd_m, TOP)}
    shape = {"count": len(values), "height": values.shape[1], "width": values.shape[2], "dtype": values.dtype}
    with rasterio.open(path, "w", **profile, **shape, nodata=nodata) as file:
        file.write(values)
    return path


IMAGE = Condition(
    "image", "an image", kind="raster", bands=("red",), resampling="area", nodata=float("nan"), coarsest_px=2.0
)
UPPER_LEFT = Window(-4080000, 480000, 32, 32)  # px of 1.25 m


def test_a_finer_image_is_averaged_by_area(tmp_path):
    values = np.random.default_rng(0).integers(1, 255, (1, 160, 160), dtype=np.uint8)
    path = write_image(tmp_path / "fine.tif", 0.25, values)
    found = maps_of(path, IMAGE).over("image", ("red",), UPPER_LEFT, GSD_M)
    expected = values.reshape(32, 5, 32, 5).mean((1, 3))
    np.testing.assert_allclose(found[0], expected, atol=0.01)


def test_a_coarser_image_is_interpolated_up_to_a_limit(tmp_path):
    values = (100 + 2 * np.arange(20, dtype=np.float32))[None, None].repeat(20, 1)
    path = write_image(tmp_path / "coarse.tif", 2.0, values)
    maps = maps_of(path, IMAGE)
    found = maps.over("image", ("red",), UPPER_LEFT, GSD_M)
    steps = np.diff(found[0, 16, 4:-4])
    np.testing.assert_allclose(steps, 2 * GSD_M / 2.0, atol=0.2)
    assert maps.over("image", ("red",), Window(-8160000, 960000, 8, 8), GSD_M / 2) is None, "2 m tell nothing at 1.25 m"


@pytest.mark.parametrize("nodata", [None, 0])
def test_ground_without_data_has_the_value_that_is_declared(nodata, tmp_path):
    values = np.full((1, 16, 32), 9, np.uint8)
    values[0, :4] = 0
    path = write_image(tmp_path / "part.tif", GSD_M, values, nodata)
    found = maps_of(path, IMAGE).over("image", ("red",), UPPER_LEFT, GSD_M)[0]
    assert np.isnan(found[17:]).all(), "beyond the file"
    assert (found[5:15] == 9).all()
    assert np.isnan(found[:3]).all() if nodata == 0 else (found[:3] == 0).all()


def test_an_alpha_band_says_where_there_is_data(tmp_path):
    values = np.full((4, 32, 32), 9, np.uint8)
    values[3] = 255
    values[3, :8] = 0
    path = write_image(tmp_path / "rgba.tif", GSD_M, values)
    with rasterio.open(path, "r+") as file:
        file.colorinterp = [rasterio.enums.ColorInterp[name] for name in ("red", "green", "blue", "alpha")]
    found = maps_of(path, IMAGE).over("image", ("red",), UPPER_LEFT, GSD_M)[0]
    assert np.isnan(found[:7]).all()
    assert (found[9:] == 9).all()
